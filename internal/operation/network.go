package operation

import (
	"context"
	"fmt"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/network"
)

// linksTable is what the network is for one machine.
var linksTable = []*Operation{
	{
		Name: "block", Subject: "Network", Result: None,
		Params: []Param{cardsParam},
		Doc: "Pulls the machine's network cables: the guest sees its carrier go, and no frame passes.\n\n" +
			"The machine need not run, and stays blocked when it starts again, until `unblock`.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Block(ctx, a.networks()...)
		},
	},
	{
		Name: "unblock", Subject: "Network", Result: None,
		Params: []Param{cardsParam},
		Doc:    "Plugs in again what `block` has pulled.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Unblock(ctx, a.networks()...)
		},
	},
	{
		Name: "addresses", Subject: "Network", Result: List, Property: true,
		Doc: "The machine's planned addresses as strings: IPv4 before IPv6, in the order of its networks.\n\n" +
			"They are those that the other machines know it by, also before it starts. It is an attribute: `m.addresses[0]`.",
		call: func(_ context.Context, t target, _ Args) (any, error) {
			out := []string{}
			for _, a := range t.machine.Addresses() {
				out = append(out, a.String())
			}
			return out, nil
		},
	},
}

var (
	cardsParam = Param{Name: "network", Type: Int, Default: Absent, Doc: "only the cable to the network of this number; all cables unless given"}

	onParam    = Param{Name: "m", Type: Machines, Doc: "the machines that have the fault"}
	shareParam = Param{Name: "rate", Type: Float, Check: checkShare, Doc: "the share of frames, from 0 to 1"}
	matchParam = Param{Name: "match", Type: String, Default: "", Named: true, Check: checkMatch, Doc: "only these protocols, separated by commas: `tcp:5432`, `udp`, `tcp:6000-6010`, `icmp`, `arp`, `nd`, `ip`, `ip4`, `ip6`, `sctp`"}
	atParam    = Param{Name: "network", Type: Int, Default: Absent, Named: true, Doc: "only on the network of this number; on all unless given"}
	whileParam = Param{Name: "during", Type: Function, Default: Absent, Named: true, Doc: "the fault is healed when this function has returned"}
)

func checkShare(v any) error {
	if f := v.(float64); !(f >= 0 && f <= 1) {
		return fmt.Errorf("must be a share between 0 and 1 (one half is 0.5), not %v", f)
	}
	return nil
}

func checkMatch(v any) error {
	_, err := network.ParseMatch(v.(string))
	return err
}

func checkDirection(v any) error {
	switch d := attest.FaultDirection(v.(string)); d {
	case attest.BothWays, attest.Incoming, attest.Outgoing:
		return nil
	default:
		return fmt.Errorf("must be both, in or out, not %q", d)
	}
}

// sideParams are the parameters of a fault that is on machines' side of the
// cable: those given and what every such fault has.
func sideParams(own ...Param) []Param {
	return append(append([]Param{onParam}, own...),
		Param{Name: "peer", Type: Machines, Default: Absent, Named: true, Doc: "only traffic with these machines"},
		Param{Name: "direction", Type: String, Default: "both", Named: true, Check: checkDirection, Doc: "`in`, `out` or `both`, as `m` sees it; with `both` each direction has the fault for itself"},
		matchParam, atParam, whileParam)
}

// cutParams are the parameters of a fault that is between machines.
func cutParams(own ...Param) []Param { return append(own, matchParam, atParam, whileParam) }

