package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestKinds(t *testing.T) {
	for k, list := range map[kind]string{
		public: "1.1.1.1 192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 2600::1 64:ff9b::c000:201 2002:c000:201::1",
		private: "10.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1 192.0.0.1 198.18.0.1 240.0.0.1 fd00::1 fec0::7 2001:0:808:808::f5f5:f5f5 64:ff9b:1:808:8:800:: 4000::1 " +
			"::10.0.0.1 2002:0a00:0001::1 64:ff9b::10.0.0.1 ::8.8.8.8",
		restricted: "169.254.169.254 169.254.0.23 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192 fe80::1 fd00:ec2::254 fd00:ec2::23 fd20:ce::254 fd00:42::42 " +
			"fd00:a9fe:a9fe::1 fd00:c1::a9fe:a9fe ::169.254.169.254 ::ffff:0:a9fe:a9fe 64:ff9b::a9fe:a9fe 64:ff9b:1::a9fe:a9fe 64:ff9b:1:a9fe:a9:fe00:: 2002:a9fe:a9fe::1 " +
			"2001:0:a9fe:a9fe::1 2001::5601:5601 2001:db8::a9fe:a9fe 2001:db8::6464:64c8 64:ff9b::a83f:8110 2600::200:5efe:a9fe:a9fe",
		never: "0.0.0.0 0.1.2.3 127.0.0.1 127.1.2.3 224.0.0.1 239.255.255.250 255.255.255.255 :: ::1 ff02::1 ::ffff:127.0.0.1 ::ffff:1.1.1.1 " +
			"::127.0.0.1 64:ff9b::7f00:1 2002:7f00:1::1 64:ff9b::ffff:ffff fe80::1%eth0",
	} {
		for _, a := range strings.Fields(list) {
			if got := kindOf(netip.MustParseAddr(a)); got != k {
				t.Errorf("%s is of kind %d, want %d", a, got, k)
			}
		}
	}
}

// hostAddress stands for an address of one of the host's interfaces.
var hostAddress = netip.MustParseAddr("192.168.1.5")

