package attest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// A Machine is one guest of a Lab. It starts on first use. Its methods can be
// called from any goroutine, and operations of one machine can overlap.
type Machine struct {
	lab     *Lab
	config  MachineConfig
	backend vmm.Backend
	address network.MachineAddresses
	dir     string
	console *console
	outside sync.WaitGroup // the ways out of the lab of its starts

	snapshot    *vmm.State // that of its configuration, once it has begun with it
	checkpoints checkpoints

	startMu sync.Mutex    // one start at a time; a snapshot holds it too
	linkMu  sync.Mutex    // one change of links at a time
	wayOut  *network.Port // on the last start's way out of the lab; guarded by linkMu
	disk    vmm.Disk      // what the machine writes to; without a Path until it has one. Guarded by startMu
	mu      sync.Mutex
	current *run   // the start that is in force; nil when the machine is off
	ended   *run   // the last one, when it ended without being asked to
	booted  bool   // it was started at least once
	id      string // its /etc/machine-id
	closed  bool
}

// A run is one start of a machine, from power on to power off.
type run struct {
	machine     *Machine
	vm          vmm.VM
	guest       *guest.Client
	started     time.Time
	pumped      chan struct{} // closed when the console has been read to its end
	over        chan struct{} // closed when all of the run is gone; down is set before
	down        error         // why the machine is down, as operations report it
	forwards    forwards
	asked       bool // somebody asked for the end; guarded by machine.mu
	paused      bool // by Pause; guarded by machine.mu
	origin      *origin
	allowReboot bool
	backdoor    *backdoor // nil: the guest has come with the agent

	pauseMu sync.Mutex     // one Pause or Resume at a time
	clock   sync.WaitGroup // of correctClock; grows while machine.current is this run

	identityMu sync.Mutex // so that no machine misses the name of a new one
	greeted    bool       // the guest knows who it is
	newHosts   bool       // a machine was created before that

	eventMu   sync.Mutex
	nextEvent int64 // WaitForQMPEvent looks from this one on

	ready    chan struct{} // closed when the guest answered once, or never will; readyErr is set before
	readyErr error
	agent    string // the instance of the agent that answered last; guarded by machine.mu
}

// bootTimeout is how long a guest may take from power on to its first answer,
// where neither the machine nor the host says otherwise.
const bootTimeout = 5 * time.Minute

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

// Name is the machine's name and host name.
func (m *Machine) Name() string { return m.config.Name }

// Config is what the machine was made of, defaults filled in.
func (m *Machine) Config() MachineConfig { return m.config }

// Addresses are the machine's own addresses, IPv4 before IPv6, in the order of
// its networks.
func (m *Machine) Addresses() []netip.Addr {
	var v4, v6 []netip.Addr
	for _, i := range m.address.Interfaces {
		if i.Network == outside {
			continue // nobody else is there
		}
		v4, v6 = append(v4, i.IPv4.Addr()), append(v6, i.IPv6.Addr())
	}
	return append(v4, v6...)
}

// prepare makes what a machine has even before it starts.
func (m *Machine) prepare() error {
	m.dir = filepath.Join(m.lab.dir, m.config.Name)
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return &InfraError{m.Name(), "create the machine's directory", err}
	}
	log, err := os.Create(filepath.Join(m.dir, "console.log"))
	if err != nil {
		return &InfraError{m.Name(), "create the console log", err}
	}
	m.console = newConsole(log, func(line string) {
		event.Publish(m.lab.ctx, event.Console{Machine: m.Name(), Line: line})
	})
	return nil
}

// StartOptions change a start.
type StartOptions struct {
	// AllowReboot lets the guest reboot by itself in this run.
	AllowReboot bool
}

