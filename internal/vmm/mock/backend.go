package mock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/socketpair"
	"github.com/attest-vm/attest/internal/vmm"
)

// Options are of a backend. The zero value is the one that users get.
type Options struct {
	Name string // default "mock"
	// InProcess has this process serve as the guest: commands run on the host.
	InProcess bool
	// Without is what the machines cannot do. It counts for machines in this process.
	Without []Group
	// Warm makes the backend a vmm.Fingerprinter.
	Warm bool
	// Echo has network cards send each frame back to where it came from.
	Echo bool
	// TAP has network cards hand in the end of a socket as the TAP that the machine
	// has made (vmm.Link.TAP), instead of asking for a connection.
	TAP bool
	// Starting is called at each start; the Faults are that start's, and an error
	// is what Start returns. It may block.
	Starting func(context.Context, vmm.Config) (Faults, error)
	// Started is called when the machine lives, before Start returns.
	Started func(*Machine)
	// Operating is called at the beginning of each operation that the host asks of
	// a machine in this process, with its name (package wire). It may block; the
	// context is the operation's.
	Operating func(context.Context, *Machine, string)
}

// Faults are what goes wrong in one start of a machine.
type Faults struct {
	// StartError is what the VMM says before it ends instead of starting. Empty: it
	// starts.
	StartError string `json:"start_error"`
	// RestoreError is StartError of a machine that shall go on from a State.
	RestoreError string `json:"restore_error"`
	// SaveError is what goes wrong when half of the memory has been saved.
	SaveError string `json:"save_error"`
	// Silent is a guest that never answers.
	Silent bool `json:"silent"`
	// Dead is a guest that never answers again when it was restored.
	Dead bool `json:"dead"`
	// Delay is how long each operation takes longer.
	Delay Duration `json:"delay"`
}

// New returns a backend. Those of tests are registered by whoever made them.
func New(o Options) vmm.Backend {
	if o.Name == "" {
		o.Name = "mock"
	}
	b := &backend{Options: o}
	if o.Warm {
		return warmBackend{b}
	}
	return b
}

func init() { vmm.Register(New(Options{})) }

type backend struct{ Options }

var (
	_ vmm.Mocker        = (*backend)(nil)
	_ vmm.Offerer       = (*backend)(nil)
	_ vmm.Doctor        = (*backend)(nil)
	_ vmm.Fingerprinter = warmBackend{}
)

func (b *backend) Name() string { return b.Options.Name }
func (*backend) Mocks()         {}

// Check refuses a script that makes no sense, and a host that has no namespaces
// for its users.
func (b *backend) Check(c vmm.Config) error {
	boot, ok := c.Boot.(*vmm.Mock)
	if !ok {
		return &vmm.UnsupportedError{Machine: c.Name, Operation: fmt.Sprintf("a machine by %T", c.Boot), Backend: b.Name(), Reason: "it has no VMM"}
	}
	switch b.kind(c) {
	case kindCanned:
		_, err := ParseScript(boot.Script)
		return err
	case kindProcess:
		return namespaces()
	}
	return nil
}

type kind int

const (
	kindProcess kind = iota
	kindCanned
	kindInProcess
)

// kind is what answers in a machine.
func (b *backend) kind(c vmm.Config) kind {
	switch {
	case hasScript(scriptOf(c)):
		return kindCanned
	case b.InProcess:
		return kindInProcess
	}
	return kindProcess
}

func scriptOf(c vmm.Config) json.RawMessage {
	if boot, ok := c.Boot.(*vmm.Mock); ok {
		return boot.Script
	}
	return nil
}

// without is what a machine of this configuration cannot do.
func (b *backend) without(c vmm.Config) []Group {
	switch b.kind(c) {
	case kindProcess:
		return unlikeProcesses
	case kindCanned:
		if s, err := ParseScript(c.Boot.(*vmm.Mock).Script); err == nil && len(s.Without) > 0 {
			return s.Without
		}
	}
	return b.Without
}

