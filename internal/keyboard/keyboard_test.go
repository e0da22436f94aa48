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
		if got, err := US.Parse(tt.in); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "--", "ctrl-", "-a", "strg", "ä", "0x", "0x1ff", "0xzz", "ctrl-alt-entf"} {
		if got, err := US.Parse(bad); err == nil {
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
	chords, err := US.Text(all.String() + "\n\t")
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
	_, err = US.Text("grün für €5, gr\x00n")
	want := `a keyboard with the layout us has no key for 'ü', '€', '\x00'; nothing was typed`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// typed is the keys that type a text.
func typed(l *Layout, text string) string {
	chords, err := l.Text(text)
	if err != nil {
		return err.Error()
	}
	var keys []string
	for _, c := range chords {
		keys = append(keys, strings.Join(c, "-"))
	}
	return strings.Join(keys, " ")
}

func TestLayouts(t *testing.T) {
	for _, tt := range []struct{ layout, text, want string }{
		{"us", "Yz@", "shift-y z shift-2"},
		{"gb", `£"@#~\|`, "shift-3 shift-2 shift-apostrophe backslash shift-backslash less shift-less"},
		{"de", "Zyß/@€{}|~-_", "shift-y z minus shift-7 alt_r-q alt_r-e alt_r-7 alt_r-0 alt_r-less alt_r-bracket_right slash shift-slash"},
		{"de", "^`é à", "grave_accent spc shift-equal spc equal e spc shift-equal a"},
		{"fr", "aqAQ12&é-6!.", "q a shift-q shift-a shift-1 shift-2 1 2 6 shift-6 slash shift-comma"},
		{"fr", "ê^|\\@", "bracket_left e bracket_left spc alt_r-6 alt_r-8 alt_r-0"},
		{"fr", "ö~`", "shift-bracket_left o alt_r-2 spc alt_r-7 spc"},
		{"fr", "ß漢", "a keyboard with the layout fr has no key for 'ß', '漢'; nothing was typed"},
	} {
		l, err := FindLayout(tt.layout)
		if err != nil {
			t.Fatal(err)
		}
		if got := typed(l, tt.text); got != tt.want {
			t.Errorf("%s: %s: got %s, want %s", tt.layout, tt.text, got, tt.want)
		}
	}
	if _, err := FindLayout("xx"); err == nil || err.Error() != `there is no keyboard layout "xx", only de, fr, gb, us` {
		t.Errorf("got %v", err)
	}
}

// Each layout types all of ASCII, with keys that exist, and no two characters with the same.
func TestLayoutsAreComplete(t *testing.T) {
	for _, name := range Layouts() {
		l, _ := FindLayout(name)
		by := map[string]rune{}
		for r, chords := range l.types {
			keys := ""
			for _, c := range chords {
				keys += strings.Join(c, "-") + " "
				for _, k := range c {
					if !slices.Contains(names, k) {
						t.Errorf("%s: %c: there is no key %s", name, r, k)
					}
				}
			}
			if other, ok := by[keys]; ok && r > ' ' && other > ' ' && r != 0x7f && other != 0x7f {
				t.Errorf("%s: %s types %c and %c", name, keys, r, other)
			}
			by[keys] = r
		}
		for r := ' '; r <= '~'; r++ {
			if l.types[r] == nil {
				t.Errorf("%s cannot type %c", name, r)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"ctrl-alt-delete", "-", "--", "a-", "0x1c", "Ä", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		chord, err := US.Parse(s)
		if err == nil && len(chord) == 0 {
			t.Errorf("%q: a chord without keys", s)
		}
	})
}
