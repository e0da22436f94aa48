package services

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	hostMAC  = net.HardwareAddr{0x52, 0x54, 0, 0x12, 1, 0xfe}
	guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 1, 2}
	guest4   = netip.MustParseAddr("192.168.1.2")
	guest6   = netip.MustParseAddr("2001:db8:1::2")
	guestLL  = linkLocal(guestMAC)
	host4    = netip.MustParseAddr("192.168.1.254")
	host6    = netip.MustParseAddr("2001:db8:1::fe")
	nobody4  = netip.MustParseAddr("0.0.0.0")
)

func config() Config {
	return Config{
		MAC: hostMAC, IPv4: netip.PrefixFrom(host4, 24), IPv6: netip.PrefixFrom(host6, 64), Domain: "lab.test",
		Leases: []Lease{{guestMAC, "web", netip.PrefixFrom(guest4, 24), netip.PrefixFrom(guest6, 64)}},
		Names: map[string][]netip.Addr{
			"web": {guest4, guest6}, "Far": {netip.MustParseAddr("192.168.2.3")},
		},
	}
}

func newHost(t *testing.T, c Config) *Host {
	h := New(c)
	t.Cleanup(func() { h.Close() })
	return h
}

// ask sends a frame and returns the answer taken apart; nil if there is none.
func ask(t *testing.T, h *Host, frame []byte) *packet {
	t.Helper()
	if _, err := h.Write(frame); err != nil {
		t.Fatal(err)
	}
	select {
	case f := <-h.replies:
		p, ok := parse(f)
		if !ok {
			t.Fatalf("an answer that makes no sense: %x", f)
		}
		if !bytes.Equal(p.srcMAC, hostMAC) {
			t.Fatalf("an answer from %v", p.srcMAC)
		}
		return &p
	default:
		return nil
	}
}

func TestARP(t *testing.T) {
	h := newHost(t, config())
	request := func(target netip.Addr) []byte {
		b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, guestMAC...)
		b = append(append(b, guest4.AsSlice()...), make([]byte, 6)...)
		return ethernet(guestMAC, broadcastMAC, etherARP, append(b, target.AsSlice()...))
	}
	p := ask(t, h, request(host4))
	want := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, hostMAC, host4.AsSlice(), guestMAC, guest4.AsSlice())
	if p == nil || !bytes.Equal(p.payload, want) || !bytes.Equal(p.dstMAC, guestMAC) {
		t.Errorf("got %+v", p)
	}
	if p := ask(t, h, request(guest4)); p != nil {
		t.Errorf("it answers for others: %+v", p)
	}
}

func TestNeighborDiscovery(t *testing.T) {
	h := newHost(t, config())
	solicit := func(src, target netip.Addr, hops byte) []byte {
		b := append([]byte{neighborSolicitation, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
		s := target.As16()
		dst := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: s[13], 14: s[14], 15: s[15]})
		f := icmp(guestMAC, multicastMAC(dst), src, dst, b)
		f[ether4+7] = hops
		return f
	}
	for _, target := range []netip.Addr{host6, linkLocal(hostMAC)} {
		p := ask(t, h, solicit(guest6, target, 255))
		if p == nil || p.payload[0] != neighborAdvertisement || p.payload[4] != 0x60 || p.dst != guest6 || p.hops != 255 ||
			!bytes.Equal(p.payload[8:24], target.AsSlice()) || !bytes.Equal(p.payload[24:], append([]byte{2, 1}, hostMAC...)) {
			t.Errorf("%v: got %+v", target, p)
		}
	}
	if p := ask(t, h, solicit(netip.IPv6Unspecified(), host6, 255)); p == nil || p.dst != allNodes || p.payload[4] != 0x20 {
		t.Errorf("somebody who wants the host's address hears %+v", p)
	}
	if p := ask(t, h, solicit(guest6, guest6, 255)); p != nil {
		t.Errorf("it answers for others: %+v", p)
	}
	if p := ask(t, h, solicit(guest6, host6, 64)); p != nil {
		t.Errorf("it answers what came through a router: %+v", p)
	}
}

