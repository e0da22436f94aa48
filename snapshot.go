package attest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/vmm"
)

// A Snapshot is a lab at one moment: the memory, devices and disks of all its
// machines, and the consoles so far. Nothing changes it, and any number of labs
// can go on from it, at the same time. It stays good when the lab that it was
// taken of is closed; Close it when no more labs shall be made of it.
type Snapshot struct {
	host     *Host
	config   LabConfig
	dir      string
	machines map[string]*machineState
	probe    probe // of refresh
}

// machineState is one machine in a Snapshot.
type machineState struct {
	booted  bool          // it was started at least once
	down    error         // if it is off without having been asked to
	disk    []vmm.Backing // what it had written, uppermost first; none if it was never started
	console console.State
	id      string // its /etc/machine-id
	laid    laid   // what of the host's files is on its disk
	// fits returns an error if a saved state does not fit the machine as it is now;
	// nil: it was captured here.
	fits func(now map[string]string) error

	// Of a machine that runs:
	state       *vmm.State
	agent       string // the instance of the agent that answered
	allowReboot bool
	jobs        []jobState
	macs        []string // of its network cards, as the VMM knows them
}

// Snapshot takes a snapshot of the lab: all machines pause at once, are saved,
// and go on. That takes about a tenth of a second for each processor's share of
// the machines; their clocks are set afterwards. A machine that boots is waited
// for. One that was never started will not have been in the labs made of the
// snapshot either; one that is off is off there, with its disk.
//
// Commands and waits under way go on here. In a lab made of the snapshot nobody
// waits for them, and the agent ends them; jobs ([Machine.Spawn]) and what runs in the
// background of the guest go on in both.
func (l *Lab) Snapshot(ctx context.Context) (s *Snapshot, err error) {
	err = step(ctx, "", "snapshot", "", func(ctx context.Context) (err error) {
		s, err = l.snapshot(ctx, l.Machines())
		return err
	})
	return s, err
}

