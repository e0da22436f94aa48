package guest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// A screen is what a terminal shows.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until the screen shows something.
func (s *screen) await(t *testing.T, ctx context.Context, want string) {
	t.Helper()
	for !strings.Contains(s.String(), want) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("no %q on the terminal:\n%q", want, s.String())
		}
	}
}

// A terminal has a size that can change, Ctrl-C ends what runs on it and not
// the shell, and the exit code is the shell's.
func TestTerminal(t *testing.T) {
	m, ctx := newMachine(t), testContext(t)
	keys, typist := io.Pipe()
	resizes := make(chan wire.TerminalSize)
	var shown screen
	type end struct {
		r   guest.Result
		err error
	}
	ended := make(chan end, 1)
	go func() {
		r, err := m.Terminal(ctx, guest.Terminal{Input: keys, Output: &shown, Type: "vt100", Size: wire.TerminalSize{Rows: 33, Columns: 77}, Resizes: resizes})
		ended <- end{r, err}
	}()
	write := func(text string) {
		if _, err := io.WriteString(typist, text); err != nil {
			t.Fatal(err)
		}
	}
	write("PS1=; echo on $TERM of $(stty size), $(tty | cut -c1-8)\n")
	shown.await(t, ctx, "on vt100 of 33 77, /dev/pts\r\n")
	resizes <- wire.TerminalSize{Rows: 40, Columns: 100}
	write("until test \"$(stty size)\" = '40 100'; do sleep 0.01; done; echo it 'is large'\n")
	shown.await(t, ctx, "it is large\r\n")
	write("sh -c 'echo wait \"here\"; exec sleep 1000'\n") // who says it is who gets the signal
	shown.await(t, ctx, "wait here\r\n")
	write("\x03")
	write("echo still 'there'; exit 7\n")
	e := <-ended
	if e.err != nil || e.r.ExitCode != 7 || !strings.Contains(shown.String(), "still there\r\n") {
		t.Errorf("exit code %d, %v; the terminal shows\n%q", e.r.ExitCode, e.err, shown.String())
	}
	typist.Close()
}

// A terminal that is given up hangs up: its processes do not stay.
func TestTerminalHangsUp(t *testing.T) {
	m := newMachine(t)
	ctx, cancel := context.WithCancelCause(testContext(t))
	keys, typist := io.Pipe()
	defer typist.Close()
	var shown screen
	ended := make(chan error, 1)
	go func() {
		_, err := m.Terminal(ctx, guest.Terminal{Input: keys, Output: &shown})
		ended <- err
	}()
	io.WriteString(typist, "trap 'true' TERM; echo pid=$$; sleep 1000\n")
	shown.await(t, ctx, "pid=")
	shown.await(t, ctx, "\r\npid=")
	_, pid, _ := strings.Cut(shown.String(), "\r\npid=")
	for !strings.Contains(pid, "\r\n") {
		_, pid, _ = strings.Cut(shown.String(), "\r\npid=")
	}
	pid, _, _ = strings.Cut(pid, "\r\n")
	stop := errors.New("enough")
	cancel(stop)
	if err := <-ended; !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	if _, err := m.RunUntil(testContext(t), guest.Command{Script: "kill -0 " + pid}, guest.UntilOptions{Fail: true}); err != nil {
		t.Error(err)
	}
}