// A router advertisement that changes nothing for who has what it needs.
func TestRouterAdvertisement(t *testing.T) {
	h := newHost(t, config())
	p := ask(t, h, icmp(guestMAC, multicastMAC(allRouters), guestLL, allRouters, []byte{routerSolicitation, 0, 0, 0, 0, 0, 0, 0}))
	if p == nil || p.payload[0] != routerAdvertisement || p.src != linkLocal(hostMAC) || p.dst != guestLL || p.hops != 255 {
		t.Fatalf("got %+v", p)
	}
	b := p.payload
	if b[5] != 0xc0 || b[6] != 0 || b[7] != 0 {
		t.Errorf("flags %#x, router lifetime %d", b[5], int(b[6])<<8|int(b[7]))
	}
	options := map[byte][]byte{}
	for o := b[16:]; len(o) > 0; o = o[8*int(o[1]):] {
		options[o[0]] = o[2 : 8*int(o[1])]
	}
	if prefix := options[optionPrefix]; prefix[0] != 64 || prefix[1] != 0x80 || !bytes.Equal(prefix[14:], netip.MustParseAddr("2001:db8:1::").AsSlice()) {
		t.Errorf("prefix %x", prefix)
	}
	if dns := options[optionDNS]; !bytes.Equal(dns[6:], host6.AsSlice()) {
		t.Errorf("DNS %x", dns)
	}
	if search := options[optionSearch]; string(search[6:16]) != "\x03lab\x04test\x00" {
		t.Errorf("search list %q", search)
	}
}

func TestPing(t *testing.T) {
	h := newHost(t, config())
	p := ask(t, h, icmp(guestMAC, hostMAC, guest4, host4, []byte{8, 0, 0, 0, 0, 7, 0, 1, 'h', 'i'}))
	if p == nil || !bytes.Equal(append([]byte{0}, p.payload[4:]...), []byte{0, 0, 7, 0, 1, 'h', 'i'}) || p.dst != guest4 {
		t.Errorf("got %+v", p)
	}
	p = ask(t, h, icmp(guestMAC, hostMAC, guest6, host6, []byte{echoRequest6, 0, 0, 0, 0, 7, 0, 1}))
	if p == nil || p.payload[0] != echoReply6 || p.dst != guest6 {
		t.Errorf("got %+v", p)
	}
	bad := icmp(guestMAC, hostMAC, guest4, host4, []byte{8, 0, 0, 0, 0, 7, 0, 1})
	bad[len(bad)-1] ^= 4
	if p := ask(t, h, bad); p != nil {
		t.Errorf("it answers what is corrupt: %+v", p)
	}
}

// exchange4 sends a DHCP message as a client without an address does.
func exchange4(t *testing.T, h *Host, src netip.Addr, req *dhcpv4.DHCPv4) (*packet, *dhcpv4.DHCPv4) {
	t.Helper()
	p := ask(t, h, udp(guestMAC, broadcastMAC, src, broadcast4, portDHCPClient, portDHCP, req.ToBytes()))
	if p == nil {
		return nil, nil
	}
	if p.src != host4 || p.srcPort != portDHCP || p.dstPort != portDHCPClient {
		t.Errorf("answered from %v:%d to port %d", p.src, p.srcPort, p.dstPort)
	}
	m, err := dhcpv4.FromBytes(p.payload)
	if err != nil {
		t.Fatal(err)
	}
	return p, m
}