// snapshot is Snapshot of some of the machines.
func (l *Lab) snapshot(ctx context.Context, machines []*Machine) (*Snapshot, error) {
	dir, err := os.MkdirTemp(l.host.scratch(), "s")
	if err != nil {
		return nil, &InfraError{Action: "create a directory for a snapshot", Err: err}
	}
	l.mu.Lock()
	config := l.config
	l.mu.Unlock()
	config.StateDir = "" // a directory is of one lab
	s := &Snapshot{host: l.host, config: config, dir: dir, machines: map[string]*machineState{}}
	states, err := capture(ctx, machines, dir, func() {
		state := l.Network().state()
		s.config.network = &state
	})
	for i, state := range states {
		if state != nil {
			s.machines[machines[i].Name()] = state
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Machines are those of the labs that are made of the snapshot, but for those that
// CreateMachine has added.
func (s *Snapshot) Machines() []MachineConfig {
	return slices.Clone(s.config.Machines)
}

// Close gives up what the snapshot holds. Labs that were made of it live on.
func (s *Snapshot) Close() error {
	for _, m := range s.machines {
		m.close()
	}
	s.machines = nil
	return errors.Join(s.probe.close(), os.RemoveAll(s.dir))
}

func (m *machineState) close() {
	if m.state != nil {
		m.state.Memory.Close()
	}
}

// capture saves machines, all of the same moment, with their disks below dir;
// paused is called at that moment. What was captured is returned on error, too,
// for the caller to close.
func capture(ctx context.Context, machines []*Machine, dir string, paused func()) ([]*machineState, error) {
	states := make([]*machineState, len(machines))
	runs := make([]*run, len(machines))
	for _, m := range machines {
		m.startMu.Lock() // nothing starts meanwhile
		defer m.startMu.Unlock()
	}
	err := each(machines, func(i int, m *Machine) (err error) {
		if runs[i], err = m.pausable(ctx); err == nil && runs[i] != nil {
			if err = runs[i].awake("snapshot"); err == nil {
				err = runs[i].awaitReady(ctx)
			}
		}
		return err
	})
	if err != nil {
		return states, err
	}
	defer func() {
		// Also after the end of ctx: the lab is to go on.
		ctx := context.WithoutCancel(ctx)
		each(machines, func(i int, m *Machine) error {
			if runs[i] != nil {
				as[vmm.Pauser](runs[i]).Resume(ctx)
				runs[i].correctClock()
			}
			return nil
		})
	}()
	err = each(machines, func(i int, m *Machine) error {
		if runs[i] == nil {
			return nil
		}
		return as[vmm.Pauser](runs[i]).Pause(ctx)
	})
	if err == nil {
		paused()
		err = each(machines, func(i int, m *Machine) (err error) {
			states[i], err = m.capture(ctx, runs[i], dir)
			return err
		})
	}
	return states, err
}

// each does something for all machines at once.
func each(machines []*Machine, do func(int, *Machine) error) error {
	errs := make([]error, len(machines))
	var wg sync.WaitGroup
	for i, m := range machines {
		wg.Go(func() { errs[i] = do(i, m) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// pausable is the machine's run, nil if it is off.
func (m *Machine) pausable(ctx context.Context) (*run, error) {
	r := m.running()
	if r == nil {
		return nil, nil
	}
	if _, ok := vmm.As[vmm.Snapshotter](r.vm); !ok {
		return nil, m.cannotSave()
	}
	if d, ok := vmm.As[vmm.Doubtful](r.vm); ok {
		return r, d.CanSave(ctx)
	}
	return r, nil
}

// capture saves one machine that is paused, or off.
func (m *Machine) capture(ctx context.Context, r *run, dir string) (s *machineState, err error) {
	m.mu.Lock()
	s = &machineState{booted: m.booted, down: m.ended, id: m.id, laid: m.laid}
	m.mu.Unlock()
	s.console = m.console.Save()
	if r != nil {
		s.state, err = save(ctx, as[vmm.Snapshotter](r))
		if err != nil {
			return s, &InfraError{m.Name(), "save the machine", err}
		}
		s.agent, s.allowReboot, s.jobs = r.agentInstance(), r.allowReboot, m.jobStates(r)
		for _, i := range m.address.Interfaces {
			s.macs = append(s.macs, i.MAC.String())
		}
	}
	if s.disk, err = m.captureDisk(dir); err != nil {
		return s, &InfraError{m.Name(), "save the machine's disk", err}
	}
	return s, nil
}

// save saves a machine that is paused, its memory in this host's.
func save(ctx context.Context, vm vmm.Snapshotter) (*vmm.State, error) {
	var memory *os.File
	var err error
	if maker, ok := vm.(vmm.MemoryMaker); ok {
		memory, err = maker.MemoryFile(ctx)
	}
	sealed := memory == nil
	if sealed && err == nil {
		memory, err = vmm.MemoryFile("attest-snapshot")
	}
	if err != nil {
		return nil, err
	}
	device, err := vm.Save(ctx, memory)
	if err == nil && sealed {
		err = vmm.Seal(memory) // VMMs of other forks will map it
	}
	if err != nil {
		memory.Close()
		return nil, err
	}
	return &vmm.State{Memory: memory, Device: device}, nil
}

// captureDisk copies what the machine has written, and keeps what is below that.
func (m *Machine) captureDisk(dir string) ([]vmm.Backing, error) {
	dir = filepath.Join(dir, m.Name())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return m.kind.keep(func(n int) string { return filepath.Join(dir, fmt.Sprint(n)) })
}

// checkpoints are snapshots by name.
type checkpoints struct {
	mu    sync.Mutex
	names map[string]*Snapshot
}

func (c *checkpoints) keep(name string, s *Snapshot) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.names[name]
	if c.names == nil {
		c.names = map[string]*Snapshot{}
	}
	c.names[name] = s
	if old != nil {
		return old.Close()
	}
	return nil
}

func (c *checkpoints) find(of, name string) (*Snapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.names[name]; s != nil {
		return s, nil
	}
	have := "none"
	if len(c.names) > 0 {
		have = strings.Join(slices.Sorted(maps.Keys(c.names)), ", ")
	}
	return nil, &ConfigError{of, fmt.Sprintf("no checkpoint %q; existing checkpoints: %s", name, have)}
}

func (c *checkpoints) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, s := range c.names {
		errs = append(errs, s.Close())
	}
	c.names = nil
	return errors.Join(errs...)
}
