package attest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attest-vm/attest/internal/backdoor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// This file is one start of a machine, from power on to its end, in the order in
// which it happens: a plan, where it begins, the VMM, the guest's first answers,
// what is asked of a machine that runs, and the end.
//
// Locks are taken in this order, and left out at will; the last ones are held for
// a few instructions:
//
//	Machine.startMu   one start or one snapshot of a machine at a time; those of several in the lab's order
//	run.pauseMu       one Pause or Resume at a time
//	run.identityMu    who the guest is told to be
//	Machine.linkMu    which cables are plugged in
//	templateSlot.mu   a template is opened, or made: by a lab of its own, with all locks of that
//	Lab.imagesMu      an image is built
//	Lab.mu            which machines there are
//	Machine.mu        what the machine does: current, ended, and the fields of a run that say so
//	leaves            console, listOf, closers, checkpoints, plugs, run.eventMu
//
// Goroutines of a start: pump reads the console, awaitFirstAnswer waits for the
// guest, watch waits for the end, and for them. guest.Client has its own, which end
// with Close.

// A run is one start of a machine, from power on to power off.
type run struct {
	machine     *Machine
	vm          vmm.VM
	guest       *guest.Client
	started     time.Time
	pumped      chan struct{} // closed when the console has been read to its end
	over        chan struct{} // closed when all of the run is gone; down is set before
	down        error         // why the machine is down, as operations report it
	closers     closers       // what ends with the run
	asked       bool          // somebody asked for the end; guarded by machine.mu
	paused      bool          // by Pause; guarded by machine.mu
	suspended   bool          // Suspend has seen it fall asleep, and nobody has seen it awake since; guarded by machine.mu
	unwoken     bool          // Suspend has, and Wake has not woken it since; guarded by machine.mu
	origin      *origin
	allowReboot bool
	door        *backdoor.Door // nil: the guest has come with the agent

	pauseMu sync.Mutex     // one Pause or Resume at a time
	aside   sync.WaitGroup // what nobody waits for but the end: correctClock, watches; grows while machine.current is this run

	identityMu sync.Mutex // so that no machine misses the name of a new one
	greeted    bool       // the guest knows who it is
	newHosts   bool       // a machine was created before that

	silentAt atomic.Pointer[time.Time] // when the guest was asked last and did not answer; nil: never

	eventMu   sync.Mutex
	nextEvent int64 // WaitForQMPEvent looks from this one on

	ready    chan struct{} // closed when the guest answered once, or never will; readyErr is set before
	readyErr error
	still    *stillScreen // what was on the screen when the kernel had panicked; nil: nothing. Set before over is closed
	agent    string       // the instance of the agent that answered last; guarded by machine.mu
	reboots  reboots      // guarded by machine.mu
}

// origin is what a machine goes on from instead of booting.
type origin struct {
	state  *vmm.State
	fits   func(map[string]string) error // see machineState
	agent  string                        // to this instance of its agent the machine is itself again; empty: it becomes another
	macs   []string                      // the addresses that its network cards had; nil: its own
	paused bool
	slot   *templateSlot // it is a template, and the machine may boot instead
}

// bootTimeout is how long a guest may take from power on to its first answer,
// where neither the machine nor the host says otherwise.
const bootTimeout = 5 * time.Minute

// maxLastWords bounds how far a wait can overrun its limit when the guest hangs.
const maxLastWords = 2 * time.Second

// What a guest's agent may take on a fast host: beyond the limit of an operation that
// it keeps itself, and for an answer that waits for nothing.
const (
	agentGrace    = 10 * time.Second
	agentPatience = 2 * time.Minute
	agentSilence  = 10 * time.Second // before another connection is tried, where there can be one
)

// panicGrace is how long a panicking kernel may go on talking.
const panicGrace = 2 * time.Second

// Start starts the machine if it is not running. It returns when the VMM runs;
// it does not wait for the guest. A missing image is built.
func (m *Machine) Start(ctx context.Context, opts ...StartOption) error {
	o := collect(opts)
	args := written(ctx, unless("allow_reboot", o.allowReboot, false))
	return step(ctx, m.Name(), "start", args, func(ctx context.Context) error {
		_, err := m.start(ctx, o.allowReboot || m.config.AllowReboot)
		return err
	})
}

