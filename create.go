package attest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/wire"
)

// CreateMachine adds a machine to a lab whose machines may be running. It gets
// addresses that no other has, and all others learn its name. It starts on first
// use and ends with the lab. Its image is built first.
func (l *Lab) CreateMachine(ctx context.Context, config MachineConfig) (*Machine, error) {
	var m *Machine
	err := step(ctx, "", "create_machine", strconv.Quote(config.Name), func(ctx context.Context) (err error) {
		if m, err = l.createMachine(ctx, config); err != nil {
			return err
		}
		return l.introduce(ctx)
	})
	return m, err
}

func (l *Lab) createMachine(ctx context.Context, config MachineConfig) (*Machine, error) {
	if err := config.normalize(); err != nil {
		return nil, err
	}
	config.Backend = l.host.backendName(config.Backend)
	b, err := config.lookupBackend()
	if err != nil {
		return nil, err
	}
	// What cannot work is refused before the lab changes.
	if _, _, err := (&Machine{lab: l, config: config, backend: b}).vmmConfig(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return nil, context.Cause(l.ctx)
	}
	for _, other := range l.machines {
		if strings.EqualFold(other.Name(), config.Name) {
			return nil, &ConfigError{fmt.Sprintf("machine %q", config.Name), fmt.Sprintf("the lab has a machine %q already; host names do not differ by case", other.Name())}
		}
	}
	if err := l.add(config); err != nil {
		return nil, err
	}
	if err := l.serve(); err != nil {
		return nil, err
	}
	l.config.created = append(slices.Clone(l.config.created), config) // forks have it too
	return l.machines[len(l.machines)-1], nil
}

// add adds a machine whose configuration is complete. l.mu is held, or nobody
// has the lab yet.
func (l *Lab) add(config MachineConfig) error {
	before := l.addresses
	addresses, err := before.Add(network.Machine{Name: config.Name, Networks: config.Networks})
	if err != nil {
		return &ConfigError{"lab", err.Error()}
	}
	l.addresses = addresses
	m, err := l.newMachine(config)
	if err != nil {
		l.addresses = before
		return err
	}
	l.machines = append(l.machines, m)
	return nil
}

// introduce tells all guests that run who is in the lab. One that boots hears of
// it with its own name.
func (l *Lab) introduce(ctx context.Context) error {
	var wg sync.WaitGroup
	machines := l.Machines()
	errs := make([]error, len(machines))
	for i, other := range machines {
		if r := other.running(); r != nil && !other.foreign() {
			wg.Go(func() { errs[i] = r.tellHosts(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
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

// JoinAll waits until all machines that run have powered themselves off. There is
// no limit but Timeout.
func (l *Lab) JoinAll(ctx context.Context, opts ...Option) error {
	return step(ctx, "", "join_all", "", func(ctx context.Context) error {
		o := collect(opts)
		if !o.hasTimeout {
			o.timeout = forever
		}
		machines := l.Machines()
		errs := make([]error, len(machines))
		var wg sync.WaitGroup
		for i, m := range machines {
			wg.Go(func() { errs[i] = m.WaitForShutdown(ctx, Timeout(o.timeout)) })
		}
		wg.Wait()
		return errors.Join(errs...)
	})
}

// forever is longer than any test.
const forever = 365 * 24 * time.Hour

// SerialStdoutOff keeps what the machines' consoles say out of what the run shows
// while it goes on. Reports have it nevertheless.
func (l *Lab) SerialStdoutOff(ctx context.Context) {
	event.Publish(ctx, event.ConsoleShown{On: false})
}

// SerialStdoutOn takes SerialStdoutOff back.
func (l *Lab) SerialStdoutOn(ctx context.Context) {
	event.Publish(ctx, event.ConsoleShown{On: true})
}

// Nested runs fn as a step of its own in the run's log and in reports.
func (m *Machine) Nested(ctx context.Context, text string, fn func(context.Context) error) error {
	return step(ctx, m.Name(), "nested", strconv.Quote(text), fn)
}