// newGateway is a gateway that no frame comes to, in a world without a network.
func newGateway(t testing.TB, c Config, rules ...string) *Gateway {
	t.Helper()
	var err error
	if c.Rules, err = ParseRules(rules); err != nil {
		t.Fatal(err)
	}
	if c.Nameservers == nil {
		c.Nameservers = []string{}
	}
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	g.isLocal = func(a netip.Addr) (bool, error) { return a == hostAddress, nil }
	g.dial = func(_ context.Context, network, address string) (net.Conn, error) {
		return nil, errors.New("no route to " + network + " " + address)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func (g *Gateway) to(address string) target {
	a := netip.MustParseAddrPort(address)
	return g.target("tcp", stack.TransportEndpointID{LocalAddress: tcpip.AddrFromSlice(a.Addr().AsSlice()), LocalPort: a.Port()})
}

// The table of docs/networks.md: which rule opens what.
func TestWhatRulesOpen(t *testing.T) {
	const (
		gateway, gateway6, own = "10.0.2.2", "fec0::2", "192.168.1.5"
		lan, cgnat, ula        = "192.168.1.9", "100.64.3.4", "fd00::9"
		world, world6          = "192.0.2.1", "2001:db8::1"
		meta, meta6            = "169.254.169.254", "fd00:ec2::254"
	)
	everything := []string{
		gateway, gateway6, own, lan, cgnat, ula, world, world6, meta, meta6, "10.0.2.3", "10.0.2.15", "10.0.2.255", "fec0::3", "fec0::99",
		"127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "::ffff:10.0.2.2", "::ffff:169.254.169.254", "::127.0.0.1", "::169.254.169.254", "::10.0.2.2", "0.0.0.0", "::",
		"255.255.255.255", "224.0.0.1", "ff02::1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "169.254.0.23", "fe80::a9fe:a9fe", "fd20:ce::254",
		"2002:a9fe:a9fe::", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "2002:c0a8:105::", "64:ff9b::c0a8:105", // of the host's address
	}
	for _, tt := range []struct{ rules, open string }{
		{"", ""},
		{"*", "::10.0.2.2 " + lan + " " + cgnat + " " + ula + " " + world + " " + world6},
		{"host", gateway + " " + gateway6 + " " + own + " 2002:c0a8:105:: 64:ff9b::c0a8:105"},
		{"host:80", gateway + " " + gateway6 + " " + own + " 2002:c0a8:105:: 64:ff9b::c0a8:105"},
		{"host:81", ""},
		{"* host", "::10.0.2.2 " + gateway + " " + gateway6 + " " + own + " 2002:c0a8:105:: 64:ff9b::c0a8:105 " + lan + " " + cgnat + " " + ula + " " + world + " " + world6},
		{"10.0.0.0/8", ""},
		{"10.0.2.0/24", ""},
		{"fec0::/10", ""},
		{"0.0.0.0/0", own + " " + lan + " " + cgnat + " " + world},
		{"::/0", ula + " " + world6 + " 2002:c0a8:105:: 64:ff9b::c0a8:105 ::10.0.2.2"},
		{"192.168.0.0/16", own + " " + lan},
		{"192.168.1.5", own},
		{"169.254.0.0/16 fd00::/8 100.64.0.0/10", cgnat + " " + ula},
		{"169.254.169.254", meta},
		{"169.254.169.254:80 [fd00:ec2::254]:80", meta + " " + meta6},
		{"169.254.169.254:81", ""},
		{"64:ff9b::a9fe:a9fe", "64:ff9b::a9fe:a9fe"},
		{"mirror.example.org", world + " " + world6},
		{"mirror.example.org:81", ""},
		{"mirror.example.org 192.168.0.0/16", world + " " + world6 + " " + own + " " + lan},
		{"other.example.org", ""},
	} {
		g := newGateway(t, Config{}, strings.Fields(tt.rules)...)
		for _, a := range everything { // the name's owner answers what it likes
			g.pins.learn("mirror.example.org", netip.MustParseAddr(a), g.now().Add(time.Minute))
		}
		for _, a := range everything {
			dst := netip.AddrPortFrom(netip.MustParseAddr(a), 80).String()
			got := g.to(dst)
			if want := slices.Contains(strings.Fields(tt.open), a); got.allowed != want {
				t.Errorf("%q opens %s: %v (%s)", tt.rules, dst, got.allowed, got.why)
			}
			want := dst
			if isGateway(got.dst.Addr()) {
				want = map[bool]string{true: "127.0.0.1:80", false: "[::1]:80"}[got.dst.Addr().Is4()]
			}
			if got.dial != want {
				t.Errorf("%q: for %s the host would connect to %s", tt.rules, dst, got.dial)
			}
		}
	}
	for _, bad := range []string{"127.0.0.1", "127.0.0.0/8", "[::1]:80", "224.0.0.1", "0.0.0.0", "::ffff:192.0.2.1", "255.255.255.255", "10.0.2.2:80", "fec0::2"} {
		if _, err := ParseRules([]string{bad}); err == nil || !strings.Contains(err.Error(), `"host"`) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Ranges, everything and names do not open the host's loopback, by TCP or UDP, in any form that a
// guest's frames may have.
func TestOnlyHostOpensTheHost(t *testing.T) {
	secret := serve(t, func(conn *net.TCPConn) { conn.Write([]byte("secret")) })
	port := secret[strings.LastIndexByte(secret, ':')+1:]
	for _, rules := range []string{"*", "10.0.0.0/8 fec0::/10", "0.0.0.0/0 ::/0", "host:1 10.0.2.0/24", "mirror.example.org"} {
		g := newGuest(t, map[string]string{secret: secret, "[::1]:" + port: secret}, "", strings.Fields(rules)...)
		for _, a := range []string{"10.0.2.2", "fec0::2"} {
			g.gateway.mu.Lock()
			g.gateway.pins.learn("mirror.example.org", netip.MustParseAddr(a), time.Now().Add(time.Hour))
			g.gateway.mu.Unlock()
			dst := net.JoinHostPort(a, port)
			if conn, err := g.dial(dst); err == nil {
				conn.Close()
				t.Errorf("%q opens %s", rules, dst)
			}
			g.udp(dst).Write([]byte("hello"))
			for _, protocol := range []string{"tcp", "udp"} {
				if c := g.expectReport(func(c Connection) bool { return c.Protocol == protocol && c.Destination == dst }); c.Allowed {
					t.Errorf("%q: reported %+v", rules, c)
				}
			}
		}
	}
}

// A refusal that a rule seems to contradict has its reason.
func TestRefusalsSayWhy(t *testing.T) {
	g := newGateway(t, Config{}, "mirror.example.org", "10.0.0.0/8", "169.254.0.0/16")
	g.pins.learn("mirror.example.org", netip.MustParseAddr("172.16.0.1"), g.now().Add(time.Minute))
	for dst, want := range map[string]string{
		"10.0.2.2:80": "loopback of this host", "169.254.169.254:80": "the address itself", "172.16.0.1:80": "list the address or its range", "192.0.2.1:80": "",
	} {
		if c := g.to(dst).connection(); c.Allowed || !strings.Contains(c.Error, want) || (want == "") != (c.Error == "") {
			t.Errorf("%s: %+v", dst, c)
		}
	}
	g.isLocal = func(netip.Addr) (bool, error) { return false, errors.New("no netlink") }
	g.pins.learn("mirror.example.org", netip.MustParseAddr("192.0.2.9"), g.now().Add(time.Minute))
	if got := g.to("192.0.2.9:80"); got.allowed || !strings.Contains(got.why, "no netlink") {
		t.Errorf("without knowing the host's addresses: %+v", got)
	}
}

func TestIsLocal(t *testing.T) {
	for a, want := range map[string]bool{"127.0.0.1": true, "127.1.2.3": true, "192.0.2.1": false} {
		if got, err := isLocal(netip.MustParseAddr(a)); got != want || err != nil {
			t.Errorf("%s: %v, %v", a, got, err)
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a.String())
		if got, err := isLocal(p.Addr()); !got || err != nil {
			t.Errorf("%v of an interface: %v, %v", p, got, err)
		}
	}
}

// The sockets of connections cannot send to everybody on a link.
func TestNoBroadcast(t *testing.T) {
	g, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if conn, err := g.dial(t.Context(), "udp", "127.255.255.255:9"); !errors.Is(err, syscall.EACCES) {
		t.Errorf("%v, %v", conn, err)
	}
}

// packet4 and packet6 are frames of the guest's to the gateway's MAC.
func packet4(src, dst string, protocol byte, options []byte, payload []byte) []byte {
	h := make([]byte, 20, 60)
	h[0], h[8], h[9] = 0x45+byte(len(options)/4), 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(options)+len(payload)))
	copy(h[12:], netip.MustParseAddr(src).AsSlice())
	copy(h[16:], netip.MustParseAddr(dst).AsSlice())
	h = append(h, options...)
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return slices.Concat(gatewayMAC, GuestMAC, []byte{8, 0}, h, payload)
}

func packet6(src, dst string, next byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, next, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], netip.MustParseAddr(src).AsSlice())
	copy(h[24:], netip.MustParseAddr(dst).AsSlice())
	return slices.Concat(gatewayMAC, GuestMAC, []byte{0x86, 0xdd}, h, payload)
}

