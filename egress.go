package attest

import (
	"net"
	"net/netip"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/network/egress"
	"github.com/attest-vm/attest/internal/network/services"
	"github.com/attest-vm/attest/internal/wire"
)

// outside is the number of the network on which a machine that has a way out of the
// lab is alone with its gateway.
const outside = 0

// egressInterface is the card to it, after those that the plan has.
func egressInterface(number int) network.Interface {
	return network.Interface{
		Name: "eth0", Network: outside,
		MAC:  net.HardwareAddr{0x52, 0x54, 0x00, 0x13, 0x00, byte(number)}, // no planned one, and no template's
		IPv4: egress.GuestIPv4, IPv6: egress.GuestIPv6,
	}
}

// attachEgress plugs the machine into a network of its own with a gateway to the
// world, which goes with the VMM. Connections of one start are nothing to
// the next.
func (m *Machine) attachEgress(own network.Interface, attach attachment) error {
	rules, err := egress.ParseRules(m.config.Egress)
	if err != nil {
		return err
	}
	var guest []netip.Addr
	for _, i := range m.address.Interfaces {
		guest = append(guest, i.Addrs()...)
	}
	warn := func(text string) {
		event.Publish(m.lab.ctx, event.Log{Machine: m.Name(), Level: "warning", Text: "egress: " + text})
	}
	gateway, err := egress.New(egress.Config{Rules: rules, Guest: guest, Report: m.reportEgress, Warn: warn})
	if err != nil {
		return err
	}
	names := services.New(services.Config{
		MAC: egress.NameMAC, IPv4: egress.NameIPv4, IPv6: egress.NameIPv6,
		Leases: []services.Lease{{MAC: own.MAC, Name: m.Name(), IPv4: own.IPv4, IPv6: own.IPv6}},
		Router: egress.GatewayIPv4.Addr(), Forward: gateway.Resolve, TCP: gateway.NameServer, Warn: warn,
	})
	ctx := m.lab.ctx
	sw := network.New("outside", network.Options{})
	_, err = sw.AttachFrames(ctx, network.NIC{ID: "gateway"}, gateway)
	if err == nil {
		_, err = sw.AttachFrames(ctx, network.NIC{ID: "names"}, names)
	}
	var port *network.Port
	if err == nil {
		port, err = attach(ctx, sw)
	}
	if err != nil {
		sw.Close()
		return err
	}
	m.linkMu.Lock()
	defer m.linkMu.Unlock()
	m.wayOut = port
	port.SetDown(m.lab.network.fabric.Down(m.Name(), own.Name))
	m.outside.Go(func() {
		<-port.Done()
		sw.Close()
	})
	return nil
}

func (m *Machine) reportEgress(c egress.Connection) {
	event.Publish(m.lab.ctx, event.Egress{
		Machine: m.Name(), Protocol: c.Protocol, Destination: c.Destination, Name: c.Name,
		Allowed: c.Allowed, Error: c.Error, Sent: c.Sent, Received: c.Received, Duration: c.Duration,
	})
}

// egressIdentity is what the guest has to know of its way out.
func egressIdentity(id *wire.Identity, own *wire.Interface) {
	own.Gateways = []netip.Addr{egress.GatewayIPv4.Addr(), egress.GatewayIPv6.Addr()}
	id.Nameservers = []netip.Addr{egress.NameIPv4.Addr()}
}
