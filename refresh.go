package attest

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"

	"github.com/attest-vm/attest/internal/event"
)

// This file gives a snapshot the files of the host as they are now, and says what of
// them its machines have used.

// refile gives the labs that are made of the snapshot the files of these machines.
func (s *Snapshot) refile(machines []MachineConfig) error {
	for _, given := range machines {
		if err := given.normalizeOverlays(); err != nil {
			return &ConfigError{fmt.Sprintf("machine %q", given.Name), err.Error()}
		}
		if err := given.resolveOverlays(s.config.SourceDir); err != nil {
			return err
		}
		for _, list := range []*[]MachineConfig{&s.config.Machines, &s.config.created} {
			*list = slices.Clone(*list)
			for i := range *list {
				if m := &(*list)[i]; m.Name == given.Name {
					m.Files, m.Mount = given.Files, given.Mount
				}
			}
		}
	}
	return nil
}

// asSaved leaves the files of all machines that are not given as they were saved: the
// host may be another one, and a person wants to see what the test saw.
func (s *Snapshot) asSaved(given []MachineConfig) {
	for _, list := range [][]MachineConfig{s.config.Machines, s.config.created} {
		for i := range list {
			m := &list[i]
			if !slices.ContainsFunc(given, func(g MachineConfig) bool { return g.Name == m.Name }) {
				m.Files, m.Mount, s.machines[m.Name].laid = nil, nil, nil
			}
		}
	}
}

// refresh is access.Refresh.
func (s *Snapshot) refresh(ctx context.Context, machines []MachineConfig) (used []string, err error) {
	if err := errors.Join(s.probe.close(), s.refile(machines)); err != nil {
		return nil, err
	}
	ask := false
	for _, config := range slices.Concat(s.config.Machines, s.config.created) {
		state := s.machines[config.Name]
		if state == nil || state.laid == nil {
			continue
		}
		all, err := s.host.layings(config, state.laid)
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			switch {
			case len(l.touches) == 0:
			case state.state == nil: // it is off, and cannot be asked
				for _, p := range l.touches {
					used = append(used, config.Name+": "+path.Join(l.target, p))
				}
			default:
				ask = true
			}
		}
	}
	if !ask || len(used) > 0 {
		return used, nil
	}
	// The fork is the first one that somebody asks for, if it is of use.
	f := &forward{}
	var bus event.Bus
	bus.Subscribe(f.record)
	lab, err := s.Fork(event.WithBus(ctx, &bus))
	if err != nil {
		return nil, err
	}
	all := lab.Machines()
	err = each(all, func(_ int, m *Machine) error {
		if r := m.running(); r != nil {
			return r.awaitReady(ctx)
		}
		return nil
	})
	for _, m := range all {
		m.mu.Lock()
		for _, p := range m.stale {
			used = append(used, m.Name()+": "+p)
		}
		m.mu.Unlock()
	}
	if err != nil || len(used) > 0 {
		return used, errors.Join(err, lab.Close())
	}
	s.probe.mu.Lock()
	defer s.probe.mu.Unlock()
	s.probe.lab, s.probe.forward = lab, f
	return nil, nil
}

// A probe is a fork of a snapshot that was made to look at it, and that nobody has yet.
type probe struct {
	mu      sync.Mutex
	lab     *Lab
	forward *forward
}

// take returns the fork, whose events go to ctx from now on; nil if there is none.
func (p *probe) take(ctx context.Context) *Lab {
	p.mu.Lock()
	lab := p.lab
	p.lab = nil
	p.mu.Unlock()
	if lab != nil {
		p.forward.to(ctx)
	}
	return lab
}

func (p *probe) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lab == nil {
		return nil
	}
	lab := p.lab
	p.lab = nil
	return lab.Close()
}

// forward keeps the events of a lab until it is known whose it is.
type forward struct {
	mu   sync.Mutex
	kept []event.Record
	ctx  context.Context
}

func (f *forward) record(r event.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx == nil {
		f.kept = append(f.kept, r)
		return
	}
	f.publish(r)
}

func (f *forward) to(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctx = ctx
	for _, r := range f.kept {
		f.publish(r)
	}
	f.kept = nil
}

// publish gives an event of no test the test's scope.
func (f *forward) publish(r event.Record) {
	ctx := f.ctx
	if r.Scope.Test != "" {
		ctx = event.WithScope(ctx, r.Scope)
	}
	event.Publish(ctx, r.Event)
}