// networkTable is what can be wrong with the network.
var networkTable = []*Operation{
	{
		Name: "partition", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: cutParams(
			Param{Name: "a", Type: Machines, Doc: "one side"},
			Param{Name: "b", Type: Machines, Doc: "the other side"},
			Param{Name: "oneway", Type: Bool, Default: false, Doc: "lose only what `a` sends to `b`"}),
		Doc: "Lets no frame through between two sides. Machines of one side reach each other.",
		call: fault(func(n *attest.Network, ctx context.Context, on attest.Machines, a Args, t target, opts []attest.PartitionOption) (*attest.Fault, error) {
			b, err := a.group(t, "b")
			if err != nil {
				return nil, err
			}
			if a.Bool("oneway") {
				opts = append(opts, attest.OneWay())
			}
			return n.Partition(ctx, on, b, opts...)
		}),
	},
	{
		Name: "isolate", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: cutParams(onParam),
		Doc:    "Cuts machines off from all others. Machines of a list still reach each other.",
		call:   plainFault((*attest.Network).Isolate),
	},
	{
		Name: "drop", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: sideParams(shareParam,
			Param{Name: "correlation", Type: Float, Default: 0.0, Named: true, Doc: "how much likelier the loss of a frame is after another loss, from 0 to less than 1; the share of lost frames stays the same"}),
		Doc: "Loses a share of the frames.",
		call: fault(func(n *attest.Network, ctx context.Context, on attest.Machines, a Args, _ target, opts []attest.DropOption) (*attest.Fault, error) {
			return n.Drop(ctx, on, a.Float("rate"), append(opts, attest.Correlation(a.Float("correlation")))...)
		}),
	},
	{
		Name: "delay", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: sideParams(
			Param{Name: "mean", Type: Duration, Doc: "the mean delay"},
			Param{Name: "jitter", Type: Duration, Default: Absent, Doc: "how far delays spread around the mean"},
			Param{Name: "distribution", Type: String, Default: "uniform", Doc: "how delays spread: `uniform` (from the mean minus the jitter to the mean plus the jitter), `normal` or `exponential` (the jitter is the standard deviation)"}),
		Doc: "Delivers frames later. They stay in their order, even with jitter; `reorder` changes the order.\n\n" +
			"When the fault is healed, frames that wait are delivered at once, before all later ones.",
		call: fault(func(n *attest.Network, ctx context.Context, on attest.Machines, a Args, _ target, opts []attest.DelayOption) (*attest.Fault, error) {
			return n.Delay(ctx, on, a.Duration("mean"), append(opts, attest.Jitter(a.Duration("jitter")), attest.Distribution(a.String("distribution")))...)
		}),
	},
	{
		Name: "duplicate", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: sideParams(shareParam),
		Doc:    "Delivers a share of the frames twice.",
		call:   shareFault((*attest.Network).Duplicate),
	},
	{
		Name: "reorder", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: sideParams(shareParam, Param{Name: "gap", Type: Int, Default: 1, Doc: "how many frames overtake"}),
		Doc:    "Lets later frames overtake a share of the frames. A frame that no other follows is delivered after 100 ms.",
		call: fault(func(n *attest.Network, ctx context.Context, on attest.Machines, a Args, _ target, opts []attest.ReorderOption) (*attest.Fault, error) {
			return n.Reorder(ctx, on, a.Float("rate"), append(opts, attest.Gap(a.Int("gap")))...)
		}),
	},
	{
		Name: "corrupt", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: sideParams(shareParam),
		Doc: "Flips one bit in a share of the frames, behind the Ethernet header.\n\n" +
			"Guests drop such packets of TCP, UDP and ICMP because of their checksums. ARP has no checksum; `match` excludes it.",
		call: shareFault((*attest.Network).Corrupt),
	},
	{
		Name: "rate", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: sideParams(
			Param{Name: "bits", Type: Int, Doc: "bits per second, in each direction"},
			Param{Name: "queue", Type: Int, Default: 128 << 10, Doc: "bytes that wait; what does not fit is lost"},
			Param{Name: "burst", Type: Int, Default: 0, Doc: "bytes that are sent at once after a pause"}),
		Doc: "Limits the speed of the line.",
		call: fault(func(n *attest.Network, ctx context.Context, on attest.Machines, a Args, _ target, opts []attest.RateOption) (*attest.Fault, error) {
			return n.Rate(ctx, on, int64(a.Int("bits")), append(opts, attest.Queue(a.Int("queue")), attest.Burst(a.Int("burst")))...)
		}),
	},
	{
		Name: "down", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: sideParams(),
		Doc:    "Loses every frame. The guest still sees a carrier; `machine.block` takes the carrier too.",
		call:   plainFault((*attest.Network).Down),
	},
	{
		Name: "flaky", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: sideParams(),
		Doc:    "Makes a bad link: it loses a fifth of the frames, mostly several in a row.",
		call:   plainFault((*attest.Network).Flaky),
	},
	{
		Name: "majorities_ring", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: cutParams(Param{Name: "m", Type: Machines, Doc: "at least three machines, in the order of the ring"}),
		Doc:    "Lets every machine hear a majority of all machines, itself included. No two machines hear the same majority.",
		call:   plainFault((*attest.Network).MajoritiesRing),
	},
	{
		Name: "bridge", On: Network, Subject: "Faults of the network", Result: faultResult,
		Params: cutParams(Param{Name: "m", Type: Machines, Doc: "at least three machines; the one in the middle of the list is the bridge"}),
		Doc:    "Cuts a list of machines into halves that only the one in its middle reaches.",
		call:   plainFault((*attest.Network).Bridge),
	},
	{
		Name: "heal", On: Network, Subject: "Faults of the network", Result: None,
		Doc:  "Ends all faults.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.lab.Network().Heal(ctx) },
	},
	{
		Name: "capture", On: Network, Subject: "Faults of the network", Result: captureResult,
		Params: []Param{{Name: "path", Type: String, Check: checkBelow, Doc: "a file below the directory of the test in the output directory (`-o`)"}},
		Doc: "Writes all frames of all machines to a pcapng file, which Wireshark and tshark read, until the capture is stopped or the test ends.\n\n" +
			"Each network card is an interface. A frame that a fault has lost has a comment. Comments also mark where each fault began and ended.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			c, err := t.lab.Network().Capture(ctx, a.String("path"))
			if err != nil {
				return nil, err
			}
			return Handle{Capture, c.Path(), c}, nil
		},
	},
	{
		Name: "heal", On: Fault, Subject: "Faults", Result: None,
		Doc: "Ends the fault. It can be called more than once. Frames that the fault holds back are delivered at once, before all later ones.",
		call: func(ctx context.Context, t target, _ Args) (any, error) {
			return nil, t.object.(*attest.Fault).Heal(ctx)
		},
	},
	{
		Name: "frames", On: Fault, Subject: "Faults", Result: Int, Property: true,
		Doc:  "How many frames the fault has selected, by its machines, peers and match.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.object.(*attest.Fault).Frames(), nil },
	},
	{
		Name: "affected", On: Fault, Subject: "Faults", Result: Int, Property: true,
		Doc: "How many of `frames` it has lost, delayed, changed, sent twice or held back.",
		call: func(_ context.Context, t target, _ Args) (any, error) {
			return t.object.(*attest.Fault).Affected(), nil
		},
	},
	{
		Name: "stop", On: Capture, Subject: "Captures", Result: None,
		Doc: "Ends the capture, and returns when the file is complete.",
		call: func(ctx context.Context, t target, _ Args) (any, error) {
			return nil, t.object.(*attest.Capture).Stop(ctx)
		},
	},
}

