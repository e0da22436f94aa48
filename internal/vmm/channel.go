package vmm

import (
	"context"
	"net"
	"sync"
	"time"
)

// A Channel lends one socket, which lives as long as the VMM, to one user after
// the other: VM.Dial of a VMM whose transport has no connections.
type Channel struct {
	conn net.Conn
	free chan struct{} // holds a token while the socket is free
	gone <-chan struct{}
}

// NewChannel lends conn until gone is closed.
func NewChannel(conn net.Conn, gone <-chan struct{}) *Channel {
	c := &Channel{conn: conn, free: make(chan struct{}, 1), gone: gone}
	c.free <- struct{}{}
	return c
}

// Close closes the socket itself.
func (c *Channel) Close() error { return c.conn.Close() }

// Dial blocks until the channel is free.
func (c *Channel) Dial(ctx context.Context) (net.Conn, error) {
	select {
	case <-c.gone: // even if it is free
		return nil, net.ErrClosed
	default:
	}
	select {
	case <-c.free:
	case <-c.gone:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		c.free <- struct{}{}
		return nil, err
	}
	return &loan{Channel: c}, nil
}

// A loan is the socket while one user has it. Close gives it back.
type loan struct {
	*Channel
	users sync.WaitGroup // Reads and Writes in progress

	mu     sync.Mutex
	closed bool
}

var longAgo = time.Unix(1, 0) // a deadline that interrupts at once

func (l *loan) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.users.Add(1)
	return true
}

// result tells an interruption by Close from a deadline of the user's.
func (l *loan) result(n int, err error) (int, error) {
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.closed {
			return n, net.ErrClosed
		}
	}
	return n, err
}

func (l *loan) Read(p []byte) (int, error) {
	if !l.enter() {
		return 0, net.ErrClosed
	}
	defer l.users.Done()
	return l.result(l.conn.Read(p))
}

func (l *loan) Write(p []byte) (int, error) {
	if !l.enter() {
		return 0, net.ErrClosed
	}
	defer l.users.Done()
	return l.result(l.conn.Write(p))
}

// Close interrupts Reads and Writes, and leaves the socket as it is.
func (l *loan) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.closed = true
	err := l.conn.SetDeadline(longAgo)
	l.mu.Unlock()
	l.users.Wait()
	l.free <- struct{}{}
	return err
}

func (l *loan) LocalAddr() net.Addr  { return l.conn.LocalAddr() }
func (l *loan) RemoteAddr() net.Addr { return l.conn.RemoteAddr() }

func (l *loan) SetDeadline(t time.Time) error      { return l.deadline(l.conn.SetDeadline, t) }
func (l *loan) SetReadDeadline(t time.Time) error  { return l.deadline(l.conn.SetReadDeadline, t) }
func (l *loan) SetWriteDeadline(t time.Time) error { return l.deadline(l.conn.SetWriteDeadline, t) }

// deadline keeps a user from taking back the interruption by Close.
func (l *loan) deadline(set func(time.Time) error, t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	return set(t)
}
