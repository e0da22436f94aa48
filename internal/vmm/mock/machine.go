package mock

import (
	"context"
	"fmt"
	"image"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
)

// A Machine is one start of a machine. It has all that a VM can have; which part
// of it callers get is decided by Options.Without. Its other methods are for tests.
type Machine struct {
	config    vmm.Config
	faults    Faults
	operating func(context.Context, *Machine, string)
	system    system
	console   *console
	channel   *vmm.Channel // the host's end of the stream to the agent
	cards     map[string]*card
	events    vmm.EventLog
	still     gate // while the machine is paused
	stuck     gate // while its guest hangs

	ends chan vmm.Exit // the end of this boot; live receives
	done chan struct{}

	mu          sync.Mutex
	allowReboot bool
	paused      bool
	state       string    // see State
	slept       time.Time // when Suspend was called
	exit        vmm.Exit
	typed       []byte      // on the console
	keys        []string    // pressed and released
	screen      *image.RGBA // what it shows; nil: nothing
	boots       atomic.Int32
}

// A system is what answers in a machine.
type system interface {
	// run is one boot. It returns when ctx ends or the guest has ended by itself,
	// of which it tells the machine (end).
	run(context.Context, *Machine)
	// save appends the state to w and returns what else belongs to it.
	save(w io.Writer) (device []byte, err error)
	// press is the power button.
	press(*Machine)
	close() error
}

var (
	_ vmm.VM            = (*Machine)(nil)
	_ vmm.PowerButton   = (*Machine)(nil)
	_ vmm.Rebooter      = (*Machine)(nil)
	_ vmm.Snapshotter   = (*Machine)(nil)
	_ vmm.Crasher       = (*Machine)(nil)
	_ vmm.LinkSetter    = (*Machine)(nil)
	_ vmm.Monitor       = (*Machine)(nil)
	_ vmm.Keyboarder    = (*Machine)(nil)
	_ vmm.Screener      = (*Machine)(nil)
	_ vmm.Pointer       = (*Machine)(nil)
	_ vmm.ConsoleWriter = (*Machine)(nil)
	_ vmm.Interrupter   = (*Machine)(nil)
	_ vmm.EventSource   = (*Machine)(nil)
	_ vmm.Observer      = (*Machine)(nil)
)

// live is the whole life of the machine: one boot after the other, as long as
// resets are allowed.
func (m *Machine) live() {
	for {
		m.boots.Add(1)
		ctx, cancel := context.WithCancel(context.Background())
		over := make(chan struct{})
		go func() {
			defer close(over)
			m.system.run(ctx, m)
		}()
		exit := <-m.ends
		cancel()
		<-over
		m.mu.Lock()
		again := exit.Reason == vmm.Reset && m.allowReboot
		if !again {
			m.exit = exit
		}
		m.mu.Unlock()
		m.event("RESET", "SHUTDOWN", again)
		if !again {
			break
		}
	}
	for _, c := range m.cards {
		c.close()
	}
	if err := m.system.close(); err != nil {
		m.mu.Lock()
		m.exit.Detail += fmt.Sprintf("; what it had could not be removed: %v", err)
		m.mu.Unlock()
	}
	m.events.End()
	m.console.end()
	close(m.done)
	m.channel.Close()
}

// event notes one of two events, by QEMU's names.
func (m *Machine) event(yes, no string, which bool) {
	name := no
	if which {
		name = yes
	}
	m.events.Add(vmm.Event{Name: name, Time: time.Now()})
}

// End ends the machine for a reason, as its guest or its VMM would: powered off,
// reset (which starts it again where that is allowed), panicked, killed, quit or
// failed. It returns as soon as that is under way; Done says when it is done.
func (m *Machine) End(reason vmm.ExitReason, detail string) {
	if reason == vmm.Panicked {
		m.Say("Kernel panic - not syncing: " + detail + "\n")
	}
	select {
	case m.ends <- vmm.Exit{Reason: reason, Detail: detail}:
	case <-m.done:
	}
}

// Boots is how often the machine was powered on or reset in this start.
func (m *Machine) Boots() int { return int(m.boots.Load()) }

// Config is what the machine was started with.
func (m *Machine) Config() vmm.Config { return m.config }

// Say has the guest write to its console.
func (m *Machine) Say(text string) { io.WriteString(m.console, text) }

// State is what Suspend has said.
func (m *Machine) State(context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, nil
}

// Suspend has the guest answer nothing any more, or again, and the machine know why.
func (m *Machine) Suspend(on bool) {
	m.mu.Lock()
	m.state, m.slept = "", time.Time{}
	if on {
		m.state, m.slept = vmm.Suspended, time.Now()
	}
	m.mu.Unlock()
	m.Hang(on)
}

// Dozing is when Suspend was called.
func (m *Machine) Dozing() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.slept
}

// Wake has a suspended guest go on.
func (m *Machine) Wake(context.Context) error {
	m.Suspend(false)
	return nil
}

// Hang has the guest answer nothing any more, or again.
func (m *Machine) Hang(on bool) { m.stuck.set(on) }

func (m *Machine) Console() io.ReadCloser { return m.console }
func (m *Machine) Done() <-chan struct{}  { return m.done }

func (m *Machine) Dial(ctx context.Context) (net.Conn, error) { return m.channel.Dial(ctx) }

func (m *Machine) Exit() vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

func (m *Machine) Kill() error {
	m.End(vmm.Killed, "")
	<-m.done
	return nil
}

// Crash ends the machine without telling its guest.
func (m *Machine) Crash(context.Context) error {
	m.End(vmm.Quit, "")
	<-m.done
	return nil
}

// PressPower asks the guest to end.
func (m *Machine) PressPower(context.Context) error {
	m.event("POWERDOWN", "", true)
	m.system.press(m)
	return nil
}

func (m *Machine) Reset(context.Context) error {
	m.End(vmm.Reset, "")
	return nil
}

func (m *Machine) AllowReboot(_ context.Context, allow bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.allowReboot = allow
	return nil
}

func (m *Machine) Pause(context.Context) error  { return m.setPaused(true) }
func (m *Machine) Resume(context.Context) error { return m.setPaused(false) }

func (m *Machine) setPaused(paused bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return fmt.Errorf("%s: the machine has ended", m.config.Name)
	default:
	}
	if m.paused != paused {
		m.event("STOP", "RESUME", paused)
	}
	m.paused = paused
	m.still.set(paused)
	return nil
}

// A gate is open until it is shut.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed when it opens; nil: it is open
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if shut == (g.open != nil) {
		return
	}
	if shut {
		g.open = make(chan struct{})
		return
	}
	close(g.open)
	g.open = nil
}

// pass blocks until the gate is open or ctx ends.
func (g *gate) pass(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open == nil {
		return nil
	}
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
