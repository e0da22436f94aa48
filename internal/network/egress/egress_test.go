package egress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// A guest is a network stack whose frames go to a gateway.
type guest struct {
	t       *testing.T
	gateway *Gateway
	stack   *stack.Stack

	mu       sync.Mutex
	reported []Connection
	news     chan struct{}
}

// newGuest has a gateway with these rules, for whom the world is loopback:
// every destination is a server of the test's.
func newGuest(t *testing.T, world map[string]string, nameserver string, rules ...string) *guest {
	t.Helper()
	rs, err := ParseRules(rules)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, news: make(chan struct{}, 1)}
	g.gateway, err = New(Config{Rules: rs, Report: g.report, Nameservers: []string{nameserver}})
	if err != nil {
		t.Fatal(err)
	}
	g.gateway.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		to, ok := world[address]
		if !ok {
			return nil, errors.New("no route to " + address)
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
	mac := tcpip.LinkAddress(GuestMAC)
	link := channel.New(1024, mtu, mac)
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	must := func(err tcpip.Error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(g.stack.CreateNIC(1, ethernet.New(link)))
	var routes []tcpip.Route
	for _, a := range []struct {
		own, via netip.Prefix
		protocol tcpip.NetworkProtocolNumber
		subnet   tcpip.Subnet
	}{{GuestIPv4, GatewayIPv4, ipv4.ProtocolNumber, header.IPv4EmptySubnet}, {GuestIPv6, GatewayIPv6, ipv6.ProtocolNumber, header.IPv6EmptySubnet}} {
		with := tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(a.own.Addr().AsSlice()), PrefixLen: a.own.Bits()}
		must(g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: a.protocol, AddressWithPrefix: with}, stack.AddressProperties{}))
		routes = append(routes, tcpip.Route{Destination: with.Subnet(), NIC: 1},
			tcpip.Route{Destination: a.subnet, Gateway: tcpip.AddrFromSlice(a.via.Addr().AsSlice()), NIC: 1})
	}
	g.stack.SetRouteTable(routes)
	for _, a := range []netip.Addr{NameIPv4.Addr(), NameIPv6.Addr()} {
		must(g.stack.AddStaticNeighbor(1, protocolOf(netip.AddrPortFrom(a, 0)), tcpip.AddrFromSlice(a.AsSlice()), tcpip.LinkAddress(NameMAC)))
	}

	ctx, stop := context.WithCancel(context.Background())
	var pumps sync.WaitGroup
	pumps.Go(func() {
		for {
			pkt := link.ReadContext(ctx)
			if pkt == nil {
				return
			}
			view := pkt.ToView()
			if f := view.AsSlice(); bytes.HasPrefix(f, NameMAC) {
				g.gateway.NameServer(f)
			} else {
				g.gateway.Write(f)
			}
			pkt.DecRef()
		}
	})
	pumps.Go(func() {
		b := make([]byte, 65536)
		for {
			n, err := g.gateway.Read(b)
			if err != nil {
				return
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(bytes.Clone(b[:n]))})
			link.InjectInbound(0, pkt)
			pkt.DecRef()
		}
	})
	t.Cleanup(func() {
		g.gateway.Close()
		stop()
		pumps.Wait()
		g.stack.Destroy()
	})
	return g
}

func (g *guest) report(c Connection) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reported = append(g.reported, c)
	select {
	case g.news <- struct{}{}:
	default:
	}
}

// expectReport waits for a report that fits.
func (g *guest) expectReport(fits func(Connection) bool) Connection {
	g.t.Helper()
	deadline := time.After(patience)
	for {
		g.mu.Lock()
		for _, c := range g.reported {
			if fits(c) {
				g.mu.Unlock()
				return c
			}
		}
		seen := fmt.Sprintf("%+v", g.reported)
		g.mu.Unlock()
		select {
		case <-g.news:
		case <-deadline:
			g.t.Fatalf("reported: %s", seen)
		}
	}
}

func (g *guest) dial(address string) (*gonet.TCPConn, error) {
	a := netip.MustParseAddrPort(address)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, protocolOf(a))
}

