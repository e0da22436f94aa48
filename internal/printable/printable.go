// Package printable shows text that a guest, an archive or a client has chosen. It
// must not move the cursor, colour the screen or hide what follows.
package printable

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text makes text harmless wherever it is shown: on a terminal, in XML 1.0, in
// HTML. Line ends become "\n" (a carriage return alone, as progress bars use it,
// is one); tabs stay; escape sequences go; what else is not printable is shown
// as an escape.
func Text(s string) string {
	if isClean(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	atStart, pendingCR := true, false
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\x1b':
			n = escapeLen(s[i:])
		case r == '\r':
			pendingCR = !atStart
		case r == '\n':
			b.WriteByte('\n')
			atStart, pendingCR = true, false
		default:
			if pendingCR {
				b.WriteByte('\n')
				pendingCR = false
			}
			atStart = false
			if !harmless(r) {
				b.WriteString(escaped(r))
			} else {
				b.WriteRune(r) // an invalid byte was decoded as U+FFFD
			}
		}
		i += n
	}
	return b.String()
}

// Line is Text in one line.
func Line(s string) string { return strings.ReplaceAll(Text(s), "\n", " ") }

// isClean is the common case: printable text that need not be copied.
func isClean(s string) bool {
	for i, r := range s {
		if r == '\r' || r != '\n' && !harmless(r) {
			return false
		}
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return false
			}
		}
	}
	return true
}

func harmless(r rune) bool {
	switch {
	case r == '\t':
		return true
	case unicode.Is(unicode.Cc, r):
		return false
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x061c:
		return false // they reorder what a reader sees (CVE-2021-42574)
	case r == 0x2028, r == 0x2029:
		return false // line ends to some readers and not to others
	case r == 0xfffe, r == 0xffff:
		return false // not characters of XML 1.0 (production 2, Char)
	}
	return true
}

func escaped(r rune) string {
	if r < 0x100 {
		return fmt.Sprintf(`\x%02x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// escapeLen is the length of the escape sequence (ECMA-48) at the start of s.
// A control string that does not end is taken to go to the end of its line, so
// that a guest cannot hide the rest of its log.
func escapeLen(s string) int {
	if len(s) < 2 {
		return 1
	}
	switch c := s[1]; {
	case c == '[':
		i := 2
		for i < len(s) && s[i] >= 0x20 && s[i] <= 0x3f {
			i++
		}
		if i < len(s) && s[i] >= 0x40 && s[i] <= 0x7e {
			i++
		}
		return i
	case strings.IndexByte("]PX^_", c) >= 0:
		for i := 2; i < len(s); i++ {
			switch {
			case s[i] == '\a':
				return i + 1
			case s[i] == '\x1b' && i+1 < len(s) && s[i+1] == '\\':
				return i + 2
			case s[i] == '\n' || s[i] == '\r':
				return i
			}
		}
		return len(s)
	default:
		i := 1
		for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
			i++
		}
		if i < len(s) && s[i] >= 0x30 && s[i] <= 0x7e {
			i++
		}
		return i
	}
}
