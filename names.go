package attest

import (
	"net/netip"
	"slices"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/network/services"
)

// domain is what the names of machines end in for guests that ask DNS, and the
// domain that they search: systemd-resolved asks for no name without a dot.
const domain = "lab.test"

// serve gives every network its host that serves addresses and names, and tells
// those that are there of new machines. l.mu is held, or nobody has the lab yet.
func (l *Lab) serve() error {
	for _, n := range networksOf(l.machines) {
		c := l.services(n)
		if host := l.network.served[n]; host != nil {
			host.Update(c.Leases, c.Names)
			continue
		}
		host := services.New(c)
		if _, err := l.network.fabric.Switch(n).AttachFrames(l.ctx, network.NIC{ID: network.Services(n).Name, MAC: c.MAC}, host); err != nil {
			return &InfraError{Action: "serve addresses and names", Err: err}
		}
		l.network.served[n] = host
	}
	return nil
}

// networksOf are the numbers of the networks that machines are on, in order.
func networksOf(machines []*Machine) []int {
	var out []int
	for _, m := range machines {
		out = append(out, m.config.Networks...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// services is what is served on a network: to each card its planned addresses,
// and of each machine those that it has on this network, or all of them if it is
// not on it.
func (l *Lab) services(n int) services.Config {
	self := network.Services(n)
	c := services.Config{MAC: self.MAC, IPv4: self.IPv4, IPv6: self.IPv6, Domain: domain, Names: map[string][]netip.Addr{}}
	own := l.config.Networks[n]
	c.NoDHCP, c.NoDNS, c.NoRA = own.NoDHCP, own.NoDNS, own.NoRA
	c.Warn = func(text string) { event.Warnf(l.ctx, "%s", text) }
	for _, m := range l.addresses {
		var here, elsewhere []netip.Addr
		for _, i := range m.Interfaces {
			if i.Network != n {
				elsewhere = append(elsewhere, i.Addrs()...)
				continue
			}
			here = append(here, i.Addrs()...)
			if i.IPv4.IsValid() {
				c.Leases = append(c.Leases, services.Lease{MAC: i.MAC, Name: m.Name, IPv4: i.IPv4, IPv6: i.IPv6})
			}
		}
		c.Names[m.Name] = here
		if len(here) == 0 {
			c.Names[m.Name] = elsewhere
		}
	}
	return c
}
