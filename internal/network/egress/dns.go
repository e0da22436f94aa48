package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// askTimeout is how long one nameserver may take.
const askTimeout = 5 * time.Second

// Resolve answers a DNS query of the guest's by asking the host's nameservers,
// if the rules have the name. What it learns of the name lets connections to it
// through.
func (g *Gateway) Resolve(ctx context.Context, query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if !g.config.Rules.allowsName(name) {
		g.refuse("dns", name, "")
		return failure(header, q, dnsmessage.RCodeRefused)
	}
	answer, err := g.ask(ctx, query)
	if err != nil {
		g.config.Report(Connection{Protocol: "dns", Destination: name, Allowed: true, Error: err.Error()})
		return failure(header, q, dnsmessage.RCodeServerFailure)
	}
	g.learn(name, answer)
	return answer, nil
}

// namesIdle is how long a guest may keep a connection to the name server without a
// question.
const namesIdle = 30 * time.Second

// serveNames answers DNS queries over TCP, each behind its length (RFC 7766): what
// did not fit into a packet is asked for again that way.
func (g *Gateway) serveNames(r *tcp.ForwarderRequest) {
	var queue waiter.Queue
	ep, err := r.CreateEndpoint(&queue)
	r.Complete(false)
	if err != nil {
		return
	}
	conn := gonet.NewTCPConn(&queue, ep)
	defer conn.Close()
	defer context.AfterFunc(g.ctx, ep.Abort)()
	for {
		conn.SetDeadline(time.Now().Add(namesIdle))
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		answer, err := g.Resolve(g.ctx, query)
		if err != nil {
			return // it was no query
		}
		if err := writeMessage(conn, answer); err != nil {
			return
		}
	}
}

// writeMessage writes a DNS message as TCP carries it: after its length (RFC 1035
// 4.2.2).
func writeMessage(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}

func failure(h dnsmessage.Header, q dnsmessage.Question, code dnsmessage.RCode) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: code})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(q); err != nil {
		return nil, err
	}
	return b.Finish()
}

// learn remembers which addresses a name of the rules has.
func (g *Gateway) learn(name string, answer []byte) {
	const most = 4096
	var p dnsmessage.Parser
	if _, err := p.Start(answer); err != nil || p.SkipAllQuestions() != nil {
		return
	}
	for {
		r, err := p.Answer()
		if err != nil {
			return
		}
		var addr netip.Addr
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			addr = netip.AddrFrom4(body.A)
		case *dnsmessage.AAAAResource:
			addr = netip.AddrFrom16(body.AAAA)
		default:
			continue
		}
		g.mu.Lock()
		if len(g.names) < most && !slices.Contains(g.names[addr], name) {
			g.names[addr] = append(g.names[addr], name)
		}
		g.mu.Unlock()
	}
}

// ask asks the nameservers, one after the other.
func (g *Gateway) ask(ctx context.Context, query []byte) ([]byte, error) {
	servers := g.config.Nameservers
	if servers == nil {
		servers = hostNameservers()
	}
	var errs []error
	for _, s := range servers {
		answer, err := exchange(ctx, s, query)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("the host has no nameserver (/etc/resolv.conf)")
	}
	return nil, errors.Join(errs...)
}

// exchange asks one nameserver, over TCP if the answer is too long for UDP.
func exchange(ctx context.Context, server string, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := exchangeOver(ctx, "udp", server, query)
	const truncated = 0x02 // RFC 1035 4.1.1
	if err == nil && answer[2]&truncated != 0 {
		if long, err := exchangeOver(ctx, "tcp", server, query); err == nil {
			return long, nil
		}
	}
	return answer, err
}

func exchangeOver(ctx context.Context, network, server string, query []byte) ([]byte, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if network == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return nil, err
		}
		answer, err := readMessage(conn)
		if err != nil {
			return nil, err
		}
		return checkAnswer(query, answer)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	b := make([]byte, 64<<10)
	for {
		n, err := conn.Read(b)
		if err != nil {
			return nil, err
		}
		if answer, err := checkAnswer(query, b[:n]); err == nil {
			return answer, nil
		}
	}
}

// checkAnswer refuses what is no answer to the query.
func checkAnswer(query, answer []byte) ([]byte, error) {
	if len(query) < 12 || len(answer) < 12 || query[0] != answer[0] || query[1] != answer[1] {
		return nil, fmt.Errorf("%d bytes that are no answer", len(answer))
	}
	return answer, nil
}

// hostNameservers reads the host's resolv.conf(5).
func hostNameservers() (servers []string) {
	text, _ := os.ReadFile("/etc/resolv.conf")
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == "nameserver" {
			servers = append(servers, net.JoinHostPort(fields[1], "53"))
		}
	}
	return servers
}
