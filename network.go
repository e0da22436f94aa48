package attest

import (
	"context"
	"errors"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/network/services"
)

// A Network is all that connects the machines of a lab. It breaks on purpose:
// its methods put faults in force, which last until they are healed, until the
// function of [During] has returned, or until the test ends.
//
// A fault is on one machine or several. It is on their side of the cable: what
// they send, what they receive, or both; [Peer], [Match] and [OnNetwork] select
// further. Several faults on one machine add up, in the order in which they
// began. All randomness depends on the seed of the lab: the same frames meet the
// same fate again.
type Network struct {
	lab      *Lab
	fabric   *network.Fabric
	served   map[int]*services.Host // by the number of their network; guarded by lab.mu
	faults   listOf[*Fault]         // in force
	captures listOf[*Capture]       // that write
	programs programs
	vde      vdeSockets
}

// newNetwork is a lab's network, before any machine is attached to it: as another
// lab's was, or new.
func newNetwork(l *Lab, seed int64, was *networkState) *Network {
	n := &Network{lab: l, served: map[int]*services.Host{}}
	if was == nil {
		n.fabric = network.NewFabric(seed)
		return n
	}
	n.fabric = was.fabric.Fabric()
	for _, f := range n.fabric.Faults() {
		n.faults.add(&Fault{network: n, fault: f, test: was.tests[f.ID]})
	}
	return n
}

// close ends everything that is on the network beside machines, which are off.
func (n *Network) close(ctx context.Context) error {
	n.programs.close()
	n.vde.close()
	var errs []error
	for _, c := range n.captures.all() {
		errs = append(errs, c.Stop(ctx))
	}
	return errors.Join(append(errs, n.fabric.Close())...)
}

// A Fault is something that is wrong with the network.
type Fault struct {
	network *Network
	fault   *network.Fault
	test    string // in which it began
	during  *Fault // in whose function it began; nil: in none
}

// String is the fault as reports show it: "drop(client, rate=0.3)".
func (f *Fault) String() string { return f.fault.String() }

// Frames is how many frames the fault was asked about so far: those of its
// machines, peers and match.
func (f *Fault) Frames() int { return int(f.fault.Frames()) }

// Affected is how many frames it lost, delayed, changed, sent twice or held back
// so far.
func (f *Fault) Affected() int { return int(f.fault.Affected()) }

// Heal ends the fault. What it holds back is delivered at once, in its order and
// before all that comes later. A fault that is healed already stays so.
func (f *Fault) Heal(ctx context.Context) error {
	return step(ctx, "", "network.heal", f.String(), func(ctx context.Context) error {
		f.end(ctx, "")
		return nil
	})
}

// end heals the fault, for a reason that was not asked for or "".
func (f *Fault) end(ctx context.Context, reason string) {
	if f.fault.Heal() {
		event.Publish(ctx, event.FaultEnded{
			ID: f.fault.ID, Fault: f.String(), Reason: reason, Duration: time.Since(f.fault.Began),
			Frames: f.fault.Frames(), Affected: f.fault.Affected(),
		})
	}
	f.network.faults.remove(f)
}

// Heal ends all faults.
func (n *Network) Heal(ctx context.Context) error {
	return step(ctx, "", "network.heal", "", func(ctx context.Context) error {
		for _, f := range n.faults.all() {
			f.end(ctx, "")
		}
		return nil
	})
}

// settle heals what a test has left broken, which is its right, and ends its captures.
// It is for the end of the test that ctx belongs to.
func (n *Network) settle(ctx context.Context) error {
	test := event.ScopeOf(ctx).Test
	for _, f := range n.faults.all() {
		if f.test == test {
			f.end(ctx, "still in force at the end of the test")
		}
	}
	var errs []error
	for _, c := range n.captures.all() {
		if c.test == test {
			errs = append(errs, c.Stop(ctx))
		}
	}
	return errors.Join(errs...)
}

// endDuring heals the faults that the function of another one has left in force.
func (n *Network) endDuring(ctx context.Context, of *Fault) {
	for _, f := range n.faults.all() {
		if f.during == of {
			event.Warnf(ctx, "network: %v was still active at the end of during and was healed", f)
			f.end(ctx, "still in force at the end of during")
		}
	}
}

// networkState is what of a lab's network its forks begin with: the faults in
// force, the cables that are pulled, and what the switches have learned. Frames
// under way are not in it.
type networkState struct {
	fabric *network.State
	tests  map[int]string // in which faults began, by their IDs
}

// state is the network now. It does not change, and serves any number of forks.
func (n *Network) state() networkState {
	s := networkState{n.fabric.State(), map[int]string{}}
	for _, f := range n.faults.all() {
		s.tests[f.fault.ID] = f.test
	}
	return s
}