func sum(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// What gets to the network stack, of what a guest can send.
func TestFilter(t *testing.T) {
	const me, me6, ll = "10.0.2.15", "fec0::15", "fe80::1"
	payload := make([]byte, 40)
	solicit := func(target string) []byte {
		return slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(target).AsSlice())
	}
	arp := func(sender, target string) []byte {
		return slices.Concat([]byte{255, 255, 255, 255, 255, 255}, GuestMAC, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, GuestMAC,
			netip.MustParseAddr(sender).AsSlice(), make([]byte, 6), netip.MustParseAddr(target).AsSlice())
	}
	group := packet4(me, "192.0.2.1", 6, nil, payload)
	group[6] |= 1
	for what, tt := range map[string]struct {
		frame []byte
		want  bool
	}{
		"TCP":                         {packet4(me, "192.0.2.1", 6, nil, payload), true},
		"UDP":                         {packet4(me, "192.0.2.1", 17, nil, payload), true},
		"from a card of the lab":      {packet4("192.168.1.3", "192.0.2.1", 17, nil, payload), true},
		"from nobody":                 {packet4("10.0.2.16", "192.0.2.1", 6, nil, payload), false},
		"from the gateway":            {packet4("10.0.2.2", "192.0.2.1", 6, nil, payload), false},
		"from a group":                {group, false},
		"loose source route":          {packet4(me, "192.0.2.1", 6, []byte{131, 7, 4, 127, 0, 0, 1, 0}, payload), false},
		"strict source route":         {packet4(me, "192.0.2.1", 17, []byte{137, 7, 4, 10, 0, 2, 2, 0}, payload), false},
		"broadcast":                   {packet4(me, "255.255.255.255", 17, nil, payload), false},
		"broadcast of the subnet":     {packet4(me, "10.0.2.255", 17, nil, payload), false},
		"multicast":                   {packet4(me, "224.0.0.251", 17, nil, payload), false},
		"SCTP":                        {packet4(me, "192.0.2.1", 132, nil, payload), false},
		"IPv6 in IPv4":                {packet4(me, "192.0.2.1", 41, nil, payload), false},
		"IPv4 in IPv4":                {packet4(me, "192.0.2.1", 4, nil, payload), false},
		"ping of the gateway":         {packet4(me, "10.0.2.2", 1, nil, payload), true},
		"ping of others":              {packet4(me, "192.0.2.1", 1, nil, payload), false},
		"TCP over IPv6":               {packet6(me6, "2001:db8::9", 6, payload), true},
		"from a card of the lab, 6":   {packet6("2001:db8:1::3", "2001:db8::9", 17, payload), true},
		"from nobody, 6":              {packet6("fec0::16", "2001:db8::9", 6, payload), false},
		"link-local":                  {packet6(ll, "2001:db8::9", 6, payload), false},
		"multicast, 6":                {packet6(me6, "ff02::fb", 17, payload), false},
		"hop by hop":                  {packet6(me6, "2001:db8::9", 0, append([]byte{58, 0, 0, 0, 0, 0, 0, 0}, payload...)), false},
		"routing header":              {packet6(me6, "2001:db8::9", 43, append([]byte{6, 2, 0, 1, 0, 0, 0, 0}, payload...)), false},
		"destination options":         {packet6(me6, "2001:db8::9", 60, append([]byte{6, 0, 0, 0, 0, 0, 0, 0}, payload...)), false},
		"IPv4 in IPv6":                {packet6(me6, "2001:db8::9", 4, payload), false},
		"fragment of TCP":             {packet6(me6, "2001:db8::9", 44, append([]byte{6, 0, 0, 1, 0, 0, 0, 1}, payload...)), true},
		"fragment of a router":        {packet6(me6, "fec0::2", 44, append([]byte{58, 0, 0, 1, 0, 0, 0, 1}, payload...)), false},
		"fragment of a routed packet": {packet6(me6, "2001:db8::9", 44, append([]byte{43, 0, 0, 1, 0, 0, 0, 1}, payload...)), false},
		"ping of the gateway, 6":      {packet6(me6, "fec0::2", 58, append([]byte{128, 0, 0, 0}, payload...)), true},
		"ping of others, 6":           {packet6(me6, "2001:db8::9", 58, append([]byte{128, 0, 0, 0}, payload...)), false},
		"router":                      {packet6(ll, "fec0::2", 58, append([]byte{134, 0, 0, 0}, payload...)), false},
		"redirect":                    {packet6(ll, "fec0::2", 58, append([]byte{137, 0, 0, 0}, payload...)), false},
		"who is the gateway":          {packet6(ll, "ff02::1:ff00:2", 58, solicit("fec0::2")), true},
		"who is somebody":             {packet6(ll, "ff02::1:ff00:3", 58, solicit("fec0::3")), false},
		"ARP":                         {arp(me, "10.0.2.2"), true},
		"ARP for somebody":            {arp(me, "10.0.2.3"), false},
		"ARP from somebody":           {arp("10.0.2.16", "10.0.2.2"), false},
		"VLAN":                        {slices.Concat(gatewayMAC, GuestMAC, []byte{0x81, 0, 0, 1, 8, 0}, payload), false},
		"nothing":                     {nil, false},
	} {
		g := newGateway(t, Config{Guest: []netip.Addr{
			netip.MustParseAddr(me), netip.MustParseAddr(me6), netip.MustParseAddr("192.168.1.3"), netip.MustParseAddr("2001:db8:1::3"),
		}}, "*")
		if got := g.mine(tt.frame); got != tt.want {
			t.Errorf("%s: %v", what, got)
		}
		for n := range tt.frame { // whatever is cut off
			g.Write(tt.frame[:n])
		}
	}
}

