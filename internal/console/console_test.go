package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConsoleLines(t *testing.T) {
	var lines []string
	c := New(nil, func(l string) { lines = append(lines, l) })
	for _, piece := range []string{"first\r\nsec", "ond\n\n", "\x1b[32mgreen\x1b[0m \xff\x07bell\n", "unfinished"} {
		c.add([]byte(piece))
	}
	c.finishLine()
	c.finishLine()
	want := []string{"first", "second", "green \uFFFD\\x07bell", "unfinished"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("published lines (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[2:], c.Tail(2)); diff != "" {
		t.Errorf("tail (-want +got):\n%s", diff)
	}
	if got := c.SinceBoot(); !strings.HasPrefix(got, "first\nsecond\n\n") {
		t.Errorf("log %q", got)
	}
}

func TestConsoleStartsAnew(t *testing.T) {
	c := New(nil, func(string) {})
	c.add([]byte("Kernel panic - not syncing: Attempted to kill init!\n"))
	if c.PanicLine() == "" {
		t.Error("the panic was not seen")
	}
	c.Begin()
	c.add([]byte("second boot\n"))
	if c.PanicLine() != "" || c.SinceBoot() != "second boot" {
		t.Errorf("after a new start: panic %q, log %q", c.PanicLine(), c.SinceBoot())
	}
}

// A guest that floods its console costs a bounded amount of memory.
func TestConsoleIsBounded(t *testing.T) {
	c := New(nil, func(string) {})
	c.Restore(StateOf(bytes.Repeat([]byte("x"), maxText))) // it is full
	const more = MaxLine * 8
	for i := range maxText / 4 / more * 3 / 2 {
		c.add(bytes.Repeat([]byte("x"), more)) // without a newline
		c.add([]byte(fmt.Sprintf("\nline %d\n", i)))
	}
	if len(c.text) > maxText+maxText/4 {
		t.Errorf("%d bytes are kept", len(c.text))
	}
	if tail := c.Tail(1); tail[0] != "line 5" {
		t.Errorf("the last line is %.40q", tail[0])
	}
}

func TestWaitText(t *testing.T) {
	wait := func(c *Console, pattern string, gone <-chan struct{}) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.WaitText(ctx, regexp.MustCompile("(?m)"+pattern), gone)
		return err
	}
	never := make(chan struct{})
	t.Run("each match is used once", func(t *testing.T) {
		c := New(nil, func(string) {})
		c.add([]byte("one\ntwo\n"))
		if err := errors.Join(wait(c, "^one$", never), wait(c, "two", never)); err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		close(gone)
		if err := wait(c, "one", gone); err != ErrGone {
			t.Errorf("the first line matched again: %v", err)
		}
	})
	t.Run("text that comes in pieces, and a prompt without newline", func(t *testing.T) {
		c := New(nil, func(string) {})
		done := make(chan error)
		go func() { done <- wait(c, "server login: $", never) }()
		for _, piece := range []string{"ser", "ver lo", "gin: "} {
			c.add([]byte(piece))
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the last words of a machine count", func(t *testing.T) {
		c := New(nil, func(string) {})
		gone := make(chan struct{})
		done := make(chan error)
		go func() { done <- wait(c, "Power down", gone) }()
		c.add([]byte("reboot: Power down\n"))
		close(gone)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// A guest that writes for ever does not fill the host's disk, and the log says where
// it ends.
func TestConsoleLogIsBounded(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c := New(log, func(string) {})
	piece := bytes.Repeat([]byte("x"), 1<<20-1)
	piece = append(piece, '\n')
	for range maxLog>>20 + 3 {
		c.mu.Lock()
		c.write(piece)
		c.mu.Unlock()
	}
	c.add([]byte("more\n"))
	data, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > maxLog+100 || !bytes.HasSuffix(data, []byte("x\n\nattest: this log ends here, at its limit of 64 MiB\n")) {
		t.Errorf("%d bytes, the end is %q", len(data), data[len(data)-80:])
	}
}
