package guest

import (
	"context"
	"fmt"
	"time"

	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/wire"
)

// LastWords is how long a call that was given up waits for the guest to say
// what it saw last, and that what it ran is dead. One whose time was over waits
// for Options.LastWords.
const LastWords = 500 * time.Millisecond

// A call is one operation under way.
type call struct {
	c      *Client
	s      *session
	stream *wire.Stream
	op     string
	start  time.Time

	// At most one of these is set before wait.
	limit time.Duration // how long it may take
	kept  time.Duration // how long it may take by a limit that the guest keeps; beyond it there is Options.Grace
	stall time.Duration // how long nothing of it may move
}

// open begins an operation as soon as the agent is ready.
func (c *Client) open(ctx context.Context, op string, request any, body []byte) (*call, error) {
	start := time.Now()
	for {
		s, err := c.ready(ctx, c.opt.AgentTimeout)
		if err != nil {
			return nil, err
		}
		s.begin()
		stream, err := s.mux.Open(op, request, body)
		if err == nil {
			return &call{c: c, s: s, stream: stream, op: op, start: start}, nil
		}
		s.finish()
		switch {
		case s.ctx.Err() == nil: // the request itself is at fault
			return nil, fmt.Errorf("%s: %s: %w", c.name, op, err)
		case ctx.Err() != nil:
			return nil, &WaitError{Machine: c.name, Operation: op, After: time.Since(start), Err: context.Cause(ctx)}
		}
		// The session has ended at this moment. There will be another one, or
		// ready says why there is not.
	}
}

// watch returns a channel that is closed when the guest has had the time that this
// call may take.
func (k *call) watch() (overdue <-chan struct{}, stop func()) {
	if k.limit <= 0 && k.kept <= 0 && k.stall <= 0 {
		return nil, func() {}
	}
	moved, at := k.stream.Moved(), k.c.clock()
	since := func() time.Duration {
		if n := k.stream.Moved(); k.stall > 0 && n != moved {
			moved, at = n, k.c.clock()
		}
		return at
	}
	over := make(chan struct{})
	limit := max(k.limit, k.stall)
	if k.kept > 0 {
		limit = k.kept + k.c.opt.Grace
	}
	return over, k.c.after(limit, since, func() { close(over) })
}

// endGrace is what the guest may take to end what it runs when its limit is over: a
// second between SIGTERM and SIGKILL, and the way of the answer.
const endGrace = 1500 * time.Millisecond

// due returns a channel on which the moment comes at which the call has to be over
// unless the guest is slow. A guest that stands still does not stop it.
func (k *call) due() (<-chan time.Time, func() bool) {
	if k.kept <= 0 {
		return nil, func() bool { return true }
	}
	t := time.NewTimer(k.kept + endGrace)
	return t.C, t.Stop
}

// responds reports whether the agent is there.
func (k *call) responds(ctx context.Context) bool {
	k.c.mu.Lock()
	held := k.c.held
	k.c.mu.Unlock()
	if held || k.c.opt.Standing != nil && k.c.opt.Standing(ctx) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, k.c.opt.Echo)
	defer cancel()
	return k.c.Echo(ctx) == nil
}

// overdue is the error of a call whose result does not come, of a guest that is silent or not.
func (k *call) overdue(silent bool) *OverdueError {
	heard, standIn := k.c.standIn()
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	late := &OverdueError{Machine: k.c.name, Operation: k.op, After: time.Since(k.start), Silent: silent, StandIn: standIn}
	switch {
	case standIn && silent: // its machine knows when it was heard
	case standIn:
		late.LastSeen = fmt.Sprintf("a line of it, %v ago", time.Since(heard).Round(time.Millisecond))
	default:
		late.LastSeen = fmt.Sprintf("a %s frame, %v ago", k.s.last, time.Since(k.s.heard).Round(time.Millisecond))
	}
	return late
}

// wait waits for the outcome and decodes it into result, which may be nil. On
// most errors result has what the guest knew, too.
func (k *call) wait(ctx context.Context, result any) error {
	defer k.s.finish()
	late, stop := k.watch()
	defer stop()
	due, stopDue := k.due()
	defer stopDue()
	for waiting := true; waiting; {
		select {
		case <-k.stream.Context().Done():
			return k.ended(result)
		case <-due:
			if due = nil; k.responds(ctx) || ctx.Err() != nil || k.stream.Context().Err() != nil {
				continue // it is slow, or the answer has come meanwhile
			}
			err := k.overdue(true)
			k.stream.Cancel(err)
			return err
		case <-late:
			err := k.overdue(false)
			k.stream.Cancel(err)
			return err
		case <-ctx.Done():
			waiting = false
		}
	}
	err := &WaitError{Machine: k.c.name, Operation: k.op, After: time.Since(k.start), Err: context.Cause(ctx)}
	k.stream.Cancel(err)
	patience := LastWords
	if ctx.Err() == context.DeadlineExceeded {
		patience = k.c.opt.LastWords
	}
	select {
	case <-k.stream.Done():
		k.outcome(result)
	case <-time.After(patience):
	}
	if k.c.ctx.Err() != nil {
		return k.c.closedError()
	}
	return err
}

// ended is wait for a stream that is over. Why it was given up, by Cancel or Abort,
// counts more than what the guest has replied.
func (k *call) ended(result any) error {
	err := k.stream.Err()
	select {
	case <-k.stream.Done():
		if outcome := k.outcome(result); err == nil {
			err = outcome
		}
	default:
	}
	return err
}

// outcome decodes the agent's reply.
func (k *call) outcome(result any) error {
	payload, err := k.stream.Result()
	if err != nil {
		return err
	}
	if payload == nil { // Result was sent by nobody: cannot happen with an honest Mux
		return &ProtocolError{Machine: k.c.name, Detail: k.op + ": no result"}
	}
	failure, err := wire.DecodeReply(payload, result)
	if err != nil {
		return &ProtocolError{Machine: k.c.name, Detail: k.op + ": " + err.Error()}
	}
	if failure != nil {
		// The words are the guest's: they go into errors, and so to terminals.
		return &OpError{Machine: k.c.name, Operation: k.op, Kind: failure.Kind, Message: printable.Text(failure.Message)}
	}
	return nil
}

// call runs an operation that has no streams. How long it takes is up to ctx.
func (c *Client) call(ctx context.Context, op string, request, result any) error {
	return c.callWithin(ctx, 0, op, request, result)
}

// prompt is call for an operation that waits for nothing: the agent itself must not
// take too long for it.
func (c *Client) prompt(ctx context.Context, op string, request, result any) error {
	return c.callWithin(ctx, c.opt.Stall, op, request, result)
}

func (c *Client) callWithin(ctx context.Context, limit time.Duration, op string, request, result any) error {
	k, err := c.open(ctx, op, request, nil)
	if err != nil {
		return err
	}
	k.limit = limit
	return k.wait(ctx, result)
}
