// Package console keeps what a machine writes to its serial console, and what its
// commands write: the end of it in memory, for waits and errors.
package console

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/printable"
)

const (
	// A line longer than this is cut into several: a guest may write for ever
	// without a newline.
	MaxLine = 64 << 10
	// The log file of a machine: a guest may write for ever, and the state
	// directory is often in memory.
	maxLog = 64 << 20
)

// A Console is what one machine wrote to its serial console since it was first
// started: a log file, and the end of it in memory.
type Console struct {
	publish func(line string) // called for each line, in order

	Transcript       // complete lines and the unfinished one; its mu guards the rest, too
	boot       int64 // offset at which the current start began
	line       int64 // offset at which the unfinished line begins
	log        *os.File
	logged     int64  // bytes that the log has, or would have without its limit
	panicked   string // the kernel's panic or oops line, since boot
	fatal      string // the line with which attest's own init gave up, since boot
	drawing    animation
}

// New is an empty console. log, if there is one, gets what the guest writes, as it
// is and up to a limit, and is closed by Close. publish is called for each line.
func New(log *os.File, publish func(string)) *Console {
	return &Console{log: log, publish: publish, Transcript: NewTranscript()}
}

// Begin marks a new start of the machine.
func (c *Console) Begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := c.end()
	c.boot, c.consumed, c.line = end, end, end
	c.panicked, c.fatal = "", ""
	c.drawing = animation{}
}

// A State is a console at one moment. Its text is shared: what is in a
// console's memory is added to, and never changed.
type State struct {
	text                       []byte
	base, boot, consumed, line int64
	panicked, fatal            string
}

// Save is the console as it is now.
func (c *Console) Save() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return State{c.text[:len(c.text):len(c.text)], c.base, c.boot, c.consumed, c.line, c.panicked, c.fatal}
}

// SinceBoot is the text since the start, as it came.
func (s State) SinceBoot() []byte { return s.text[s.boot-s.base:] }

// StateOf is a console that has said a text since the start.
func StateOf(text []byte) State {
	return State{text: text[:len(text):len(text)], line: int64(len(text))}
}

// Restore makes the console what it was. The log file of a new machine gets the
// text too; that of one that is taken back has all that ever happened.
func (c *Console) Restore(s State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end() == 0 {
		c.write(s.text)
	}
	c.text, c.base, c.boot, c.consumed, c.line = s.text, s.base, s.boot, s.consumed, s.line
	c.panicked, c.fatal = s.panicked, s.fatal
	close(c.changed)
	c.changed = make(chan struct{})
}

// Pump copies r until it ends.
func (c *Console) Pump(r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			c.add(buf[:n])
		}
		if err != nil {
			c.finishLine()
			return
		}
	}
}

// finishLine ends the last line when nothing follows any more.
func (c *Console) finishLine() {
	c.mu.Lock()
	unfinished := c.line < c.end() || len(c.drawing.held) > 0
	c.mu.Unlock()
	if unfinished {
		c.add([]byte("\n"))
	}
}

// write adds to the log file, up to its limit. A full disk must not stop the test:
// the text is in memory. Called with mu held.
func (c *Console) write(p []byte) {
	if c.log == nil {
		return
	}
	before := c.logged
	c.logged += int64(len(p))
	switch {
	case c.logged <= maxLog:
		c.log.Write(p)
	case before <= maxLog:
		c.log.Write(p[:maxLog-before])
		fmt.Fprintf(c.log, "\nattest: this log ends here, at its limit of %d MiB\n", maxLog>>20)
	}
}

var (
	// An oops is the end of a test, too: what comes after it proves nothing.
	panicLine = regexp.MustCompile(`Kernel panic - not syncing.*|Oops: [0-9a-f]{4,} \[#\d+\].*|kernel BUG at \S+:\d+!`)
	fatalLine = regexp.MustCompile(`attest-init: FATAL: .*`)
)

// shown is what of p is text. Called with mu held.
func (c *Console) shown(p []byte) []byte {
	out := make([]byte, 0, len(p))
	for _, b := range p {
		if b != '\r' {
			out = c.drawing.pass(out, b)
		}
	}
	return out
}

func (c *Console) add(p []byte) {
	c.mu.Lock()
	c.write(p)
	var lines []string
	for _, b := range c.shown(p) {
		start := c.line - c.base
		c.text = append(c.text, b)
		if b == '\n' || int64(len(c.text))-start >= MaxLine {
			line := printable.Line(string(bytes.TrimRight(c.text[start:], "\n")))
			lines = append(lines, line)
			c.line = c.end()
			if m := panicLine.FindString(line); m != "" && c.panicked == "" {
				c.panicked = m
			}
			if m := fatalLine.FindString(line); m != "" && c.fatal == "" {
				c.fatal = m
			}
		}
	}
	c.added()
	c.line = max(c.line, c.base)
	c.boot = max(c.boot, c.base)
	c.mu.Unlock()
	for _, line := range lines {
		if line != "" {
			c.publish(line)
		}
	}
}

// SinceBoot is everything since the current start, as text.
func (c *Console) SinceBoot() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.TrimSuffix(strings.ToValidUTF8(string(c.text[c.boot-c.base:]), "\uFFFD"), "\n")
}

// Tail is the last n lines since the current start, those that say something.
func (c *Console) Tail(n int) []string {
	c.mu.Lock()
	text := c.text[c.boot-c.base:]
	if limit := n * 4096; len(text) > limit {
		text = text[len(text)-limit:]
		for len(text) > 0 && !utf8.RuneStart(text[0]) {
			text = text[1:]
		}
	}
	lines := strings.Split(string(text), "\n")
	c.mu.Unlock()
	var out []string
	for _, l := range lines {
		if p := printable.Line(l); strings.TrimSpace(p) != "" {
			out = append(out, p)
		}
	}
	if len(out) > n {
		out = out[len(out)-n:]
	}
	return out
}

// PanicLine is the line with which the guest's kernel has panicked since the
// current start; empty if it has not.
func (c *Console) PanicLine() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.panicked
}

// FatalLine is the line with which attest's own init has given up since the
// current start; empty if it has not.
func (c *Console) FatalLine() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fatal
}

// Close closes the log.
func (c *Console) Close() error {
	err := c.log.Close()
	if errors.Is(err, os.ErrClosed) { // by an earlier Close
		return nil
	}
	return err
}
