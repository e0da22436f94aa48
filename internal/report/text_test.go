package report

import (
	"strings"
	"testing"
	"time"
)

func FuzzCut(f *testing.F) {
	f.Add("\x1b[31m red 世界")
	f.Fuzz(func(t *testing.T, s string) {
		for _, cells := range []int{0, 1, 2, 5, 80} {
			for _, l := range lines(s) {
				if c := cut(l, cells); width(c) > cells {
					t.Fatalf("cut(%q, %d) = %q of %d cells", l, cells, c, width(c))
				}
			}
		}
	})
}

// harmless says that a report shows a character as it is.
func harmless(r rune) bool { return clean(string(r)) == string(r) }

func TestTail(t *testing.T) {
	ls := []string{"one", "two", "three"}
	for _, c := range []struct {
		lines, bytes int
		want         string
		cut          int
	}{
		{10, 100, "one two three", 0},
		{2, 100, "two three", 1},
		{10, 10, "two three", 1},
		{10, 3, "…ree", 2},
	} {
		kept, n := tail(ls, c.lines, c.bytes)
		if got := strings.Join(kept, " "); got != c.want || n != c.cut {
			t.Errorf("tail(%d lines, %d bytes) = %q, %d; want %q, %d", c.lines, c.bytes, got, n, c.want, c.cut)
		}
	}
}

func TestTook(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want string
	}{
		{-1, "0ms"}, {35 * time.Millisecond, "35ms"}, {999400 * time.Microsecond, "999ms"}, {999600 * time.Microsecond, "1.0s"},
		{42100 * time.Millisecond, "42.1s"}, {59960 * time.Millisecond, "1m00s"}, {123 * time.Second, "2m03s"},
		{time.Hour - time.Millisecond, "1h00m"}, {62 * time.Minute, "1h02m"},
	} {
		if got := took(c.d); got != c.want {
			t.Errorf("took(%v) = %s, want %s", c.d, got, c.want)
		}
	}
}

func TestWidth(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "äöü": 3, "世界": 4, "e\u0301": 1, "✅": 2} {
		if got := width(s); got != want {
			t.Errorf("width(%q) = %d, want %d", s, got, want)
		}
	}
	if got := cut("世界世界", 5); got != "世界…" {
		t.Errorf("cut = %q", got)
	}
}
