package attest

import (
	"context"
	"time"
)

// A FaultOption is an option of every fault: [Match], [OnNetwork] and [During].
type FaultOption interface {
	SideOption
	PartitionOption
	forFault()
}

// A SideOption is an option of faults that are on machines' side of the cable:
// a [FaultOption], [Peer] or [Direction].
type SideOption interface {
	DropOption
	DelayOption
	ReorderOption
	RateOption
	forSide()
}

// A DropOption is an option of [Network.Drop]: a [SideOption], or [Correlation].
type DropOption interface {
	set(*faultOptions)
	forDrop()
}

// A DelayOption is an option of [Network.Delay]: a [SideOption], [Jitter] or
// [Distribution].
type DelayOption interface {
	set(*faultOptions)
	forDelay()
}

// A ReorderOption is an option of [Network.Reorder]: a [SideOption], or [Gap].
type ReorderOption interface {
	set(*faultOptions)
	forReorder()
}

// A RateOption is an option of [Network.Rate]: a [SideOption], [Queue] or [Burst].
type RateOption interface {
	set(*faultOptions)
	forRate()
}

// A PartitionOption is an option of [Network.Partition]: a [FaultOption], or
// [OneWay].
type PartitionOption interface {
	set(*faultOptions)
	forPartition()
}

// faultOption is each of them; the functions that make one return the right type.
type faultOption func(*faultOptions)

func (fn faultOption) set(o *faultOptions) { fn(o) }

func (faultOption) forFault()     {}
func (faultOption) forSide()      {}
func (faultOption) forDrop()      {}
func (faultOption) forDelay()     {}
func (faultOption) forReorder()   {}
func (faultOption) forRate()      {}
func (faultOption) forPartition() {}

type faultOptions struct {
	peer         []string // nil: everyone
	direction    FaultDirection
	match        string
	network      int // 0: all
	during       func(context.Context) error
	oneWay       bool
	jitter       time.Duration
	distribution string
	correlation  float64
	gap          int
	queue, burst int
}

func collectFault[O interface{ set(*faultOptions) }](opts []O) faultOptions {
	var o faultOptions
	for _, opt := range opts {
		if any(opt) != nil {
			opt.set(&o)
		}
	}
	return o
}

// FaultDirection is a direction as a machine sees it.
type FaultDirection string

const (
	BothWays FaultDirection = "both"
	Incoming FaultDirection = "in"
	Outgoing FaultDirection = "out"
)

// Peer limits a fault to what the machine has with these others.
func Peer(m ...Machines) SideOption {
	return faultOption(func(o *faultOptions) { o.peer = append([]string{}, Group(m).machineNames()...) })
}

// Direction limits a fault to what the machine sends or to what it receives;
// without it, it is both, each for itself.
func Direction(d FaultDirection) SideOption {
	return faultOption(func(o *faultOptions) { o.direction = d })
}

// Match limits a fault to some protocols: "tcp:5432", "udp", "icmp", "arp",
// "tcp:6000-6010,udp:53". A port is the source or the destination.
func Match(protocols string) FaultOption {
	return faultOption(func(o *faultOptions) { o.match = protocols })
}

// OnNetwork limits a fault to one of the lab's networks.
func OnNetwork(number int) FaultOption {
	return faultOption(func(o *faultOptions) { o.network = number })
}

// During heals the fault when fn has returned. An error of fn is that of the
// fault's method.
func During(fn func(context.Context) error) FaultOption {
	return faultOption(func(o *faultOptions) { o.during = fn })
}

// OneWay limits a partition to what the first side sends.
func OneWay() PartitionOption { return faultOption(func(o *faultOptions) { o.oneWay = true }) }

// Jitter spreads a delay around its mean, evenly by up to d in each direction
// unless [Distribution] says otherwise.
func Jitter(d time.Duration) DelayOption { return faultOption(func(o *faultOptions) { o.jitter = d }) }

// Distribution is how jitter spreads: "uniform", "normal" (the jitter is the
// standard deviation) or "exponential" (mostly near the least, mean less jitter,
// and now and then much more; the jitter is the standard deviation).
func Distribution(name string) DelayOption {
	return faultOption(func(o *faultOptions) { o.distribution = name })
}

// Correlation, from 0 to less than 1, makes losses come together: it is how much
// likelier the loss of a frame is when the one before was lost. The share of
// lost frames stays the same.
func Correlation(c float64) DropOption {
	return faultOption(func(o *faultOptions) { o.correlation = c })
}

// Gap is how many frames overtake one that is reordered; 1 unless given.
func Gap(frames int) ReorderOption { return faultOption(func(o *faultOptions) { o.gap = frames }) }

// Queue is how many bytes wait in front of a line of limited rate before frames
// are lost; 128 KiB unless given.
func Queue(bytes int) RateOption { return faultOption(func(o *faultOptions) { o.queue = bytes }) }

// Burst is how many bytes a line of limited rate sends at once after a pause;
// none unless given.
func Burst(bytes int) RateOption { return faultOption(func(o *faultOptions) { o.burst = bytes }) }
