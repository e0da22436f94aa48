package printable

import (
	"encoding/xml"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
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
		if got := Text(c.in); got != c.want {
			t.Errorf("Text(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"\x1b[31m", "\x1b]0;\a", "a\r\nb\rc", "\xff\x00\x9b", "\x1b\x1b[", "\u202e\ufffe", "\r", "ok"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsAny(Line(s), "\r\n") {
			t.Fatalf("Line(%q) has several lines", s)
		}
		got := Text(s)
		if !utf8.ValidString(got) {
			t.Fatalf("Text(%q) = %q: invalid UTF-8", s, got)
		}
		for _, r := range got {
			if r != '\n' && !harmless(r) {
				t.Fatalf("Text(%q) = %q has %U", s, got, r)
			}
		}
		if again := Text(got); again != got {
			t.Fatalf("clean is not idempotent: %q, %q", got, again)
		}
		if strings.Count(got, "\n") < strings.Count(s, "\n") {
			t.Fatalf("Text(%q) = %q hides a line", s, got)
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
	})
}
