package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestByVsock(t *testing.T) {
	for line, want := range map[string]bool{
		"console=ttyS0 attest.vsock=1 quiet\n": true,
		"attest.vsock=10":                      false,
		"xattest.vsock=1":                      false,
		"console=ttyS0":                        false,
	} {
		if got := byVsock(line); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

// The listener is the same for all socket families; this one is there everywhere.
func TestSocketListener(t *testing.T) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenOn(fd, &unix.SockaddrUnix{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.file.Close()
	for range 3 {
		client, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		client.Close()
		if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		conn.Close()
	}
	cause := errors.New("that is enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	over := make(chan error)
	go func() {
		_, err := l.Accept(ctx)
		over <- err
	}()
	cancel(cause)
	if err := <-over; err != cause {
		t.Errorf("got %v", err)
	}
}

func TestSocketListenerFails(t *testing.T) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenOn(fd, &unix.SockaddrUnix{Name: filepath.Join(t.TempDir(), "none", "s")}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
}