func protocolOf(a netip.AddrPort) tcpip.NetworkProtocolNumber {
	if a.Addr().Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// serve gives every connection to a port of the loopback to fn.
func serve(t *testing.T, fn func(*net.TCPConn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(patience))
			running.Go(func() {
				defer conn.Close()
				fn(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return l.Addr().String()
}

// hash answers what it got with its digest, at the end.
func hash(conn *net.TCPConn) {
	h := sha256.New()
	io.Copy(h, conn)
	conn.Write(h.Sum(nil))
}

func TestTCP(t *testing.T) {
	server := serve(t, hash)
	port := server[strings.LastIndexByte(server, ':')+1:]
	g := newGuest(t, map[string]string{"192.0.2.1:443": server, "[2001:db8::1]:443": server, server: server, "[::1]:" + port: server}, "", "*", "host")
	for _, destination := range []string{"192.0.2.1:443", "[2001:db8::1]:443", "10.0.2.2:" + port, "[fec0::2]:" + port} {
		conn, err := g.dial(destination)
		if err != nil {
			t.Fatalf("%s: %v", destination, err)
		}
		data := make([]byte, 3<<20)
		rand.NewChaCha8([32]byte{1}).Read(data)
		if _, err := conn.Write(data); err != nil {
			t.Fatal(err)
		}
		conn.CloseWrite()
		got, err := io.ReadAll(conn)
		if want := sha256.Sum256(data); err != nil || !bytes.Equal(got, want[:]) {
			t.Errorf("%s: received %x, %v", destination, got, err)
		}
		conn.Close()
		c := g.expectReport(func(c Connection) bool { return c.Destination == destination })
		if c.Protocol != "tcp" || !c.Allowed || c.Error != "" || c.Sent != uint64(len(data)) || c.Received != sha256.Size {
			t.Errorf("reported %+v", c)
		}
	}
}

func TestTCPThatCannotBe(t *testing.T) {
	reset := serve(t, func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, 5))
		conn.SetLinger(0)
	})
	g := newGuest(t, map[string]string{"192.0.2.1:80": reset}, "", "192.0.2.0/24", "host:80")
	for destination, allowed := range map[string]bool{
		"192.0.2.2:80":       true,  // but the host has no way to it
		"198.51.100.1:80":    false, // by the rules
		"10.0.2.2:22":        false,
		"169.254.169.254:80": false,
	} {
		if conn, err := g.dial(destination); err == nil {
			conn.Close()
			t.Errorf("%s: connected", destination)
		}
		c := g.expectReport(func(c Connection) bool { return c.Destination == destination })
		if c.Allowed != allowed || allowed && c.Error != "no route to 192.0.2.2:80" {
			t.Errorf("reported %+v", c)
		}
	}
	conn, err := g.dial("192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("hello"))
	if n, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a connection that was reset: %d, %v", n, err)
	}
	g.expectReport(func(c Connection) bool { return c.Destination == "192.0.2.1:80" && strings.Contains(c.Error, "reset") })

	// A destination is reported as refused once.
	for range 3 {
		if conn, err := g.dial("198.51.100.1:80"); err == nil {
			conn.Close()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, c := range g.reported {
		if c.Destination == "198.51.100.1:80" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("reported %d times", n)
	}
}

func TestCloseEndsConnections(t *testing.T) {
	held := make(chan struct{})
	server := serve(t, func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, 5))
		close(held)
		io.Copy(io.Discard, conn)
	})
	g := newGuest(t, map[string]string{"192.0.2.1:80": server}, "", "*")
	conn, err := g.dial("192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("hello"))
	<-held
	g.gateway.Close()
	c := g.expectReport(func(c Connection) bool { return true })
	if c.Error != "the machine was powered off" || c.Sent != 5 {
		t.Errorf("reported %+v", c)
	}
}

func TestUDP(t *testing.T) {
	echo := serveUDP(t, func(b []byte) []byte { return append([]byte("echo "), b...) })
	g := newGuest(t, map[string]string{"192.0.2.1:53": echo}, "", "192.0.2.1")
	conn := g.udp("192.0.2.1:53")
	for i := range 10 {
		text := fmt.Sprint("packet ", i)
		if got := ask(t, conn, text); got != "echo "+text {
			t.Errorf("received %q", got)
		}
	}
	for _, destination := range []string{"192.0.2.2:53", "[2001:db8::2]:53"} {
		g.udp(destination).Write([]byte("hello"))
		g.expectReport(func(c Connection) bool { return c.Destination == destination && !c.Allowed && c.Protocol == "udp" })
	}
	told := g.stack.Stats().ICMP
	for deadline := time.Now().Add(patience); told.V4.PacketsReceived.DstUnreachable.Value() != 1 || told.V6.PacketsReceived.DstUnreachable.Value() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the guest is not told")
		}
	}
	g.gateway.Close()
	c := g.expectReport(func(c Connection) bool { return c.Destination == "192.0.2.1:53" })
	if !c.Allowed || c.Sent != 80 || c.Received != 130 {
		t.Errorf("reported %+v", c)
	}
}