const (
	faultResult   Type = "fault"
	captureResult Type = "capture"
)

// fault makes an operation of what begins a fault.
// O is the kind of the options that it takes.
func fault[O any](begin func(*attest.Network, context.Context, attest.Machines, Args, target, []O) (*attest.Fault, error)) func(context.Context, target, Args) (any, error) {
	return func(ctx context.Context, t target, a Args) (any, error) {
		name := a.operation.Params[0].Name
		on, err := a.group(t, name)
		if err != nil {
			return nil, err
		}
		given, err := a.faultOptions(t)
		if err != nil {
			return nil, err
		}
		opts := make([]O, len(given))
		for i, o := range given {
			opts[i] = o.(O) // as the parameters of the operation say
		}
		f, err := begin(t.lab.Network(), ctx, on, a, t, opts)
		if err != nil {
			return nil, err
		}
		return Handle{Fault, f.String(), f}, nil
	}
}

func plainFault[O any](begin func(*attest.Network, context.Context, attest.Machines, ...O) (*attest.Fault, error)) func(context.Context, target, Args) (any, error) {
	return fault(func(n *attest.Network, ctx context.Context, on attest.Machines, _ Args, _ target, opts []O) (*attest.Fault, error) {
		return begin(n, ctx, on, opts...)
	})
}

func shareFault(begin func(*attest.Network, context.Context, attest.Machines, float64, ...attest.SideOption) (*attest.Fault, error)) func(context.Context, target, Args) (any, error) {
	return fault(func(n *attest.Network, ctx context.Context, on attest.Machines, a Args, _ target, opts []attest.SideOption) (*attest.Fault, error) {
		return begin(n, ctx, on, a.Float("rate"), opts...)
	})
}

// group are the machines of an argument.
func (a Args) group(t target, name string) (attest.Group, error) {
	machines, err := a.Machines(t, name)
	var g attest.Group
	for _, m := range machines {
		g = append(g, m)
	}
	return g, err
}

// networks are those that block and unblock are limited to.
func (a Args) networks() []int {
	if !a.Given("network") {
		return nil
	}
	return []int{a.Int("network")}
}

// faultOptions are what the arguments stand for that many faults have.
func (a Args) faultOptions(t target) ([]any, error) {
	opts := []any{attest.Match(a.String("match"))}
	if a.Given("network") {
		opts = append(opts, attest.OnNetwork(a.Int("network")))
	}
	if fn := a.Func("during"); fn != nil {
		opts = append(opts, attest.During(func(ctx context.Context) error {
			_, err := fn(ctx)
			return err
		}))
	}
	if _, has := a.values["direction"]; has {
		opts = append(opts, attest.Direction(attest.FaultDirection(a.String("direction"))))
	}
	if !a.Given("peer") {
		return opts, nil
	}
	peer, err := a.group(t, "peer")
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	return append(opts, attest.Peer(peer)), nil
}
