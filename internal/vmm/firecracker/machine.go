package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// A machine is one Firecracker after the other: a guest that resets ends it.
type machine struct {
	backend *backend
	host    vmm.Host
	config  vmm.Config
	hw      *vmm.Hardware
	program microvm.Program
	options options
	console *microvm.Console
	vsock   *microvm.Vsock
	done    chan struct{}
	life    context.Context // of the machine, for processes that begin in it
	endLife context.CancelFunc

	saving sync.Mutex // one Save at a time

	mu          sync.Mutex
	current     *firecracker // nil: it ends, or another one begins
	allowReboot bool
	ending      vmm.ExitReason // asked for from here
	exit        vmm.Exit
}

// A firecracker is one process.
type firecracker struct {
	*microvm.Process
	api    *microvm.API
	memory *os.File // what it saves to
	saveFD int      // its descriptor there
	dir    string
	said   chan microvm.Said // when the console has been read to its end
}

var (
	_ vmm.VM            = (*machine)(nil)
	_ vmm.Rebooter      = (*machine)(nil)
	_ vmm.Snapshotter   = (*machine)(nil)
	_ vmm.Doubtful      = (*machine)(nil)
	_ vmm.ConsoleWriter = (*machine)(nil)
	_ vmm.Reconnecter   = (*machine)(nil)
)

const (
	// startTimeout is how long a Firecracker may take until its guest runs: 0.1 s as a
	// rule. It reads the whole kernel for that.
	startTimeout = 5 * time.Minute

	// Names in its directory.
	apiSocket   = "api.sock"
	vsockSocket = "v.sock"
	stateFile   = "state"
	dirName     = "vmm"

	guestCID = 3 // of the process alone, so that all can have the same
)

// Start starts a Firecracker and lets its guest run.
func (b *backend) Start(ctx context.Context, host vmm.Host, config vmm.Config) (_ vmm.VM, err error) {
	if err := b.Check(config); err != nil {
		return nil, err
	}
	began := time.Now()
	m := &machine{backend: b, host: host, config: config, hw: config.Boot.(*vmm.Hardware), console: microvm.NewConsole(), done: make(chan struct{}), allowReboot: config.AllowReboot}
	if m.program, m.options, err = b.look(config); err != nil {
		return nil, err
	}
	if kernel(m.hw) == "" {
		return nil, b.unsupported(config, "a machine without a kernel", "it has no firmware that could boot a disk")
	}
	if n := len(cmdline(m.hw, m.options)) + cmdlineOfDevice*(len(m.hw.Disks)+len(config.NICs)+2); n > maxCmdline {
		return nil, b.unsupported(config, fmt.Sprintf("a kernel command line of %d bytes, with what each device adds to it,", n), fmt.Sprintf("the limit is %d; shorten cmdline", maxCmdline))
	}
	m.life, m.endLife = context.WithCancel(context.Background())
	m.vsock = &microvm.Vsock{Path: filepath.Join(m.dir(), vsockSocket), Port: microvm.AgentPort, Gone: m.done}
	p, output, err := m.launch(ctx, config.Restore)
	if err != nil {
		m.endLife()
		return nil, &vmm.StartError{Machine: config.Name, Backend: b.Name(), After: time.Since(began), Err: err, Output: output}
	}
	m.current = p
	go m.live(p)
	return m, nil
}

func (m *machine) dir() string { return filepath.Join(m.config.Dir, dirName) }

// launch starts a process and lets the guest boot in it, or go on from a state. On error
// nothing of it is left, and output is the end of what it said.
func (m *machine) launch(ctx context.Context, from *vmm.State) (_ *firecracker, output string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it did not get so far within %v", startTimeout))
	defer cancel()
	p := &firecracker{dir: m.dir(), said: make(chan microvm.Said, 1)}
	if p.memory, err = vmm.MemoryFile("attest-save"); err != nil {
		return nil, "", err
	}
	spec := microvm.Spec{Path: m.program.Path, Dir: p.dir, NICs: m.config.NICs, Links: map[string]string{}, View: microvm.View(m.program, m.config)}
	inherit := func(f *os.File) (fd int) {
		spec.Files = append(spec.Files, f)
		return 2 + len(spec.Files)
	}
	p.saveFD = inherit(p.memory)
	restoreFD := 0
	if from != nil {
		restoreFD = inherit(from.Memory)
	}
	for i, d := range m.hw.Disks {
		spec.Links[driveID(i)] = d.Path
	}
	// What it says of itself goes to its standard error: the guest's console is on the
	// other.
	spec.Args = []string{"--api-sock", apiSocket, "--log-path", "/proc/self/fd/2", "--level", "Warning"}
	if m.options.PCI {
		spec.Args = append(spec.Args, "--enable-pci")
	}
	if p.Process, err = microvm.Start(ctx, m.host, spec); err != nil {
		p.memory.Close()
		return nil, "", err
	}
	p.api = microvm.NewAPI(filepath.Join(p.dir, apiSocket), "", faultMessage)
	go func() { p.said <- m.console.Copy(p.Serial(), func() { p.Signal(syscall.SIGKILL) }) }()
	err = p.api.Await(ctx, p.Done())
	switch {
	case err != nil:
	case from != nil:
		err = m.load(ctx, p, from, restoreFD)
	default:
		err = m.boot(ctx, p)
	}
	if err != nil {
		err = p.ended(ctx, err)
		p.Kill()
		<-p.Done()
		m.said(p)
		p.finish()
		return nil, p.Output.Text(), err
	}
	return p, "", nil
}

