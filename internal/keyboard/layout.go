package keyboard

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A Layout is what the keys of a keyboard type: that which the guest has been told to expect. The
// names of keys stay those of a US keyboard.
type Layout struct {
	Name  string
	types map[rune][]Chord // the chords that type a character, one after the other
}

// US is the layout that a Linux guest expects unless it has been told otherwise.
var US = newLayout("us", "")

// layouts are all, by their names, which are those of XKB and of Linux's console keymaps.
var layouts = func() map[string]*Layout {
	all := map[string]*Layout{US.Name: US}
	for name, rows := range differences {
		all[name] = newLayout(name, rows)
	}
	return all
}()

// differences are what keys type in other layouts than US: the key, and the characters with no
// modifier, with shift, and with AltGr; "-" is none. A dead key, whose character takes a
// blank to appear, is followed by "dead" and the letters that it changes.
var differences = map[string]string{
	"gb": `
2 2 " -
3 3 £ -
4 4 $ €
apostrophe ' @ -
grave_accent ` + "`" + ` ¬ ¦
backslash # ~ -
less \ | -
`,
	"de": `
grave_accent ^ ° - dead aâeêiîoôuûAÂEÊIÎOÔUÛ
1 1 ! -
2 2 " ²
3 3 § ³
6 6 & -
7 7 / {
8 8 ( [
9 9 ) ]
0 0 = }
minus ß ? \
equal ´ - - dead aáeéiíoóuúyýAÁEÉIÍOÓUÚYÝ
q q Q @
e e E €
y z Z -
z y Y -
bracket_left ü Ü -
bracket_right + * ~
semicolon ö Ö -
apostrophe ä Ä -
backslash # ' -
less < > |
m m M µ
comma , ; -
dot . : -
slash - _ -
shift+equal ` + "`" + ` - - dead aàeèiìoòuùAÀEÈIÌOÒUÙ
`,
	"fr": `
grave_accent ² - -
1 & 1 -
2 é 2 -
3 " 3 #
4 ' 4 {
5 ( 5 [
6 - 6 |
7 è 7 -
8 _ 8 \
9 ç 9 -
0 à 0 @
minus ) ° ]
equal = + }
q a A -
w z Z -
e e E €
a q Q -
z w W -
bracket_left ^ - - dead aâeêiîoôuûAÂEÊIÎOÔUÛ
bracket_right $ £ -
semicolon m M -
apostrophe ù % -
backslash * µ -
less < > -
m , ? -
comma ; . -
dot : / -
slash ! § -
alt_r+2 ~ - - dead nñaãoõNÑAÃOÕ
alt_r+7 ` + "`" + ` - - dead aàeèiìoòuùAÀEÈIÌOÒUÙ
shift+bracket_left ¨ - - dead aäeëiïoöuüAÄEËIÏOÖUÜ
`,
}

// A deadKey changes the letter that follows: each of a pair into the other.
type deadKey struct {
	chord   Chord
	letters []rune
}

// newLayout is the US layout, in which rows of differences replace keys.
func newLayout(name, rows string) *Layout {
	l := &Layout{Name: name, types: map[rune][]Chord{}}
	changed := map[string]bool{}
	var lines [][]string
	var dead []deadKey
	for line := range strings.Lines(rows) {
		if f := strings.Fields(line); len(f) > 0 {
			lines = append(lines, f)
			changed[f[0]] = true
		}
	}
	for r := rune(1); r < 128; r++ {
		if c := character(r); c != nil && !changed[c[len(c)-1]] {
			l.types[r] = []Chord{c}
		}
	}
	for _, f := range lines {
		keys := strings.Split(f[0], "+")
		for i, modifier := range []string{"", "shift", "alt_r"} {
			r := []rune(f[i+1])[0]
			if r == '-' && !(i == 0 && (f[0] == "slash" && name == "de" || f[0] == "6" && name == "fr")) {
				continue
			}
			c := Chord(keys)
			if modifier != "" {
				c = append(Chord{modifier}, keys...)
			}
			if i > 0 || len(f) == 4 {
				l.types[r] = []Chord{c}
				continue
			}
			l.types[r] = []Chord{c, {"spc"}}
			dead = append(dead, deadKey{c, []rune(f[5])})
		}
	}
	for _, d := range dead {
		for j := 0; j+1 < len(d.letters); j += 2 {
			if plain, changed := d.letters[j], d.letters[j+1]; l.types[changed] == nil {
				l.types[changed] = append([]Chord{d.chord}, l.types[plain]...)
			}
		}
	}
	return l
}

// Layouts are the names of all layouts.
func Layouts() []string { return slices.Sorted(maps.Keys(layouts)) }

// FindLayout returns the layout of a name; an empty one is US.
func FindLayout(name string) (*Layout, error) {
	if name == "" {
		return US, nil
	}
	if l := layouts[name]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("there is no keyboard layout %q, only %s", name, strings.Join(Layouts(), ", "))
}

// Text is the chords that type a text. If some characters cannot be typed the error names
// those.
func (l *Layout) Text(text string) ([]Chord, error) {
	var chords []Chord
	var unknown []string
	for _, r := range text {
		c := l.types[r]
		if q := strconv.QuoteRune(r); c == nil && !slices.Contains(unknown, q) {
			unknown = append(unknown, q)
		}
		chords = append(chords, c...)
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("a keyboard with the layout %s has no key for %s; nothing was typed", l.Name, strings.Join(unknown, ", "))
	}
	return chords, nil
}
