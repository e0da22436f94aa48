package attest

import (
	"context"
	"fmt"
	"slices"

	"github.com/attest-vm/attest/internal/network"
)

// Block pulls the cables of the machine: of all its network cards, or of those
// on the given networks. The guest sees its carrier go where the backend can show
// it, and no frame passes. It needs no running machine, and lasts over restarts
// until [Machine.Unblock].
func (m *Machine) Block(ctx context.Context, networks ...int) error {
	return m.setLinks(ctx, "block", networks, false)
}

// Unblock plugs the cables in again that [Machine.Block] has pulled.
func (m *Machine) Unblock(ctx context.Context, networks ...int) error {
	return m.setLinks(ctx, "unblock", networks, true)
}

func (m *Machine) setLinks(ctx context.Context, operation string, networks []int, up bool) error {
	args := ""
	if len(networks) > 0 {
		args = fmt.Sprintf("network=%d", networks)
	}
	return step(ctx, m.Name(), operation, args, func(ctx context.Context) error {
		var interfaces []network.Interface
		for _, i := range m.address.Interfaces {
			if len(networks) == 0 || slices.Contains(networks, i.Network) {
				interfaces = append(interfaces, i)
			}
		}
		for _, n := range networks {
			if !slices.Contains(m.config.Networks, n) {
				return &ConfigError{"machine " + m.Name() + ": " + operation, fmt.Sprintf("it is not on network %d; it is on %v", n, m.config.Networks)}
			}
		}
		if len(interfaces) == 0 {
			return &ConfigError{"machine " + m.Name() + ": " + operation, "it is on no network"}
		}
		m.linkMu.Lock()
		defer m.linkMu.Unlock()
		for _, i := range interfaces {
			m.lab.network.fabric.SetDown(m.Name(), i.Name, !up)
			if i.Network == outside && m.wayOut != nil {
				m.wayOut.SetDown(!up)
			}
		}
		return m.showLinks(ctx, m.running(), operation, interfaces)
	})
}
