package egress

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const ethernetHeader = header.EthernetMinimumSize

// mine reports whether a frame is for the network stack, which would answer for every
// address, whoever asks for which, and takes any packet from anybody. What gets through is
// TCP, UDP and pings of one guest, and the questions for the gateway's address.
func (g *Gateway) mine(f []byte) bool {
	if len(f) < ethernetHeader || f[6]&1 == 1 { // from a group address
		return false
	}
	p := f[ethernetHeader:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case uint16(header.ARPProtocolNumber):
		return g.mineARP(p)
	case uint16(header.IPv4ProtocolNumber):
		return g.mineIPv4(p)
	case uint16(header.IPv6ProtocolNumber):
		return g.mineIPv6(p)
	}
	return false
}

// mineARP wants a question of the guest's for the gateway's address, or its answer (RFC 826).
func (g *Gateway) mineARP(p []byte) bool {
	if len(p) < header.ARPSize {
		return false
	}
	a := header.ARP(p)
	sender := netip.AddrFrom4([4]byte(a.ProtocolAddressSender()))
	return a.IsValid() && slices.Contains(g.config.Guest, sender) && string(a.ProtocolAddressTarget()) == string(GatewayIPv4.Addr().AsSlice())
}

// mineIPv4 wants no options: the routes that some of them prescribe (RFC 791) are nothing that
// the guest has to say.
func (g *Gateway) mineIPv4(p []byte) bool {
	if len(p) < header.IPv4MinimumSize || p[0] != 0x45 {
		return false
	}
	ip := header.IPv4(p)
	dst := netip.AddrFrom4(ip.DestinationAddress().As4())
	if dst.IsMulticast() || dst == broadcast || dst == subnetBroadcast {
		return false // noise of a guest that looks for others
	}
	switch ip.TransportProtocol() {
	case header.ICMPv4ProtocolNumber:
		if dst != GatewayIPv4.Addr() {
			return false
		}
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
	default:
		return false
	}
	return g.own(netip.AddrFrom4(ip.SourceAddress().As4()))
}

var (
	broadcast       = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	subnetBroadcast = netip.MustParseAddr("10.0.2.255")
)

// mineIPv6 wants no extension headers but that of fragments, behind which the others could hide
// what is refused here. Fragments of ICMP are no pings that anybody needs.
func (g *Gateway) mineIPv6(p []byte) bool {
	if len(p) < header.IPv6MinimumSize {
		return false
	}
	ip := header.IPv6(p)
	src, dst := netip.AddrFrom16(ip.SourceAddress().As16()), netip.AddrFrom16(ip.DestinationAddress().As16())
	p = p[header.IPv6MinimumSize:]
	switch next := p; ip.NextHeader() {
	case uint8(header.ICMPv6ProtocolNumber):
		return g.mineICMPv6(src, dst, next)
	case uint8(header.IPv6FragmentHeader):
		if len(next) < header.IPv6FragmentHeaderSize || next[0] != uint8(header.TCPProtocolNumber) && next[0] != uint8(header.UDPProtocolNumber) {
			return false
		}
	case uint8(header.TCPProtocolNumber), uint8(header.UDPProtocolNumber):
	default:
		return false
	}
	return !dst.IsMulticast() && g.own(src)
}

// mineICMPv6 wants pings of the gateway and the discovery of its address (RFC 4861). Others could
// tell the gateway of routers and networks.
func (g *Gateway) mineICMPv6(src, dst netip.Addr, p []byte) bool {
	if len(p) < header.ICMPv6MinimumSize || !src.IsLinkLocalUnicast() && !slices.Contains(g.config.Guest, src) {
		return false
	}
	switch m := header.ICMPv6(p); m.Type() {
	case header.ICMPv6NeighborSolicit:
		body := m.MessageBody()
		return len(body) >= header.NDPNSMinimumSize && netip.AddrFrom16(header.NDPNeighborSolicit(body).TargetAddress().As16()) == GatewayIPv6.Addr()
	case header.ICMPv6NeighborAdvert, header.ICMPv6EchoRequest, header.ICMPv6DstUnreachable, header.ICMPv6PacketTooBig:
		return dst == GatewayIPv6.Addr()
	}
	return false
}

// own reports whether a packet comes from the guest, and counts it if not.
func (g *Gateway) own(src netip.Addr) bool {
	if slices.Contains(g.config.Guest, src) {
		return true
	}
	if g.dropped.foreign.Add(1) == 1 {
		g.dropped.source.Store(&src)
	}
	return false
}

// sourceOf is where an IP packet comes from that mine has let through.
func sourceOf(f []byte) netip.Addr {
	switch p := f[ethernetHeader:]; binary.BigEndian.Uint16(f[12:]) {
	case uint16(header.IPv4ProtocolNumber):
		return netip.AddrFrom4(header.IPv4(p).SourceAddress().As4())
	case uint16(header.IPv6ProtocolNumber):
		return netip.AddrFrom16(header.IPv6(p).SourceAddress().As16())
	}
	return netip.Addr{}
}