// TestBounds has a guest that does not stop.
func TestBounds(t *testing.T) {
	reported, warned := 0, ""
	g := newGateway(t, Config{Report: func(Connection) { reported++ }, Warn: func(text string) { warned += text }}, "only.example.org", "192.0.2.0/24")
	const many = 20_000
	for i := range many {
		if _, err := g.Resolve(t.Context(), query(t, fmt.Sprintf("name%d.example.org", i))); err != nil {
			t.Fatal(err)
		}
	}
	if len(g.refused) != maxRefused || reported != maxRefused {
		t.Errorf("%d of %d refused names are known, %d were reported", len(g.refused), many, reported)
	}
	for range maxFailures + 5 {
		g.failed(Connection{})
	}
	if reported != maxRefused+maxFailures {
		t.Errorf("%d reports", reported)
	}
	source := netip.MustParseAddr("11.0.0.0")
	for range many {
		source = source.Next()
		f := packet4(source.String(), "10.0.2.3", 6, nil, make([]byte, 20))
		copy(f, NameMAC)
		g.NameServer(f)
		g.Write(f)
	}
	g.NameServer(packet4("10.0.2.15", "10.0.2.3", 6, nil, make([]byte, 20)))
	if len(g.neighbors) != 1 {
		t.Errorf("%d neighbors", len(g.neighbors))
	}
	if list, err := g.stack.Neighbors(nic, 0x0800); err != nil || len(list) != 1 {
		t.Errorf("neighbors of the stack: %d, %v", len(list), err)
	}
	g.Close()
	want := fmt.Sprintf("%d more tries to reach other destinations were refused; 5 more connections failed; "+
		"%d packets were dropped, as they came from addresses that are not the machine's, such as 11.0.0.1", many-maxRefused, 2*many)
	if warned != want {
		t.Errorf("told %q, want %q", warned, want)
	}
}

