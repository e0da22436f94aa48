package guest_test

import (
	"context"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/guest"
)

// socketpair is a stream between two sides of one process.
func socketpair(t testing.TB) (host, guest net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return ends[0], ends[1]
}

// dialOnce returns conn for the first dial, and blocks for the next.
func dialOnce(conn net.Conn) func(context.Context) (net.Conn, error) {
	var once sync.Once
	return func(ctx context.Context) (c net.Conn, err error) {
		once.Do(func() { c = conn })
		if c == nil {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return c, nil
	}
}

// newMachine is a client of an agent that runs in this process: its commands
// run on this machine.
func newMachine(t testing.TB) *guest.Client {
	t.Helper()
	host, theirs := socketpair(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := agent.Server{Log: t.Logf}
		defer s.Close()
		s.Serve(ctx, theirs)
	}()
	c := guest.New("m", dialOnce(host), guest.Options{})
	t.Cleanup(func() {
		c.Close(nil)
		cancel()
		<-done
	})
	return c
}

// patience is how long a test waits for what takes no time on a host that is not busy.
const patience = 3 * time.Minute

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
