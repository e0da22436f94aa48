package microvm

import (
	"bytes"
	"io"
	"regexp"
)

// A Console is what a machine says on its serial line, through all VMMs that are started
// for it.
type Console struct {
	r    *io.PipeReader
	w    *io.PipeWriter
	line []byte
	said Said
}

// Said is what a guest's kernel has said of its own end since the last Begin. A guest
// that says it without doing it ends, too, which is its own affair.
type Said struct {
	Halted    bool // nothing more will come; the VMM possibly does not know
	Restarted bool
	Panicked  bool
}

// NewConsole returns a console that waits for its reader.
func NewConsole() *Console {
	c := &Console{}
	c.r, c.w = io.Pipe()
	return c
}

// Reader is the console's reader. When that is closed, what comes is dropped.
func (c *Console) Reader() io.ReadCloser { return c.r }

// End ends the console for its reader, behind what was said.
func (c *Console) End() { c.w.Close() }

// maxConsoleLine is how much of a line is looked at.
const maxConsoleLine = 512

// Copy passes on what comes from a VMM, to its end. halted is called when the guest's
// kernel has said that it has halted.
func (c *Console) Copy(from io.Reader, halted func()) Said {
	c.line, c.said = nil, Said{}
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			c.w.Write(buf[:n]) // an error is that of a reader who has closed
		}
		was := c.said.Halted
		c.look(buf[:n])
		if c.said.Halted && !was {
			halted()
		}
		if err != nil {
			return c.said
		}
	}
}

// Linux kernel/reboot.c and kernel/panic.c, with the kernel's time in front.
var (
	haltLine    = regexp.MustCompile(`^(\[ *\d+\.\d+\] )?reboot: (System halted|Power down)$`)
	restartLine = regexp.MustCompile(`^(\[ *\d+\.\d+\] )?reboot: Restarting system`)
	panicLine   = regexp.MustCompile(`^(\[ *\d+\.\d+\] )?Kernel panic - not syncing`)
)

func (c *Console) look(text []byte) {
	for len(text) > 0 {
		part, rest, complete := bytes.Cut(text, []byte("\n"))
		c.line = append(c.line, part[:min(len(part), maxConsoleLine-len(c.line))]...)
		if complete {
			line := bytes.TrimRight(c.line, "\r")
			c.said.Halted = c.said.Halted || haltLine.Match(line)
			c.said.Restarted = c.said.Restarted || restartLine.Match(line)
			c.said.Panicked = c.said.Panicked || panicLine.Match(line)
			c.line = c.line[:0]
		}
		text = rest
	}
}
