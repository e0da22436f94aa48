package mock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
)

// A process is a guest of processes in namespaces of their own. Each boot is a
// first process, attest's own binary as init (contained.go), and what that starts.
type process struct {
	host    vmm.Host
	machine *Machine
	port    *os.File // the agent's end of its stream, for each boot

	mu      sync.Mutex
	current *boot // that Start has begun, or the one that runs
}

// A boot is the time between power on and power off or reset.
type boot struct {
	init    *supervise.Process
	taps    []*os.File
	said    *tail // the end of its console
	readers sync.WaitGroup
	over    atomic.Bool
}

// newProcess starts the first boot.
func newProcess(ctx context.Context, host vmm.Host, m *Machine, port *os.File) (_ *process, err error) {
	p := &process{host: host, machine: m, port: port}
	defer func() {
		if err != nil {
			port.Close()
		}
	}()
	if m.config.Restore != nil || m.config.Paused {
		return nil, &vmm.UnsupportedError{Machine: m.config.Name, Operation: "snapshot", Backend: "mock", Reason: "its machines are processes of this host"}
	}
	for _, n := range m.config.NICs {
		c := &card{}
		c.take = c.toTAP
		m.cards[n.ID] = c
	}
	if p.current, err = p.start(ctx); err != nil {
		return nil, err
	}
	p.connectTAPs(p.current)
	for _, n := range m.config.NICs {
		c := m.cards[n.ID]
		if n.Link == nil {
			continue
		}
		conn, err := connect(n.Link, host.Packets)
		if err != nil {
			p.stop(p.current)
			return nil, err
		}
		c.start(newFrameConn(conn))
	}
	p.read(p.current)
	return p, nil
}

// initOrder is what init is told, as its argument.
type initOrder struct {
	Name   string
	Dir    string // the machine's; init mounts in it, in its own namespace
	BootID string
}

// start starts a boot.
func (p *process) start(ctx context.Context) (_ *boot, err error) {
	m := p.machine
	order, err := json.Marshal(initOrder{Name: m.config.Name, Dir: m.config.Dir, BootID: bootID()})
	if err != nil {
		return nil, err
	}
	out, stderr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	links := make([]tap.Link, len(m.config.NICs))
	for i, n := range m.config.NICs {
		links[i] = tap.Link{Name: n.ID, MAC: n.MAC}
	}
	b := &boot{said: &tail{}}
	b.init, b.taps, err = tap.Start(ctx, p.host.Supervisor, supervise.Command{
		Path: "/proc/self/exe", Args: []string{initName, string(order)}, Dir: "/", Env: []string{"PATH=" + os.Getenv("PATH")},
		Stdout: stderr, Stderr: stderr, ExtraFiles: []*os.File{p.port}, Contained: true,
	}, links)
	if err != nil {
		out.Close()
		var unavailable *tap.UnavailableError
		if errors.As(err, &unavailable) {
			return nil, missing(unavailable.Step+": "+unavailable.Err.Error(), unavailable.Remedy)
		}
		return nil, err
	}
	b.readers.Go(func() {
		defer out.Close()
		io.Copy(io.MultiWriter(m.console, b.said), out)
	})
	return b, nil
}

func missing(reason, remedy string) error {
	const other = "canned answers need nothing"
	if remedy == "" {
		remedy = other
	} else {
		remedy += " (" + other + ")"
	}
	return &doctor.MissingError{What: "mock machines of processes", Reason: reason, Remedy: remedy}
}

// connectTAPs makes a boot's TAPs those that the cards send to.
func (p *process) connectTAPs(b *boot) {
	for i, n := range p.machine.config.NICs {
		p.machine.cards[n.ID].tap.Store(b.taps[i])
	}
}

// stop ends a boot, with all that there is of it.
func (p *process) stop(b *boot) {
	b.init.Kill()
	<-b.init.Done()
	for _, f := range b.taps {
		f.Close()
	}
	b.readers.Wait()
}

