package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/attest-vm/attest/internal/wire"
)

// connect connects to a TCP port of this guest and carries the connection over
// the stream, to the end of both directions.
func connect(stream *wire.Stream, q wire.ConnectRequest) error {
	if q.Port < 1 || q.Port > 65535 {
		return errorf(wire.KindInvalid, "port %d: must be from 1 to 65535", q.Port)
	}
	conn, err := dialSelf(stream.Context(), q.Port)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(stream.Context(), func() {
		conn.SetLinger(0) // the other end was cut off: so is the service's
		conn.Close()
	})()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		// An error is the service's, which reads no more; what it writes counts.
		if _, err := io.Copy(conn, stream.Reader(wire.Stdin)); err == nil {
			conn.CloseWrite()
		}
	}()
	if _, err := io.Copy(stream.Writer(wire.Stdout), conn); err != nil {
		return err // Stdin ends with the stream
	}
	stream.CloseWrite(wire.Stdout)
	<-sent
	return nil
}

// dialSelf finds who listens at a port: on all addresses or the loopback ones
// as a rule, or on one of the machine's own alone.
func dialSelf(ctx context.Context, port int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: connectTimeout}
	hosts := []string{"127.0.0.1", "::1"}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
			hosts = append(hosts, ip.IP.String())
		}
	}
	var first error
	for _, host := range hosts {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, errors.Join(fmt.Errorf("no process listens on port %d", port), first)
}
