package keyboard

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Chord
	}{
		{"a", Chord{"a"}},
		{"A", Chord{"shift", "a"}},
		{"\n", Chord{"ret"}},
		{" ", Chord{"spc"}},
		{"ret", Chord{"ret"}},
		{"Enter", Chord{"ret"}},
		{"ctrl-alt-delete", Chord{"ctrl", "alt", "delete"}},
		{"shift-a", Chord{"shift", "a"}},
		{"shift-A", Chord{"shift", "a"}},
		{"ctrl-0x1c", Chord{"ctrl", "0x1c"}},
		{"-", Chord{"minus"}},
		{"ctrl--", Chord{"ctrl", "minus"}},
		{"ctrl-?", Chord{"ctrl", "shift", "slash"}},
		{"meta_l-r", Chord{"meta_l", "r"}},
	} {
		if got, err := Parse(tt.in); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "--", "ctrl-", "-a", "strg", "ä", "0x", "0x1ff", "0xzz", "ctrl-alt-entf"} {
		if got, err := Parse(bad); err == nil {
			t.Errorf("%q: got %q, want an error", bad, got)
		}
	}
}

// All of ASCII that can be printed has a key, and no two the same.
func TestText(t *testing.T) {
	var all strings.Builder
	for r := ' '; r <= '~'; r++ {
		all.WriteRune(r)
	}
	chords, err := Text(all.String() + "\n\t")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range chords {
		key := strings.Join(c, "-")
		if seen[key] {
			t.Errorf("%s types two characters", key)
		}
		seen[key] = true
		for _, k := range c {
			if !slices.Contains(names, k) {
				t.Errorf("%s is not a key", k)
			}
		}
	}
	_, err = Text("grün für €5, gr\x00n")
	want := `a US keyboard has no key for 'ü', '€', '\x00'; nothing was typed`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"ctrl-alt-delete", "-", "--", "a-", "0x1c", "Ä", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		chord, err := Parse(s)
		if err == nil && len(chord) == 0 {
			t.Errorf("%q: a chord without keys", s)
		}
	})
}
