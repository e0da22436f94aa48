package fake

import "fmt"

// A Limiter is how fast a device of a fake is told to be.
type Limiter struct {
	Bandwidth bucket `json:"bandwidth"`
	Ops       bucket `json:"ops"`
}

type bucket struct {
	Size   int64 `json:"size"`
	Refill int64 `json:"refill_time"`
}

// Limited has the guest say on its console what it could find out by measuring.
func (g *Guest) Limited(device string, l Limiter) {
	if l != (Limiter{}) {
		g.Say(fmt.Sprintf("%s: %d bytes in %d ms, %d operations in %d ms", device, l.Bandwidth.Size, l.Bandwidth.Refill, l.Ops.Size, l.Ops.Refill))
	}
}
