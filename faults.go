package attest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/network"
)

// Drop loses a share of the frames, from 0 to 1; see [Correlation].
func (n *Network) Drop(ctx context.Context, on Machines, rate float64, opts ...DropOption) (*Fault, error) {
	o := collectFault(opts)
	return n.onSide(ctx, "drop", on, network.Drop{Rate: rate, Correlation: o.correlation}, o,
		argument{"rate", rate}, unless("correlation", o.correlation, 0))
}

// Delay delivers frames later, in their order; see [Jitter].
func (n *Network) Delay(ctx context.Context, on Machines, mean time.Duration, opts ...DelayOption) (*Fault, error) {
	o := collectFault(opts)
	return n.onSide(ctx, "delay", on, network.Delay{Mean: mean, Jitter: o.jitter, Distribution: o.distribution}, o,
		argument{"mean", mean}, unless("jitter", o.jitter, 0), unless("distribution", o.distribution, "uniform"))
}

// Duplicate delivers a share of the frames twice.
func (n *Network) Duplicate(ctx context.Context, on Machines, rate float64, opts ...SideOption) (*Fault, error) {
	return n.onSide(ctx, "duplicate", on, network.Duplicate{Rate: rate}, collectFault(opts), argument{"rate", rate})
}

// Reorder has a share of the frames overtaken by those that follow; see [Gap]. A
// frame that nothing follows goes on after 100 ms.
func (n *Network) Reorder(ctx context.Context, on Machines, rate float64, opts ...ReorderOption) (*Fault, error) {
	o := collectFault(opts)
	return n.onSide(ctx, "reorder", on, network.Reorder{Rate: rate, Gap: o.gap}, o, argument{"rate", rate}, unless("gap", o.gap, 1))
}

// Corrupt flips one bit in a share of the frames, behind the Ethernet header.
// Checksums find it: a guest drops such a packet of TCP, UDP or ICMP. ARP has
// none.
func (n *Network) Corrupt(ctx context.Context, on Machines, rate float64, opts ...SideOption) (*Fault, error) {
	return n.onSide(ctx, "corrupt", on, network.Corrupt{Rate: rate}, collectFault(opts), argument{"rate", rate})
}

// Rate limits each direction to so many bits per second; see [Queue].
func (n *Network) Rate(ctx context.Context, on Machines, bits int64, opts ...RateOption) (*Fault, error) {
	o := collectFault(opts)
	return n.onSide(ctx, "rate", on, network.Rate{Bits: bits, Queue: o.queue, Burst: o.burst}, o,
		argument{"bits", bits}, unless("queue", o.queue, network.DefaultRateQueue), unless("burst", o.burst, 0))
}

// Down loses every frame. The guest's network card keeps its carrier;
// [Machine.Block] takes that, too.
func (n *Network) Down(ctx context.Context, on Machines, opts ...SideOption) (*Fault, error) {
	return n.onSide(ctx, "down", on, network.Down{}, collectFault(opts))
}

// Flaky is a bad link: it loses a fifth of the frames, mostly several in a row.
func (n *Network) Flaky(ctx context.Context, on Machines, opts ...SideOption) (*Fault, error) {
	return n.onSide(ctx, "flaky", on, network.Drop{Rate: 0.2, Correlation: 0.75}, collectFault(opts))
}

// Partition lets no frame through from a to b and from b to a, or with [OneWay]
// from a to b only. Machines of one side reach each other.
func (n *Network) Partition(ctx context.Context, a, b Machines, opts ...PartitionOption) (*Fault, error) {
	o := collectFault(opts)
	left, right := a.machineNames(), b.machineNames()
	flows := network.Both(network.These(left...), network.These(right...))
	if o.oneWay {
		flows = flows[:1]
	}
	o.peer = right // as of every fault: machines of the lab, and not those of the other side
	return n.cut(ctx, "partition", left, flows, o, machinesGiven("", left), machinesGiven("", right), unless("oneway", o.oneWay, false))
}

// Isolate cuts machines off from all others. Several still reach each other.
func (n *Network) Isolate(ctx context.Context, on Machines, opts ...FaultOption) (*Fault, error) {
	names := on.machineNames()
	flows := network.Both(network.These(names...), network.AllBut(names...))
	return n.cut(ctx, "isolate", names, flows, collectFault(opts), machinesGiven("", names))
}

// MajoritiesRing lets every machine hear a majority of all, itself counted, and
// no two the same one: each hears those around it on a ring in the order of the
// list. With three machines that is one other each, in one direction.
func (n *Network) MajoritiesRing(ctx context.Context, on Machines, opts ...FaultOption) (*Fault, error) {
	names := on.machineNames()
	return n.cut(ctx, "majorities_ring", names, network.MajoritiesRing(names), collectFault(opts), machinesGiven("", names))
}

