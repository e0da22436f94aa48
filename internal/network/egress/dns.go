package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxRecords is how many records of an answer the guest gets, and maxParsed how many
	// are looked at for that.
	maxRecords = 128
	maxParsed  = 1024
	// maxAliases is how many names an answer may go through to its addresses.
	maxAliases = 16
	// udpSize is how long an answer the host's nameservers may send in a packet
	// (EDNS, RFC 6891): what fits into one of IPv6's smallest.
	udpSize = 1232

	// namesIdle is how long a guest may keep a connection to the name server without a
	// question.
	namesIdle = 30 * time.Second
	// maxNamesConnections is how many such connections there are at a time.
	maxNamesConnections = 16
	// maxQuery is the longest query that is read over one. A name has 255 bytes.
	maxQuery = 4096
)

// Resolve answers a DNS query of the guest's by asking the host's nameservers,
// if the rules have the name. What it learns of the name lets connections to it
// through. The error is that the query is none.
//
// The query and the answer are both made anew: of the query its one question goes out,
// and of the answer the records that belong to the question come in.
func (g *Gateway) Resolve(ctx context.Context, query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	if h.Response {
		return nil, errors.New("an answer to no question")
	}
	if h.OpCode != 0 {
		return reply(h, nil, answer{code: dnsmessage.RCodeNotImplemented})
	}
	if count(query) != 1 {
		return reply(h, nil, answer{code: dnsmessage.RCodeFormatError})
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	if q.Class != dnsmessage.ClassINET || isMeta(q.Type) {
		return reply(h, &q, answer{code: dnsmessage.RCodeNotImplemented})
	}
	name := nameOf(q.Name)
	if !g.config.Rules.allowsName(name) {
		g.refuse(Connection{Protocol: "dns", Destination: quoted(name)})
		return reply(h, &q, answer{code: dnsmessage.RCodeRefused})
	}
	a, err := g.ask(ctx, q)
	if err != nil {
		g.failed(Connection{Protocol: "dns", Destination: quoted(name), Allowed: true, Error: err.Error()})
		return reply(h, &q, answer{code: dnsmessage.RCodeServerFailure})
	}
	g.learn(name, a)
	return reply(h, &q, a)
}

// isMeta reports whether a type is one that no record has (RFC 6895 3.1), such as a transfer of
// a zone or all types at once.
func isMeta(t dnsmessage.Type) bool {
	return t == 0 || t == dnsmessage.TypeOPT || t >= 128 && t < 256
}

func nameOf(n dnsmessage.Name) string {
	return strings.ToLower(strings.TrimSuffix(n.String(), "."))
}

// newQuery is a query with nothing in it but a question.
func newQuery(id uint16, q dnsmessage.Question) ([]byte, error) {
	var opt dnsmessage.ResourceHeader
	if err := opt.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:      dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions:   []dnsmessage.Question{q},
		Additionals: []dnsmessage.Resource{{Header: opt, Body: &dnsmessage.OPTResource{}}},
	}
	return m.Pack()
}

// An answer is what is taken over from a nameserver's.
type answer struct {
	code      dnsmessage.RCode
	truncated bool
	records   []dnsmessage.Resource // aliases of the name that was asked for, and what was asked for of them
}

// parseAnswer takes from a message what answers a question. What is no answer to it is an
// error.
func parseAnswer(b []byte, id uint16, q dnsmessage.Question) (answer, error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return answer{}, err
	}
	if !h.Response || h.ID != id || h.OpCode != 0 {
		return answer{}, errors.New("not an answer to this query")
	}
	asked, err := p.Question()
	if err != nil {
		return answer{}, err
	}
	if count(b) != 1 || asked.Type != q.Type || asked.Class != q.Class || nameOf(asked.Name) != nameOf(q.Name) {
		return answer{}, errors.New("it answers another question")
	}
	if err := p.SkipAllQuestions(); err != nil {
		return answer{}, err
	}
	var all []dnsmessage.Resource
	for {
		r, err := p.Answer()
		if err == dnsmessage.ErrSectionDone {
			return answer{h.RCode, h.Truncated, belonging(all, q)}, nil
		}
		if err != nil {
			return answer{}, err
		}
		if all = append(all, r); len(all) > maxParsed {
			return answer{}, fmt.Errorf("it has more than %d records", maxParsed)
		}
	}
}

// count is the number of questions of a message that has a header (RFC 1035 4.1.1).
func count(message []byte) uint16 { return binary.BigEndian.Uint16(message[4:]) }

// belonging are the records that answer a question: the aliases from its name on, and the
// records of its type that the last of them has.
func belonging(all []dnsmessage.Resource, q dnsmessage.Question) (out []dnsmessage.Resource) {
	aliases := map[string]dnsmessage.Resource{}
	for _, r := range all {
		if _, ok := r.Body.(*dnsmessage.CNAMEResource); ok && r.Header.Class == q.Class {
			aliases[nameOf(r.Header.Name)] = r
		}
	}
	name := nameOf(q.Name)
	for range maxAliases {
		alias, ok := aliases[name]
		if !ok || q.Type == dnsmessage.TypeCNAME {
			break
		}
		out = append(out, alias)
		name = nameOf(alias.Body.(*dnsmessage.CNAMEResource).CNAME)
	}
	for _, r := range all {
		if len(out) == maxRecords {
			break
		}
		if r.Header.Type == q.Type && r.Header.Class == q.Class && nameOf(r.Header.Name) == name {
			out = append(out, r)
		}
	}
	for i := range out {
		out[i].Header.TTL = min(out[i].Header.TTL, maxTTL)
	}
	return out
}

// addresses are the addresses in the records, with the time that they hold.
func (a answer) addresses() map[netip.Addr]time.Duration {
	out := map[netip.Addr]time.Duration{}
	for _, r := range a.records {
		holds := time.Duration(r.Header.TTL) * time.Second
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			out[netip.AddrFrom4(body.A)] = holds
		case *dnsmessage.AAAAResource:
			out[netip.AddrFrom16(body.AAAA)] = holds
		}
	}
	return out
}

// learn remembers which addresses a name has.
func (g *Gateway) learn(name string, a answer) {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for addr, holds := range a.addresses() {
		g.pins.learn(name, addr, now.Add(holds+pinGrace))
	}
}

// reply is an answer as the guest gets it. Records that it cannot be written with are a failure
// of the nameserver.
func reply(h dnsmessage.Header, q *dnsmessage.Question, a answer) ([]byte, error) {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true,
		RCode: a.code & 15, Truncated: a.truncated,
	}, Answers: a.records}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	b, err := m.Pack()
	if err != nil || len(b) > maxMessage {
		m.Answers, m.Truncated, m.RCode = nil, false, dnsmessage.RCodeServerFailure
		return m.Pack()
	}
	return b, nil
}

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
	for conn.SetDeadline(time.Now().Add(namesIdle)); g.answerOne(conn) == nil; conn.SetDeadline(time.Now().Add(namesIdle)) {
	}
}

// answerOne reads one query and answers it. The error is that the connection is of no more use.
func (g *Gateway) answerOne(conn io.ReadWriter) error {
	query, err := readMessage(conn, maxQuery)
	if err != nil {
		return err
	}
	answer, err := g.Resolve(g.ctx, query)
	if err != nil {
		return err
	}
	return writeMessage(conn, answer)
}

// quoted is a name that a guest made up, for people to read.
func quoted(name string) string {
	if q := fmt.Sprintf("%+q", name); q != `"`+name+`"` {
		return q
	}
	return name
}
