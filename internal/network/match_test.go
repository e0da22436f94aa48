package network

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

func TestParseMatch(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""}, {" ", ""}, {"tcp", "tcp"}, {"tcp:5432", "tcp:5432"}, {" udp:53 , icmp", "udp:53,icmp"}, {"tcp:6000-6010", "tcp:6000-6010"}, {"sctp:1-1", "sctp:1"},
	} {
		m, err := ParseMatch(tt.text)
		if err != nil || m.String() != tt.want {
			t.Errorf("%q: got %q, %v, want %q", tt.text, m, err, tt.want)
		}
	}
	for text, want := range map[string]string{
		"tpc":         `unknown protocol "tpc"`,
		"tcp,":        `unknown protocol ""`,
		"TCP":         `unknown protocol "TCP"`,
		"icmp:8":      "icmp has no ports",
		"tcp:":        "not a port",
		"tcp:0":       "not a port",
		"tcp:65536":   "not a port",
		"udp:20-10":   "not a port",
		"udp:-10":     "not a port",
		"tcp:80:90":   "not a port",
		"tcp:http":    "not a port",
		"udp:53-":     "not a port",
		"arp,ip6:0-5": "ip6 has no ports",
	} {
		if _, err := ParseMatch(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// ether puts an Ethernet header in front, with VLAN tags if there are such.
func ether(etherType uint16, payload []byte, tags ...uint16) []byte {
	f := append(bytes.Clone(broadcast), macOf(1)...)
	for _, tag := range tags {
		f = binary.BigEndian.AppendUint16(f, tag)
		f = append(f, 0, 7)
	}
	return append(binary.BigEndian.AppendUint16(f, etherType), payload...)
}

func ipv4(protocol byte, offset uint16, options int, payload ...byte) []byte {
	h := make([]byte, 20+options)
	h[0] = 0x40 | byte(len(h)/4)
	binary.BigEndian.PutUint16(h[6:], offset)
	h[9] = protocol
	return append(h, payload...)
}

func ipv6(next byte, payload ...byte) []byte {
	h := make([]byte, 40)
	h[0], h[6] = 0x60, next
	return append(h, payload...)
}

func TestMatchSelects(t *testing.T) {
	ports := []byte{0x9c, 0x40, 0x15, 0x38, 0, 0, 0, 0} // 40000 to 5432
	after := func(next byte, payload ...byte) []byte { return append([]byte{next, 0, 0, 0, 0, 0, 0, 0}, payload...) }
	for _, tt := range []struct {
		name  string
		frame []byte
		by    string // the words that select it
	}{
		{"ARP", ether(etherARP, make([]byte, 28)), "arp"},
		{"TCP", ether(etherIPv4, ipv4(protoTCP, 0, 0, ports...)), "ip ip4 tcp tcp:5432 tcp:40000 tcp:5000-6000"},
		{"TCP behind options", ether(etherIPv4, ipv4(protoTCP, 0, 12, ports...)), "ip ip4 tcp tcp:5432 tcp:40000 tcp:5000-6000"},
		{"UDP in a VLAN", ether(etherIPv4, ipv4(protoUDP, 0, 0, ports...), etherVLAN), "ip ip4 udp udp:5432"},
		{"UDP in two VLANs", ether(etherIPv4, ipv4(protoUDP, 0, 0, ports...), etherQinQ, etherVLAN), "ip ip4 udp udp:5432"},
		{"the first fragment", ether(etherIPv4, ipv4(protoUDP, 0x2000, 0, ports...)), "ip ip4 udp udp:5432"},
		{"a later fragment", ether(etherIPv4, ipv4(protoUDP, 0x2001, 0, ports...)), "ip ip4 udp"},
		{"TCP over IPv6", ether(etherIPv6, ipv6(protoTCP, ports...)), "ip ip6 tcp tcp:5432 tcp:40000 tcp:5000-6000"},
		{"SCTP behind headers", ether(etherIPv6, ipv6(0, after(43, after(60, after(protoSCTP, ports...)...)...)...)), "ip ip6 sctp"},
		{"a later fragment of IPv6", ether(etherIPv6, ipv6(44, append([]byte{protoUDP, 0, 0, 8, 0, 0, 0, 0}, ports...)...)), "ip ip6 udp"},
		{"authenticated", ether(etherIPv6, ipv6(51, append([]byte{protoTCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, ports...)...)), "ip ip6 tcp tcp:5432 tcp:40000 tcp:5000-6000"},
		{"ping", ether(etherIPv4, ipv4(protoICMP, 0, 0, 8, 0)), "ip ip4 icmp"},
		{"ping of IPv6", ether(etherIPv6, ipv6(protoICMP6, 128, 0)), "ip ip6 icmp"},
		{"neighbour solicitation", ether(etherIPv6, ipv6(protoICMP6, 135, 0)), "ip ip6 nd"},
		{"multicast listener report", ether(etherIPv6, ipv6(0, after(protoICMP6, 143, 0)...)), "ip ip6 nd"},
		{"LLDP", ether(0x88cc, make([]byte, 40)), ""},
		{"cut off", ether(etherIPv4, ipv4(protoTCP, 0, 0, ports[:3]...)), "ip ip4 tcp"},
		{"no IP", ether(etherIPv4, []byte("rubbish")), "ip ip4"},
		{"no header", broadcast, ""},
	} {
		var got []string
		for _, text := range []string{"arp", "ip", "ip4", "ip6", "tcp", "tcp:5432", "tcp:40000", "tcp:5000-6000", "tcp:80", "udp", "udp:5432", "sctp", "icmp", "nd"} {
			if m, _ := ParseMatch(text); m.selects(tt.frame) {
				got = append(got, text)
			}
		}
		want := strings.Fields(tt.by)
		if !slices.Equal(got, want) {
			t.Errorf("%s: selected by %v, want %v", tt.name, got, want)
		}
		if every, _ := ParseMatch(""); !every.selects(tt.frame) {
			t.Errorf("%s: not selected by nothing in particular", tt.name)
		}
	}
}

// Frames come from guests: whatever they are, they are parsed to an end, and a
// word with a port selects no more than the word without.
func FuzzMatchSelects(f *testing.F) {
	f.Add(ether(etherIPv4, ipv4(protoTCP, 0, 12, 1, 2, 3, 4)))
	f.Add(ether(etherIPv6, ipv6(0, 60, 0, 0, 0, 0, 0, 0, 0, 44, 255)))
	f.Add(ether(etherVLAN, nil, etherVLAN, etherVLAN))
	var words, withPorts []Match
	for _, w := range []string{"tcp", "udp", "sctp"} {
		a, _ := ParseMatch(w)
		b, _ := ParseMatch(w + ":1-65535")
		words, withPorts = append(words, a), append(withPorts, b)
	}
	ip, _ := ParseMatch("ip")
	f.Fuzz(func(t *testing.T, frame []byte) {
		n := 0
		for i := range words {
			if words[i].selects(frame) {
				n++
			}
			if withPorts[i].selects(frame) && !words[i].selects(frame) {
				t.Errorf("%v selects what %v does not", withPorts[i], words[i])
			}
		}
		if n > 1 || n == 1 && !ip.selects(frame) {
			t.Errorf("selected by %d transport protocols, as IP: %v", n, ip.selects(frame))
		}
	})
}

func FuzzParseMatch(f *testing.F) {
	f.Add("tcp:5432,udp")
	f.Add("sctp:1-2")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseMatch(text)
		if err != nil {
			return
		}
		again, err := ParseMatch(m.String())
		if err != nil || again.String() != m.String() {
			t.Errorf("%q is written as %q and read as %q, %v", text, m, again, err)
		}
	})
}