// ended says that the process has ended, where an error is a consequence of that.
func (p *firecracker) ended(ctx context.Context, err error) error {
	if refused := (*microvm.RefusedError)(nil); errors.As(err, &refused) || ctx.Err() != nil {
		return err
	}
	select {
	case <-p.Done():
		return fmt.Errorf("its process ended: %v", p.Status())
	case <-time.After(endGrace):
		return err
	}
}

// endGrace is how long a process may take to be gone after its connections are.
const endGrace = 2 * time.Second

// finish releases what belongs to a process that has ended.
func (p *firecracker) finish() error {
	p.api.Close()
	return errors.Join(p.Finish(), p.memory.Close())
}

func driveID(i int) string { return fmt.Sprintf("d%d", i) }

// boot configures the machine and starts it.
func (m *machine) boot(ctx context.Context, p *firecracker) error {
	put := func(path string, body any) error { return p.api.Do(ctx, "PUT", path, body, nil) }
	err := put("/machine-config", machineConfig{VCPUs: cpus(m.hw), Memory: megabytes(m.hw), HugePages: m.options.HugePages})
	if err == nil {
		err = put("/boot-source", bootSource{Kernel: kernel(m.hw), Initrd: m.hw.Initrd, Cmdline: cmdline(m.hw, m.options)})
	}
	for i, d := range m.hw.Disks { // the guest numbers them in this order
		if err == nil {
			err = put("/drives/"+driveID(i), drive{ID: driveID(i), Path: driveID(i), ReadOnly: d.ReadOnly, CacheType: m.options.CacheType, IOEngine: m.options.IOEngine})
		}
	}
	for i, n := range m.config.NICs {
		if err == nil {
			id := fmt.Sprintf("net%d", i)
			err = put("/network-interfaces/"+id, networkInterface{ID: id, TAP: microvm.TAPName(i), MAC: n.MAC.String()})
		}
	}
	if err == nil {
		err = put("/vsock", vsock{CID: guestCID, Path: vsockSocket})
	}
	if err == nil && m.options.entropy() {
		err = put("/entropy", struct{}{})
	}
	if err == nil {
		err = put("/actions", action{Type: "InstanceStart"})
	}
	if err == nil && m.config.Paused {
		err = p.setState(ctx, paused)
	}
	return err
}

// load restores the machine. Sockets, disks and TAPs have the names that are in the
// state, in the directory and the namespace of this process.
func (m *machine) load(ctx context.Context, p *firecracker, from *vmm.State, memoryFD int) error {
	if st, err := from.Memory.Stat(); err != nil {
		return err
	} else if want := int64(megabytes(m.hw)) << 20; st.Size() != want {
		return fmt.Errorf("the saved memory has %d bytes, and the machine has %d", st.Size(), want)
	}
	path := filepath.Join(p.dir, stateFile)
	if err := os.WriteFile(path, from.Device, 0o600); err != nil {
		return err
	}
	err := p.api.Do(ctx, "PUT", "/snapshot/load", snapshotLoad{
		State:  stateFile,
		Memory: memoryBackend{Type: "File", Path: fmt.Sprintf("/proc/self/fd/%d", memoryFD)},
		Resume: !m.config.Paused,
	}, nil)
	return errors.Join(err, os.Remove(path))
}

func (p *firecracker) setState(ctx context.Context, state string) error {
	return p.api.Do(ctx, "PATCH", "/vm", vmState{state}, nil)
}

// live waits for the ends of processes, and begins another one where the guest was reset
// and may.
func (m *machine) live(p *firecracker) {
	for p != nil {
		<-p.Done()
		said := m.said(p)
		p.Output.Finish() // the reason may come last
		m.mu.Lock()
		m.current = nil
		exit := m.classify(p, said)
		again := exit.Reason == vmm.Reset && m.allowReboot
		if !again {
			m.exit = exit
		}
		m.mu.Unlock()
		if err := p.finish(); err != nil {
			exit.Detail += fmt.Sprintf("; what it had could not be removed: %v", err)
		}
		if p = nil; again {
			p = m.again()
		}
	}
	m.endLife()
	m.console.End()
	close(m.done)
}

// said reads the console of a process that has ended to its end. Where nobody reads the
// machine's console, what is left is lost.
func (m *machine) said(p *firecracker) microvm.Said {
	select {
	case said := <-p.said:
		return said
	case <-time.After(endGrace):
		m.console.Reader().Close()
		return <-p.said
	}
}

