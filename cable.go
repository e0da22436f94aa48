package attest

import (
	"context"
	"net"
	"os"
	"sync"

	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/vmm"
)

// cards are the machine's network cards, without cables.
func (m *Machine) cards() []vmm.NIC {
	var cards []vmm.NIC
	for _, i := range m.address.Interfaces {
		cards = append(cards, vmm.NIC{ID: i.Name, MAC: i.MAC, Model: m.config.NIC})
	}
	return cards
}

// plugs are the cables of one start of a machine. A port on a socket ends when
// the VMM's end of the socket does; one on a TAP ends with the start.
type plugs struct {
	m    *Machine
	mu   sync.Mutex
	taps map[string]*network.Port // by card
}

// all are the machine's network cards with their cables.
func (p *plugs) all() []vmm.NIC {
	cards := p.m.cards()
	for n, i := range p.m.address.Interfaces {
		cards[n].Link = cable{p, i}
	}
	return cards
}

func (p *plugs) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, port := range p.taps {
		port.Close()
	}
}

// plug notes the port on a card's TAP. It takes the place of that of a VMM that was
// started before for the same card.
func (p *plugs) plug(nic string, port *network.Port) {
	p.mu.Lock()
	old := p.taps[nic]
	if p.taps == nil {
		p.taps = map[string]*network.Port{}
	}
	p.taps[nic] = port
	p.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// A cable leads from one network card to its switch, in the form that the VMM asks
// for.
type cable struct {
	plugs *plugs
	i     network.Interface
}

var _ vmm.Link = cable{}

// An attachment makes a port on a switch.
type attachment func(context.Context, *network.Switch) (*network.Port, error)

func (c cable) plug(attach attachment) (err error) {
	m := c.plugs.m
	if c.i.Network == outside {
		err = m.attachEgress(c.i, attach)
	} else {
		_, err = attach(m.lab.ctx, m.lab.network.fabric.Switch(c.i.Network))
	}
	if err != nil {
		return &InfraError{m.Name(), "attach to network", err}
	}
	return nil
}

func (c cable) nic() network.NIC {
	return network.NIC{Machine: c.plugs.m.Name(), ID: c.i.Name, MAC: c.i.MAC}
}

func (c cable) Stream() (conn *net.UnixConn, err error) {
	err = c.plug(func(ctx context.Context, sw *network.Switch) (port *network.Port, err error) {
		port, conn, err = sw.Attach(ctx, c.nic())
		return port, err
	})
	return conn, err
}

func (c cable) Packets() (conn *net.UnixConn, err error) {
	err = c.plug(func(ctx context.Context, sw *network.Switch) (port *network.Port, err error) {
		port, conn, err = sw.AttachPackets(ctx, c.nic())
		return port, err
	})
	return conn, err
}

func (c cable) TAP(tap *os.File) error {
	taken := false
	err := c.plug(func(ctx context.Context, sw *network.Switch) (*network.Port, error) {
		taken = true
		port, err := sw.AttachTAP(ctx, c.nic(), tap)
		if err == nil {
			c.plugs.plug(c.i.Name, port)
		}
		return port, err
	})
	if !taken {
		tap.Close()
	}
	return err
}
