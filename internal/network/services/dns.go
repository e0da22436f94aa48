package services

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsTTL is short: a machine may be another one after a restore.
const dnsTTL = 10 // seconds

// maxDNS is the longest answer that the host says it takes (EDNS).
const maxDNS = 1232

// dns answers a query (RFC 1035). A name that is no machine's does not exist, or
// is somebody else's to answer.
func (h *Host) dns(f packet) {
	var p dnsmessage.Parser
	header, err := p.Start(f.payload)
	if err != nil || header.Response || header.OpCode != 0 || f.dst.IsMulticast() || f.dst == broadcast4 {
		return
	}
	q, err := p.Question()
	if err != nil {
		return
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	addrs, known := h.lookup(name)
	target := h.pointer(name)
	if h.config.Forward != nil && !known && target == "" {
		h.forward(f)
		return
	}
	p.SkipAllQuestions()
	header.Response, header.Authoritative, header.Truncated = true, true, false
	header.RecursionAvailable, header.AuthenticData = h.config.Forward != nil, false
	if !known && target == "" {
		header.RCode = dnsmessage.RCodeNameError
	}
	_, extended := edns(&p)
	if answer := h.compose(header, q, addrs, target, extended); answer != nil {
		h.answer(f, answer)
	}
}

// lookup finds a machine by its name, alone or with the domain.
func (h *Host) lookup(name string) ([]netip.Addr, bool) {
	if d := h.config.Domain; d != "" {
		name = strings.TrimSuffix(name, "."+d)
	}
	addrs, ok := h.names[name]
	return addrs, ok
}

// pointer is the name that belongs to the name of an address.
func (h *Host) pointer(name string) string {
	host := h.reverse[addressOf(name)]
	if host != "" && h.config.Domain != "" {
		host += "." + h.config.Domain
	}
	return host
}

// addressOf reads 1.1.168.192.in-addr.arpa and the like of ip6.arpa.
func addressOf(name string) netip.Addr {
	var a netip.Addr
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		reverse(parts)
		a, _ = netip.ParseAddr(strings.Join(parts, "."))
	} else if s, ok := strings.CutSuffix(name, ".ip6.arpa"); ok && len(s) == 63 {
		parts := strings.Split(s, ".")
		reverse(parts)
		var b [16]byte
		for i, digit := range parts {
			n, err := strconv.ParseUint(digit, 16, 4)
			if err != nil || i >= 32 {
				return netip.Addr{}
			}
			b[i/2] = b[i/2]<<4 | byte(n)
		}
		a = netip.AddrFrom16(b)
	}
	return a
}

func reverse(s []string) {
	for i, j := 0, len(s)-1; i < j; i, j = i+1, j-1 {
		s[i], s[j] = s[j], s[i]
	}
}

// edns is how long an answer may be by the query's OPT record (RFC 6891), if it
// has one.
func edns(p *dnsmessage.Parser) (size int, ok bool) {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return 0, false
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return 0, false
		}
		if h.Type == dnsmessage.TypeOPT {
			return int(h.Class), true
		}
		if p.SkipAdditional() != nil {
			return 0, false
		}
	}
}

// maxAnswer is how long an answer to a query may be: what whoever asks takes, and
// what a packet carries.
func maxAnswer(query []byte) int {
	const least = 512 // RFC 1035 4.2.1
	var p dnsmessage.Parser
	if _, err := p.Start(query); err != nil || p.SkipAllQuestions() != nil {
		return least
	}
	size, _ := edns(&p)
	return min(max(size, least), maxDNS)
}

// truncated is the answer that says that the answer is too long: ask again, over TCP.
func truncated(answer []byte) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(answer)
	if err != nil {
		return nil, err
	}
	questions, err := p.AllQuestions()
	if err != nil {
		return nil, err
	}
	header.Truncated = true
	m := dnsmessage.Message{Header: header, Questions: questions}
	return m.Pack()
}

// compose writes an answer; nil if it cannot be written.
func (h *Host) compose(header dnsmessage.Header, q dnsmessage.Question, addrs []netip.Addr, target string, edns bool) []byte {
	b := dnsmessage.NewBuilder(nil, header)
	b.EnableCompression()
	if b.StartQuestions() != nil || b.Question(q) != nil || b.StartAnswers() != nil {
		return nil
	}
	rh := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: dnsTTL}
	wants := func(t dnsmessage.Type) bool {
		return (q.Class == dnsmessage.ClassINET || q.Class == dnsmessage.ClassANY) && (q.Type == t || q.Type == dnsmessage.TypeALL)
	}
	for _, a := range addrs {
		var err error
		switch {
		case a.Is4() && wants(dnsmessage.TypeA):
			err = b.AResource(rh, dnsmessage.AResource{A: a.As4()})
		case a.Is6() && wants(dnsmessage.TypeAAAA):
			err = b.AAAAResource(rh, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
		if err != nil {
			return nil
		}
	}
	if target != "" && wants(dnsmessage.TypePTR) {
		ptr, err := dnsmessage.NewName(target + ".")
		if err != nil || b.PTRResource(rh, dnsmessage.PTRResource{PTR: ptr}) != nil {
			return nil
		}
	}
	if edns {
		var opt dnsmessage.ResourceHeader
		if opt.SetEDNS0(maxDNS, dnsmessage.RCodeSuccess, false) != nil || b.StartAdditionals() != nil || b.OPTResource(opt, dnsmessage.OPTResource{}) != nil {
			return nil
		}
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}

// forward asks somebody else. A query that is one too many is lost; clients
// repeat it.
func (h *Host) forward(f packet) {
	select {
	case h.slots <- struct{}{}:
	default:
		h.lost.Add(1)
		return
	}
	f.payload, f.srcMAC = bytes.Clone(f.payload), bytes.Clone(f.srcMAC)
	h.forwards.Go(func() {
		defer func() { <-h.slots }()
		answer, err := h.config.Forward(h.ctx, f.payload)
		if err == nil && len(answer) > maxAnswer(f.payload) {
			answer, err = truncated(answer)
		}
		if err == nil {
			h.answer(f, answer)
		}
	})
}
