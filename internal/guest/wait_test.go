package guest_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
)

// during starts a wait, lets something happen, and wants the wait to end then
// and not before.
func during(t *testing.T, wait func(context.Context) error, happen func()) {
	t.Helper()
	ctx := testContext(t)
	done := make(chan error, 1)
	go func() { done <- wait(ctx) }()
	select {
	case err := <-done:
		t.Fatalf("ended before anything happened: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	happen()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestWaitFile(t *testing.T) {
	m := newMachine(t)
	for _, tt := range []struct {
		name   string
		happen func(dir string) error
	}{
		{"in a directory that exists", func(dir string) error { return os.MkdirAll(dir+"/a/b/c", 0o755) }},
		{"renamed into place", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/x/b/c", 0o755), os.Rename(dir+"/x", dir+"/a"))
		}},
		{"a link to something", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.Symlink("/", dir+"/a/b/c"))
		}},
		{"a link that leads somewhere later", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.Symlink(dir+"/t", dir+"/a/b/c"), os.WriteFile(dir+"/t", nil, 0o600))
		}},
		{"second thoughts on the way", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.RemoveAll(dir+"/a"), os.MkdirAll(dir+"/a/b/c", 0o755))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			during(t, func(ctx context.Context) error { _, err := m.WaitFile(ctx, dir+"/a/b/c", false); return err }, func() {
				if err := tt.happen(dir); err != nil {
					t.Error(err)
				}
			})
		})
	}
	if _, err := m.WaitFile(testContext(t), "/", false); err != nil {
		t.Error(err)
	}
	seen, err := m.WaitFile(testContext(t), "/no/such/file", true)
	if !errors.Is(err, guest.ErrNotYet) || seen.Seen != "stat /no/such/file: no such file or directory; of the directories above, / is there" {
		t.Errorf("one look: %+v, %v", seen, err)
	}
}

func TestWaitPort(t *testing.T) {
	m := newMachine(t)
	for _, host := range []string{"localhost", "127.0.0.1"} {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		open := func(ctx context.Context) error { _, err := m.WaitPort(ctx, host, port, "", true, false); return err }
		closed := func(ctx context.Context) error {
			_, err := m.WaitPort(ctx, host, port, "", false, false)
			return err
		}
		if err := open(testContext(t)); err != nil {
			t.Fatal(err)
		}
		during(t, closed, func() { l.Close() })
		during(t, open, func() {
			if l, err = net.Listen("tcp4", l.Addr().String()); err != nil {
				t.Error(err)
			}
		})
		l.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	seen, err := m.WaitPort(ctx, "127.0.0.1", 1, "", true, false)
	var wait *guest.WaitError
	if !errors.As(err, &wait) || wait.Operation != "wait for open port 127.0.0.1:1" || !strings.Contains(seen.Seen, "connection refused") || seen.Tries == 0 {
		t.Errorf("seen %+v, error %v", seen, err)
	}
	seen, err = m.WaitPort(testContext(t), "127.0.0.1", 1, "", true, true)
	if !errors.Is(err, guest.ErrNotYet) || seen.Tries != 1 {
		t.Errorf("one look: %+v, %v", seen, err)
	}
}

func TestWaitUnixSocket(t *testing.T) {
	m := newMachine(t)
	for _, network := range []string{"unix", "unixgram"} {
		path := filepath.Join(t.TempDir(), "s")
		var keep interface{ Close() error }
		during(t, func(ctx context.Context) error {
			_, err := m.WaitUnixSocket(ctx, path, network == "unixgram", false)
			return err
		}, func() {
			var err error
			if network == "unix" {
				keep, err = net.Listen(network, path)
			} else {
				keep, err = net.ListenPacket(network, path)
			}
			if err != nil {
				t.Error(err)
			}
		})
		keep.Close()
		seen, err := m.WaitUnixSocket(testContext(t), path, network == "unixgram", true)
		if !errors.Is(err, guest.ErrNotYet) || seen.Tries != 1 || !strings.Contains(seen.Seen, path) {
			t.Errorf("one look: %+v, %v", seen, err)
		}
	}
}
