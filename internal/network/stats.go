package network

import "sync/atomic"

// Stats is what went through a port so far.
type Stats struct {
	FromMachine Counters `json:"from_machine"`
	ToMachine   Counters `json:"to_machine"`
}

// Counters count one direction. Frames and Bytes (without length prefixes) are
// those that went on: into the switch, or to the machine.
type Counters struct {
	Frames  uint64 `json:"frames"`
	Bytes   uint64 `json:"bytes"`
	Dropped Drops  `json:"dropped"`
}

// Drops are frames that did not go on, by reason.
type Drops struct {
	Runt      uint64 `json:"runt"`      // from the machine: shorter than an Ethernet header (14 bytes)
	Oversized uint64 `json:"oversized"` // from the machine: longer than a VMM takes (69632 bytes)
	Local     uint64 `json:"local"`     // from the machine: for an address behind the same port
	Down      uint64 `json:"down"`      // the port was down
	Fault     uint64 `json:"fault"`     // a fault lost it
	Overrun   uint64 `json:"overrun"`   // to the machine: it does not read fast enough
}

type counters struct {
	frames, bytes                                atomic.Uint64
	runt, oversized, local, down, fault, overrun atomic.Uint64
}

func (c *counters) snapshot() Counters {
	return Counters{c.frames.Load(), c.bytes.Load(), Drops{
		c.runt.Load(), c.oversized.Load(), c.local.Load(), c.down.Load(), c.fault.Load(), c.overrun.Load(),
	}}
}
