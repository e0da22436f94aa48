package microvm

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

	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
)

// A Design is a machine as a backend has laid it out for its VMM.
type Design interface {
	// Prepare returns what a process is started with, and what speaks with it once it
	// runs. The guest boots in it, or goes on from a state.
	Prepare(ctx context.Context, dir string, from *vmm.State) (Spec, VMM, error)
}

// A VMM speaks with one process.
type VMM interface {
	// Begin has the guest boot, or go on, and returns when it runs; a paused one stands
	// still then. The error of what lets the guest run is one of Unanswered.
	Begin(ctx context.Context, p *Process, paused bool) error
	// Serial is what the guest says on its serial line. It ends after the process does.
	Serial(p *Process) io.Reader
	Type(ctx context.Context, p *Process, text []byte) error
	Pause(context.Context) error
	Resume(context.Context) error
	// Save is that of a vmm.Snapshotter.
	Save(ctx context.Context, memory *os.File) (device []byte, err error)
	// Ended is why the process has ended, where nobody has asked for it and the guest's
	// kernel has not said it: possibly vmm.Running, if it does not know either.
	Ended(supervise.Status) vmm.ExitReason
	// Close releases what it has, of a process that has ended or was never started.
	Close() error
}

// A DriverTeller is a VMM that tells when the driver of its guest's vsock is up.
type DriverTeller interface {
	// DriverUp returns what is closed then, and at the end of the VMM; nil where it is
	// up already. It is called before Begin.
	DriverUp() <-chan struct{}
}

// A Machine is one VMM after the other: a reset of the guest ends its process, and where it
// may reboot another one begins on the same disks.
type Machine struct {
	backend string // for errors
	host    vmm.Host
	config  vmm.Config
	design  Design
	console *Console
	vsock   *Vsock
	shell   *shell // nil: the guest comes with the agent
	done    chan struct{}
	life    context.Context // of the machine, for processes that begin in it
	endLife context.CancelFunc

	saving sync.Mutex // one Save at a time

	mu          sync.Mutex
	current     *running // nil: it ends, or another one begins
	allowReboot bool
	ending      vmm.ExitReason // asked for from here
	exit        vmm.Exit
}

// running is one process of a machine.
type running struct {
	*Process
	vmm  VMM
	up   <-chan struct{} // of DriverTeller; nil: it does not tell
	said chan Said       // when the console has been read to its end
}

var (
	_ vmm.VM            = (*Machine)(nil)
	_ vmm.Rebooter      = (*Machine)(nil)
	_ vmm.Snapshotter   = (*Machine)(nil)
	_ vmm.ConsoleWriter = (*Machine)(nil)
	_ vmm.Reconnecter   = (*Machine)(nil)
)

const (
	// startTimeout is how long a VMM may take until its guest runs: 0.1 s as a rule. It
	// reads the whole kernel for that.
	startTimeout = 5 * time.Minute

	// endGrace is how long a process may take to be gone after its connections are.
	endGrace = 2 * time.Second

	dirName = "vmm" // of its directory, in the machine's

	// VsockSocket is the name of the vsock's socket in a VMM's directory.
	VsockSocket = "v.sock"
)

// New starts a machine. On error nothing is left.
func New(ctx context.Context, backend string, host vmm.Host, config vmm.Config, guest GuestOptions, design Design) (*Machine, error) {
	began := time.Now()
	m := &Machine{backend: backend, host: host, config: config, design: design, console: NewConsole(), done: make(chan struct{}), allowReboot: config.AllowReboot}
	m.life, m.endLife = context.WithCancel(context.Background())
	m.vsock = &Vsock{Path: filepath.Join(m.dir(), VsockSocket), Port: AgentPort, Gone: m.done}
	p, output, err := m.launch(ctx, config.Restore)
	if err != nil {
		m.endLife()
		if err := withoutTAP(backend, config, err); err != nil {
			return nil, err
		}
		return nil, &vmm.StartError{Machine: config.Name, Backend: backend, After: time.Since(began), Err: err, Output: output}
	}
	if config.Boot.(*vmm.Hardware).Bare {
		m.shell = newShell(m.vsock.Path, guest.shellPort())
		if config.Restore != nil {
			m.shell.agentAnswers() // or it could not have been saved
		}
	}
	m.current = p
	go m.live(p)
	return m, nil
}

func (m *Machine) dir() string { return filepath.Join(m.config.Dir, dirName) }

// launch starts a process and lets the guest boot in it, or go on from a state. On error
// nothing of it is left, and output is the end of what it said.
func (m *Machine) launch(ctx context.Context, from *vmm.State) (_ *running, output string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it did not get so far within %v", startTimeout))
	defer cancel()
	spec, v, err := m.design.Prepare(ctx, m.dir(), from)
	if err != nil {
		return nil, "", err
	}
	p := &running{vmm: v, said: make(chan Said, 1)}
	spec.Dir, spec.NICs = m.dir(), m.config.NICs
	if p.Process, err = Start(ctx, m.host, spec); err != nil {
		return nil, "", errors.Join(err, v.Close())
	}
	if t, ok := v.(DriverTeller); ok {
		p.up = t.DriverUp()
	}
	m.vsock.Expect(p.up)
	go func() { p.said <- m.console.Copy(v.Serial(p.Process), func() { p.Signal(syscall.SIGKILL) }) }()
	if err = v.Begin(ctx, p.Process, m.config.Paused); err != nil {
		gone := p.ended(ctx, err)
		p.Kill()
		<-p.Done()
		if gone && m.ran(p, err) {
			return p, "", nil
		}
		m.said(p)
		p.finish()
		if gone {
			err = fmt.Errorf("its process ended: %v", p.Status())
		}
		return nil, p.Output.Text(), err
	}
	return p, "", nil
}