func (m *Machine) start(ctx context.Context, allowReboot bool) (*run, error) {
	m.startMu.Lock()
	defer m.startMu.Unlock()
	if r := m.running(); r != nil {
		return r, nil
	}
	return m.launch(ctx, allowReboot, nil)
}

// powered is the machine's run, begun here if the machine has not ended by
// itself.
func (m *Machine) powered(ctx context.Context, operation string) (*run, error) {
	m.mu.Lock()
	r, ended := m.current, m.ended
	m.mu.Unlock()
	if r == nil && ended != nil {
		return nil, m.downError(operation, ended)
	}
	if r != nil {
		return r, nil
	}
	err := step(ctx, m.Name(), "start", "", func(ctx context.Context) (err error) {
		r, err = m.start(ctx, m.config.AllowReboot)
		return err
	})
	return r, err
}

// use is the run of a machine whose guest has answered at least once; it starts
// the machine if need be.
func (m *Machine) use(ctx context.Context, operation string) (*run, error) {
	r, err := m.powered(ctx, operation)
	if err == nil {
		err = r.awake(operation)
	}
	if err == nil {
		err = r.awaitReady(ctx)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (m *Machine) running() *run {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

func (m *Machine) bootLimit() time.Duration {
	switch h := m.lab.host; {
	case m.config.BootTimeout > 0:
		return m.config.BootTimeout
	case h.bootTimeout > 0:
		return h.bootTimeout
	default:
		return h.scale(bootTimeout)
	}
}

// launch starts the VMM of a machine that is off. It boots, or goes on from an
// origin: one that restore gives, or what beginning finds, which is of a floor above
// since a template is made in a lab of its own. startMu is held.
func (m *Machine) launch(ctx context.Context, allowReboot bool, from *origin) (*run, error) {
	p, err := m.plan(ctx)
	if err != nil {
		return nil, err
	}
	if from == nil {
		if from, err = m.beginning(ctx, p); err != nil {
			return nil, err
		}
	}
	if from != nil && from.fits != nil {
		now, err := m.fits(p)
		if err == nil {
			err = from.fits(now)
		}
		if err != nil {
			return nil, err
		}
	}
	config, plugs := p.config, &plugs{m: m}
	if err := m.kind.attach(ctx, p, &config, plugs); err != nil {
		return nil, err
	}
	r := &run{machine: m, origin: from, allowReboot: allowReboot,
		pumped: make(chan struct{}), over: make(chan struct{}), ready: make(chan struct{})}
	r.closers.add(plugs.close)
	if err := r.powerOn(ctx, config); err != nil {
		r.closers.close()
		if m.lab.ctx.Err() != nil {
			return nil, context.Cause(m.lab.ctx) // its networks are gone, which is no news
		}
		if from == nil || from.slot == nil || ctx.Err() != nil {
			return nil, err
		}
		if err := m.refuse(ctx, from.slot, err); err != nil {
			return nil, err
		}
		return m.launch(ctx, allowReboot, nil)
	}
	if err := r.begin(); err != nil {
		return nil, err
	}
	return r, m.restoreLinks(ctx, r)
}

// powerOn has the backend start the VMM.
func (r *run) powerOn(ctx context.Context, config vmm.Config) (err error) {
	m := r.machine
	config.AllowReboot = r.allowReboot
	how := ""
	if r.origin != nil {
		config.Restore, config.Paused = r.origin.state, r.origin.paused
		how = event.FromSnapshot
	} else {
		m.console.Begin()
	}
	r.started = time.Now()
	m.announce("starting", how, 0)
	if r.vm, err = m.backend.Start(ctx, m.lab.host.vmmHost(), config); err != nil {
		m.announce("stopped", err.Error(), time.Since(r.started))
	}
	return err
}

// begin makes a run whose VMM runs the machine's, and listens to its guest. What
// it starts ends with watch.
func (r *run) begin() error {
	m := r.machine
	announced := make(chan struct{}) // a guest that is restored may answer at once
	redial := time.Duration(0)
	if _, ok := vmm.As[vmm.Reconnecter](r.vm); ok {
		redial = m.lab.host.scale(agentSilence)
	}
	dial := r.vm.Dial
	if b, ok := vmm.As[vmm.Backdoor](r.vm); ok {
		r.door = r.newDoor(b)
		dial = r.door.Dial
	}
	r.guest = guest.New(m.Name(), dial, guest.Options{
		Redial:       redial,
		LastWords:    min(m.lab.host.scale(guest.LastWords), maxLastWords),
		Grace:        m.lab.host.scale(agentGrace),
		Echo:         m.echoPatience(),
		Standing:     func(ctx context.Context) bool { return r.standing(ctx) != "" },
		StandIn:      r.standIn,
		AgentTimeout: m.bootLimit(),
		GreetTimeout: m.lab.host.scale(agentPatience),
		Stall:        m.lab.host.scale(agentPatience),
		Greet: func(ctx context.Context, info wire.Info) error {
			<-announced
			return r.greet(ctx, info)
		},
	})
	if r.door != nil {
		r.door.Start()
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		close(announced)
		r.guest.Close(errLabClosed)
		r.vm.Kill()
		r.closeDoor()
		r.closers.close()
		return errLabClosed
	}
	m.current, m.ended, m.endedRun, m.booted = r, nil, nil, true
	if r.origin == nil {
		m.jobs, m.inherited = nil, nil
	}
	m.mu.Unlock()
	m.announce("running", "", time.Since(r.started))
	close(announced)
	if source, ok := vmm.As[vmm.EventSource](r.vm); ok && r.door != nil {
		r.aside.Go(func() { r.tellDoor(source.Events()) })
	}
	go r.pump()
	go r.awaitFirstAnswer()
	go r.watch()
	return nil
}

func (m *Machine) announce(state, detail string, after time.Duration) {
	event.Publish(m.lab.ctx, event.MachineState{Machine: m.Name(), State: state, Detail: detail, After: after})
}

// pump reads the console to its end.
func (r *run) pump() {
	defer close(r.pumped)
	source := r.vm.Console()
	defer source.Close()
	if r.door != nil {
		r.machine.console.Pump(io.TeeReader(source, r.door.Console()))
		return
	}
	r.machine.console.Pump(source)
}

// greet gives the guest its identity; it runs whenever an agent answers, so at
// the first boot and after each reboot, before any operation gets through.
func (r *run) greet(ctx context.Context, info wire.Info) error {
	m := r.machine
	if r.origin == nil { // the guest's init starts as soon as it knows who it is
		if err := r.lay(ctx); err != nil {
			return err
		}
	}
	r.identityMu.Lock()
	id := m.kind.identity(r, r.origin != nil && r.origin.agent == info.Instance)
	err := r.guest.Identity(ctx, id)
	r.greeted = err == nil
	r.identityMu.Unlock()
	if err == nil && !id.Time.IsZero() {
		err = r.guest.SetClock(ctx) // the time that came with the identity was as old as that
	}
	if err == nil && r.origin != nil {
		err = r.lay(ctx)
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	r.agent = info.Instance
	r.reboots.answered(info.BootID)
	m.mu.Unlock()
	m.announce("ready", info.Kernel, time.Since(r.started))
	return nil
}

func (r *run) tellHosts(ctx context.Context) error {
	r.identityMu.Lock()
	defer r.identityMu.Unlock()
	if !r.greeted {
		r.newHosts = true // greet tells it
		return nil
	}
	if err := r.awake("create_machine"); err != nil {
		return err
	}
	err := r.guest.Identity(ctx, wire.Identity{Hosts: r.machine.hosts()})
	if down := (*DownError)(nil); errors.As(err, &down) {
		return nil // it learns it when it starts again
	}
	return r.explain(ctx, "create_machine", err)
}

func (r *run) awaitFirstAnswer() {
	defer close(r.ready)
	limit := r.machine.bootLimit()
	ctx, cancel := context.WithDeadline(r.machine.lab.ctx, r.started.Add(limit))
	defer cancel()
	var garbage *guest.ProtocolError // what came first may not be what is left
	_, err := r.guest.Ready(ctx)
	for errors.As(err, &garbage) {
		_, err = r.guest.Ready(ctx)
	}
	switch {
	case err != nil:
		r.readyErr = r.bootError(ctx, limit, garbage, err)
	case r.origin != nil && r.origin.agent == r.agentInstance():
		r.adoptJobs()
	}
}

// awaitReady waits for the first answer of the guest. The limit counts from
// power on and holds for everybody who waits.
func (r *run) awaitReady(ctx context.Context) error {
	select {
	case <-r.ready:
	case <-ctx.Done():
	}
	err := context.Cause(ctx)
	select {
	case <-r.ready:
		// The lab may have ended with ctx, and its machines a moment before this wait.
		if err == nil || !errors.Is(r.readyErr, err) {
			return r.readyErr
		}
	default:
	}
	return &BootError{
		Machine: r.machine.Name(), Reason: fmt.Sprintf("no answer yet when the wait ended: %v%s", err, r.awaited()),
		After: time.Since(r.started), Console: r.machine.console.Tail(consoleTail), Err: err,
	}
}

// bootError returns why there was no first answer.
func (r *run) bootError(ctx context.Context, limit time.Duration, garbage *guest.ProtocolError, err error) error {
	m := r.machine
	if m.lab.ctx.Err() != nil {
		return context.Cause(m.lab.ctx)
	}
	boot := &BootError{Machine: m.Name(), After: time.Since(r.started), Console: m.console.Tail(consoleTail)}
	var down *DownError
	var install *backdoor.InstallError
	var login *backdoor.LoginError
	var silent *backdoor.SilentError
	var files *FilesError
	switch {
	case errors.As(err, &install):
		boot.Reason, boot.Err = "attest's agent cannot run in it: "+install.Reason, install
	case errors.As(err, &login):
		boot.Reason, boot.Err, boot.final = fmt.Sprintf("attest cannot log in as %s on the serial console: %s", login.User, login.Reason), login, true
	case errors.As(err, &silent):
		boot.Reason, boot.Err, boot.final = silent.Reason, silent, true
	case errors.As(err, &down) && down.Broken:
		return down
	case errors.As(err, &down):
		boot.Reason, boot.final = down.Reason, m.console.PanicLine() != "" || m.console.FatalLine() != ""
	case errors.As(err, &files):
		return files
	case ctx.Err() != nil && garbage != nil:
		boot.Reason = fmt.Sprintf("the only data within %v was this: %v", limit, garbage)
	case ctx.Err() != nil:
		boot.Reason = fmt.Sprintf("the guest did not answer within %v%s", limit, r.awaited())
	default:
		boot.Reason = err.Error()
	}
	return boot
}

// agentInstance is the agent that the guest has now; empty before the first answer.
func (r *run) agentInstance() string {
	r.machine.mu.Lock()
	defer r.machine.mu.Unlock()
	return r.agent
}

// correctClock sets the clock of a guest that stood still. Nobody has to wait for
// that but the end of the run.
func (r *run) correctClock() {
	m := r.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == r {
		r.aside.Go(r.setClock)
	}
}

// setClock is given up after a while: a guest that does not answer has other
// troubles than its clock.
func (r *run) setClock() {
	ctx, cancel := context.WithTimeout(r.machine.lab.ctx, r.machine.lab.host.scale(clockTimeout))
	defer cancel()
	r.guest.SetClock(ctx)
}

const clockTimeout = 2 * time.Second

// awake refuses an operation on a machine that is paused or suspended: its guest would not
// answer.
func (r *run) awake(operation string) error {
	if err := r.unpaused(operation); err != nil {
		return err
	}
	if r.sleeps() {
		return &SuspendedError{r.machine.Name(), operation}
	}
	return nil
}

// unpaused refuses an operation on a paused machine, whose devices stand still, too.
func (r *run) unpaused(operation string) error {
	m := r.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.paused {
		return &PausedError{m.Name(), operation}
	}
	return nil
}

func (r *run) setPaused(ctx context.Context, operation string, pause bool) error {
	m := r.machine
	p, ok := vmm.As[vmm.Pauser](r.vm)
	if !ok {
		return &UnsupportedError{Machine: m.Name(), Operation: operation, Backend: m.config.Backend}
	}
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	m.mu.Lock()
	same := r.paused == pause
	m.mu.Unlock()
	if same {
		return nil
	}
	do, state := p.Resume, "running"
	if pause {
		do, state = p.Pause, "paused"
		r.guest.Hold(true) // its silence says nothing now
	}
	err := do(ctx)
	if err != nil {
		pause = !pause
	}
	m.mu.Lock()
	r.paused = pause
	m.mu.Unlock()
	r.guest.Hold(pause)
	if err == nil {
		m.announce(state, "", time.Since(r.started))
	}
	return r.whenGone(err)
}

// restoreLinks pulls the cables of a machine that was blocked before it started.
// One that goes on from a snapshot may have seen them otherwise.
func (m *Machine) restoreLinks(ctx context.Context, r *run) error {
	m.linkMu.Lock()
	defer m.linkMu.Unlock()
	interfaces := slices.Clone(m.address.Interfaces)
	if r.origin == nil {
		interfaces = slices.DeleteFunc(interfaces, func(i network.Interface) bool { return !m.lab.network.fabric.Down(m.Name(), i.Name) })
	}
	return m.showLinks(ctx, r, "start", interfaces)
}

// showLinks tells a running guest which of its cables are plugged in.
func (m *Machine) showLinks(ctx context.Context, r *run, operation string, interfaces []network.Interface) error {
	if r == nil {
		return nil
	}
	setter, ok := vmm.As[vmm.LinkSetter](r.vm)
	if !ok {
		return nil // its frames are lost all the same
	}
	for _, i := range interfaces {
		if err := setter.SetLink(ctx, i.Name, !m.lab.network.fabric.Down(m.Name(), i.Name)); err != nil {
			return r.explain(ctx, operation, r.whenGone(fmt.Errorf("%s: set the link of %s: %w", m.Name(), i.Name, err)))
		}
	}
	return nil
}

func (r *run) reboot(ctx context.Context) error {
	rebooter, ok := vmm.As[vmm.Rebooter](r.vm)
	if !ok {
		return &UnsupportedError{Machine: r.machine.Name(), Operation: "reboot", Backend: r.machine.config.Backend, Can: []string{"qemu"}}
	}
	before, err := r.guest.Ready(ctx)
	if err != nil {
		return err
	}
	if err := rebooter.AllowReboot(ctx, true); err != nil {
		return fmt.Errorf("allow the guest to reset: %w", err)
	}
	err = r.guest.Reboot(ctx)
	if again := (*guest.RestartedError)(nil); err != nil && !errors.As(err, &again) { // quicker than its answer
		return err
	}
	if _, err := r.guest.ReadyAgain(ctx, before); err != nil {
		return err
	}
	if !r.machine.config.AllowReboot {
		return rebooter.AllowReboot(ctx, false)
	}
	return nil
}

// panic asks for a panic, in every way that there is.
func (r *run) panic(ctx context.Context, limit time.Duration) error {
	soon, cancel := context.WithTimeout(ctx, limit/4)
	defer cancel()
	err := r.guest.Panic(soon)
	if err == nil && r.awaitPanic(soon) || ctx.Err() != nil {
		return context.Cause(ctx)
	}
	i, ok := vmm.As[vmm.Interrupter](r.vm)
	if !ok {
		return err
	}
	if err := i.InjectNMI(ctx); err != nil {
		return err
	}
	r.awaitPanic(ctx)
	return context.Cause(ctx)
}

// awaitPanic waits until the kernel has said that it panics, or is gone.
func (r *run) awaitPanic(ctx context.Context) bool {
	for {
		changed := r.machine.console.Changed()
		if r.machine.console.PanicLine() != "" {
			return true
		}
		select {
		case <-changed:
		case <-r.over:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// stop marks the end of the current run as asked for and waits until it is
// over. do asks for it; nil waits for what comes by itself.
func (m *Machine) stop(ctx context.Context, do func(context.Context, *run) error) error {
	m.mu.Lock()
	r := m.current
	if r != nil {
		r.asked = true
	}
	m.mu.Unlock()
	if r == nil {
		return nil
	}
	if do != nil {
		if err := do(ctx, r); err != nil {
			return err
		}
	}
	select {
	case <-r.over:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// unask takes back that the end of a run was asked for: it did not come.
func (m *Machine) unask(r *run) {
	if r == nil {
		return
	}
	m.mu.Lock()
	r.asked = false
	m.mu.Unlock()
}

// watch blocks until the run ends, and ends every wait for
// something of this machine.
func (r *run) watch() {
	m := r.machine
	r.awaitEnd()
	<-r.pumped
	m.mu.Lock()
	if r.down == nil {
		r.down = r.verdict()
	}
	m.current = nil
	if !r.asked {
		m.ended, m.endedRun = r.down, r
	}
	m.mu.Unlock()
	r.guest.Close(r.down)
	r.closers.close()
	state := "stopped"
	switch {
	case m.console.PanicLine() != "":
		state = "panicked"
	case !r.asked && r.vm.Exit().Reason != vmm.PoweredOff:
		state = "crashed"
	}
	m.announce(state, string(r.vm.Exit().Reason), time.Since(r.started))
	r.closeDoor()
	<-r.ready
	r.aside.Wait()
	close(r.over)
}

// awaitEnd returns when the VMM is gone. A kernel that panics with a reset to
// follow ends the VMM by itself; one that may reboot, or hangs, is ended here.
func (r *run) awaitEnd() {
	c := r.machine.console
	for {
		changed := c.Changed()
		if c.PanicLine() != "" || c.FatalLine() != "" {
			select {
			case <-r.vm.Done():
			case <-time.After(panicGrace): // let it finish its last words
				r.keepPicture()
				r.vm.Kill()
			}
			return
		}
		select {
		case <-r.vm.Done():
			return
		case <-changed:
		}
	}
}

// verdict returns why the machine is down. It is called when the console is
// complete.
func (r *run) verdict() error {
	m := r.machine
	exit := r.vm.Exit()
	down := &DownError{Machine: m.Name(), Reason: string(exit.Reason), Console: m.console.Tail(consoleTail)}
	if exit.Detail != "" && exit.Reason == vmm.Broken {
		down.Reason = exit.Detail
	}
	if fatal := m.console.FatalLine(); fatal != "" {
		down.Reason = fatal
	}
	if panicked := m.console.PanicLine(); panicked != "" {
		down.Reason = panicked
	}
	down.Broken = exit.Reason == vmm.Broken || exit.Reason == vmm.Killed && !r.asked
	if m.console.PanicLine() != "" || m.console.FatalLine() != "" {
		down.Broken = false
	}
	return down
}

// orderly reports whether a run that is over ended as a guest ends it.
func (r *run) orderly() bool {
	if r.machine.console.PanicLine() != "" {
		return false // a kernel that panics resets, too
	}
	reason := r.vm.Exit().Reason
	return reason == vmm.PoweredOff || reason == vmm.Reset
}

// closers are what is to be closed when something ends.
type closers struct {
	mu     sync.Mutex
	closed bool
	all    []func()
}

// add has fn called by close. After close it calls fn itself, and returns false.
func (c *closers) add(fn func()) bool {
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.all = append(c.all, fn)
	}
	c.mu.Unlock()
	if closed {
		fn()
	}
	return !closed
}

func (c *closers) close() {
	c.mu.Lock()
	c.closed = true
	all := c.all
	c.all = nil
	c.mu.Unlock()
	for _, fn := range all {
		fn()
	}
}
