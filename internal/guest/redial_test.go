package guest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
)

// A connection on which nobody answers, such as one to a guest that was restored
// meanwhile, is followed by another.
func TestSilentConnectionIsRedialled(t *testing.T) {
	c := newCable(t)
	var dials atomic.Int32
	gone := make(chan error, 3)
	dial := func(ctx context.Context) (net.Conn, error) {
		if dials.Add(1) > 3 {
			return c.dial(ctx)
		}
		host, silent := socketpair(t)
		c.all.Go(func() {
			defer silent.Close()
			_, err := io.Copy(io.Discard, silent)
			gone <- err
		})
		return host, nil
	}
	client := guest.New("m", dial, guest.Options{Redial: time.Millisecond})
	defer client.Close(nil)
	if _, err := client.Ready(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := <-gone; err != nil {
			t.Errorf("the silent connection: %v", err)
		}
	}
	// The one that answers is not given up.
	if res, err := client.Run(testContext(t), guest.Command{Script: "sleep 0.1; echo done"}); err != nil || string(res.Stdout) != "done\n" {
		t.Errorf("got %q, %v", res.Stdout, err)
	}
	if n := dials.Load(); n != 4 {
		t.Errorf("%d connections were made", n)
	}
}

// A connection that becomes silent under a command is followed by another one, and the
// command goes on.
func TestCommandOutlivesSilence(t *testing.T) {
	c := newCable(t)
	stuck := make(chan struct{})
	var dials atomic.Int32
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := c.dial(ctx)
		if dials.Add(1) == 1 && err == nil {
			conn = mute{conn, stuck}
		}
		return conn, err
	}
	client := guest.New("m", dial, guest.Options{Redial: 10 * time.Millisecond, PingAfter: 10 * time.Millisecond})
	defer client.Close(nil)
	ctx := testContext(t)
	if _, err := client.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	close(stuck)
	res, err := client.Run(ctx, guest.Command{Script: "echo one; sleep 0.2; echo two"})
	if err != nil || string(res.Stdout) != "one\ntwo\n" {
		t.Errorf("got %q, %v", res.Stdout, err)
	}
	if dials.Load() < 2 {
		t.Error("no other connection was made")
	}
}

// A mute connection delivers nothing more from a moment on, and does not end.
type mute struct {
	net.Conn
	stuck <-chan struct{}
}

func (m mute) Read(b []byte) (int, error) {
	for {
		n, err := m.Conn.Read(b)
		select {
		case <-m.stuck:
			if err != nil {
				return 0, err
			}
			continue
		default:
			return n, err
		}
	}
}

// A guest that answers on no connection ends what is under way in the end.
func TestSilentGuestEndsCommand(t *testing.T) {
	c := newCable(t)
	stuck := make(chan struct{})
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := c.dial(ctx)
		if err != nil {
			return nil, err
		}
		return mute{conn, stuck}, nil
	}
	client := guest.New("m", dial, guest.Options{Redial: 10 * time.Millisecond, PingAfter: 10 * time.Millisecond, Reconnect: 200 * time.Millisecond})
	defer client.Close(nil)
	ctx := testContext(t)
	if _, err := client.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	close(stuck)
	_, err := client.Run(ctx, guest.Command{Script: "sleep 600"})
	if gone := (*guest.DisconnectedError)(nil); !errors.As(err, &gone) || gone.Error() != "m: the guest channel is closed: the agent does not answer" {
		t.Errorf("got %v", err)
	}
}
