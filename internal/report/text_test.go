package report

import (
	"encoding/xml"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"plain\n\ttext äöü 世界\n", "plain\n\ttext äöü 世界\n"},
		{"\x1b[1;31mred\x1b[0m and \x1b[2Jcleared", "red and cleared"},
		{"\x1b]0;title\aafter", "after"},
		{"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"},
		{"\x1b]0;never ends\nnext line", "\nnext line"},
		{"\x1bPq#0\x1b\\sixel", "sixel"},
		{"\x1b(Bcharset \x1bc reset \x1b", "charset  reset "},
		{"\x1b[31", ""},
		{"10%\r20%\r100%\r\nnext", "10%\n20%\n100%\nnext"},
		{"\r\r\nleading", "\nleading"},
		{"bell\a back\b nul\x00 del\x7f csi\u009b", `bell\x07 back\x08 nul\x00 del\x7f csi\x9b`},
		{"cut \xc3", "cut \ufffd"},
		{"\xff\xfe", "\ufffd\ufffd"},
		{"a\u202eb\u2066c", `a\u202eb\u2066c`},
		{"\ufffe\uffff\u2028", `\ufffe\uffff\u2028`},
		{"", ""},
	} {
		if got := clean(c.in); got != c.want {
			t.Errorf("clean(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"\x1b[31m", "\x1b]0;\a", "a\r\nb\rc", "\xff\x00\x9b", "\x1b\x1b[", "\u202e\ufffe", "\r", "ok"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if !utf8.ValidString(got) {
			t.Fatalf("clean(%q) = %q: invalid UTF-8", s, got)
		}
		for _, r := range got {
			if r != '\n' && !harmless(r) {
				t.Fatalf("clean(%q) = %q has %U", s, got, r)
			}
		}
		if again := clean(got); again != got {
			t.Fatalf("clean is not idempotent: %q, %q", got, again)
		}
		if strings.Count(got, "\n") < strings.Count(s, "\n") {
			t.Fatalf("clean(%q) = %q hides a line", s, got)
		}
		// What is clean is XML, and comes back unchanged.
		doc, err := xml.Marshal(struct {
			XMLName xml.Name `xml:"a"`
			Text    string   `xml:",chardata"`
		}{Text: got})
		if err != nil {
			t.Fatal(err)
		}
		var back struct {
			Text string `xml:",chardata"`
		}
		if err := xml.Unmarshal(doc, &back); err != nil || back.Text != got {
			t.Fatalf("XML of %q: %q, %v", got, back.Text, err)
		}
		for _, cells := range []int{0, 1, 2, 5, 80} {
			for _, l := range lines(s) {
				if c := cut(l, cells); width(c) > cells {
					t.Fatalf("cut(%q, %d) = %q of %d cells", l, cells, c, width(c))
				}
			}
		}
	})
}

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