// Start starts a machine.
func (b *backend) Start(ctx context.Context, host vmm.Host, config vmm.Config) (_ vmm.VM, err error) {
	begin := time.Now()
	var made []io.Closer
	defer func() {
		if err != nil {
			for _, c := range made {
				c.Close()
			}
		}
	}()
	failed := func(output string, err error) error {
		return &vmm.StartError{Machine: config.Name, Backend: b.Name(), After: time.Since(begin), Err: err, Output: output}
	}
	if err := b.Check(config); err != nil {
		return nil, err
	}
	m := &Machine{config: config, console: newConsole(), cards: map[string]*card{}, operating: b.Operating, ends: make(chan vmm.Exit), done: make(chan struct{}), allowReboot: config.AllowReboot}
	if b.Starting != nil {
		if m.faults, err = b.Starting(ctx, config); err != nil {
			return nil, err
		}
	}
	var script *Script
	if b.kind(config) == kindCanned {
		if script, err = ParseScript(scriptOf(config)); err != nil {
			return nil, err
		}
		m.faults = script.Faults
	}
	if err := ctx.Err(); err != nil {
		return nil, failed("", context.Cause(ctx))
	}
	switch {
	case m.faults.StartError != "":
		return nil, failed(m.faults.StartError, errMockFailed)
	case config.Restore != nil && m.faults.RestoreError != "":
		return nil, failed(m.faults.RestoreError, errMockFailed)
	}
	ours, theirs, err := socketpair.New(unix.SOCK_STREAM)
	if err != nil {
		return nil, failed("", err)
	}
	made = append(made, ours, theirs)
	m.channel = vmm.NewChannel(ours, m.done)
	if b.kind(config) == kindProcess {
		p, err := newProcess(ctx, host, m, theirs)
		if err != nil {
			return nil, err
		}
		m.system = p
	} else {
		s, err := newLocal(m, theirs)
		if err != nil {
			return nil, failed("", err)
		}
		made = append(made, s)
		if script == nil {
			m.system = s
		} else {
			c, err := newCanned(s, script)
			if err != nil {
				return nil, failed("", err)
			}
			m.system = c
		}
		if config.Restore != nil {
			if err := s.restore(m.system, config.Restore); err != nil {
				return nil, failed("", err)
			}
		}
		for _, n := range config.NICs {
			c, err := newCard(n, host.Packets, b.Options)
			if err != nil {
				return nil, failed("", err)
			}
			made = append(made, closerFunc(c.close))
			m.cards[n.ID] = c
		}
	}
	if config.Paused {
		m.setPaused(true)
	}
	go m.live()
	if b.Started != nil {
		b.Started(m)
	}
	return limit(m, b.without(config)), nil
}

var errMockFailed = errors.New("the mock was told to fail")

type closerFunc func()

func (f closerFunc) Close() error { f(); return nil }

// Offers says what the machines of a configuration can do.
func (b *backend) Offers(c vmm.Config, what vmm.Capability) (ok bool, lack vmm.Lack) {
	ok = has(b.without(c), what)
	lack.InGuest = !ok && what == vmm.CanShow && b.kind(c) == kindInProcess
	switch {
	case ok:
	case b.kind(c) == kindProcess:
		lack.Reason = "its machines are processes of this host"
	case b.kind(c) == kindCanned && has(b.Without, what):
		lack.Reason = "its script says so (without)"
	}
	return ok, lack
}

// has reports whether machines without some groups have a capability.
func has(without []Group, what vmm.Capability) (ok bool) {
	vm := limit(&Machine{}, without)
	switch what {
	case vmm.CanPause:
		_, ok = vmm.As[vmm.Pauser](vm)
	case vmm.CanSave:
		_, ok = vmm.As[vmm.Snapshotter](vm)
	case vmm.CanReset:
		_, ok = vmm.As[vmm.Rebooter](vm)
	case vmm.CanPress:
		_, ok = vmm.As[vmm.PowerButton](vm)
	case vmm.CanWake:
		_, ok = vmm.As[vmm.Waker](vm)
	case vmm.CanType:
		_, ok = vmm.As[vmm.Keyboarder](vm)
	case vmm.CanShow:
		_, ok = vmm.As[vmm.Screener](vm)
	case vmm.CanPoint:
		_, ok = vmm.As[vmm.Pointer](vm)
	case vmm.CanListen:
		_, ok = vmm.As[vmm.ConsoleWriter](vm)
	case vmm.CanInteract:
		_, ok = vmm.As[vmm.Monitor](vm)
	case vmm.CanTell:
		_, ok = vmm.As[vmm.EventSource](vm)
	}
	return ok
}

// A warmBackend is one whose machines can be kept.
type warmBackend struct{ *backend }

func (b warmBackend) Fingerprint(_ vmm.Host, c vmm.Config) (string, error) {
	boot, ok := c.Boot.(*vmm.Mock)
	if !ok {
		return "", b.Check(c)
	}
	nics := make([]string, len(c.NICs))
	for i, n := range c.NICs {
		nics[i] = n.ID
	}
	slices.Sort(nics)
	return fmt.Sprintf("mock %d MiB, %v, script %s", boot.Memory, nics, boot.Script), nil
}

// Examine reports whether machines of processes can be had here.
func (b *backend) Examine(context.Context) doctor.Diagnosis {
	canned := doctor.Finding{Name: "canned answers", OK: true, Detail: "everywhere"}
	processes := doctor.Finding{Name: "processes", OK: true, Detail: "in user, mount, PID, UTS, IPC and network namespaces"}
	var missing *doctor.MissingError
	if errors.As(namespaces(), &missing) {
		processes = doctor.Finding{Name: processes.Name, Detail: missing.Reason, Remedy: missing.Remedy}
	}
	return doctor.Diagnosis{Usable: true, Findings: []doctor.Finding{processes, canned}}
}