func TestPins(t *testing.T) {
	p := newPins()
	now := time.Unix(0, 0)
	addr := netip.MustParseAddr("192.0.2.1")
	for i := range 30_000 { // names of one address
		p.learn(fmt.Sprint("name", i), addr, now.Add(time.Hour))
	}
	if len(p.known) != maxPins || p.order.Len() != maxPins || len(p.byName) != maxPins || len(p.byAddr[addr]) != maxPins || len(p.names(addr, now)) != maxNamesShown {
		t.Errorf("%d pins, %d names, %d of the address, shown %q", len(p.known), len(p.byName), len(p.byAddr[addr]), p.names(addr, now))
	}
	other := addr
	for range 30_000 { // addresses of one name
		other = other.Next()
		p.learn("mirror", other, now.Add(time.Minute))
	}
	if len(p.byName["mirror"]) != maxPinsOfName || !p.has("mirror", other, now) || p.has("mirror", addr.Next(), now) {
		t.Errorf("%d addresses of one name", len(p.byName["mirror"]))
	}
	if !p.has("name29999", addr, now) {
		t.Error("one name's addresses took the place of another name's last one")
	}
	p.learn("mirror", other, now.Add(time.Second)) // an answer holds although a later one is shorter
	if !p.has("mirror", other, now.Add(59*time.Second)) || p.has("mirror", other, now.Add(time.Minute)) {
		t.Error("an answer does not hold for its time")
	}
	if got := p.names(addr, now.Add(time.Hour)); got != nil || len(p.byAddr[addr]) != 0 {
		t.Errorf("after its time an address has the names %q", got)
	}
	for k := range p.known {
		p.forget(k)
	}
	if p.order.Len()+len(p.byName)+len(p.byAddr) != 0 {
		t.Errorf("left: %d, %d, %d", p.order.Len(), len(p.byName), len(p.byAddr))
	}
}

// record is a resource record for tests.
func record(name string, body dnsmessage.ResourceBody, ttl uint32) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
}

func a4(s string) *dnsmessage.AResource {
	return &dnsmessage.AResource{A: netip.MustParseAddr(s).As4()}
}

// nameserver answers every query with fn's message, which has its ID and its question.
func nameserver(t *testing.T, fn func(query []byte, m *dnsmessage.Message)) string {
	return serveUDP(t, func(b []byte) []byte {
		var m dnsmessage.Message
		if err := m.Unpack(b); err != nil {
			t.Error(err)
			return nil
		}
		m.Response, m.Additionals = true, nil
		fn(b, &m)
		out, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return out
	})
}

