package egress

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Whatever frames a guest sends: with rules that have nothing, nothing is dialled, and the
// gateway knows nobody but the guest.
func FuzzFrames(f *testing.F) {
	g := newGateway(f, Config{})
	g.dial = func(_ context.Context, network, address string) (net.Conn, error) {
		f.Errorf("dialled %s %s", network, address)
		return nil, io.EOF
	}
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\x52\x54\x00\x12\x34\x56\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01RT\x00\x124V\x0a\x00\x02\x0f\x00\x00\x00\x00\x00\x00\x0a\x00\x02\x02"))
	for _, dst := range []string{"192.0.2.1", "10.0.2.2", "127.0.0.1", "255.255.255.255"} {
		f.Add(packet4("10.0.2.15", dst, 6, nil, []byte("\x04\x00\x00\x50\x00\x00\x00\x00\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00")))
		f.Add(packet4("10.0.2.15", dst, 17, nil, []byte("\x04\x00\x00\x50\x00\x08\x00\x00")))
	}
	for _, dst := range []string{"2001:db8::1", "fec0::2", "::1", "64:ff9b::a9fe:a9fe", "ff02::1"} {
		f.Add(packet6("fec0::15", dst, 6, []byte("\x04\x00\x00\x50\x00\x00\x00\x00\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00")))
		f.Add(packet6("fec0::15", dst, 44, []byte("\x11\x00\x00\x00\x00\x00\x00\x01\x04\x00\x00\x50\x00\x08\x00\x00")))
		f.Add(packet6("fe80::1", dst, 58, []byte("\x86\x00\x00\x00\x40\x00\x07\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := g.Write(b); n != len(b) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		g.NameServer(b)
		g.link.Drain()
		g.mu.Lock()
		defer g.mu.Unlock()
		for a := range g.neighbors {
			if !slices.Contains(g.config.Guest, a) {
				t.Errorf("%v is a neighbor", a)
			}
		}
	})
}

// Whatever the rules are: what is behind the gateway takes "host", and some addresses nothing
// opens.
func FuzzParseRules(f *testing.F) {
	for _, s := range []string{"mirror.example.org:443", "[2001:db8::/32]:53", "0.0.0.0/0", "::/0", "*", "host:80", "10.0.2.2", "::ffff:10.0.2.2/127", "HOST.", "fe80::1%lo"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rs, err := ParseRules([]string{s})
		if err != nil {
			return
		}
		all := func(name string) bool { return true } // names have every address
		for _, a := range []string{"127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "224.0.0.1:80", "[::ffff:127.0.0.1]:80", "[64:ff9b::7f00:1]:80"} {
			dst := netip.MustParseAddrPort(a)
			if ok, _ := rs.decide(dst, kindOf(dst.Addr()), all); ok {
				t.Errorf("%q opens %s", s, a)
			}
		}
		named := strings.HasPrefix(strings.ToLower(s), HostName)
		if ok, _ := rs.decide(netip.MustParseAddrPort("10.0.2.2:80"), loopback, all); ok && !named {
			t.Errorf("%q opens the loopback of the host", s)
		}
		if ok, _ := rs.decide(netip.MustParseAddrPort("169.254.169.254:80"), restricted, all); ok && !strings.Contains(s, "169.254.169.254") {
			t.Errorf("%q opens a metadata service", s)
		}
	})
}

// checkReply wants a message that answers a query of an ID and has nothing that nobody asked
// for.
func checkReply(t *testing.T, b []byte, id uint16) dnsmessage.Message {
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answered %x: %v", b, err)
	}
	if m.ID != id || !m.Response || len(m.Questions) > 1 || len(m.Answers) > maxRecords || len(m.Authorities)+len(m.Additionals) > 0 {
		t.Errorf("answered %s", m.GoString())
	}
	return m
}

