package protocol

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxRequests is how many requests of one peer may be under way.
const maxRequests = 1024

var (
	errCancelled = errors.New("the request was cancelled")
	errGone      = errors.New("it has closed the connection")
)

// A conn is one end of a connection: it answers the peer's requests, several at once,
// and makes requests of its own.
type conn struct {
	peer   string
	stream io.ReadWriteCloser
	handle func(ctx context.Context, method string, params json.RawMessage) (any, *Error)

	write sync.Mutex // held while a message is written

	mu      sync.Mutex
	next    int64
	calls   map[int64]chan *message           // our requests
	running map[int64]context.CancelCauseFunc // the peer's
}

func newConn(peer string, stream io.ReadWriteCloser) *conn {
	return &conn{peer: peer, stream: stream, calls: map[int64]chan *message{}, running: map[int64]context.CancelCauseFunc{}}
}

// serve answers until the peer closes the connection (nil), breaks the protocol (a
// *PeerError), or ctx ends (its cause). It closes the stream, and returns when all
// requests have ended.
func (c *conn) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { c.stream.Close() })
	var handlers sync.WaitGroup
	err := c.read(ctx, &handlers)
	if context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	gone := err
	if gone == nil {
		gone = &PeerError{Peer: c.peer, Reason: errGone.Error()}
	}
	cancel(gone)
	stop()
	c.stream.Close()
	handlers.Wait()
	return err
}

func (c *conn) read(ctx context.Context, handlers *sync.WaitGroup) error {
	r := bufio.NewReaderSize(c.stream, 64<<10)
	for {
		m, err := readMessage(r)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errMalformed):
			c.send(message{Error: &Error{Code: CodeParse, Message: err.Error()}})
			fallthrough
		case err != nil:
			return &PeerError{c.peer, "what it sent cannot be understood", err}
		case m.Method == "":
			c.deliver(m)
		case m.Method == "cancel" && m.ID == nil:
			c.cancel(m.Params)
		case m.ID == nil: // a notification that this version does not know
		default:
			if err := c.begin(ctx, m, handlers); err != nil {
				return err
			}
		}
	}
}

// deliver hands a reply to who waits for it. One that nobody waits for belongs to a
// request that was given up.
func (c *conn) deliver(m *message) {
	if m.ID == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if reply, ok := c.calls[*m.ID]; ok {
		delete(c.calls, *m.ID)
		reply <- m // has room for it
	}
}

func (c *conn) cancel(params json.RawMessage) {
	var p struct{ ID int64 }
	if json.Unmarshal(params, &p) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancel := c.running[p.ID]; cancel != nil {
		cancel(errCancelled)
	}
}

// begin answers a request in a goroutine of its own.
func (c *conn) begin(ctx context.Context, m *message, handlers *sync.WaitGroup) error {
	id := *m.ID
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	_, twice := c.running[id]
	busy := len(c.running) >= maxRequests
	if !twice && !busy {
		c.running[id] = cancel
	}
	c.mu.Unlock()
	switch {
	case twice:
		cancel(nil)
		return &PeerError{Peer: c.peer, Reason: fmt.Sprintf("two requests of the same id %d", id)}
	case busy:
		cancel(nil)
		c.send(message{ID: &id, Error: &Error{Code: CodeBusy, Message: fmt.Sprintf("%d requests are under way, which is the limit", maxRequests)}})
		return nil
	}
	handlers.Go(func() {
		v, failed := c.handle(ctx, m.Method, m.Params)
		if failed != nil && errors.Is(context.Cause(ctx), errCancelled) {
			failed = &Error{Code: CodeCancelled, Message: errCancelled.Error()}
		}
		c.mu.Lock()
		delete(c.running, id)
		c.mu.Unlock()
		cancel(nil)
		c.reply(id, v, failed)
	})
	return nil
}

func (c *conn) reply(id int64, v any, failed *Error) {
	if failed == nil {
		text, err := json.Marshal(v)
		if err == nil {
			c.send(message{ID: &id, Result: text})
			return
		}
		failed = &Error{Code: CodeInternal, Message: "the result cannot be sent: " + err.Error()}
	}
	c.send(message{ID: &id, Error: failed})
}

// send writes a message. An error means that the peer is gone, which read notices.
func (c *conn) send(m message) error {
	m.Version = "2.0"
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	c.write.Lock()
	defer c.write.Unlock()
	_, err = c.stream.Write(append(line, '\n'))
	return err
}

// notify tells the peer something.
func (c *conn) notify(method string, params any) error {
	text, err := json.Marshal(params)
	if err != nil {
		return err
	}
	return c.send(message{Method: method, Params: text})
}

// call makes a request and waits for the reply. When ctx ends first, the peer is told
// that nobody waits any more. The error is the peer's *Error, or the cause of ctx.
func (c *conn) call(ctx context.Context, method string, params any) (json.RawMessage, error) {
	text, err := json.Marshal(params)
	if err != nil {
		return nil, err
	}
	reply := make(chan *message, 1)
	c.mu.Lock()
	c.next++
	id := c.next
	c.calls[id] = reply
	c.mu.Unlock()
	c.send(message{ID: &id, Method: method, Params: text}) // when the peer is gone, ctx ends
	select {
	case m := <-reply:
		if m.Error != nil {
			return nil, m.Error
		}
		return m.Result, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	delete(c.calls, id)
	c.mu.Unlock()
	c.notify("cancel", map[string]int64{"id": id})
	return nil, context.Cause(ctx)
}