func TestDHCP(t *testing.T) {
	h := newHost(t, config())
	discover, err := dhcpv4.NewDiscovery(guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	discover.SetUnicast()
	p, offer := exchange4(t, h, nobody4, discover)
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer || p.dst != guest4 || !bytes.Equal(p.dstMAC, guestMAC) {
		t.Fatalf("offer: %v", offer)
	}
	discover.SetBroadcast()
	if p, _ := exchange4(t, h, nobody4, discover); p.dst != broadcast4 || !bytes.Equal(p.dstMAC, broadcastMAC) {
		t.Errorf("who asked for a broadcast is answered at %v", p.dst)
	}
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	_, ack := exchange4(t, h, nobody4, request)
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatalf("ack: %v", ack)
	}
	got := fmt.Sprintln(ack.YourIPAddr, net.IP(ack.SubnetMask()), ack.IPAddressLeaseTime(0), ack.DNS(), ack.Router(), ack.HostName(), ack.DomainName(), ack.DomainSearch().Labels)
	if want := "192.168.1.2 255.255.255.0 720h0m0s [192.168.1.254] [] web lab.test [lab.test]\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}

	request.UpdateOption(dhcpv4.OptRequestedIPAddress(net.IP{192, 168, 1, 77}))
	if _, nak := exchange4(t, h, nobody4, request); nak == nil || nak.MessageType() != dhcpv4.MessageTypeNak || !nak.YourIPAddr.IsUnspecified() {
		t.Errorf("another address: %v", nak)
	}
	request.UpdateOption(dhcpv4.OptServerIdentifier(net.IP{192, 168, 1, 1}))
	if _, m := exchange4(t, h, nobody4, request); m != nil {
		t.Errorf("it answers what another server is asked: %v", m)
	}
	renew, _ := dhcpv4.NewRenewFromAck(ack)
	if _, m := exchange4(t, h, guest4, renew); m == nil || m.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("renewal: %v", m)
	}
	inform, _ := dhcpv4.NewInform(guestMAC, net.IP(guest4.AsSlice()))
	if p, m := exchange4(t, h, guest4, inform); m == nil || m.MessageType() != dhcpv4.MessageTypeAck || !m.YourIPAddr.IsUnspecified() || m.IPAddressLeaseTime(0) != 0 || p.dst != guest4 {
		t.Errorf("inform: %v", m)
	}
	stranger, _ := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 9})
	if _, m := exchange4(t, h, nobody4, stranger); m != nil {
		t.Errorf("a card that is not planned gets %v", m)
	}
	release, _ := dhcpv4.NewReleaseFromACK(ack)
	if _, m := exchange4(t, h, guest4, release); m != nil {
		t.Errorf("a release is answered: %v", m)
	}
}

func TestDHCPRouter(t *testing.T) {
	c := config()
	c.Router = netip.MustParseAddr("192.168.1.253")
	discover, _ := dhcpv4.NewDiscovery(guestMAC)
	if _, m := exchange4(t, newHost(t, c), nobody4, discover); m == nil || fmt.Sprint(m.Router()) != "[192.168.1.253]" {
		t.Errorf("got %v", m)
	}
}

func exchange6(t *testing.T, h *Host, m *dhcpv6.Message) *dhcpv6.Message {
	t.Helper()
	p := ask(t, h, udp(guestMAC, multicastMAC(dhcpServers), guestLL, dhcpServers, portDHCP6Client, portDHCP6, m.ToBytes()))
	if p == nil {
		return nil
	}
	if p.dst != guestLL || p.src != linkLocal(hostMAC) || p.dstPort != portDHCP6Client {
		t.Errorf("answered to %v port %d from %v", p.dst, p.dstPort, p.src)
	}
	got, err := dhcpv6.FromBytes(p.payload)
	if err != nil {
		t.Fatal(err)
	}
	return got.(*dhcpv6.Message)
}

func TestDHCP6(t *testing.T) {
	h := newHost(t, config())
	solicit, err := dhcpv6.NewSolicit(guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	advertise := exchange6(t, h, solicit)
	if advertise == nil || advertise.MessageType != dhcpv6.MessageTypeAdvertise {
		t.Fatalf("got %v", advertise)
	}
	request, err := dhcpv6.NewRequestFromAdvertise(advertise)
	if err != nil {
		t.Fatal(err)
	}
	reply := exchange6(t, h, request)
	if reply == nil || reply.MessageType != dhcpv6.MessageTypeReply || reply.TransactionID != request.TransactionID {
		t.Fatalf("got %v", reply)
	}
	if a := reply.Options.OneIANA().Options.OneAddress(); a.IPv6Addr.String() != guest6.String() || a.ValidLifetime != leaseTime {
		t.Errorf("address %v", a)
	}
	if dns := fmt.Sprint(reply.Options.DNS(), reply.Options.DomainSearchList().Labels); dns != "[2001:db8:1::fe] [lab.test]" {
		t.Errorf("DNS %v", dns)
	}
	request.UpdateOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: guestMAC}))
	if m := exchange6(t, h, request); m != nil {
		t.Errorf("it answers what another server is asked: %v", m)
	}
	h = newHost(t, config()) // that one gives way from now on
	rapid, _ := dhcpv6.NewSolicit(guestMAC, dhcpv6.WithRapidCommit)
	if m := exchange6(t, h, rapid); m == nil || m.MessageType != dhcpv6.MessageTypeReply || m.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
		t.Errorf("rapid commit: %v", m)
	}
	info, _ := dhcpv6.NewMessage(dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: guestMAC}))
	info.MessageType = dhcpv6.MessageTypeInformationRequest
	if m := exchange6(t, h, info); m == nil || m.Options.OneIANA() != nil || len(m.Options.DNS()) != 1 {
		t.Errorf("information request: %v", m)
	}
}

