package guest

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// ErrNotYet is returned by a wait for one look that did not see what it waits for.
var ErrNotYet = errors.New("not yet")

// WaitUnit waits until a systemd unit is active. It returns a *UnitError as
// soon as it can no longer succeed: the unit failed, cannot be loaded, or
// is inactive with no job pending. user, if not empty, is whose manager it is.
// With once it looks once, and returns ErrNotYet if that is not enough.
func (c *Client) WaitUnit(ctx context.Context, unit, user string, once bool) (wire.UnitState, error) {
	var state wire.UnitState
	err := c.call(ctx, wire.OpWaitUnit, wire.UnitRequest{Unit: unit, User: user, Once: once}, &state)
	var op *OpError
	var wait *WaitError
	switch {
	case errors.As(err, &op) && op.Kind == wire.KindUnit:
		return state, &UnitError{Machine: c.name, Unit: unit, User: user, State: state, Reason: op.Message}
	case errors.As(err, &wait):
		wait.Operation = "wait for unit " + unit
		wait.LastSeen = describe(state)
	}
	return state, notYet(err)
}

// WaitFile waits until path exists in the guest; once is as with WaitUnit.
func (c *Client) WaitFile(ctx context.Context, path string, once bool) (wire.Observation, error) {
	return c.waitFor(ctx, "wait for file "+path, wire.OpWaitFile, wire.FileRequest{Path: path, Once: once})
}

// WaitPort waits until a TCP port accepts connections (open), or refuses them.
// host is resolved in the guest. unit, if not empty, is the service behind the port:
// when it has failed, so has the wait for an open port, with a *UnitError.
func (c *Client) WaitPort(ctx context.Context, host string, port int, unit string, open, once bool) (wire.Observation, error) {
	what := "wait for open port "
	if !open {
		what = "wait for closed port "
	}
	what += net.JoinHostPort(host, strconv.Itoa(port))
	seen, err := c.waitFor(ctx, what, wire.OpWaitPort, wire.PortRequest{Host: host, Port: port, Closed: !open, Once: once, Unit: unit})
	if op := (*OpError)(nil); errors.As(err, &op) && op.Kind == wire.KindUnit {
		err = &UnitError{Machine: c.name, Unit: unit, Reason: op.Message}
	}
	return seen, err
}

// WaitUnixSocket waits until a unix socket in the guest accepts connections, or
// datagrams.
func (c *Client) WaitUnixSocket(ctx context.Context, path string, datagram, once bool) (wire.Observation, error) {
	return c.waitFor(ctx, "wait for socket "+path, wire.OpWaitSocket, wire.SocketRequest{Path: path, Datagram: datagram, Once: once})
}

// waitFor returns what the guest saw last, also when the time is over.
func (c *Client) waitFor(ctx context.Context, what, op string, request any) (seen wire.Observation, err error) {
	err = c.call(ctx, op, request, &seen)
	var wait *WaitError
	if errors.As(err, &wait) {
		wait.Operation, wait.LastSeen = what, seen.Seen
	}
	return seen, notYet(err)
}

func notYet(err error) error {
	var op *OpError
	if errors.As(err, &op) && op.Kind == wire.KindTimeout {
		return ErrNotYet
	}
	return err
}

// Identity gives the guest its identity; see wire.Identity.
func (c *Client) Identity(ctx context.Context, id wire.Identity) error {
	return c.prompt(ctx, wire.OpIdentity, id, nil)
}

// maxClockError is how far a guest's clock may be off after SetClock.
const maxClockError = 40 * time.Millisecond

// SetClock sets the guest's clock by the host's. One message is not enough: a
// guest under load, or one that was restored a moment ago, may read it late. So
// the error is measured, with half of the round trip as its uncertainty.
func (c *Client) SetClock(ctx context.Context) error {
	var step time.Duration
	for range maxClockTries {
		var r wire.ClockResult
		sent := time.Now()
		if err := c.prompt(ctx, wire.OpClock, wire.ClockRequest{Step: step}, &r); err != nil {
			return err
		}
		unsure := time.Since(sent) / 2
		ahead := r.Time.Sub(sent.Add(unsure))
		if ahead.Abs()+unsure <= maxClockError {
			return nil
		}
		if step = 0; ahead.Abs() > unsure {
			step = -ahead
		}
	}
	return nil // as good as it gets on such a host
}

const maxClockTries = 8

// Settle writes all that the guest has not written yet to its disks, and waits until it
// has nothing to do, though no longer than the limit.
func (c *Client) Settle(ctx context.Context, limit time.Duration) error {
	return c.callWithin(ctx, limit+c.opt.Stall, wire.OpSettle, wire.SettleRequest{Limit: limit}, nil)
}

// Poweroff asks the guest's init system to turn the machine off, and does not
// wait until it is. A guest whose init cannot be asked is turned off at once.
func (c *Client) Poweroff(ctx context.Context) error {
	return c.prompt(ctx, wire.OpPower, wire.PowerRequest{}, nil)
}

// Reboot is Poweroff, and on again.
func (c *Client) Reboot(ctx context.Context) error {
	return c.prompt(ctx, wire.OpPower, wire.PowerRequest{Reboot: true}, nil)
}

// Panic makes the guest's kernel panic, and does not wait until it has.
func (c *Client) Panic(ctx context.Context) error {
	return c.prompt(ctx, wire.OpPower, wire.PowerRequest{Panic: true}, nil)
}

// Suspend has the guest suspend its machine. It returns at once if the guest refuses, and
// otherwise when that is under way, or over.
func (c *Client) Suspend(ctx context.Context) error {
	return c.call(ctx, wire.OpSuspend, struct{}{}, nil)
}

// Echo returns when the agent has answered: the guest has had its turn.
func (c *Client) Echo(ctx context.Context) error {
	return c.prompt(ctx, wire.OpEcho, struct{}{}, nil)
}

// Look is what in the guest may keep others from their end. It takes as long as the
// guest does.
func (c *Client) Look(ctx context.Context) (wire.LookResult, error) {
	var r wire.LookResult
	err := c.call(ctx, wire.OpLook, struct{}{}, &r)
	return r, err
}

// WaitTTY waits until a virtual terminal shows something that matches pattern
// (Go's syntax), and returns all that it shows. With an empty pattern that is at
// once. On errors it is what was seen last.
func (c *Client) WaitTTY(ctx context.Context, tty int, pattern string) (wire.TTYState, error) {
	var state wire.TTYState
	err := c.call(ctx, wire.OpWaitTTY, wire.TTYRequest{TTY: tty, Pattern: pattern}, &state)
	return state, err
}

// WaitX waits until an X server or a Wayland compositor answers and has what q asks for.
func (c *Client) WaitX(ctx context.Context, q wire.WindowRequest) (wire.WindowState, error) {
	var state wire.WindowState
	err := c.call(ctx, wire.OpWaitX, q, &state)
	return state, err
}