// Bridge cuts a list of machines into two halves that only the machine in its
// middle reaches.
func (n *Network) Bridge(ctx context.Context, on Machines, opts ...FaultOption) (*Fault, error) {
	names := on.machineNames()
	return n.cut(ctx, "bridge", names, network.Bridge(names), collectFault(opts), machinesGiven("", names))
}

// onSide puts an effect on machines' side of the cable.
func (n *Network) onSide(ctx context.Context, kind string, on Machines, e network.Effect, o faultOptions, arguments ...argument) (*Fault, error) {
	names := on.machineNames()
	these, peer := network.These(names...), network.These(o.peer...)
	r := network.Rule{Effect: e}
	if o.direction != Incoming {
		r.Flows = append(r.Flows, network.Flow{From: these, To: peer})
	}
	if o.direction != Outgoing {
		r.Flows = append(r.Flows, network.Flow{From: peer, To: these})
	}
	if o.peer != nil {
		arguments = append(arguments, machinesGiven("peer", o.peer))
	}
	arguments = append(arguments, unless("direction", string(o.direction), string(BothWays)))
	return n.begin(ctx, kind, names, r, o, append([]argument{machinesGiven("", names)}, arguments...))
}

// cut loses everything that flows.
func (n *Network) cut(ctx context.Context, kind string, names []string, flows []network.Flow, o faultOptions, arguments ...argument) (*Fault, error) {
	return n.begin(ctx, kind, names, network.Rule{Effect: network.Down{}, Flows: flows}, o, arguments)
}

// begin puts a rule in force, for as long as the options say.
func (n *Network) begin(ctx context.Context, kind string, names []string, r network.Rule, o faultOptions, arguments []argument) (f *Fault, err error) {
	args := written(ctx, append(arguments, unless("match", o.match, ""), unless("network", o.network, 0))...)
	err = step(ctx, "", "network."+kind, args, func(ctx context.Context) error {
		r.Name, r.Network, r.Scope = kind+"("+args+")", o.network, event.ScopeOf(ctx).Test
		if err := n.check(kind, names, &r, o); err != nil {
			return &ConfigError{"network." + kind, err.Error()}
		}
		fault, err := n.fabric.Begin(r)
		if err != nil {
			return errLabClosed
		}
		f = &Fault{n, fault, event.ScopeOf(ctx).Test, duringOf(ctx)}
		n.faults.add(f)
		event.Publish(ctx, event.FaultStarted{ID: fault.ID, Fault: f.String()})
		if o.during == nil {
			return nil
		}
		defer func() {
			ctx := context.WithoutCancel(ctx)
			n.endDuring(ctx, f)
			f.end(ctx, "")
		}()
		return o.during(context.WithValue(ctx, duringKey{}, f))
	})
	return f, err
}

// duringKey is the context key of the fault whose During function runs.
type duringKey struct{}

func duringOf(ctx context.Context) *Fault {
	f, _ := ctx.Value(duringKey{}).(*Fault)
	return f
}

// check says why a rule makes no sense for this lab, and completes it.
func (n *Network) check(kind string, names []string, r *network.Rule, o faultOptions) (err error) {
	if needs := map[string]int{"majorities_ring": 3, "bridge": 3}[kind]; len(names) > 0 && len(names) < needs {
		return errors.New("want at least three machines")
	}
	if len(names) == 0 || o.peer != nil && len(o.peer) == 0 {
		return errors.New("the list of machines is empty; name at least one")
	}
	for _, name := range append(slices.Clone(names), o.peer...) {
		m := n.lab.Machine(name)
		if m == nil {
			return fmt.Errorf("the lab has no machine %q", name)
		}
		if o.network != 0 && !slices.Contains(m.config.Networks, o.network) {
			return fmt.Errorf("%s is not on network %d; it is on %v", name, o.network, m.config.Networks)
		}
	}
	if err := disjoint(names, o.peer); err != nil {
		return err
	}
	switch o.direction {
	case "", BothWays, Incoming, Outgoing:
	default:
		return fmt.Errorf("direction must be both, in or out, not %q", o.direction)
	}
	if r.Match, err = network.ParseMatch(o.match); err != nil {
		return fmt.Errorf("match: %w", err)
	}
	return r.Effect.Check()
}

// disjoint refuses machines that are on both sides of a cut.
func disjoint(a, b []string) error {
	for _, name := range a {
		if slices.Contains(b, name) {
			return fmt.Errorf("%s is on both sides; a machine cannot be cut off from itself", name)
		}
	}
	return nil
}
