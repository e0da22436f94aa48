package network

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Rule is a fault as plain data: what happens to which frames.
type Rule struct {
	Name    string // how reports show it: `drop(client, rate=0.3)`
	Flows   []Flow
	Network int // only on this network; 0: on all
	Match   Match
	Effect  Effect
	// Scope is what the seed's decisions belong to, the test's name: a test
	// that runs alone meets the same fate as among others.
	Scope string
}

// A Flow is frames from some machines to others. Where To is everyone, they meet
// the fault as they leave a machine of From, each once, whoever is to receive
// them. Otherwise they meet it on the way into a machine of To, where it is known
// from whom each comes.
type Flow struct{ From, To Set }

// A Set is machines by name. The zero value is everyone on the network.
type Set struct {
	Machines []string
	Others   bool // all but Machines
}

// All is everyone on the network.
func (s Set) All() bool { return !s.Others && len(s.Machines) == 0 }

// Has reports whether a machine belongs to the set.
func (s Set) Has(machine string) bool {
	return s.All() || slices.Contains(s.Machines, machine) != s.Others
}

// Both is the flows between two sets, in both directions.
func Both(a, b Set) []Flow { return []Flow{{a, b}, {b, a}} }

// These is a set of some machines.
func These(machines ...string) Set { return Set{Machines: machines} }

// AllBut is everyone on the network but some machines.
func AllBut(machines ...string) Set { return Set{Machines: machines, Others: true} }

// MajoritiesRing lets each machine hear a majority of all, itself included, and
// no two of them the same one: those around it on a ring that is in the order of
// the list. It takes at least three.
func MajoritiesRing(machines []string) []Flow {
	n := len(machines)
	majority := n/2 + 1
	var flows []Flow
	for i := range n {
		var deaf []string // to whom this one is deaf
		for k := majority; k < n; k++ {
			deaf = append(deaf, machines[(i-(majority-1)/2+k+n)%n])
		}
		if len(deaf) > 0 {
			flows = append(flows, Flow{These(deaf...), These(machines[i])})
		}
	}
	return flows
}

// Bridge cuts a list of machines into halves that are joined by the machine in
// the middle alone. It takes at least three.
func Bridge(machines []string) []Flow {
	middle := len(machines) / 2
	return Both(These(machines[:middle]...), These(machines[middle+1:]...))
}

// A Fault is a rule in force.
type Fault struct {
	Rule
	ID    int // counts from 1 in a fabric
	Began time.Time

	fabric           *Fabric
	key              string // of its random numbers
	frames, affected atomic.Uint64

	mu     sync.Mutex
	counts map[string]streamState // of streams at ports that are gone, by place and sender
}

// streamState is how far a stream has come.
type streamState struct {
	Count uint64
	Lost  bool
}

// Frames is how many frames the fault was asked about.
func (f *Fault) Frames() uint64 { return f.frames.Load() }

// Affected is how many of them were lost, delayed, changed, sent twice or held
// back.
func (f *Fault) Affected() uint64 { return f.affected.Load() }

// String is the fault as reports show it.
func (f *Fault) String() string { return f.Name }

// Heal ends the fault. Frames that it holds back are delivered now, in their
// order, before any that come later. It can be called more than once; it reports
// whether this call was the first.
func (f *Fault) Heal() bool { return f.fabric.heal(f) }

// on reports whether the fault is at a place.
func (f *Fault) on(p *Port, d Direction) bool {
	if f.Network != 0 && f.Network != p.sw.number {
		return false
	}
	return slices.ContainsFunc(f.Flows, func(w Flow) bool {
		if d == FromMachine {
			return w.To.All() && w.From.Has(p.nic.Machine)
		}
		return !w.To.All() && w.To.Has(p.nic.Machine)
	})
}

// stream begins to count, at a place, the frames of one sender. When a machine's
// port is a new one, it goes on with the number where the old one ended.
func (f *Fault) stream(p *Port, d Direction, from *Port) *frameStream {
	s := &frameStream{selected: true}
	if d == ToMachine {
		s.selected = slices.ContainsFunc(f.Flows, func(w Flow) bool {
			return !w.To.All() && w.To.Has(p.nic.Machine) && w.From.Has(from.nic.Machine)
		})
	}
	at := streamName(p, d, from)
	s.key = streamKey(f.fabric.seed, f.key, at)
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.counts[at]; ok {
		s.count, s.lost = c.Count, c.Lost
	}
	return s
}

// keep notes how far an impairment's streams have come.
func (f *Fault) keep(im *impairment) {
	im.mu.Lock()
	defer im.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for from, s := range im.streams {
		if s.selected {
			f.counts[streamName(im.port, im.dir, from)] = streamState{s.count, s.lost}
		}
	}
}

// streamName is the same in every run.
func streamName(p *Port, d Direction, from *Port) string {
	return fmt.Sprintf("%v %v, by %v", d, p, from)
}

// check refuses a rule that makes no sense.
func (r *Rule) check() error {
	if len(r.Flows) == 0 {
		return fmt.Errorf("%s: it affects no machine", r.Name)
	}
	if err := r.Effect.Check(); err != nil {
		name, _, _ := strings.Cut(r.Name, "(")
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