// Of a query its question goes out.
func TestQueriesAreRebuilt(t *testing.T) {
	asked := make(chan []byte, 10)
	ns := nameserver(t, func(b []byte, _ *dnsmessage.Message) { asked <- b })
	g := newGateway(t, Config{Nameservers: []string{ns}}, "mirror.example.org")
	resolve := func(m dnsmessage.Message, tail string) dnsmessage.Header {
		t.Helper()
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		out, err := g.Resolve(t.Context(), append(b, tail...))
		var p dnsmessage.Parser
		h, err2 := p.Start(out)
		if err != nil || err2 != nil || h.ID != m.ID || !h.Response {
			t.Fatalf("%v, %v, %+v", err, err2, h)
		}
		return h
	}
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("Mirror.example.org."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	other := q
	other.Name = dnsmessage.MustNewName("other.example.net.")
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 4711, RecursionDesired: true}, Questions: []dnsmessage.Question{q}}
	m.Authorities = []dnsmessage.Resource{record("other.example.net.", &dnsmessage.TXTResource{TXT: []string{"free text"}}, 0)}
	if h := resolve(m, "more free text"); h.RCode != dnsmessage.RCodeSuccess {
		t.Errorf("%+v", h)
	}
	var got dnsmessage.Message
	b := <-asked
	if err := got.Unpack(b); err != nil || len(got.Questions) != 1 || got.Questions[0] != q || len(got.Answers)+len(got.Authorities) != 0 || len(got.Additionals) != 1 ||
		strings.Contains(string(b), "text") {
		t.Errorf("asked %q, %v", b, err)
	}
	m.Authorities = nil
	for what, change := range map[string]func(*dnsmessage.Message){
		"two questions": func(m *dnsmessage.Message) { m.Questions = append(m.Questions, other) },
		"no question":   func(m *dnsmessage.Message) { m.Questions = nil },
		"update":        func(m *dnsmessage.Message) { m.OpCode = 5 },
		"notify":        func(m *dnsmessage.Message) { m.OpCode = 4 },
		"class chaos":   func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS },
		"zone transfer": func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAXFR },
		"all types":     func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeALL },
		"another name":  func(m *dnsmessage.Message) { m.Questions[0] = other },
	} {
		bad := m
		bad.Questions = slices.Clone(m.Questions)
		change(&bad)
		if h := resolve(bad, ""); h.RCode == dnsmessage.RCodeSuccess {
			t.Errorf("%s: %+v", what, h)
		}
	}
	g.config.Rules, _ = ParseRules([]string{"host"})
	if h := resolve(dnsmessage.Message{Header: m.Header, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("host."), Type: q.Type, Class: q.Class}}}, ""); h.RCode != dnsmessage.RCodeRefused {
		t.Errorf("somebody's answer could say what this host is: %+v", h)
	}
	if _, err := g.Resolve(t.Context(), b[:12]); err == nil {
		t.Error("half a query is answered")
	}
	if len(asked) != 0 {
		t.Errorf("asked %q", <-asked)
	}
}

