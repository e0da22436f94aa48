package console

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest/internal/printable"
)

// FuzzConsole: whatever a guest writes, and in whatever pieces it comes, the lines are
// the same and safe to show, and a panic is one of them.
func FuzzConsole(f *testing.F) {
	f.Add([]byte("boots\r\n[    1.0] Kernel panic - not syncing: VFS\x1b[0m\nlogin: "), 20)
	f.Add([]byte("BUG\nOops: 0000 [#1] SMP\nkernel BUG at mm/slab.c:1!\n"), 5)
	f.Add([]byte("attest-init: FATAL: no root\n\xff\xfe\x00\n\n"), 0)
	f.Add(append(bytes.Repeat([]byte("\xc3"), MaxLine+1), "\nend"...), MaxLine)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		say := func(pieces ...[]byte) (lines []string, c *Console) {
			c = New(nil, func(l string) { lines = append(lines, l) })
			for _, p := range pieces {
				c.add(p)
			}
			c.finishLine()
			return lines, c
		}
		cut = max(0, min(cut, len(text)))
		lines, whole := say(text)
		others, pieces := say(text[:cut], text[cut:])
		if diff := cmp.Diff(lines, others); diff != "" {
			t.Errorf("lines at once, and in pieces:\n%s", diff)
		}
		if whole.PanicLine() != pieces.PanicLine() || whole.FatalLine() != pieces.FatalLine() || whole.SinceBoot() != pieces.SinceBoot() {
			t.Errorf("%q is another text in pieces", text)
		}
		for _, l := range lines {
			if l != printable.Line(l) || strings.Contains(l, "\n") {
				t.Errorf("the line %q is not safe to show", l)
			}
		}
		if p := whole.PanicLine() + whole.FatalLine(); p != "" && !strings.Contains(strings.Join(lines, ""), whole.PanicLine()) {
			t.Errorf("%q is in no line", p)
		}
		if tail := whole.Tail(2); len(tail) > 2 {
			t.Errorf("the last two lines are %q", tail)
		}
	})
}

// FuzzOutput: of what a command writes, as much as wanted is kept byte for byte, and
// all of it is published.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("one\ntwo\n\nthree"), 5, 6)
	f.Add([]byte("\n\xff\x00"), 1, 0)
	f.Fuzz(func(t *testing.T, text []byte, cut, limit int) {
		cut, limit = max(0, min(cut, len(text))), max(0, limit)
		lines := 0
		o := NewOutput(limit, func(l string) {
			lines++
			if l != printable.Line(l) {
				t.Errorf("the line %q is not safe to show", l)
			}
		})
		o.Write(text[:cut])
		o.Write(text[cut:])
		if got, want := o.Finish(), string(text[:min(len(text), limit)]); got != want {
			t.Errorf("kept %q, want %q", got, want)
		}
		if n := bytes.Count(text, []byte("\n")); lines < n {
			t.Errorf("%d lines of %d were published", lines, n)
		}
	})
}
