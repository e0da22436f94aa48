package egress

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
)

const (
	// maxRefused is how many destinations are reported as refused, and maxFailures how
	// many connections as failed. A guest can try what it likes.
	maxRefused  = 200
	maxFailures = 1000
)

// counts are what was dropped, and what of it nobody was told of.
type counts struct {
	refused, failures    atomic.Uint64 // that are not reported
	connections, foreign atomic.Uint64
	source               atomic.Pointer[netip.Addr] // of one foreign packet
}

// String is empty if there is nothing to tell.
func (c *counts) String() string {
	var list []string
	add := func(n uint64, format string, a ...any) {
		if n > 0 {
			list = append(list, fmt.Sprintf(format, append([]any{n}, a...)...))
		}
	}
	add(c.refused.Load(), "%d more tries to reach other destinations were refused")
	add(c.failures.Load(), "%d more connections failed")
	add(c.connections.Load(), "%d connections were dropped, as there were %d already (%d to the name server)", maxConnections, maxNamesConnections)
	if src := c.source.Load(); src != nil {
		add(c.foreign.Load(), "%d packets were dropped, as they came from addresses that are not the machine's, such as %v", src)
	}
	return strings.Join(list, "; ")
}

// refuse reports a destination that the rules do not allow.
func (g *Gateway) refuse(c Connection) {
	key := c.Protocol + " " + c.Destination
	g.mu.Lock()
	known := g.refused[key]
	full := !known && len(g.refused) >= maxRefused
	if !full {
		g.refused[key] = true
	}
	g.mu.Unlock()
	switch {
	case full:
		g.dropped.refused.Add(1)
	case !known:
		g.config.Report(c)
	}
}

// done reports a connection that is over.
func (g *Gateway) done(c Connection) {
	if c.Error != "" {
		g.failed(c)
		return
	}
	g.config.Report(c)
}

// failed reports a connection that was not made, or broke.
func (g *Gateway) failed(c Connection) {
	g.mu.Lock()
	g.failures++
	full := g.failures > maxFailures
	g.mu.Unlock()
	if full {
		g.dropped.failures.Add(1)
		return
	}
	g.config.Report(c)
}
