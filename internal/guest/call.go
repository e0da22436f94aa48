package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

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
}

// open begins an operation as soon as the agent is ready.
func (c *Client) open(ctx context.Context, op string, request any, body []byte) (*call, error) {
	start := time.Now()
	for {
		s, err := c.ready(ctx)
		if err != nil {
			return nil, err
		}
		s.begin()
		stream, err := s.mux.Open(op, request, body)
		if err == nil {
			return &call{c, s, stream, op, start}, nil
		}
		s.finish()
		c.mu.Lock()
		replaced := c.session != s
		c.mu.Unlock()
		if !replaced { // the request itself is at fault
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
}

// wait waits for the outcome and decodes it into result, which may be nil. On
// most errors result has what the guest knew, too.
func (k *call) wait(ctx context.Context, result any) error {
	defer k.s.finish()
	select {
	case <-k.stream.Context().Done():
		return k.ended(result)
	case <-ctx.Done():
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
// counts more than what the guest has said for all that.
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
	var reply struct {
		Result json.RawMessage `json:"result"`
		Error  *wire.Error     `json:"error"`
	}
	if err := json.Unmarshal(payload, &reply); err != nil {
		return &ProtocolError{Machine: k.c.name, Detail: k.op + ": " + err.Error()}
	}
	if result != nil && len(reply.Result) > 0 {
		if err := json.Unmarshal(reply.Result, result); err != nil {
			return &ProtocolError{Machine: k.c.name, Detail: k.op + ": " + err.Error()}
		}
	}
	if reply.Error != nil {
		return &OpError{Machine: k.c.name, Operation: k.op, Kind: reply.Error.Kind, Message: reply.Error.Message}
	}
	return nil
}

// call runs an operation that has no streams.
func (c *Client) call(ctx context.Context, op string, request, result any) error {
	k, err := c.open(ctx, op, request, nil)
	if err != nil {
		return err
	}
	return k.wait(ctx, result)
}
