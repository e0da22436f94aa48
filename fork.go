package attest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"

	"github.com/attest-vm/attest/internal/vmm"
)

// Fork makes a lab of its own that goes on from the snapshot: the same machines
// with the same names and addresses, on networks that no other lab is on, with
// the same faults in force. It returns when its machines run. Open connections
// between them go on, their clocks are the host's, and their random numbers are
// their own. Nothing of the lab outlives ctx; its events go to the bus of ctx.
func (s *Snapshot) Fork(ctx context.Context) (_ *Lab, err error) {
	if l := s.probe.take(ctx); l != nil {
		return l, step(ctx, "", "fork", "", func(context.Context) error { return nil })
	}
	l, err := newLab(ctx, s.host, s.config)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	err = step(ctx, "", "fork", "", func(ctx context.Context) error {
		machines := l.Machines()
		for _, m := range machines {
			if err := m.adopt(s.machines[m.Name()]); err != nil {
				return err
			}
		}
		return l.resume(ctx, machines, s.machines)
	})
	return l, err
}

// Fork makes a lab of its own in the state that l has now; see Snapshot and
// Snapshot.Fork. Any number of forks can be made, also at once. For several of
// one state take one Snapshot.
func (l *Lab) Fork(ctx context.Context) (*Lab, error) {
	s, err := l.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.Fork(ctx)
}

// Checkpoint keeps the state of the whole lab under a name, for Restore. A
// second one of the same name replaces the first.
func (l *Lab) Checkpoint(ctx context.Context, name string) error {
	return step(ctx, "", "checkpoint", strconv.Quote(name), func(ctx context.Context) error {
		s, err := l.Snapshot(ctx)
		if err != nil {
			return err
		}
		return l.checkpoints.keep(name, s)
	})
}

// Restore takes the whole lab back to a checkpoint: memory, disks, and which
// machines run. What was under way ends with a *DownError. The guests' clocks
// are set to the host's time. Faults of the network stay as they are.
func (l *Lab) Restore(ctx context.Context, name string) error {
	return step(ctx, "", "restore", strconv.Quote(name), func(ctx context.Context) error {
		s, err := l.checkpoints.find("lab", name)
		if err != nil {
			return err
		}
		machines, states := l.Machines(), map[string]*machineState{}
		maps.Copy(states, s.machines)
		for _, m := range machines {
			if states[m.Name()] == nil { // created later: it is there, and was never started
				states[m.Name()] = &machineState{id: m.id}
			}
		}
		if err := l.restore(ctx, machines, states); err != nil || len(states) == len(s.machines) {
			return err
		}
		return l.introduce(ctx)
	})
}

// SnapshotCreate keeps the state of this machine under a name, for SnapshotRestore.
// The others do not stand still meanwhile: connections to them may not survive
// that one side is taken back. Lab.Checkpoint is for that.
func (m *Machine) SnapshotCreate(ctx context.Context, name string) error {
	return step(ctx, m.Name(), "snapshot_create", strconv.Quote(name), func(ctx context.Context) error {
		if _, err := m.use(ctx, "snapshot_create"); err != nil {
			return err
		}
		s, err := m.lab.snapshot(ctx, []*Machine{m})
		if err != nil {
			return err
		}
		return m.checkpoints.keep(name, s)
	})
}

// SnapshotRestore takes this machine back to where SnapshotCreate was: memory
// and disk. What was under way ends with a *DownError.
func (m *Machine) SnapshotRestore(ctx context.Context, name string) error {
	return step(ctx, m.Name(), "snapshot_restore", strconv.Quote(name), func(ctx context.Context) error {
		s, err := m.checkpoints.find("machine "+m.Name(), name)
		if err != nil {
			return err
		}
		for _, d := range m.config.Disks {
			if d.Shared != "" {
				return &ConfigError{"machine " + m.Name() + ": snapshot_restore", fmt.Sprintf("others may write to its disk %q, too; take the whole lab back: checkpoint and restore", d.Shared)}
			}
		}
		return m.lab.restore(ctx, []*Machine{m}, s.machines)
	})
}

// restore puts machines into a state, whatever they are in.
func (l *Lab) restore(ctx context.Context, machines []*Machine, states map[string]*machineState) error {
	for _, m := range machines {
		m.startMu.Lock()
		defer m.startMu.Unlock()
	}
	l.shared.restoring()
	err := each(machines, func(_ int, m *Machine) error {
		m.mu.Lock()
		if m.current != nil && m.current.down == nil {
			m.current.down = &DownError{Machine: m.Name(), Reason: "it was restored to a checkpoint"}
		}
		m.mu.Unlock()
		err := m.stop(ctx, func(_ context.Context, r *run) error { return r.vm.Kill() })
		if err == nil {
			err = m.adopt(states[m.Name()])
		}
		return err
	})
	if err != nil {
		return err
	}
	return l.resume(ctx, machines, states)
}

// adopt makes a machine that is off what it was in a snapshot, but for running.
// startMu is held, or nobody has the machine yet.
func (m *Machine) adopt(s *machineState) error {
	if err := m.removeDisks(); err != nil {
		return &InfraError{m.Name(), "remove the machine's disk", err}
	}
	m.mu.Lock()
	m.booted, m.ended, m.id, m.inherited = s.booted, s.down, s.id, s.jobs
	m.laid, m.unlaid, m.stale = s.laid, true, nil
	m.mu.Unlock()
	m.console.Restore(s.console)
	var err error
	if len(s.disk) > 0 && m.kept == nil {
		err = os.Mkdir(m.disks(), 0o700)
	}
	if err == nil {
		err = m.kind.adopt(s.disk)
	}
	if err != nil {
		return &InfraError{m.Name(), "create the machine's disk", err}
	}
	return nil
}

func (m *Machine) removeDisks() error {
	if m.kept != nil {
		return m.kept.empty()
	}
	return os.RemoveAll(m.disks())
}

// resume lets those machines go on that run in a snapshot, all at once. It holds
// for startMu what adopt says.
func (l *Lab) resume(ctx context.Context, machines []*Machine, states map[string]*machineState) error {
	runs := make([]*run, len(machines))
	err := each(machines, func(i int, m *Machine) (err error) {
		if s := states[m.Name()]; s.state != nil {
			runs[i], err = m.launch(ctx, s.allowReboot, &origin{state: s.state, fits: s.fits, agent: s.agent, paused: true})
		}
		return err
	})
	if err != nil {
		for _, r := range runs { // half a lab is of no use, and stands still
			if r != nil {
				err = errors.Join(err, r.vm.Kill())
			}
		}
		return err
	}
	return each(machines, func(i int, m *Machine) error {
		if runs[i] == nil {
			return nil
		}
		return as[vmm.Pauser](runs[i]).Resume(ctx)
	})
}