// query asks for a name from an address and returns the answers as text.
func query(t *testing.T, h *Host, src, dst netip.Addr, name string, kind dnsmessage.Type) (header dnsmessage.Header, answers []string) {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 77, RecursionDesired: true})
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET})
	b.StartAdditionals()
	var opt dnsmessage.ResourceHeader
	opt.SetEDNS0(4096, dnsmessage.RCodeSuccess, false)
	b.OPTResource(opt, dnsmessage.OPTResource{})
	message, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	p := ask(t, h, udp(guestMAC, hostMAC, src, dst, 40000, portDNS, message))
	if p == nil {
		t.Fatalf("%s: no answer", name)
	}
	if p.src != dst || p.dst != src || p.srcPort != portDNS || p.dstPort != 40000 {
		t.Errorf("%s: answered from %v:%d to %v:%d", name, p.src, p.srcPort, p.dst, p.dstPort)
	}
	var m dnsmessage.Message
	if err := m.Unpack(p.payload); err != nil {
		t.Fatal(err)
	}
	if len(m.Additionals) != 1 || m.Additionals[0].Header.Type != dnsmessage.TypeOPT {
		t.Errorf("%s: additionals %v", name, m.Additionals)
	}
	for _, a := range m.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			answers = append(answers, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			answers = append(answers, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.PTRResource:
			answers = append(answers, r.PTR.String())
		}
	}
	return m.Header, answers
}

func TestDNS(t *testing.T) {
	h := newHost(t, config())
	for _, tt := range []struct {
		name string
		kind dnsmessage.Type
		want string // answers, or the code
	}{
		{"web.", dnsmessage.TypeA, "192.168.1.2"},
		{"WEB.Lab.Test.", dnsmessage.TypeA, "192.168.1.2"},
		{"web.lab.test.", dnsmessage.TypeAAAA, "2001:db8:1::2"},
		{"web.", dnsmessage.TypeALL, "192.168.1.2 2001:db8:1::2"},
		{"web.", dnsmessage.TypeMX, ""},
		{"far.lab.test.", dnsmessage.TypeA, "192.168.2.3"},
		{"far.lab.test.", dnsmessage.TypeAAAA, ""},
		{"2.1.168.192.in-addr.arpa.", dnsmessage.TypePTR, "web.lab.test."},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", dnsmessage.TypePTR, "web.lab.test."},
		{"3.2.168.192.in-addr.arpa.", dnsmessage.TypePTR, "Far.lab.test."},
		{"9.1.168.192.in-addr.arpa.", dnsmessage.TypePTR, "RCodeNameError"},
		{"x.1.168.192.in-addr.arpa.", dnsmessage.TypePTR, "RCodeNameError"},
		{"example.com.", dnsmessage.TypeA, "RCodeNameError"},
		{"lab.test.", dnsmessage.TypeA, "RCodeNameError"},
		{"web.web.", dnsmessage.TypeA, "RCodeNameError"},
		{".", dnsmessage.TypeNS, "RCodeNameError"},
	} {
		header, answers := query(t, h, guest4, host4, tt.name, tt.kind)
		got := strings.Join(answers, " ")
		if header.RCode != dnsmessage.RCodeSuccess {
			got = header.RCode.GoString()[len("dnsmessage."):]
		}
		if got != tt.want || !header.Response || !header.Authoritative || header.ID != 77 || header.RecursionAvailable {
			t.Errorf("%s %v: got %q, want %q (%+v)", tt.name, tt.kind, got, tt.want, header)
		}
	}
	for _, way := range [][2]netip.Addr{{guest6, host6}, {guestLL, linkLocal(hostMAC)}} {
		if _, answers := query(t, h, way[0], way[1], "web.", dnsmessage.TypeA); len(answers) != 1 {
			t.Errorf("from %v: %v", way[0], answers)
		}
	}
}