// Start starts the machine if it is not running. It returns when the VMM runs;
// it does not wait for the guest. A missing image is built.
func (m *Machine) Start(ctx context.Context, opts ...StartOptions) error {
	args := ""
	allow := m.config.AllowReboot
	for _, o := range opts {
		if o.AllowReboot {
			args, allow = "allow_reboot=True", true
		}
	}
	return step(ctx, m.Name(), "start", args, func(ctx context.Context) error {
		_, err := m.start(ctx, allow)
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

// maxLastWords bounds how much later than its limit a wait ends whose guest hangs.
const maxLastWords = 2 * time.Second

// launch starts the VMM of a machine that is off. It boots, or goes on from an
// origin. startMu is held.
func (m *Machine) launch(ctx context.Context, allowReboot bool, from *origin) (*run, error) {
	config, img, err := m.vmmConfig(ctx)
	if err != nil {
		return nil, err
	}
	if from == nil {
		if from, err = m.beginning(ctx, config, img); err != nil {
			return nil, err
		}
	}
	if from != nil && from.fits != nil {
		now, err := m.fits(config, img)
		if err == nil {
			err = from.fits(now)
		}
		if err != nil {
			return nil, err
		}
	}
	config.AllowReboot = allowReboot
	if err := m.attachAll(ctx, &config, img); err != nil {
		return nil, err
	}
	how := ""
	if from != nil {
		config.Restore, config.Paused = from.state, from.paused
		how = event.FromSnapshot
	} else {
		m.console.begin()
	}
	started := time.Now()
	m.announce("starting", how, 0)
	vm, err := m.backend.Start(ctx, m.lab.host.vmmHost(), config)
	if err != nil {
		closeNICs(config.NICs)
		m.announce("stopped", err.Error(), time.Since(started))
		if from == nil || from.slot == nil || ctx.Err() != nil {
			return nil, err
		}
		if err := m.refuse(ctx, from.slot, err); err != nil {
			return nil, err
		}
		return m.launch(ctx, allowReboot, nil)
	}
	r := &run{machine: m, vm: vm, started: started, origin: from, allowReboot: allowReboot,
		pumped: make(chan struct{}), over: make(chan struct{}), ready: make(chan struct{})}
	made := make(chan struct{}) // a guest that is restored may answer before New returns
	r.guest = guest.New(m.Name(), vm.Dial, guest.Options{
		LastWords: min(m.lab.host.scale(guest.LastWords), maxLastWords),
		Greet: func(ctx context.Context, info wire.Info) error {
			<-made
			return r.greet(ctx, info)
		},
	})
	close(made)
	if b, ok := vm.(vmm.Backdoor); ok {
		r.openBackdoor(b, m.lab.host.guestPath)
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		r.guest.Close(errLabClosed)
		vm.Kill()
		r.backdoor.closed()
		return nil, errLabClosed
	}
	m.current, m.ended, m.booted = r, nil, true
	m.mu.Unlock()
	m.announce("running", "", time.Since(started))
	go r.pump()
	go r.awaitFirstAnswer()
	go r.watch()
	return r, m.restoreLinks(ctx, r)
}

func (m *Machine) announce(state, detail string, after time.Duration) {
	event.Publish(m.lab.ctx, event.MachineState{Machine: m.Name(), State: state, Detail: detail, After: after})
}

func (m *Machine) running() *run {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

// pump reads the console, and ends a guest at once whose kernel has panicked or
// whose init has given up: it will say nothing more.
func (r *run) pump() {
	defer close(r.pumped)
	source := r.vm.Console()
	defer source.Close()
	r.machine.console.pump(source)
}

// watch waits for the end of the run and tells everybody who waits for
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
		m.ended = r
	}
	m.mu.Unlock()
	r.guest.Close(r.down)
	r.forwards.close()
	state := "stopped"
	switch {
	case m.console.panicLine() != "":
		state = "panicked"
	case !r.asked && r.vm.Exit().Reason != vmm.PoweredOff:
		state = "crashed"
	}
	m.announce(state, string(r.vm.Exit().Reason), time.Since(r.started))
	r.backdoor.closed()
	<-r.ready
	r.clock.Wait()
	close(r.over)
}

// awaitEnd returns when the VMM is gone. A kernel that panics with a reset to
// follow ends the VMM by itself; one that may reboot, or hangs, is ended here.
func (r *run) awaitEnd() {
	c := r.machine.console
	for {
		changed := c.next()
		if c.panicLine() != "" || c.fatalLine() != "" {
			select {
			case <-r.vm.Done():
			case <-time.After(panicGrace): // let it finish its last words
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

// panicGrace is how long a panicking kernel may go on talking.
const panicGrace = 2 * time.Second

// verdict says why the machine is down. It is called when the console is
// complete.
func (r *run) verdict() error {
	m := r.machine
	exit := r.vm.Exit()
	down := &DownError{Machine: m.Name(), Reason: string(exit.Reason), Console: m.console.tail(consoleTail)}
	if exit.Detail != "" && exit.Reason == vmm.Broken {
		down.Reason = exit.Detail
	}
	if fatal := m.console.fatalLine(); fatal != "" {
		down.Reason = fatal
	}
	if panicked := m.console.panicLine(); panicked != "" {
		down.Reason = panicked
	}
	down.Broken = exit.Reason == vmm.Broken || exit.Reason == vmm.Killed && !r.asked
	if m.console.panicLine() != "" || m.console.fatalLine() != "" {
		down.Broken = false
	}
	return down
}

// greet gives the guest its identity; it runs whenever an agent answers, so at
// the first boot and after each reboot, before any operation gets through.
// A guest that was restored as itself keeps what its test has made of it; one
// that was restored from a template has its name and addresses.
func (r *run) greet(ctx context.Context, info wire.Info) error {
	m := r.machine
	var macs []string
	if r.origin != nil {
		macs = r.origin.macs
	}
	r.identityMu.Lock()
	id := m.identity(macs)
	switch again := r.origin != nil && r.origin.agent == info.Instance; {
	case m.foreign() && again:
		id = renewal()
	case m.foreign():
		id = wire.Identity{Entropy: id.Entropy} // it is who it is, and has the time that it was given
	case again:
		id = renewal()
		if r.origin.slot != nil {
			id.MachineID = m.id
		}
		if r.newHosts || r.origin.slot != nil {
			id.Hosts = m.hosts()
		}
	}
	err := r.guest.Identity(ctx, id)
	r.greeted = err == nil
	r.identityMu.Unlock()
	if err != nil {
		return err
	}
	if !m.foreign() || r.origin != nil {
		// The time that came with the identity was as old as that.
		if err := r.guest.SetClock(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	r.agent = info.Instance
	m.mu.Unlock()
	m.announce("ready", info.Kernel, time.Since(r.started))
	return nil
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

// powered is the machine's run, begun here if the machine has not ended by
// itself.
func (m *Machine) powered(ctx context.Context, operation string) (*run, error) {
	m.mu.Lock()
	r, ended := m.current, m.ended
	m.mu.Unlock()
	if r == nil && ended != nil {
		return nil, m.downError(operation, ended.down)
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

// awaitReady waits for the first answer of the guest. The limit counts from
// power on and holds for everybody who waits.
func (r *run) awaitReady(ctx context.Context) error {
	select {
	case <-r.ready:
		return r.readyErr
	case <-ctx.Done():
		err := context.Cause(ctx)
		return &BootError{
			Machine: r.machine.Name(), Reason: fmt.Sprintf("no answer yet, and %v%s", err, r.backdoor.awaited()),
			After: time.Since(r.started), Console: r.machine.console.tail(consoleTail), Err: err,
		}
	}
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
	if err != nil {
		r.readyErr = r.bootError(ctx, limit, garbage, err)
	}
}

// bootError says why there was no first answer.
func (r *run) bootError(ctx context.Context, limit time.Duration, garbage *guest.ProtocolError, err error) error {
	m := r.machine
	if m.lab.ctx.Err() != nil {
		return context.Cause(m.lab.ctx)
	}
	boot := &BootError{Machine: m.Name(), After: time.Since(r.started), Console: m.console.tail(consoleTail)}
	var down *DownError
	var install *InstallError
	switch {
	case errors.As(err, &install):
		boot.Reason, boot.Err = "attest's agent cannot run in it: "+install.Reason, install
	case errors.As(err, &down) && down.Broken:
		return down
	case errors.As(err, &down):
		boot.Reason = down.Reason
	case ctx.Err() != nil && garbage != nil:
		boot.Reason = fmt.Sprintf("within %v nothing came but this: %v", limit, garbage)
	case ctx.Err() != nil:
		boot.Reason = fmt.Sprintf("the guest did not answer within %v%s", limit, r.backdoor.awaited())
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

// downError is cause with the operation that found the machine down.
func (m *Machine) downError(operation string, cause error) error {
	var down *DownError
	if !errors.As(cause, &down) {
		return cause
	}
	d := *down
	d.Operation = operation
	return &d
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

// close ends the machine for good.
func (m *Machine) close() error {
	m.mu.Lock()
	m.closed = true
	r := m.current
	if r != nil {
		r.asked = true
		if r.down == nil {
			r.down = errLabClosed
		}
	}
	m.mu.Unlock()
	var err error
	if r != nil {
		r.guest.Close(errLabClosed)
		err = r.vm.Kill()
		<-r.over
	}
	if m.snapshot != nil {
		m.snapshot.Memory.Close()
	}
	m.outside.Wait()
	err = errors.Join(err, m.checkpoints.close())
	if e := m.console.log.Close(); !errors.Is(e, os.ErrClosed) { // by an earlier Close
		err = errors.Join(err, e)
	}
	return err
}

// vmmConfig is what the backend is to start, without what exists only while
// it runs. A foreign machine has no image.
func (m *Machine) vmmConfig(ctx context.Context) (vmm.Config, *image.Image, error) {
	if m.foreign() {
		config, err := m.foreignConfig(ctx)
		return config, nil, err
	}
	config := vmm.Config{
		Name: m.Name(), Dir: m.dir,
		Memory: m.config.Memory, CPUs: m.config.CPUs, MachineType: m.config.Type, Display: m.config.Display,
	}
	if err := m.backend.Check(config); err != nil {
		return config, nil, err // before an image is built for nothing
	}
	img, err := m.lab.image(ctx, m.config.Image)
	if err != nil {
		return config, nil, err
	}
	if err := m.bootMedia(ctx, &config, img); err != nil {
		return config, nil, err
	}
	return config, img, m.backend.Check(config)
}
