package network

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/attest-vm/attest/internal/event"
)

// Stats is what went through a port so far; bytes are without length prefixes.
type Stats struct {
	FromMachine, ToMachine event.Counters
}

// complaint names the frames that were lost without a fault. Empty: none was.
func (s Stats) complaint() string {
	var lost []string
	if n := s.ToMachine.Lost.Overrun; n > 0 {
		lost = append(lost, fmt.Sprintf("%d of %d frames to it were lost because it did not read them fast enough", n, n+s.ToMachine.Frames))
	}
	if l := s.FromMachine.Lost; l.Runt+l.Oversized > 0 {
		lost = append(lost, fmt.Sprintf("frames that it sent were lost: %d too short and %d too long for Ethernet", l.Runt, l.Oversized))
	}
	return strings.Join(lost, "; ")
}

type counters struct {
	frames, bytes                                atomic.Uint64
	runt, oversized, local, down, fault, overrun atomic.Uint64
}

func (c *counters) snapshot() event.Counters {
	return event.Counters{Frames: c.frames.Load(), Bytes: c.bytes.Load(), Lost: event.Lost{
		Runt: c.runt.Load(), Oversized: c.oversized.Load(), Local: c.local.Load(),
		Down: c.down.Load(), Fault: c.fault.Load(), Overrun: c.overrun.Load(),
	}}
}