func (g *guest) udp(address string) net.Conn {
	g.t.Helper()
	a := netip.MustParseAddrPort(address)
	conn, err := gonet.DialUDP(g.stack, nil, &tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, protocolOf(a))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func ask(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2000)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// serveUDP answers every packet to a port of the loopback; nil is no answer.
func serveUDP(t *testing.T, answer func([]byte) []byte) (address string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if a := answer(b[:n]); a != nil {
				conn.WriteTo(a, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return conn.LocalAddr().String()
}

func query(t *testing.T, name string) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 4711, RecursionDesired: true})
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	q, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// A name that is in the rules can be asked for, and then its addresses can be
// connected to.
func TestNames(t *testing.T) {
	nameserver := serveUDP(t, func(q []byte) []byte {
		var p dnsmessage.Parser
		h, _ := p.Start(q)
		question, _ := p.Question()
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: h.ID, Response: true})
		b.StartQuestions()
		b.Question(question)
		b.StartAnswers()
		b.AResource(dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: 60}, dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}})
		a, _ := b.Finish()
		return a
	})
	server := serve(t, hash)
	g := newGuest(t, map[string]string{"192.0.2.1:443": server}, nameserver, "mirror.example.org:443")
	if conn, err := g.dial("192.0.2.1:443"); err == nil {
		conn.Close()
		t.Error("connected to an address without a name")
	}
	for name, want := range map[string]dnsmessage.RCode{"MIRROR.example.org": dnsmessage.RCodeSuccess, "example.org": dnsmessage.RCodeRefused} {
		answer, err := g.gateway.Resolve(t.Context(), query(t, name))
		if err != nil {
			t.Fatal(err)
		}
		var p dnsmessage.Parser
		if h, err := p.Start(answer); err != nil || h.RCode != want || h.ID != 4711 {
			t.Errorf("%s: %v, %v, want %v", name, h, err, want)
		}
	}
	g.expectReport(func(c Connection) bool { return c.Protocol == "dns" && c.Destination == "example.org" && !c.Allowed })
	conn, err := g.dial("192.0.2.1:443")
	if err != nil {
		t.Fatal(err)
	}
	conn.CloseWrite()
	io.ReadAll(conn)
	conn.Close()
	g.expectReport(func(c Connection) bool {
		return c.Name == "mirror.example.org" && c.Allowed && c.Destination == "192.0.2.1:443"
	})
	if conn, err := g.dial("192.0.2.1:80"); err == nil {
		conn.Close()
		t.Error("connected to another port")
	}
}

