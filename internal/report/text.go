package report

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize/english"

	"github.com/attest-vm/attest/internal/printable"
)

// clean makes text harmless wherever it is shown.
func clean(s string) string { return printable.Text(s) }

// lines splits cleaned text; the newline at its end makes no empty line.
func lines(s string) []string {
	s = strings.TrimSuffix(clean(s), "\n")
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// firstLine and lastLine are for places where only one line has room.
func firstLine(s string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(clean(s)), "\n")
	return strings.TrimSpace(first)
}

func lastLine(s string) string {
	s = strings.TrimSpace(clean(s))
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}

// tail keeps the last lines of text: at most maxLines, and about maxBytes. cut
// is the number of lines that are gone.
func tail(ls []string, maxLines, maxBytes int) (kept []string, cut int) {
	size, i := 0, len(ls)
	for i > 0 && len(ls)-i < maxLines {
		size += len(ls[i-1]) + 1
		if size > maxBytes {
			break
		}
		i--
	}
	kept, cut = ls[i:], i
	if len(kept) == 0 && cut > 0 { // one line that is longer than all the room
		last := ls[len(ls)-1]
		last = last[len(last)-maxBytes:]
		kept, cut = []string{"…" + strings.ToValidUTF8(last, "")}, cut-1
	}
	return kept, cut
}

// width is the number of terminal cells that s takes.
func width(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// wide are the ranges that terminals draw two cells wide: a coarse form of
// Unicode's EastAsianWidth.txt (W and F).
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x1100, 0x115f, 1}, {0x231a, 0x231b, 1}, {0x23e9, 0x23ec, 1}, {0x2705, 0x2705, 1}, {0x270a, 0x270b, 1},
		{0x2728, 0x2728, 1}, {0x274c, 0x274c, 1}, {0x2e80, 0x303e, 1}, {0x3041, 0x4dbf, 1}, {0x4e00, 0xa4cf, 1},
		{0xa960, 0xa97f, 1}, {0xac00, 0xd7a3, 1}, {0xf900, 0xfaff, 1}, {0xfe30, 0xfe6f, 1}, {0xff00, 0xff60, 1}, {0xffe0, 0xffe6, 1},
	},
	R32: []unicode.Range32{{0x1f300, 0x1f64f, 1}, {0x1f680, 0x1f6ff, 1}, {0x1f900, 0x1f9ff, 1}, {0x20000, 0x3fffd, 1}},
}

func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case unicode.Is(wide, r):
		return 2
	}
	return 1
}

// cut shortens one line of clean text to at most cells.
func cut(s string, cells int) string {
	if width(s) <= cells {
		return s
	}
	n := 0
	for i, r := range s {
		if n += runeWidth(r); n > cells-1 {
			if cells < 1 {
				return ""
			}
			return s[:i] + "…"
		}
	}
	return s
}

// took is a duration as a person reads it: 35ms, 3.2s, 2m03s, 1h02m.
func took(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	switch {
	case d < 999500*time.Microsecond:
		return fmt.Sprintf("%dms", d.Round(time.Millisecond).Milliseconds())
	case d < 59950*time.Millisecond:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour-500*time.Millisecond:
		d = d.Round(time.Second)
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	d = d.Round(time.Minute)
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// elapsed is took for a time that still runs: it ticks evenly.
func elapsed(d time.Duration) string {
	if d < 999500*time.Microsecond {
		return fmt.Sprintf("%.1fs", max(d, 0).Seconds())
	}
	return took(d)
}

// plural is "1 line", "2 lines".
func plural(n int, noun string) string {
	return fmt.Sprintf("%d %s", n, english.PluralWord(n, noun, "")) // as plain a number as those beside it
}
