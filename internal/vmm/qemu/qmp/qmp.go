// Package qmp is a client of QEMU's machine protocol (QEMU
// docs/interop/qmp-spec): JSON commands with their replies, and events that
// come at any time in between.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// maxMessage bounds one message of QEMU's: query-qmp-schema, the longest, has
// about 200 KiB.
const maxMessage = 8 << 20

// Version is QEMU's version, from its greeting.
type Version struct {
	Major, Minor, Micro int
	Package             string // the distribution's own version; may be empty
}

// AtLeast reports whether v is at least major.minor.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// An Event is something that QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage // may be nil
	Time time.Time
}

// An Error is QEMU's refusal of a command.
type Error struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", …
	Desc    string
}

func (e *Error) Error() string { return fmt.Sprintf("qmp %s: %s (%s)", e.Command, e.Desc, e.Class) }

// ErrClosed is the cause of errors after Close.
var ErrClosed = errors.New("the QMP connection was closed")

// A Client is one connection to one QEMU. Its methods can be called from any
// goroutine.
type Client struct {
	conn    net.Conn
	version Version
	done    chan struct{} // closed when the reader has ended; err is set before

	writeMu sync.Mutex

	mu          sync.Mutex
	err         error // why the connection is over
	lastID      uint64
	waiting     map[uint64]chan<- message
	subscribers map[*subscriber]struct{}
}

type subscriber struct{ fn func(Event) }

// message is anything that QEMU sends.
type message struct {
	QMP *struct {
		Version struct {
			QEMU struct {
				Major, Minor, Micro int
			} `json:"qemu"`
			Package string `json:"package"`
		} `json:"version"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID        *uint64         `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Connect reads the greeting and enables the capabilities. onEvent, which may
// be nil, sees every event from the first on; it must not block. The client
// owns conn from here on, also when Connect fails.
func Connect(ctx context.Context, conn net.Conn, onEvent func(Event)) (*Client, error) {
	c := &Client{conn: conn, done: make(chan struct{}), waiting: map[uint64]chan<- message{}, subscribers: map[*subscriber]struct{}{}}
	if onEvent != nil {
		c.subscribers[&subscriber{onEvent}] = struct{}{}
	}
	greeted := make(chan struct{})
	go c.read(greeted)
	select {
	case <-greeted:
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		c.Close()
		return nil, fmt.Errorf("qmp: no greeting: %w", context.Cause(ctx))
	}
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Version is QEMU's version.
func (c *Client) Version() Version { return c.version }

// Done is closed when the connection is over. Err then returns the reason.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the connection is over, nil while it is not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits for the reader, so a subscriber must not
// call it.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	err := c.conn.Close()
	<-c.done
	return err
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// Subscribe calls fn for every later event, in order, until cancel is called.
// fn must not block: replies wait behind it.
func (c *Client) Subscribe(fn func(Event)) (cancel func()) {
	s := &subscriber{fn}
	c.mu.Lock()
	c.subscribers[s] = struct{}{}
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		delete(c.subscribers, s)
		c.mu.Unlock()
	}
}

// Do runs a command and decodes what it returns into result, unless that is
// nil. arguments is marshalled to the command's JSON object; nil is none. A
// refusal is an *Error.
func (c *Client) Do(ctx context.Context, command string, arguments, result any) error {
	return c.do(ctx, command, arguments, result, nil)
}

func (c *Client) do(ctx context.Context, command string, arguments, result any, f *os.File) error {
	if ctx.Err() != nil {
		return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	}
	reply := make(chan message, 1)
	c.mu.Lock()
	if err := c.err; err != nil {
		c.mu.Unlock()
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	c.lastID++
	id := c.lastID
	c.waiting[id] = reply
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err := c.send(ctx, id, command, arguments, f); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case m := <-reply:
		return m.decode(command, result)
	case <-c.done:
		select { // the reply may have been the last thing that arrived
		case m := <-reply:
			return m.decode(command, result)
		default:
			return fmt.Errorf("qmp %s: %w", command, c.Err())
		}
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: no reply: %w", command, context.Cause(ctx))
	}
}

func (c *Client) send(ctx context.Context, id uint64, command string, arguments any, f *os.File) error {
	line, err := encode(id, command, arguments)
	if err != nil {
		return err
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	// A QEMU that is stuck does not read.
	c.conn.SetWriteDeadline(time.Time{})
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		c.conn.SetWriteDeadline(time.Unix(1, 0))
	})
	err = c.write(line, f)
	if !stop() {
		<-interrupted // so that it does not hit the next command
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("QEMU does not read it: %w", context.Cause(ctx))
		}
		// Half a command must not be followed by another.
		c.fail(err)
		c.conn.Close()
	}
	return err
}

func (m message) decode(command string, result any) error {
	if m.Error != nil {
		return &Error{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if m.Return == nil {
		return fmt.Errorf("qmp %s: neither a result nor an error came back", command)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("qmp %s: reply: %w", command, err)
	}
	return nil
}

// read takes messages until the connection is over. QEMU ends each with a
// newline and puts none inside.
func (c *Client) read(greeted chan struct{}) {
	defer close(c.done)
	defer c.conn.Close()
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(make([]byte, 0, 4096), maxMessage)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			c.fail(fmt.Errorf("qmp: not a message: %w", err))
			return
		}
		if m.QMP != nil && greeted != nil {
			v := m.QMP.Version.QEMU
			c.version = Version{v.Major, v.Minor, v.Micro, m.QMP.Version.Package}
			close(greeted)
			greeted = nil
			continue
		}
		c.dispatch(m)
	}
	err := lines.Err()
	if err == nil {
		err = io.EOF
	}
	c.fail(fmt.Errorf("the QMP connection is lost: %w", err))
}

func (c *Client) dispatch(m message) {
	c.mu.Lock()
	if m.Event == "" {
		// A reply without an id is to a command that QEMU could not parse; we
		// send none of those. One with an unknown id is to somebody who left.
		if m.ID != nil {
			if reply := c.waiting[*m.ID]; reply != nil {
				delete(c.waiting, *m.ID)
				reply <- m
			}
		}
		c.mu.Unlock()
		return
	}
	var fns []func(Event)
	for s := range c.subscribers {
		fns = append(fns, s.fn)
	}
	c.mu.Unlock()
	e := Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)}
	for _, fn := range fns {
		fn(e)
	}
}
