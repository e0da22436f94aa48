package attest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/network"
)

// A Lab is a set of machines and the networks between them: the unit that is
// started and stopped.
type Lab struct {
	host    *Host
	config  LabConfig
	dir     string
	scratch string // for the machines' disks
	network *Network
	out     output

	mu        sync.Mutex // guards what CreateMachine changes
	machines  []*Machine // in the order of LabConfig, and then of their creation
	addresses network.Addresses

	shared      sharedDisks
	checkpoints checkpoints // of a floor above: they go with the lab

	ctx    context.Context // ends with Close; carries the bus
	cancel context.CancelCauseFunc

	imagesMu sync.Mutex // one image is built at a time: builds share the disk and the mirror
	images   map[string]*image.Image
	roots    map[rootKey]*image.Root
}

func newLab(ctx context.Context, h *Host, config LabConfig) (_ *Lab, err error) {
	config.Machines = slices.Clone(config.Machines)
	for i := range config.Machines {
		m := &config.Machines[i]
		m.Backend = h.backendName(m.Backend)
	}
	if err := config.normalize(); err != nil {
		return nil, err
	}
	for i := range config.Machines {
		if err := config.Machines[i].resolveOverlays(config.SourceDir); err != nil {
			return nil, err
		}
	}
	l := &Lab{host: h, config: config, out: output{dir: config.OutDir, flat: config.FlatOutDir}, images: map[string]*image.Image{}, roots: map[rootKey]*image.Root{}}
	l.network = newNetwork(l, config.Seed, config.network)
	plan := make([]network.Machine, len(config.Machines))
	for i, m := range config.Machines {
		if _, err := m.lookupBackend(); err != nil {
			return nil, err
		}
		plan[i] = m.planned()
	}
	if config.addresses != nil {
		l.addresses = *config.addresses
	} else if l.addresses, err = network.Plan(plan); err != nil {
		return nil, &ConfigError{"lab", err.Error()}
	}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if l.dir, err = os.MkdirTemp(h.supervisor.Dir(), "l"); err != nil {
		return nil, &InfraError{Action: "create a lab directory", Err: err}
	}
	if l.scratch, err = os.MkdirTemp(h.scratch(), "l"); err != nil {
		return nil, &InfraError{Action: "create a directory for disks", Err: err}
	}
	for _, mc := range config.Machines {
		m, err := l.newMachine(mc)
		if err != nil {
			return nil, err
		}
		l.machines = append(l.machines, m)
	}
	for _, mc := range config.created {
		if err := l.add(mc); err != nil {
			return nil, err
		}
	}
	if err := l.serve(); err != nil {
		return nil, err
	}
	return l, nil
}

// planned is what the plan of addresses has to know of a machine, whose configuration
// is complete.
func (m MachineConfig) planned() network.Machine {
	macs, _ := m.macs()
	return network.Machine{Name: m.Name, Networks: m.Networks, MACs: macs}
}

// newMachine lays out a machine that has its addresses.
func (l *Lab) newMachine(config MachineConfig) (*Machine, error) {
	b, err := config.lookupBackend()
	if err != nil {
		return nil, err
	}
	m := &Machine{lab: l, config: config, backend: b, id: machineID(), unlaid: true}
	m.kind = kindOf(m)
	m.address, _ = l.addresses.Machine(config.Name)
	if len(config.Egress) > 0 {
		m.address.Interfaces = append(slices.Clone(m.address.Interfaces), egressInterface(m.address.Number))
	}
	if err := m.prepare(); err != nil {
		return m, err
	}
	return m, m.keepFiles()
}

// Machines are all machines, in the order in which they were declared.
func (l *Lab) Machines() []*Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.machines)
}

// plan is who has which addresses now.
func (l *Lab) plan() network.Addresses {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addresses
}

// hosts are the names that a machine has to know.
func (l *Lab) hosts(machine string) []network.Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addresses.Hosts(machine)
}

// Network is what connects the machines.
func (l *Lab) Network() *Network { return l.network }

