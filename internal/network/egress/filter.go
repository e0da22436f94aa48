package egress

import (
	"encoding/binary"
	"net/netip"
)

// mine says whether a frame is for the network stack: it would answer for every
// address, whoever asks for which.
func (g *Gateway) mine(f []byte) bool {
	const header = 14
	if len(f) < header {
		return false
	}
	p := f[header:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0806: // ARP (RFC 826): who has the gateway's address?
		return len(p) >= 28 && (binary.BigEndian.Uint16(p[6:]) != 1 || netip.AddrFrom4([4]byte(p[24:28])) == g.config.IPv4.Addr())
	case 0x0800:
		if len(p) < 20 {
			return false
		}
		dst := netip.AddrFrom4([4]byte(p[16:20]))
		return !dst.IsMulticast() && (p[9] != 1 || dst == g.config.IPv4.Addr())
	case 0x86dd:
		if len(p) < 40 {
			return false
		}
		dst := netip.AddrFrom16([16]byte(p[24:40]))
		const icmp, solicitation = 58, 135
		if p[6] != icmp {
			return !dst.IsMulticast()
		}
		if len(p) >= 64 && p[40] == solicitation { // RFC 4861 4.3
			return netip.AddrFrom16([16]byte(p[48:64])) == g.config.IPv6.Addr()
		}
		return dst == g.config.IPv6.Addr()
	}
	return false
}
