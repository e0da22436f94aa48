package services

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58

	portDNS         = 53
	portDHCP        = 67
	portDHCPClient  = 68
	portDHCP6Client = 546
	portDHCP6       = 547

	ether4, header4, header6, headerUDP = 14, 20, 40, 8
)

// A packet is a frame taken apart.
type packet struct {
	dstMAC, srcMAC   net.HardwareAddr
	etherType        uint16
	src, dst         netip.Addr // of IP
	protocol         uint8
	hops             uint8
	srcPort, dstPort uint16 // of UDP
	payload          []byte // of UDP or ICMP (that from its type on); of ARP
}

// parse takes a frame apart. It is not ok if the frame is nothing that the host
// could understand, is a fragment, or has a wrong checksum. Frames with VLAN tags
// are of another network.
func parse(frame []byte) (p packet, ok bool) {
	if len(frame) < ether4 {
		return p, false
	}
	p.dstMAC, p.srcMAC = frame[:6], frame[6:12]
	p.etherType = binary.BigEndian.Uint16(frame[12:])
	p.payload = frame[ether4:]
	switch p.etherType {
	case etherARP:
		return p, true
	case etherIPv4:
		ok = p.ipv4()
	case etherIPv6:
		ok = p.ipv6()
	}
	return p, ok && p.transport()
}

func (p *packet) ipv4() bool {
	b := p.payload
	if len(b) < header4 || b[0]>>4 != 4 {
		return false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	fragment := binary.BigEndian.Uint16(b[6:])&0x3fff != 0
	if header < header4 || header > total || total > len(b) || fragment || checksum(b[:header], 0) != 0 {
		return false
	}
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	p.protocol, p.hops, p.payload = b[9], b[8], b[header:total]
	return true
}

// ipv6 wants no extension headers: nothing that the host serves comes with such
// but multicast listener reports, which it has no use for.
func (p *packet) ipv6() bool {
	b := p.payload
	if len(b) < header6 || b[0]>>4 != 6 {
		return false
	}
	total := header6 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return false
	}
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	p.protocol, p.hops, p.payload = b[6], b[7], b[header6:total]
	return true
}

func (p *packet) transport() bool {
	b := p.payload
	switch p.protocol {
	case protoICMP:
		return p.etherType == etherIPv4 && checksum(b, 0) == 0
	case protoICMP6:
		return p.etherType == etherIPv6 && len(b) >= 4 && checksum(b, pseudo(p.src, p.dst, p.protocol, len(b))) == 0
	case protoTCP:
		return true
	case protoUDP:
		if len(b) < headerUDP {
			return false
		}
		length := int(binary.BigEndian.Uint16(b[4:]))
		if length < headerUDP || length > len(b) {
			return false
		}
		b = b[:length]
		unchecked := binary.BigEndian.Uint16(b[6:]) == 0 && p.src.Is4()
		if !unchecked && checksum(b, pseudo(p.src, p.dst, p.protocol, length)) != 0 {
			return false
		}
		p.srcPort, p.dstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		p.payload = b[headerUDP:]
		return true
	}
	return false
}

// checksum is that of RFC 1071; it is 0 over what contains a right one.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pseudo is the sum of the pseudo header of UDP and ICMPv6.
func pseudo(src, dst netip.Addr, protocol uint8, length int) uint32 {
	b := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, protocol})
	return uint32(^checksum(b, uint32(length)))
}

func ethernet(src, dst net.HardwareAddr, etherType uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(slices.Concat(dst, src), etherType), payload...)
}

// ip puts an IP header and an Ethernet header in front of a transport's packet.
func ip(srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, protocol uint8, payload []byte) []byte {
	if src.Is4() {
		h := make([]byte, header4, header4+len(payload))
		h[0], h[8], h[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(h[2:], uint16(header4+len(payload)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(h, 0))
		return ethernet(srcMAC, dstMAC, etherIPv4, append(h, payload...))
	}
	h := make([]byte, header6, header6+len(payload))
	h[0], h[6], h[7] = 0x60, protocol, 255 // what neighbour discovery must have
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return ethernet(srcMAC, dstMAC, etherIPv6, append(h, payload...))
}

func udp(srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, srcPort, dstPort uint16, payload []byte) []byte {
	var b []byte
	length := headerUDP + len(payload)
	for _, v := range []uint16{srcPort, dstPort, uint16(length), 0} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	b = append(b, payload...)
	sum := checksum(b, pseudo(src, dst, protoUDP, length))
	if sum == 0 {
		sum = 0xffff // 0 means that there is none
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return ip(srcMAC, dstMAC, src, dst, protoUDP, b)
}

// icmp sends a message, of either version, whose checksum is 0.
func icmp(srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, message []byte) []byte {
	protocol, sum := uint8(protoICMP), uint32(0)
	if src.Is6() {
		protocol = protoICMP6
		sum = pseudo(src, dst, protocol, len(message))
	}
	binary.BigEndian.PutUint16(message[2:], checksum(message, sum))
	return ip(srcMAC, dstMAC, src, dst, protocol, message)
}

// linkLocal is the address that is made of a MAC (RFC 4291, appendix A).
func linkLocal(m net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// multicastMAC is where frames to an IPv6 multicast address go.
func multicastMAC(a netip.Addr) net.HardwareAddr {
	b := a.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}