// ended reports whether an error is a consequence of the process's end.
func (p *running) ended(ctx context.Context, err error) bool {
	if refused := (*RefusedError)(nil); errors.As(err, &refused) || ctx.Err() != nil {
		return false
	}
	select {
	case <-p.Done():
		return true
	case <-time.After(endGrace):
		return false
	}
}

// ran reports whether a process that ended in Begin has ended with its guest, which was
// quicker than the answer of its VMM.
func (m *Machine) ran(p *running, err error) bool {
	if unanswered := (*unansweredError)(nil); !errors.As(err, &unanswered) {
		return false
	}
	if ended := p.vmm.Ended(p.Status()); ended != vmm.Running && ended != vmm.Killed {
		return true
	}
	said := m.said(p)
	p.said <- said
	return said != Said{}
}

// finish releases what belongs to a process that has ended.
func (p *running) finish() error { return errors.Join(p.vmm.Close(), p.Finish()) }

// live waits for the ends of processes, and begins another one where the guest was reset
// and may.
func (m *Machine) live(p *running) {
	for p != nil {
		if m.shell != nil && !m.shell.agentReached() {
			m.shell.serve(p.Done(), p.up)
		}
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
			if m.shell != nil {
				m.shell.boots()
			}
			p = m.again()
		}
	}
	m.endLife()
	if m.shell != nil {
		m.shell.close()
	}
	m.console.End()
	close(m.done)
}

// said reads the console of a process that has ended to its end. Where nobody reads the
// machine's console, what is left is lost.
func (m *Machine) said(p *running) Said {
	select {
	case said := <-p.said:
		return said
	case <-time.After(endGrace):
		m.console.Reader().Close()
		return <-p.said
	}
}

// again starts a process for a guest that was reset; nil if that fails.
func (m *Machine) again() *running {
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
func (m *Machine) classify(p *running, said Said) vmm.Exit {
	status := p.Status()
	detail := status.String()
	if text := p.Output.Text(); text != "" {
		detail += ": " + text
	}
	asked := m.ending
	if asked == vmm.Reset {
		m.ending = ""
	}
	ended := p.vmm.Ended(status)
	switch {
	case asked != "":
		return vmm.Exit{Reason: asked, Detail: detail}
	case said.Panicked:
		return vmm.Exit{Reason: vmm.Panicked, Detail: detail}
	case said.Halted:
		return vmm.Exit{Reason: vmm.PoweredOff, Detail: status.String()}
	case ended != vmm.Running:
		return vmm.Exit{Reason: ended, Detail: detail}
	case status.Signal != 0 && !status.Lost:
		return vmm.Exit{Reason: vmm.Killed, Detail: detail}
	}
	return vmm.Exit{Reason: vmm.Broken, Detail: m.backend + " ended: " + detail}
}

// Console is the serial line's output, of all processes.
func (m *Machine) Console() io.ReadCloser { return m.console.Reader() }

// Done is closed when the last process has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Reconnects: each Dial is a connection of its own, and a snapshot may cut them all.
func (m *Machine) Reconnects() {}

// Dial connects to the guest's agent.
func (m *Machine) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := m.vsock.Dial(ctx)
	if err == nil && m.shell != nil {
		m.shell.agentAnswers()
	}
	return conn, err
}

// Exit is how the machine has ended.
func (m *Machine) Exit() vmm.Exit {
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
func (m *Machine) end(reason vmm.ExitReason) {
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
func (m *Machine) Kill() error {
	m.end(vmm.Killed)
	<-m.done
	return nil
}

// Reset starts the machine anew, or ends it where it may not reboot.
func (m *Machine) Reset(context.Context) error {
	m.end(vmm.Reset)
	return nil
}

// AllowReboot says what follows a reset from here on.
func (m *Machine) AllowReboot(_ context.Context, allow bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.allowReboot = allow
	return nil
}

// Pause stops the vCPUs.
func (m *Machine) Pause(ctx context.Context) error {
	return m.Do(ctx, func(v VMM) error { return v.Pause(ctx) })
}

// Resume lets them go on.
func (m *Machine) Resume(ctx context.Context) error {
	return m.Do(ctx, func(v VMM) error { return v.Resume(ctx) })
}

// WriteConsole types on the serial line.
func (m *Machine) WriteConsole(ctx context.Context, text []byte) error {
	return m.with(ctx, func(p *running) error { return p.vmm.Type(ctx, p.Process, text) })
}

// Save saves the paused machine.
func (m *Machine) Save(ctx context.Context, memory *os.File) (device []byte, err error) {
	m.saving.Lock()
	defer m.saving.Unlock()
	err = m.Do(ctx, func(v VMM) error {
		device, err = v.Save(ctx, memory)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("save: %w", err)
	}
	return device, nil
}

// Do does something with the VMM that runs. When that ends under it, Do returns after Done,
// so that the caller can ask for the reason.
func (m *Machine) Do(ctx context.Context, fn func(VMM) error) error {
	return m.with(ctx, func(p *running) error { return fn(p.vmm) })
}

func (m *Machine) with(ctx context.Context, fn func(*running) error) error {
	m.mu.Lock()
	p := m.current
	m.mu.Unlock()
	err := ErrGone
	if p != nil {
		err = fn(p)
	}
	if err == nil {
		return nil
	}
	if refused := (*RefusedError)(nil); !errors.As(err, &refused) && ctx.Err() == nil {
		select {
		case <-m.done:
		case <-time.After(endGrace): // it reboots
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("%s: %w", m.config.Name, err)
}
