package vmm

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/socketpair"
)

func newTestChannel(t *testing.T) (c *Channel, guest net.Conn, gone chan struct{}) {
	t.Helper()
	ours, theirs, err := socketpair.New(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if guest, err = net.FileConn(theirs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); guest.Close() })
	gone = make(chan struct{})
	return NewChannel(ours, gone), guest, gone
}

func dial(t *testing.T, c *Channel) net.Conn {
	t.Helper()
	conn, err := c.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func readText(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestDialGoesOnWhereTheStreamWas(t *testing.T) {
	c, guest, _ := newTestChannel(t)
	io.WriteString(guest, "onetwo")
	first := dial(t, c)
	readText(t, first, "one")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := dial(t, c)
	defer second.Close()
	readText(t, second, "two")
	io.WriteString(second, "three")
	readText(t, guest, "three")
}

func TestCloseInterruptsReadAndWrite(t *testing.T) {
	c, guest, _ := newTestChannel(t)
	conn := dial(t, c)
	var wg sync.WaitGroup
	reading := make(chan struct{})
	wg.Go(func() {
		readText(t, conn, "x")
		close(reading)
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
	wg.Go(func() {
		for { // until the socket is full, and then it blocks
			if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("write: %v", err)
				}
				return
			}
		}
	})
	io.WriteString(guest, "x")
	readText(t, guest, "\x00")
	<-reading
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	for name, err := range map[string]error{
		"Read": second(conn.Read(nil)), "Write": second(conn.Write(nil)),
		"SetDeadline": conn.SetDeadline(time.Now()), // must not hit the next user
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	next := dial(t, c)
	defer next.Close()
	io.WriteString(guest, "next")
	readText(t, next, "next")
}

func second(_ int, err error) error { return err }

func TestDeadlines(t *testing.T) {
	c, guest, _ := newTestChannel(t)
	conn := dial(t, c)
	conn.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	conn.Close()
	conn = dial(t, c) // has no deadline
	defer conn.Close()
	io.WriteString(guest, "x")
	readText(t, conn, "x")
}

func TestOneUserAtATime(t *testing.T) {
	c, _, gone := newTestChannel(t)
	conn := dial(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	next := make(chan net.Conn)
	go func() {
		conn, err := c.Dial(t.Context())
		if err != nil {
			t.Error(err)
		}
		next <- conn
	}()
	conn.Close()
	conn = <-next

	waiting := make(chan error)
	go func() {
		_, err := c.Dial(t.Context())
		waiting <- err
	}()
	close(gone)
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	conn.Close()
	if _, err := c.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
