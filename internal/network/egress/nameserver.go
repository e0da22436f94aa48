package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// askTimeout is how long one nameserver may take.
	askTimeout = 5 * time.Second
	// maxMessage is the longest DNS message there is (RFC 1035 4.2.2).
	maxMessage = 65535
)

// ask asks the nameservers, one after the other, until one has an answer to the question.
func (g *Gateway) ask(ctx context.Context, q dnsmessage.Question) (answer, error) {
	servers := g.config.Nameservers
	if servers == nil {
		servers = hostNameservers()
	}
	var errs []error
	for _, s := range servers {
		a, err := exchange(ctx, s, q)
		if err == nil {
			return a, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return answer{}, errors.New("the host has no nameserver (/etc/resolv.conf)")
	}
	return answer{}, errors.Join(errs...)
}

// exchange asks one nameserver, over TCP if the answer is too long for UDP.
func exchange(ctx context.Context, server string, q dnsmessage.Question) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	a, err := exchangeOver(ctx, "udp", server, q)
	if err == nil && a.truncated {
		if long, err := exchangeOver(ctx, "tcp", server, q); err == nil {
			return long, nil
		}
	}
	return a, err
}

// exchangeOver sends a query of its own, of which the guest has decided the question
// and nothing else, and waits for what is an answer to it.
func exchangeOver(ctx context.Context, network, server string, q dnsmessage.Question) (answer, error) {
	id := uint16(rand.Uint32())
	query, err := newQuery(id, q)
	if err != nil {
		return answer{}, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if network == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return answer{}, err
		}
		m, err := readMessage(conn, maxMessage)
		if err != nil {
			return answer{}, err
		}
		return parseAnswer(m, id, q)
	}
	if _, err := conn.Write(query); err != nil {
		return answer{}, err
	}
	b := make([]byte, maxMessage)
	var ignored error
	for {
		n, err := conn.Read(b)
		if err != nil {
			return answer{}, errors.Join(err, ignored)
		}
		a, err := parseAnswer(b[:n], id, q)
		if err == nil {
			return a, nil
		}
		ignored = fmt.Errorf("%s sent no answer to the question: %w", server, err)
	}
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

// writeMessage writes a DNS message as TCP carries it: after its length (RFC 1035
// 4.2.2).
func writeMessage(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
	return err
}

// readMessage reads a DNS message that is not longer than most.
func readMessage(r io.Reader, most int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > most {
		return nil, fmt.Errorf("a DNS message of %d bytes", n)
	}
	m := make([]byte, n)
	_, err := io.ReadFull(r, m)
	return m, err
}