// Machine finds a machine by its name; nil if there is none.
func (l *Lab) Machine(name string) *Machine {
	for _, m := range l.Machines() {
		if m.Name() == name {
			return m
		}
	}
	return nil
}

// hasNetwork reports whether a machine is on a network.
func (l *Lab) hasNetwork(number int) bool { return slices.Contains(networksOf(l.Machines()), number) }

// Scale adapts a default time limit to the speed of the host, as operations do
// with theirs.
func (l *Lab) Scale(d time.Duration) time.Duration { return l.host.scale(d) }

// Host is the host that the lab runs on.
func (l *Lab) Host() *Host { return l.host }

// image builds an image once for the lab.
func (l *Lab) image(ctx context.Context, img Image) (*image.Image, error) {
	l.imagesMu.Lock()
	defer l.imagesMu.Unlock()
	source := img.spec()
	key, err := image.Key(source)
	if err != nil {
		return nil, err
	}
	if built := l.images[key]; built != nil {
		return built, nil
	}
	built, err := l.host.images.Build(ctx, source)
	if err != nil {
		return nil, err
	}
	l.images[key] = built
	return built, nil
}

// Close ends all machines at once, as by pulling the plug, and removes what
// the lab had on disk. It can be called more than once.
func (l *Lab) Close() error {
	l.cancel(errLabClosed)
	var wg sync.WaitGroup
	machines := l.Machines()
	errs := make([]error, len(machines))
	for i, m := range machines {
		wg.Go(func() { errs[i] = m.close() })
	}
	wg.Wait()
	errs = append(errs, l.checkpoints.close(), l.network.close(l.ctx), l.out.close())
	l.imagesMu.Lock()
	for _, img := range l.images {
		img.Release()
	}
	clear(l.images)
	clear(l.roots)
	l.imagesMu.Unlock()
	for _, dir := range []string{l.dir, l.scratch} {
		if dir != "" && !l.host.config.Keep {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

var errLabClosed = errors.New("the lab was closed")

// sourcePath is where a file of the user is.
func (l *Lab) sourcePath(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(l.config.SourceDir, name)
}

// NewLab checks a configuration and lays out a lab: its directory and its
// networks. Machines start on first use. Nothing of the lab outlives ctx; its
// events go to the bus of ctx.
func (h *Host) NewLab(ctx context.Context, config LabConfig) (*Lab, error) {
	l, err := newLab(ctx, h, config)
	return l, outward(err)
}

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
	config.Backend = l.host.backendName(config.Backend)
	if err := config.normalize(); err != nil {
		return nil, err
	}
	if err := config.resolveOverlays(l.config.SourceDir); err != nil {
		return nil, err
	}
	b, err := config.lookupBackend()
	if err != nil {
		return nil, err
	}
	// What cannot work is refused before the lab changes.
	if err := config.checkOverlays(); err != nil {
		return nil, err
	}
	m := &Machine{lab: l, config: config, backend: b}
	m.kind = kindOf(m)
	if _, err := m.plan(ctx); err != nil {
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
	addresses, err := before.Add(config.planned())
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
		if r := other.running(); r != nil && other.kind.knowsHosts() {
			wg.Go(func() { errs[i] = r.tellHosts(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// A listOf is things of a lab that come and go.
type listOf[T comparable] struct {
	mu    sync.Mutex
	items []T
}

func (l *listOf[T]) add(x T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = append(l.items, x)
}

func (l *listOf[T]) remove(x T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = slices.DeleteFunc(l.items, func(y T) bool { return x == y })
}

func (l *listOf[T]) all() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.items)
}

// Machines are one machine or several, as the side of a fault: a *[Machine], a
// *[TestMachine], or a [Group] of them.
type Machines interface{ machineNames() []string }

// A Group is several machines.
type Group []Machines

func (m *Machine) machineNames() []string { return []string{m.Name()} }

func (g Group) machineNames() []string {
	var names []string
	for _, m := range g {
		names = append(names, m.machineNames()...)
	}
	return names
}

// Seed is what the lab's randomness depends on.
func (l *Lab) Seed() int64 { return l.config.Seed }