func queries() (out [][]byte) {
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("mirror.example.org."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	for _, m := range []dnsmessage.Message{
		{Header: dnsmessage.Header{ID: 0x6162, RecursionDesired: true}, Questions: []dnsmessage.Question{q}},
		{Header: dnsmessage.Header{ID: 0x6162, OpCode: 5}, Questions: []dnsmessage.Question{q, q}},
		{Questions: []dnsmessage.Question{q}, Authorities: []dnsmessage.Resource{record("x.", a4("192.0.2.1"), 1)}},
		{},
	} {
		b, _ := m.Pack()
		out = append(out, b)
	}
	return append(out, []byte("\x61\x62\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01")) // a name that is itself
}

// Whatever a guest asks: it gets a message with its ID, or none.
func FuzzResolve(f *testing.F) {
	for _, q := range queries() {
		f.Add(q)
	}
	g := newGateway(f, Config{}, "*")
	f.Fuzz(func(t *testing.T, query []byte) {
		b, err := g.Resolve(t.Context(), query)
		if err != nil {
			return
		}
		m := checkReply(t, b, uint16(query[0])<<8|uint16(query[1]))
		if m.RCode == dnsmessage.RCodeSuccess || len(m.Answers) > 0 {
			t.Errorf("answered without a nameserver: %s", m.GoString())
		}
		for _, q := range m.Questions {
			if out, err := newQuery(7, q); err != nil || len(out) > 12+255+4+11 { // header, question, OPT
				t.Errorf("it would ask %x, %v", out, err)
			}
		}
	})
}

// Whatever a guest sends over a connection to the name server: each answer is whole.
func FuzzNamesOverTCP(f *testing.F) {
	for _, q := range queries() {
		var b bytes.Buffer
		writeMessage(&b, q)
		writeMessage(&b, q)
		f.Add(b.Bytes())
		f.Add(b.Bytes()[:b.Len()-1])
	}
	f.Add([]byte("\xff\xff"))
	g := newGateway(f, Config{}, "mirror.example.org")
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		conn := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b), &out}
		asked := 0
		for g.answerOne(conn) == nil {
			asked++
		}
		for range asked {
			m, err := readMessage(&out, maxMessage)
			if err != nil {
				t.Fatal(err)
			}
			checkReply(t, m, uint16(m[0])<<8|uint16(m[1]))
		}
		if out.Len() > 0 {
			t.Errorf("%d bytes behind the answers", out.Len())
		}
	})
}

// Whatever a nameserver answers, whole or truncated: the guest gets a message with a bounded number
// of records, and every address that it opens is in it.
func FuzzAnswers(f *testing.F) {
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("mirror.example.org."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	alias := &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("end.example.net.")}
	many := slices.Repeat([]dnsmessage.Resource{record("mirror.example.org.", a4("192.0.2.1"), 1<<31)}, 2*maxRecords)
	for _, answers := range [][]dnsmessage.Resource{
		{record("mirror.example.org.", a4("192.0.2.1"), 60)},
		{record("mirror.example.org.", alias, 60), record("end.example.net.", a4("127.0.0.1"), 0)},
		{record("mirror.example.org.", &dnsmessage.CNAMEResource{CNAME: q.Name}, 60), record("other.example.org.", a4("192.0.2.9"), 60)},
		many,
	} {
		for _, truncated := range []bool{false, true} {
			m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true, Truncated: truncated}, Questions: []dnsmessage.Question{q}, Answers: answers}
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
			f.Add(b[:len(b)-3])
		}
	}
	g := newGateway(f, Config{}, "mirror.example.org")
	g.now = func() time.Time { return time.Unix(1e9, 0) }
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b, 7, q)
		if err != nil {
			return
		}
		g.pins = newPins()
		g.learn("mirror.example.org", a)
		out, err := reply(dnsmessage.Header{ID: 7}, &q, a)
		if err != nil {
			t.Fatal(err)
		}
		m := checkReply(t, out, 7)
		said := answer{records: m.Answers}.addresses()
		for k, e := range g.pins.known {
			if _, ok := said[k.addr]; !ok && m.RCode != dnsmessage.RCodeServerFailure || k.name != "mirror.example.org" {
				t.Errorf("%v is open, and not in %s", k, m.GoString())
			}
			if until := e.Value.(*pin).until; until.After(g.now().Add(maxTTL*time.Second + pinGrace)) {
				t.Errorf("%v is open until %v", k, until)
			}
		}
	})
}