func TestDNSForwards(t *testing.T) {
	c := config()
	begun := make(chan struct{})
	c.Forward = func(ctx context.Context, q []byte) ([]byte, error) {
		if bytes.Contains(q, []byte("slow")) {
			close(begun)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if bytes.Contains(q, []byte("broken")) {
			return nil, errors.New("broken")
		}
		return append([]byte("forwarded "), q...), nil
	}
	h := New(c)
	send := func(name string) {
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 77})
		b.StartQuestions()
		b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
		m, _ := b.Finish()
		h.Write(udp(guestMAC, hostMAC, guest4, host4, 40000, portDNS, m))
	}
	send("slow.example.")
	<-begun // it does not hold up the others
	send("broken.example.")
	send("example.com.")
	buf := make([]byte, 2000)
	n, err := h.Read(buf)
	if p, ok := parse(buf[:n]); err != nil || !ok || !bytes.HasPrefix(p.payload, []byte("forwarded ")) || p.dst != guest4 {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	if header, answers := query(t, h, guest4, host4, "web.", dnsmessage.TypeA); len(answers) != 1 || !header.RecursionAvailable {
		t.Errorf("a name of its own: %v, %+v", answers, header)
	}
	h.Close()
	if _, err := h.Read(buf); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	if _, err := h.Write(buf); err == nil {
		t.Error("after the end it takes frames")
	}
}

// An answer that is longer than whoever asks takes says so; and TCP, by which it is
// asked for again, is somebody else's.
func TestLongAnswers(t *testing.T) {
	c := config()
	c.Forward = func(_ context.Context, q []byte) ([]byte, error) {
		var m dnsmessage.Message
		if err := m.Unpack(q); err != nil {
			t.Error(err)
		}
		m.Response, m.Additionals = true, nil
		for range 50 { // 16 bytes each, and 29
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{},
			})
		}
		return m.Pack()
	}
	var segments [][]byte
	c.TCP = func(f []byte) { segments = append(segments, bytes.Clone(f)) }
	h := newHost(t, c)
	for size, whole := range map[int]bool{0: false, 828: false, 829: true, 4096: true} {
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7})
		b.StartQuestions()
		b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName("example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
		if size > 0 {
			b.StartAdditionals()
			var opt dnsmessage.ResourceHeader
			opt.SetEDNS0(size, dnsmessage.RCodeSuccess, false)
			b.OPTResource(opt, dnsmessage.OPTResource{})
		}
		q, _ := b.Finish()
		h.Write(udp(guestMAC, hostMAC, guest4, host4, 40000, portDNS, q))
		buf := make([]byte, 2000)
		n, err := h.Read(buf)
		p, ok := parse(buf[:n])
		var m dnsmessage.Message
		if err != nil || !ok || m.Unpack(p.payload) != nil {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		if m.ID != 7 || len(m.Questions) != 1 || m.Truncated == whole || len(m.Answers) != map[bool]int{true: 50}[whole] {
			t.Errorf("who takes %d bytes gets %d, truncated %v, with %d answers", size, len(p.payload), m.Truncated, len(m.Answers))
		}
	}
	syn := ip(guestMAC, hostMAC, guest4, host4, protoTCP, make([]byte, 20))
	h.Write(syn)
	h.Write(ip(guestMAC, hostMAC, guest4, guest4, protoTCP, make([]byte, 20))) // to somebody else
	if len(segments) != 1 || !bytes.Equal(segments[0], syn) {
		t.Errorf("%q", segments)
	}
}

// A guest that asks and does not listen costs no memory.
func TestRepliesAreBounded(t *testing.T) {
	h := newHost(t, config())
	ping := icmp(guestMAC, hostMAC, guest4, host4, []byte{8, 0, 0, 0, 0, 7, 0, 1})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10 * maxReplies {
			h.Write(ping)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it waits for who does not listen")
	}
	if len(h.replies) != maxReplies {
		t.Errorf("%d answers wait", len(h.replies))
	}
}

// solicitRouters asks for routers, as kernels do.
func solicitRouters(t *testing.T, h *Host) *packet {
	t.Helper()
	b := []byte{routerSolicitation, 0, 0, 0, 0, 0, 0, 0}
	f := icmp(guestMAC, multicastMAC(allRouters), guestLL, allRouters, b)
	return ask(t, h, f)
}

