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

var errNotYet = errorf(wire.KindTimeout, "not yet")

// pollOnce is poll, or one look.
func pollOnce(ctx context.Context, once bool, check func() bool) error {
	if !once {
		return poll(ctx, check)
	}
	if check() {
		return nil
	}
	return errNotYet
}

// waitServicePort is waitPort, and fails at once when the service behind the port has
// failed.
func (s *Server) waitServicePort(ctx context.Context, q wire.PortRequest) (wire.Observation, error) {
	if q.Unit == "" {
		return waitPort(ctx, q)
	}
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := make(chan error, 1)
	go func() { failed <- s.awaitFailure(waiting, q.Unit, cancel) }()
	seen, err := waitPort(waiting, q)
	if err == nil || ctx.Err() != nil || q.Once {
		cancel(nil)
	}
	if failure := <-failed; failure != nil && err != nil && ctx.Err() == nil {
		err = failure
	}
	return seen, err
}

// awaitFailure returns when ctx is over, with an error if that is because the unit has
// failed: then it calls end.
func (s *Server) awaitFailure(ctx context.Context, unit string, end func(error)) error {
	unit = serviceName(unit)
	for ctx.Err() == nil {
		w, err := s.watchUnit(ctx, "/run/systemd/private", unit, nil)
		if err != nil {
			break
		}
		for ctx.Err() == nil {
			l, err := w.look(ctx)
			var final *wire.Error
			if err == nil && l.ActiveState == "failed" {
				final = &wire.Error{Kind: wire.KindUnit, Message: unit + " " + l.verdict()}
			}
			if final != nil || errors.As(err, &final) && ctx.Err() == nil {
				end(final)
				w.close()
				return final
			}
			if err != nil {
				break // systemd executes itself anew
			}
			w.changed(ctx, unitRecheck)
		}
		w.close()
	}
	return nil
}

// waitPort waits until a connection is accepted, or none is any more. Names are
// resolved here, at each try; every address counts, as with nc.
func waitPort(ctx context.Context, q wire.PortRequest) (seen wire.Observation, err error) {
	if q.Port < 1 || q.Port > 65535 {
		return seen, errorf(wire.KindInvalid, "port %d: must be from 1 to 65535", q.Port)
	}
	addr := net.JoinHostPort(q.Host, strconv.Itoa(q.Port))
	d := net.Dialer{Timeout: connectTimeout, FallbackDelay: -1}
	err = pollOnce(ctx, q.Once, func() bool {
		c, err := d.DialContext(ctx, "tcp", addr)
		if ctx.Err() != nil {
			return false
		}
		seen.Tries++
		if err == nil {
			seen.Seen = "connected to " + c.RemoteAddr().String()
			c.Close()
		} else {
			seen.Seen = err.Error()
		}
		return (err == nil) != q.Closed
	})
	return seen, err
}

// waitSocket waits until a unix socket takes a connection, or a datagram socket
// a destination.
func waitSocket(ctx context.Context, q wire.SocketRequest) (seen wire.Observation, err error) {
	addr := &unix.SockaddrUnix{Name: q.Path}
	kind := unix.SOCK_STREAM
	if q.Datagram {
		kind = unix.SOCK_DGRAM
	}
	var invalid error
	try := func() bool {
		seen.Tries++
		s, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			seen.Seen = err.Error()
			return false
		}
		defer unix.Close(s)
		if err = unix.Connect(s, addr); err != nil {
			seen.Seen = fmt.Sprintf("connect to %s: %v", q.Path, err)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENAMETOOLONG) {
			invalid = errorf(wire.KindInvalid, "%s: %v", q.Path, fmt.Errorf("not a socket address: %w", err))
		}
		return err == nil || err == unix.EAGAIN || invalid != nil // EAGAIN: its queue is full
	}
	if err := pollOnce(ctx, q.Once, try); err != nil {
		return seen, err
	}
	return seen, invalid
}