// again starts a process for a guest that was reset; nil if that fails.
func (m *machine) again() *firecracker {
	m.config.Paused = false
	p, output, err := m.launch(m.life, nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil && m.ending != "":
		m.exit = vmm.Exit{Reason: m.ending}
	case err != nil:
		m.exit = vmm.Exit{Reason: vmm.Broken, Detail: fmt.Sprintf("it did not start again after a reset: %v: %s", err, output)}
	case m.ending != "":
		p.Signal(syscall.SIGKILL) // it was asked for meanwhile
	}
	m.current = p
	return p
}

// classify is called with mu held.
func (m *machine) classify(p *firecracker, said microvm.Said) vmm.Exit {
	status := p.Status()
	detail := status.String()
	if text := p.Output.Text(); text != "" {
		detail += ": " + text
	}
	asked := m.ending
	if asked == vmm.Reset {
		m.ending = ""
	}
	switch {
	case asked != "":
		return vmm.Exit{Reason: asked, Detail: detail}
	case said.Panicked:
		return vmm.Exit{Reason: vmm.Panicked, Detail: detail}
	case said.Halted:
		return vmm.Exit{Reason: vmm.PoweredOff, Detail: status.String()}
	case status.Signal != 0 && !status.Lost:
		return vmm.Exit{Reason: vmm.Killed, Detail: detail}
	case status.Success(): // by a reset only
		return vmm.Exit{Reason: vmm.Reset, Detail: detail}
	}
	return vmm.Exit{Reason: vmm.Broken, Detail: "Firecracker ended: " + detail}
}

func (m *machine) Console() io.ReadCloser { return m.console.Reader() }
func (m *machine) Done() <-chan struct{}  { return m.done }

// Reconnects: each Dial is a connection of its own, and each snapshot cuts them all.
func (m *machine) Reconnects() {}

func (m *machine) Dial(ctx context.Context) (net.Conn, error) { return m.vsock.Dial(ctx) }

func (m *machine) Exit() vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return m.exit
	default:
		return vmm.Exit{}
	}
}

// end kills the process, for a reason.
func (m *machine) end(reason vmm.ExitReason) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ending == "" || reason != vmm.Reset {
		m.ending = reason
	}
	if m.current != nil {
		m.current.Signal(syscall.SIGKILL)
	} else if m.ending != vmm.Reset {
		m.endLife()
	}
}

// Kill ends the machine. What the guest has synced is in the page cache of the host.
func (m *machine) Kill() error {
	m.end(vmm.Killed)
	<-m.done
	return nil
}

// Reset starts the machine anew, or ends it where it may not reboot.
func (m *machine) Reset(context.Context) error {
	m.end(vmm.Reset)
	return nil
}

func (m *machine) AllowReboot(_ context.Context, allow bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.allowReboot = allow
	return nil
}

func (m *machine) Pause(ctx context.Context) error  { return m.setState(ctx, paused) }
func (m *machine) Resume(ctx context.Context) error { return m.setState(ctx, resumed) }

func (m *machine) setState(ctx context.Context, state string) error {
	return m.do(ctx, func(p *firecracker) error { return p.setState(ctx, state) })
}

// do does something with the process that runs. When that ends under it, it returns after
// Done, so that the caller can ask for the reason.
func (m *machine) do(ctx context.Context, fn func(*firecracker) error) error {
	m.mu.Lock()
	p := m.current
	m.mu.Unlock()
	err := microvm.ErrGone
	if p != nil {
		err = fn(p)
	}
	if err == nil {
		return nil
	}
	if refused := (*microvm.RefusedError)(nil); !errors.As(err, &refused) && ctx.Err() == nil {
		select {
		case <-m.done:
		case <-time.After(endGrace): // it reboots
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("%s: %w", m.config.Name, err)
}

// WriteConsole types on the serial line.
func (m *machine) WriteConsole(ctx context.Context, text []byte) error {
	return m.do(ctx, func(p *firecracker) error { return p.Type(ctx, text) })
}

// CanSave and WillSave refuse a version that cannot go on from what it saves.
func (m *machine) CanSave(context.Context) error { return m.WillSave() }

func (m *machine) WillSave() error {
	if !within(m.program.Version, lostSince, lostBefore) {
		return nil
	}
	return m.backend.unsupported(m.config, "snapshot", "with Firecracker "+m.program.Full+" nobody reaches a guest that was restored; 1.16.1 does not have that bug")
}

// Save saves the paused machine: Firecracker writes all memory to a file that it has had
// from the beginning, of which the copy leaves out what is zero.
func (m *machine) Save(ctx context.Context, memory *os.File) (device []byte, err error) {
	m.saving.Lock()
	defer m.saving.Unlock()
	err = m.do(ctx, func(p *firecracker) error {
		defer p.memory.Truncate(0)
		path := filepath.Join(p.dir, stateFile)
		defer os.Remove(path)
		err := p.api.Do(ctx, "PUT", "/snapshot/create", snapshotCreate{Type: "Full", State: stateFile, Memory: fmt.Sprintf("/proc/self/fd/%d", p.saveFD)}, nil)
		if err == nil {
			device, err = os.ReadFile(path)
		}
		if err == nil {
			err = vmm.CopySparse(memory, p.memory)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("save: %w", err)
	}
	return device, nil
}