func TestNotServed(t *testing.T) {
	discover, _ := dhcpv4.NewDiscovery(guestMAC)
	solicit, _ := dhcpv6.NewSolicit(guestMAC)
	c := config()
	c.NoDHCP = true
	h := newHost(t, c)
	if _, m := exchange4(t, h, nobody4, discover); m != nil {
		t.Errorf("without DHCP: %v", m)
	}
	if m := exchange6(t, h, solicit); m != nil {
		t.Errorf("without DHCP: %v", m)
	}
	if p := solicitRouters(t, h); p == nil || p.payload[5] != 0 {
		t.Errorf("without DHCP, routers are %+v", p)
	}
	if _, answers := query(t, h, guest4, host4, "web.", dnsmessage.TypeA); len(answers) != 1 {
		t.Errorf("without DHCP, names are %v", answers)
	}
	c = config()
	c.NoDNS = true
	h = newHost(t, c)
	if _, m := exchange4(t, h, nobody4, discover); m == nil || len(m.DNS()) != 0 {
		t.Errorf("without DNS: %v", m)
	}
	if m := exchange6(t, h, solicit); m == nil || len(m.Options.DNS()) != 0 {
		t.Errorf("without DNS: %v", m)
	}
	if p := solicitRouters(t, h); p == nil || p.payload[5] != 0xc0 || bytes.Contains(p.payload, host6.AsSlice()) {
		t.Errorf("without DNS, routers are %+v", p)
	}
	q := append([]byte("\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00"), 0, 1, 0, 1)
	if p := ask(t, h, udp(guestMAC, hostMAC, guest4, host4, 40000, portDNS, q)); p != nil {
		t.Errorf("without DNS: %+v", p)
	}
	c = config()
	c.NoRA = true
	if p := solicitRouters(t, newHost(t, c)); p != nil {
		t.Errorf("without router advertisements: %+v", p)
	}
}

// A host that hears of another server leaves new guests to it, and keeps those that it has.
func TestGivesWay(t *testing.T) {
	serverMAC, server4 := net.HardwareAddr{0x52, 0x54, 0, 0x12, 1, 9}, netip.MustParseAddr("192.168.1.9")
	discover, _ := dhcpv4.NewDiscovery(guestMAC)
	solicit, _ := dhcpv6.NewSolicit(guestMAC)
	announcement, _ := dhcpv4.NewReplyFromRequest(discover)
	for what, hear := range map[string]func(*Host, *dhcpv4.DHCPv4){
		"a server's answer": func(h *Host, _ *dhcpv4.DHCPv4) {
			h.Write(udp(serverMAC, broadcastMAC, server4, broadcast4, portDHCP, portDHCPClient, announcement.ToBytes()))
		},
		"a client's choice": func(h *Host, offer *dhcpv4.DHCPv4) {
			other, _ := dhcpv4.NewRequestFromOffer(offer)
			other.UpdateOption(dhcpv4.OptServerIdentifier(server4.AsSlice()))
			h.Write(udp(guestMAC, broadcastMAC, nobody4, broadcast4, portDHCPClient, portDHCP, other.ToBytes()))
		},
	} {
		var told []string
		c := config()
		c.Warn = func(text string) { told = append(told, text) }
		h := newHost(t, c)
		_, offer := exchange4(t, h, nobody4, discover)
		hear(h, offer)
		hear(h, offer)
		if len(told) != 1 || !strings.Contains(told[0], "DHCP is somebody else's") {
			t.Errorf("%s: told %q", what, told)
		}
		if _, m := exchange4(t, h, nobody4, discover); m != nil {
			t.Errorf("%s: a new guest gets %v", what, m)
		}
		request, _ := dhcpv4.NewRequestFromOffer(offer)
		if _, m := exchange4(t, h, nobody4, request); m == nil || m.MessageType() != dhcpv4.MessageTypeAck {
			t.Errorf("%s: a guest with an offer gets %v", what, m)
		}
		request.Options.Del(dhcpv4.OptionServerIdentifier)
		request.UpdateOption(dhcpv4.OptRequestedIPAddress(net.IP{192, 168, 1, 77}))
		if _, m := exchange4(t, h, nobody4, request); m != nil {
			t.Errorf("%s: a guest of the other server gets %v", what, m)
		}
		if m := exchange6(t, h, solicit); m == nil {
			t.Errorf("%s: DHCPv6 is gone, too", what)
		}
		h.Write(icmp(serverMAC, multicastMAC(allNodes), linkLocal(serverMAC), allNodes, append([]byte{routerAdvertisement, 0, 0, 0, 64, managed}, make([]byte, 10)...)))
		if m := exchange6(t, h, solicit); m != nil {
			t.Errorf("%s: a new guest gets %v", what, m)
		}
	}
}