// read passes on what the cards of a boot send.
func (p *process) read(b *boot) {
	for i, n := range p.machine.config.NICs {
		c := p.machine.cards[n.ID]
		b.readers.Go(func() {
			buf := make([]byte, maxFrame)
			for {
				size, err := b.taps[i].Read(buf)
				if err != nil {
					return
				}
				c.send(buf[:size])
			}
		})
	}
}

func (p *process) run(ctx context.Context, m *Machine) {
	p.mu.Lock()
	b := p.current
	p.mu.Unlock()
	if b.over.Load() { // an earlier boot's
		var err error
		if b, err = p.start(ctx); err != nil {
			p.end(ctx, vmm.Exit{Reason: vmm.Broken, Detail: "it does not start again: " + err.Error()})
			return
		}
		p.connectTAPs(b)
		p.read(b)
		p.mu.Lock()
		p.current = b
		p.mu.Unlock()
	}
	var exit vmm.Exit
	select {
	case <-b.init.Done():
		exit = classify(b.init.Status())
	case <-ctx.Done():
	}
	b.over.Store(true)
	p.stop(b)
	if exit.Reason == vmm.Broken {
		exit.Detail += b.said.text()
	}
	p.end(ctx, exit)
}

// end tells the machine how a boot ended by itself.
func (p *process) end(ctx context.Context, exit vmm.Exit) {
	select {
	case p.machine.ends <- exit:
	case <-ctx.Done():
	}
}

// classify knows how the first process of a PID namespace ends: reboot(2) of one
// of its processes is a signal to it. pid_namespaces(7).
func classify(status supervise.Status) vmm.Exit {
	switch {
	case status.Signal == syscall.SIGINT:
		return vmm.Exit{Reason: vmm.PoweredOff}
	case status.Signal == syscall.SIGHUP:
		return vmm.Exit{Reason: vmm.Reset}
	case status.Signal == syscall.SIGKILL:
		return vmm.Exit{Reason: vmm.Killed, Detail: status.String()}
	case status.ExitCode == panicCode:
		return vmm.Exit{Reason: vmm.Panicked}
	}
	return vmm.Exit{Reason: vmm.Broken, Detail: "its first process ended: " + status.String()}
}

func (p *process) save(io.Writer) ([]byte, error) {
	return nil, errors.New("processes cannot be saved")
}

// press has init end all others, and then itself.
func (p *process) press(*Machine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current.init.Signal(signalPowerOff)
}

func (p *process) close() error { return p.port.Close() }

// A tail is the end of what was written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	t.buf = t.buf[max(0, len(t.buf)-maxTail):]
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.buf) == 0 {
		return ""
	}
	return ": " + strings.TrimSpace(strings.ToValidUTF8(string(t.buf), "\uFFFD"))
}

var namespaces = sync.OnceValue(tryNamespaces)

// tryNamespaces says why machines of processes cannot be made on this host, with a
// *doctor.MissingError. It makes one, without networks, and ends it.
func tryNamespaces() error {
	c := &exec.Cmd{Path: "/proc/self/exe", Args: []string{initName, "{}", tryArg}, Dir: "/", SysProcAttr: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}}
	out, err := c.CombinedOutput()
	var path *os.PathError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &path):
		return missing("make namespaces: "+path.Err.Error(), tap.NamespaceRemedy(path.Err))
	}
	if said := strings.TrimSpace(string(out)); said != "" {
		return missing(fmt.Sprintf("%s (%v)", said, err), remedy(said))
	}
	return missing(err.Error(), tap.NamespaceRemedy(err))
}

// remedy is what to do about what init says before it ends.
func remedy(said string) string {
	for _, refused := range []error{unix.EPERM, unix.EACCES} {
		if strings.HasSuffix(said, refused.Error()) {
			return tap.NamespaceRemedy(refused)
		}
	}
	if strings.HasSuffix(said, unix.ENOSYS.Error()) {
		return "use Linux 5.12 or newer"
	}
	return ""
}
