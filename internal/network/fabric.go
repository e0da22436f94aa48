package network

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// A Fabric is the switches of one lab and the faults on them.
type Fabric struct {
	seed int64

	mu       sync.Mutex // taken before a switch's
	closed   bool
	switches map[int]*Switch
	faults   []*Fault // in force, in the order in which they began
	captures []*Capture
	last     int                  // ID of a fault
	begun    map[string]int       // how often a scope has had a rule of a name
	down     map[nicName]bool     // NICs that are blocked, there or not
	learned  map[nicName][]macKey // of a state, until the NIC is attached
}

// A nicName is a NIC over all ports that it has in its life.
type nicName struct{ Machine, ID string }

// NewFabric returns a fabric without ports. All that is random in it depends on
// the seed and on what goes through it.
func NewFabric(seed int64) *Fabric {
	return &Fabric{seed: seed, switches: map[int]*Switch{}, begun: map[string]int{}, down: map[nicName]bool{}, learned: map[nicName][]macKey{}}
}

// Switch is the switch of a network; it is made when it is first asked for.
func (f *Fabric) Switch(number int) *Switch {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.switches[number]
	if s == nil {
		s = New(fmt.Sprintf("net%d", number), Options{})
		s.number, s.fabric, s.closed = number, f, f.closed
		f.switches[number] = s
	}
	return s
}

// Switches are all switches, in the order of their numbers.
func (f *Fabric) Switches() []*Switch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sorted()
}

func (f *Fabric) sorted() []*Switch {
	var out []*Switch
	for _, n := range slices.Sorted(maps.Keys(f.switches)) {
		out = append(out, f.switches[n])
	}
	return out
}

// ports are all ports of all switches.
func (f *Fabric) ports() []*Port {
	var out []*Port
	for _, s := range f.sorted() {
		out = append(out, s.Ports()...)
	}
	return out
}

// join gives a new port what is in force.
func (f *Fabric) join(p *Port) {
	name := nicName{p.nic.Machine, p.nic.ID}
	p.down = f.down[name]
	p.captures = slices.Clone(f.captures)
	for _, c := range f.captures {
		c.join(p)
	}
	for _, fault := range f.faults {
		p.begin(fault)
	}
	p.mu.Lock()
	p.setPaths()
	p.mu.Unlock()
	for _, k := range f.learned[name] {
		p.sw.macs.Store(p.sw.macs.Load().learn(k, p))
	}
	delete(f.learned, name)
}

// Begin puts a fault in force. Ports that are attached later are under it too.
func (f *Fabric) Begin(r Rule) (*Fault, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, ErrClosed
	}
	f.last++
	key := r.Scope + "\n" + r.Name
	f.begun[key]++
	fault := &Fault{Rule: r, ID: f.last, Began: time.Now(), fabric: f, key: fmt.Sprintf("%s\n%d", key, f.begun[key]), counts: map[string]streamState{}}
	f.faults = append(f.faults, fault)
	for _, c := range f.captures {
		c.comment(fmt.Sprintf("fault %d began: %v", fault.ID, fault))
	}
	for _, p := range f.ports() {
		p.begin(fault)
	}
	return fault, nil
}

// Faults are those in force, in the order in which they began.
func (f *Fabric) Faults() []*Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.faults)
}

func (f *Fabric) heal(fault *Fault) bool {
	f.mu.Lock()
	i := slices.Index(f.faults, fault)
	if i < 0 {
		f.mu.Unlock()
		return false
	}
	f.faults = slices.Delete(slices.Clone(f.faults), i, i+1)
	ports := f.ports()
	captures := f.captures
	f.mu.Unlock()
	// Without the lock: what was held back finds its way through the switches.
	for _, p := range ports {
		p.heal(fault)
	}
	for _, c := range captures {
		c.comment(fmt.Sprintf("fault %d ended: %v", fault.ID, fault))
	}
	return true
}

// SetDown pulls the cable of a NIC, or plugs it in; it need not be attached, and
// stays so when it is attached again.
func (f *Fabric) SetDown(machine, nic string, down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := nicName{machine, nic}
	f.down[name] = down
	for _, p := range f.ports() {
		if p.nic.Machine == name.Machine && p.nic.ID == name.ID {
			p.SetDown(down)
		}
	}
}

// Down reports whether the cable of a NIC is pulled.
func (f *Fabric) Down(machine, nic string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down[nicName{machine, nic}]
}

// Close closes all switches and captures.
func (f *Fabric) Close() error {
	f.mu.Lock()
	f.closed = true
	switches, captures := f.sorted(), f.captures
	f.mu.Unlock()
	var errs []error
	for _, s := range switches {
		errs = append(errs, s.Close())
	}
	for _, c := range captures {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
