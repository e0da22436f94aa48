package network

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Match selects frames by what they carry. The zero value selects all.
type Match struct{ terms []term }

// A term is a protocol, with a range of ports if it has such.
type term struct {
	protocol  string
	low, high uint16 // both 0: any port, and frames without one
}

// protocols are the words that a Match is made of.
var protocols = []string{"arp", "icmp", "ip", "ip4", "ip6", "nd", "sctp", "tcp", "udp"}

// ParseMatch reads what faults select: "tcp:5432", "udp", "icmp", several with
// commas between. An empty text selects everything.
//
// The words are arp; ip (both versions), ip4, ip6; tcp, udp and sctp, with a
// port or a range of ports as the source or the destination; icmp (of both
// versions, but not neighbour discovery, which is to IPv6 what ARP is to IPv4);
// nd (neighbour and router discovery, multicast listeners). VLAN tags are looked
// through. A fragment that is not the first has no ports.
func ParseMatch(text string) (Match, error) {
	var m Match
	if strings.TrimSpace(text) == "" {
		return m, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		name, ports, hasPorts := strings.Cut(part, ":")
		t := term{protocol: name}
		switch {
		case !slices.Contains(protocols, name):
			return m, fmt.Errorf("unknown protocol %q; want one of %s, some with a port as in tcp:5432", name, strings.Join(protocols, ", "))
		case hasPorts && name != "tcp" && name != "udp" && name != "sctp":
			return m, fmt.Errorf("%q: %s has no ports; only tcp, udp and sctp have ports", part, name)
		case hasPorts:
			low, high, isRange := strings.Cut(ports, "-")
			if !isRange {
				high = low
			}
			var err1, err2 error
			t.low, err1 = parsePort(low)
			t.high, err2 = parsePort(high)
			if err1 != nil || err2 != nil || t.low > t.high {
				return m, fmt.Errorf("%q is not a port between 1 and 65535, or a range of them as in tcp:6000-6010", ports)
			}
		}
		m.terms = append(m.terms, t)
	}
	return m, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

// String is the text that ParseMatch reads.
func (m Match) String() string {
	parts := make([]string, len(m.terms))
	for i, t := range m.terms {
		parts[i] = t.protocol
		switch {
		case t.low != t.high:
			parts[i] += fmt.Sprintf(":%d-%d", t.low, t.high)
		case t.low != 0:
			parts[i] += fmt.Sprintf(":%d", t.low)
		}
	}
	return strings.Join(parts, ",")
}

func (m Match) selects(frame []byte) bool {
	if len(m.terms) == 0 {
		return true
	}
	h := parseHeaders(frame)
	return slices.ContainsFunc(m.terms, h.is)
}

// headers are what a Match looks at.
type headers struct {
	etherType    uint16
	transport    uint8 // IP protocol number, of either version; 0 if there is none to be seen
	discovery    bool  // ICMPv6 that hosts need to find each other
	hasPorts     bool
	source, dest uint16
}

const (
	etherIPv4  = 0x0800
	etherARP   = 0x0806
	etherVLAN  = 0x8100
	etherQinQ  = 0x88a8
	etherIPv6  = 0x86dd
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
	protoSCTP  = 132
)

func (h headers) is(t term) bool {
	ip := h.etherType == etherIPv4 || h.etherType == etherIPv6
	switch t.protocol {
	case "arp":
		return h.etherType == etherARP
	case "ip":
		return ip
	case "ip4":
		return h.etherType == etherIPv4
	case "ip6":
		return h.etherType == etherIPv6
	case "icmp":
		return h.transport == protoICMP || h.transport == protoICMP6 && !h.discovery
	case "nd":
		return h.discovery
	case "tcp":
		return h.transport == protoTCP && h.port(t)
	case "udp":
		return h.transport == protoUDP && h.port(t)
	case "sctp":
		return h.transport == protoSCTP && h.port(t)
	}
	return false
}

func (h headers) port(t term) bool {
	if t.low == 0 {
		return true
	}
	in := func(port uint16) bool { return t.low <= port && port <= t.high }
	return h.hasPorts && (in(h.source) || in(h.dest))
}

// parseHeaders reads a frame as far as it makes sense.
func parseHeaders(frame []byte) (h headers) {
	if len(frame) < minFrame {
		return h
	}
	rest := frame[12:]
	for {
		h.etherType, rest = binary.BigEndian.Uint16(rest), rest[2:]
		if h.etherType != etherVLAN && h.etherType != etherQinQ || len(rest) < 4 {
			break
		}
		rest = rest[2:]
	}
	switch h.etherType {
	case etherIPv4:
		h.ipv4(rest)
	case etherIPv6:
		h.ipv6(rest)
	}
	return h
}

func (h *headers) ipv4(p []byte) {
	if len(p) < 20 || p[0]>>4 != 4 {
		return
	}
	h.transport = p[9]
	length := int(p[0]&15) * 4
	first := binary.BigEndian.Uint16(p[6:])&0x1fff == 0
	if first && length >= 20 && length <= len(p) {
		h.ports(p[length:])
	}
}

// ipv6 walks over extension headers (RFC 8200, section 4) to the transport's.
func (h *headers) ipv6(p []byte) {
	if len(p) < 40 || p[0]>>4 != 6 {
		return
	}
	next, first := p[6], true
	p = p[40:]
	for {
		length := 0
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(p) >= 2 {
				length = 8 + 8*int(p[1])
			}
		case 44: // fragment
			if length = 8; len(p) >= 4 {
				first = binary.BigEndian.Uint16(p[2:])&0xfff8 == 0
			}
		case 51: // authentication
			if len(p) >= 2 {
				length = 8 + 4*int(p[1])
			}
		default:
			h.transport = next
			if first {
				h.ports(p)
			}
			return
		}
		if length == 0 || length > len(p) {
			return
		}
		next, p = p[0], p[length:]
	}
}

// ports reads the beginning of the transport's header.
func (h *headers) ports(p []byte) {
	switch h.transport {
	case protoTCP, protoUDP, protoSCTP:
		if len(p) >= 4 {
			h.source, h.dest, h.hasPorts = binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:]), true
		}
	case protoICMP6:
		// RFC 4861: 133 to 137; RFC 2710 and 3810: 130 to 132 and 143.
		if len(p) >= 1 {
			h.discovery = p[0] >= 130 && p[0] <= 137 || p[0] == 143
		}
	}
}
