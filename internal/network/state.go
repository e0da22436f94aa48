package network

import (
	"maps"
	"slices"
	"time"
)

// A State is a fabric at one moment, without its ports: the faults in force and
// how far their random numbers are, the cables that are pulled, and who is
// behind which NIC. It does not change, and any number of fabrics can begin with
// it. Frames that were under way are not in it: they are lost.
type State struct {
	seed    int64
	last    int
	faults  []faultState
	begun   map[string]int
	down    map[nicName]bool
	learned map[nicName][]macKey
}

type faultState struct {
	rule             Rule
	id               int
	key              string
	began            time.Time
	frames, affected uint64
	counts           map[string]streamState
}

// State is what f is now. Machines should be paused: what they send meanwhile
// may be in it or not.
func (f *Fabric) State() *State {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &State{seed: f.seed, last: f.last, begun: maps.Clone(f.begun), down: maps.Clone(f.down), learned: map[nicName][]macKey{}}
	for name, keys := range f.learned {
		s.learned[name] = slices.Clone(keys)
	}
	ports := f.ports()
	for _, fault := range f.faults {
		for _, p := range ports {
			p.keepCounts(fault)
		}
		fault.mu.Lock()
		s.faults = append(s.faults, faultState{
			fault.Rule, fault.ID, fault.key, fault.Began, fault.Frames(), fault.Affected(), maps.Clone(fault.counts),
		})
		fault.mu.Unlock()
	}
	for _, sw := range f.sorted() {
		for k, p := range sw.macs.Load().all() {
			name := nicName{p.nic.Machine, p.nic.ID}
			s.learned[name] = append(s.learned[name], k)
		}
	}
	return s
}

// Fabric is a new fabric in the state s. Its ports get what belongs to their
// NICs when they are attached.
func (s *State) Fabric() *Fabric {
	f := NewFabric(s.seed)
	f.last, f.begun, f.down = s.last, maps.Clone(s.begun), maps.Clone(s.down)
	for name, keys := range s.learned {
		f.learned[name] = slices.Clone(keys)
	}
	for _, x := range s.faults {
		fault := &Fault{Rule: x.rule, ID: x.id, Began: x.began, fabric: f, key: x.key, counts: maps.Clone(x.counts)}
		fault.frames.Store(x.frames)
		fault.affected.Store(x.affected)
		f.faults = append(f.faults, fault)
	}
	return f
}