// Of an answer what belongs to the question comes in, and opens what it has for a time.
func TestAnswersAreRebuilt(t *testing.T) {
	ns := nameserver(t, func(_ []byte, m *dnsmessage.Message) {
		alias := func(to string) *dnsmessage.CNAMEResource {
			return &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)}
		}
		m.Answers = []dnsmessage.Resource{
			record("unasked.example.org.", a4("203.0.113.1"), 60),
			record("end.example.net.", a4("192.0.2.1"), 60),
			record("mirror.example.org.", alias("middle.example.net."), 60),
			record("middle.example.net.", alias("end.example.net."), 60),
			record("END.example.net.", a4("192.0.2.2"), 1<<31),
			record("end.example.net.", a4("10.0.2.2"), 60),
			record("end.example.net.", &dnsmessage.TXTResource{TXT: []string{"free text"}}, 60),
			record("end.example.net.", &dnsmessage.AAAAResource{AAAA: [16]byte{0x20, 1}}, 60),
			record("mirror.example.org.", a4("203.0.113.2"), 60), // it has another name
		}
		m.Authorities = []dnsmessage.Resource{record("mirror.example.org.", a4("203.0.113.3"), 60)}
		m.Additionals = []dnsmessage.Resource{record("mirror.example.org.", a4("203.0.113.4"), 60)}
	})
	g := newGateway(t, Config{Nameservers: []string{ns}}, "mirror.example.org")
	now := time.Unix(1e9, 0)
	g.now = func() time.Time { return now }
	b, err := g.Resolve(t.Context(), query(t, "mirror.example.org"))
	var m dnsmessage.Message
	if err != nil || m.Unpack(b) != nil {
		t.Fatalf("%x, %v", b, err)
	}
	var got []string
	for _, r := range m.Answers {
		got = append(got, fmt.Sprintf("%v %d", r.Header.Name, r.Header.TTL))
	}
	want := "[mirror.example.org. 60 middle.example.net. 60 end.example.net. 60 END.example.net. 3600 end.example.net. 60]"
	if fmt.Sprint(got) != want || len(m.Authorities)+len(m.Additionals) != 0 {
		t.Errorf("got %v and %v, %v; want %s", got, m.Authorities, m.Additionals, want)
	}
	check := func(open map[string]bool) {
		t.Helper()
		for dst, want := range open {
			if got := g.to(dst); got.allowed != want {
				t.Errorf("%v later, %s: %+v", now.Sub(time.Unix(1e9, 0)), dst, got)
			}
		}
	}
	check(map[string]bool{"192.0.2.1:80": true, "192.0.2.2:80": true, "10.0.2.2:80": false, "203.0.113.1:80": false, "203.0.113.2:80": false, "203.0.113.3:80": false, "203.0.113.4:80": false})
	now = now.Add(time.Minute + pinGrace)
	check(map[string]bool{"192.0.2.1:80": false, "192.0.2.2:80": true})
	now = now.Add(maxTTL * time.Second)
	check(map[string]bool{"192.0.2.2:80": false})
}

// What does not answer the question is no answer.
func TestForgedAnswers(t *testing.T) {
	forge := map[string]func(*dnsmessage.Message){
		"another ID":       func(m *dnsmessage.Message) { m.ID++ },
		"a query":          func(m *dnsmessage.Message) { m.Response = false },
		"another opcode":   func(m *dnsmessage.Message) { m.OpCode = 5 },
		"another question": func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("other.example.org.") },
		"another type":     func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA },
		"no question":      func(m *dnsmessage.Message) { m.Questions = nil },
		"too many records": func(m *dnsmessage.Message) {
			for range maxParsed {
				m.Answers = append(m.Answers, m.Answers[0])
			}
		},
	}
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("mirror.example.org."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	for what, change := range forge {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{q}, Answers: []dnsmessage.Resource{record("mirror.example.org.", a4("192.0.2.1"), 60)}}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if a, err := parseAnswer(b, 7, q); err != nil || len(a.records) != 1 {
			t.Fatalf("%v, %v", a, err)
		}
		if a, err := parseAnswer(b[:len(b)-1], 7, q); err == nil {
			t.Errorf("cut off: %v", a)
		}
		change(&m)
		if b, err = m.Pack(); err != nil {
			t.Fatal(err)
		}
		if a, err := parseAnswer(b, 7, q); err == nil {
			t.Errorf("%s: %v", what, a)
		}
	}
	loop := dnsmessage.Message{Answers: []dnsmessage.Resource{
		record("mirror.example.org.", &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("b.example.org.")}, 1),
		record("b.example.org.", &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("mirror.example.org.")}, 1),
	}}
	if got := belonging(loop.Answers, q); len(got) > maxAliases {
		t.Errorf("%d records of a circle", len(got))
	}
}

// Connections to the name server have places of their own.
func TestNamesOverTCPAreBounded(t *testing.T) {
	var warned string
	g := newGuest(t, nil, "", "*")
	g.gateway.config.Warn = func(text string) { warned = text }
	for range maxNamesConnections {
		conn, err := g.dial("10.0.2.3:53")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := writeMessage(conn, query(t, "host")); err != nil { // and it answers, so that it has its place
			t.Fatal(err)
		}
		if _, err := readMessage(conn, maxMessage); err != nil {
			t.Fatal(err)
		}
	}
	if conn, err := g.dial("10.0.2.3:53"); err == nil {
		conn.Close()
		t.Error("one more")
	}
	g.gateway.Close()
	if !strings.HasPrefix(warned, "1 connections were dropped") {
		t.Errorf("told %q", warned)
	}
	if m, err := readMessage(strings.NewReader("\xff\xff"+strings.Repeat("x", maxMessage)), maxQuery); err == nil {
		t.Errorf("a query of %d bytes", len(m))
	}
}
