package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// A Vsock is the host's end of a guest's vsock: a unix socket to which one connects and
// says which port of the guest is meant.
//
// What happens depends on how far the guest is. Before its driver is up nothing comes
// back. Then, as long as nobody listens, the connection ends. A connection that was given
// up is not undone: a guest that is slow accepts it later. So the patience with a silent
// one grows.
type Vsock struct {
	Path string // of the unix socket
	Port int    // in the guest
	Gone <-chan struct{}

	patience atomic.Int64 // time.Duration; with the next silent connection
	driver   atomic.Pointer[<-chan struct{}]
}

// Expect has Dial wait until up is closed, which a VMM does that knows when the guest's
// driver is up: what connects before only bothers the guest later. Nil: nobody knows.
func (v *Vsock) Expect(up <-chan struct{}) { v.driver.Store(&up) }

// maxUntold is how long Dial waits for what a VMM possibly never says.
const maxUntold = 30 * time.Second

// awaitDriver blocks until the guest's driver is up, as far as the VMM says so.
func (v *Vsock) awaitDriver(ctx context.Context) error {
	up := v.driver.Load()
	if up == nil || *up == nil {
		return nil
	}
	select {
	case <-*up:
	case <-time.After(maxUntold):
	case <-v.Gone:
	case <-ctx.Done():
		return errSilent
	}
	return nil
}

const (
	minPatience = 500 * time.Millisecond
	maxPatience = 16 * time.Second

	minRedial = 5 * time.Millisecond
	maxRedial = 500 * time.Millisecond
)

// Dial blocks until somebody in the guest has accepted, the VMM is gone
// (net.ErrClosed), or ctx ends.
func (v *Vsock) Dial(ctx context.Context) (net.Conn, error) {
	var last error // of an attempt that ctx has not ended
	for pause := minRedial; ; pause = min(2*pause, maxRedial) {
		err := v.awaitDriver(ctx)
		if err == nil {
			var conn net.Conn
			if conn, err = v.try(ctx); err == nil {
				return conn, nil
			}
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(pause):
		case <-v.Gone:
			return nil, net.ErrClosed
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; the last connection: %v", context.Cause(ctx), last)
		}
	}
}

// errSilent is a connection on which nothing came.
var errSilent = errors.New("the guest does not answer on its vsock; its driver is not up yet, or the guest hangs")

// try makes one connection.
func (v *Vsock) try(ctx context.Context) (_ net.Conn, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", v.Path)
	if err != nil {
		return nil, err
	}
	patience := max(time.Duration(v.patience.Load()), minPatience)
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		conn.Close()
		return nil, err
	}
	// What interrupts comes behind that, or it would be undone.
	over := make(chan struct{})
	defer close(over)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(longAgo) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			conn.Close()
		}
	}()
	go func() {
		select {
		case <-v.Gone:
			conn.SetDeadline(longAgo)
		case <-over:
		}
	}()
	// In one piece: the VMM does not wait for the rest.
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", v.Port); err != nil {
		return nil, err
	}
	line, err := readLine(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		v.patience.Store(int64(min(2*patience, maxPatience)))
		return nil, errSilent
	}
	if err != nil {
		return nil, fmt.Errorf("nobody listens on port %d of the guest's vsock: %w", v.Port, err)
	}
	if !strings.HasPrefix(line, "OK ") {
		return nil, fmt.Errorf("the VMM answers CONNECT with %q", line)
	}
	v.patience.Store(0)
	return conn, conn.SetDeadline(never)
}

// maxLine is longer than any answer ("OK 1073741967").
const maxLine = 32

// readLine reads up to a newline and nothing behind it.
func readLine(conn net.Conn) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < maxLine; {
		if _, err := conn.Read(b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return string(line), nil
}
