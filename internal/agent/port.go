package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// The pause between two looks grows from min to max: what is about to happen is
// seen at once, what takes long costs little. A connection to a closed port of
// the same machine is refused within microseconds.
const (
	minPoll = 2 * time.Millisecond
	maxPoll = 15 * time.Millisecond
	// connectTimeout is for a host that does not answer at all.
	connectTimeout = 2 * time.Second
)

// poll calls check until it says yes.
func poll(ctx context.Context, check func() bool) error {
	for pause := minPoll; !check(); pause = min(2*pause, maxPoll) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

// waitPort waits until a connection is accepted, or none is any more. Names are
// resolved here, at each try; every address counts, as with nc.
func waitPort(ctx context.Context, q wire.PortRequest) error {
	if q.Port < 1 || q.Port > 65535 {
		return errorf(wire.KindInvalid, "port %d: must be from 1 to 65535", q.Port)
	}
	addr := net.JoinHostPort(q.Host, strconv.Itoa(q.Port))
	d := net.Dialer{Timeout: connectTimeout, FallbackDelay: -1}
	return poll(ctx, func() bool {
		c, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			c.Close()
		}
		return (err == nil) != q.Closed && ctx.Err() == nil
	})
}

// waitSocket waits until a unix socket takes a connection, or a datagram socket
// a destination.
func waitSocket(ctx context.Context, q wire.SocketRequest) error {
	addr := &unix.SockaddrUnix{Name: q.Path}
	kind := unix.SOCK_STREAM
	if q.Datagram {
		kind = unix.SOCK_DGRAM
	}
	var invalid error
	try := func() bool {
		s, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return false
		}
		defer unix.Close(s)
		err = unix.Connect(s, addr)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENAMETOOLONG) {
			invalid = errorf(wire.KindInvalid, "%s: %v", q.Path, fmt.Errorf("not a socket address: %w", err))
		}
		return err == nil || err == unix.EAGAIN || invalid != nil // EAGAIN: its queue is full
	}
	if err := poll(ctx, try); err != nil {
		return err
	}
	return invalid
}