// Questions that are larger than the answers may be, or come from nobody in particular, have none.
func TestExcess(t *testing.T) {
	h := newHost(t, config())
	solicit, _ := dhcpv6.NewSolicit(guestMAC)
	for i := range 3000 { // a jumbo frame, whose answer would be longer than any
		solicit.AddOption(&dhcpv6.OptIANA{IaId: [4]byte{byte(i), byte(i >> 8)}})
	}
	if m := exchange6(t, h, solicit); m != nil {
		t.Errorf("an answer of %d bytes", len(m.ToBytes()))
	}
	discover, _ := dhcpv4.NewDiscovery(guestMAC)
	discover.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRelayAgentInformation, make([]byte, 3000)))
	if _, m := exchange4(t, h, nobody4, discover); m != nil && len(m.ToBytes()) > maxDatagram {
		t.Errorf("an offer of %d bytes", len(m.ToBytes()))
	}
	group := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	if p := ask(t, h, icmp(group, hostMAC, guest4, host4, []byte{8, 0, 0, 0, 0, 7, 0, 1})); p != nil {
		t.Errorf("everybody gets %+v", p)
	}
}

// A flood of queries costs no memory, and what it costs others is told.
func TestFloodIsTold(t *testing.T) {
	c := config()
	c.Forward = func(ctx context.Context, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	told := ""
	c.Warn = func(text string) { told += text }
	h := New(c)
	q := append([]byte("\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00"), 0, 1, 0, 1)
	for range maxForwards + 7 {
		h.Write(udp(guestMAC, hostMAC, guest4, host4, 40000, portDNS, q))
	}
	h.Close()
	if want := "services of 192.168.1.0/24: 7 answers were lost because too many requests came at once"; told != want {
		t.Errorf("told %q, want %q", told, want)
	}
}

// Whatever a guest sends: an answer is a whole frame from the host, and never
// longer than Ethernet's usual ones.
func FuzzHost(f *testing.F) {
	discover, _ := dhcpv4.NewDiscovery(guestMAC)
	f.Add(udp(guestMAC, broadcastMAC, nobody4, broadcast4, portDHCPClient, portDHCP, discover.ToBytes())[ether4+header4:], uint8(0))
	solicit, _ := dhcpv6.NewSolicit(guestMAC)
	f.Add(udp(guestMAC, multicastMAC(dhcpServers), guestLL, dhcpServers, portDHCP6Client, portDHCP6, solicit.ToBytes())[ether4+header6:], uint8(1))
	f.Add([]byte("\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01"), uint8(2))
	f.Add([]byte("\x85\x00\x00\x00\x00\x00\x00\x00"), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, kind uint8) {
		h := New(config())
		defer h.Close()
		data = bytes.Clone(data[:min(len(data), 9000)])
		switch kind % 5 { // behind headers that are right, so that it gets there
		case 0:
			h.Write(ip(guestMAC, broadcastMAC, nobody4, broadcast4, protoUDP, data))
			h.Write(udp(guestMAC, broadcastMAC, nobody4, broadcast4, portDHCPClient, portDHCP, data))
		case 1:
			h.Write(udp(guestMAC, multicastMAC(dhcpServers), guestLL, dhcpServers, portDHCP6Client, portDHCP6, data))
		case 2:
			h.Write(udp(guestMAC, hostMAC, guest4, host4, 40000, portDNS, data))
		case 3:
			if len(data) >= 4 {
				data[2], data[3] = 0, 0
				h.Write(icmp(guestMAC, multicastMAC(allRouters), guestLL, allRouters, data))
			}
		default:
			h.Write(data)
		}
		for len(h.replies) > 0 {
			reply := <-h.replies
			if p, ok := parse(reply); !ok || !bytes.Equal(p.srcMAC, hostMAC) || len(reply) > max(ether4+1500, len(data)+100) {
				t.Fatalf("answered %x", reply)
			}
		}
	})
}