// What is too long for a packet, for the host and for the guest, goes over TCP.
func TestNamesOverTCP(t *testing.T) {
	long := func(q []byte) []byte {
		m := dnsmessage.Message{}
		if err := m.Unpack(q); err != nil {
			t.Error(err)
		}
		m.Response = true
		for i := range 100 {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, byte(i)}},
			})
		}
		a, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return a
	}
	var overTCP string
	var conn net.PacketConn
	for try := 1; conn == nil; try++ { // until a port is free for UDP, too
		overTCP = serve(t, func(conn *net.TCPConn) {
			if q, err := readMessage(conn, maxMessage); err == nil {
				writeMessage(conn, long(q))
			}
		})
		var err error
		if conn, err = net.ListenPacket("udp", overTCP); err != nil && try == 20 {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			b[2] |= 0x82 // a truncated answer
			conn.WriteTo(b[:n], from)
		}
	}()
	g := newGuest(t, nil, overTCP, "*")
	for _, server := range []string{"10.0.2.3:53", "[fec0::3]:53"} {
		asker, err := g.dial(server)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			q := query(t, "example.org")
			if err := writeMessage(asker, q); err != nil {
				t.Fatal(err)
			}
			got, err := readMessage(asker, maxMessage)
			var m dnsmessage.Message
			if err != nil || m.Unpack(got) != nil || m.ID != 4711 || m.Truncated || len(m.Answers) != 100 {
				t.Fatalf("%s: %d bytes, %v: %v", server, len(got), err, m.GoString())
			}
		}
		if server == "10.0.2.3:53" {
			writeMessage(asker, []byte("garbage")) // and it hangs up
			if got, err := readMessage(asker, maxMessage); err == nil {
				t.Errorf("garbage is answered: %q", got)
			}
			asker.Close()
			continue
		}
		g.gateway.Close() // an open one does not hold it up
	}
}

func TestNameserverThatIsNotThere(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	g := newGuest(t, nil, conn.LocalAddr().String(), "*")
	answer, err := g.gateway.Resolve(t.Context(), query(t, "example.org"))
	if err != nil {
		t.Fatal(err)
	}
	var p dnsmessage.Parser
	if h, err := p.Start(answer); err != nil || h.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("%v, %v", h, err)
	}
	g.expectReport(func(c Connection) bool { return c.Protocol == "dns" && c.Error != "" })
	if _, err := g.gateway.Resolve(t.Context(), []byte("garbage")); err == nil {
		t.Error("garbage has an answer")
	}
}

func TestRules(t *testing.T) {
	for _, tt := range []struct {
		rules string
		dst   string
		names string
		want  bool
	}{
		{"", "192.0.2.1:80", "", false},
		{"*", "192.0.2.1:80", "", true},
		{"*", "169.254.169.254:80", "", false},
		{"* 169.254.169.254", "169.254.169.254:80", "", true},
		{"192.0.2.1", "192.0.2.1:80", "", true},
		{"192.0.2.1", "192.0.2.2:80", "", false},
		{"192.0.2.1:443", "192.0.2.1:80", "", false},
		{"192.0.2.7/24:443", "192.0.2.1:443", "", true},
		{"10.0.0.0/8 192.0.2.0/24", "192.0.2.1:443", "", true},
		{"2001:db8::1", "[2001:db8::1]:443", "", true},
		{"2001:db8::/32", "[2001:db8:7::1]:443", "", true},
		{"[2001:db8::1]:443", "[2001:db8::1]:80", "", false},
		{"[2001:db8::/32]:443", "[2001:db8::2]:443", "", true},
		{"mirror.example.org", "192.0.2.1:80", "mirror.example.org", true},
		{"Mirror.Example.Org.", "192.0.2.1:80", "mirror.example.org", true},
		{"mirror.example.org:443", "192.0.2.1:80", "mirror.example.org", false},
		{"example.org", "192.0.2.1:80", "mirror.example.org", false},
		{"host:8080", "10.0.2.2:8080", "host", true},
	} {
		rs, err := ParseRules(strings.Fields(tt.rules))
		if err != nil {
			t.Errorf("%s: %v", tt.rules, err)
			continue
		}
		dst := netip.MustParseAddrPort(tt.dst)
		k := kindOf(dst.Addr())
		if isGateway(dst.Addr()) {
			k = loopback
		}
		if got, _ := rs.decide(dst, k, func(name string) bool { return slices.Contains(strings.Fields(tt.names), name) }); got != tt.want {
			t.Errorf("%q allows %s (%s): %v", tt.rules, tt.dst, tt.names, got)
		}
	}
	for _, bad := range []string{"", "a b", "http://x", "x:0", "x:99999", "x:http", "10.0.0.0/99", "-x", "[2001:db8::1", "x/24"} {
		if _, err := ParseRules([]string{bad}); err == nil || !strings.Contains(err.Error(), "not a destination") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
