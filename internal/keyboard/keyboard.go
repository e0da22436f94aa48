// Package keyboard turns what people write into keys: a key or a chord by its name, and
// text into the chords that type it on a keyboard with some layout.
//
// Keys have the names that QEMU gives them (QKeyCode in qapi/ui.json), which
// the NixOS test driver's scripts use, and some that people expect.
package keyboard

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Chord is keys that are pressed in this order, and then released in the
// reverse order: QKeyCodes, or scan codes such as "0x1c".
type Chord []string

// names are the keys of a PC keyboard.
var names = strings.Fields(`
esc f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12 print sysrq scroll_lock pause
grave_accent 1 2 3 4 5 6 7 8 9 0 minus equal backspace
tab q w e r t y u i o p bracket_left bracket_right backslash
caps_lock a s d f g h j k l semicolon apostrophe ret
shift less z x c v b n m comma dot slash shift_r
ctrl meta_l alt spc alt_r meta_r menu compose ctrl_r
insert delete home end pgup pgdn up down left right
num_lock kp_divide kp_multiply kp_subtract kp_add kp_enter kp_decimal kp_comma kp_equals
kp_0 kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9
help stop again props undo front copy open paste find cut lf
power sleep wake audionext audioprev audiostop audioplay audiomute volumeup volumedown
mediaselect mail calculator computer ac_home ac_back ac_forward ac_refresh ac_bookmarks
muhenkan henkan katakanahiragana hiragana yen ro lang1 lang2
f13 f14 f15 f16 f17 f18 f19 f20 f21 f22 f23 f24`)

// aliases are other names of keys.
var aliases = map[string]string{
	"enter": "ret", "return": "ret", "escape": "esc", "space": "spc", "del": "delete", "ins": "insert",
	"control": "ctrl", "ctrl_l": "ctrl", "alt_l": "alt", "shift_l": "shift", "altgr": "alt_r",
	"meta": "meta_l", "super": "meta_l", "win": "meta_l",
	"pageup": "pgup", "page_up": "pgup", "pagedown": "pgdn", "page_down": "pgdn",
}

// plain and shifted are the keys of characters that are not letters or digits.
var (
	plain = map[rune]string{
		' ': "spc", '\n': "ret", '\t': "tab", '\b': "backspace", '\x7f': "backspace", '\x1b': "esc",
		'-': "minus", '=': "equal", '[': "bracket_left", ']': "bracket_right", '\\': "backslash",
		';': "semicolon", '\'': "apostrophe", '`': "grave_accent", ',': "comma", '.': "dot", '/': "slash",
	}
	shifted = map[rune]string{
		'!': "1", '@': "2", '#': "3", '$': "4", '%': "5", '^': "6", '&': "7", '*': "8", '(': "9", ')': "0",
		'_': "minus", '+': "equal", '{': "bracket_left", '}': "bracket_right", '|': "backslash",
		':': "semicolon", '"': "apostrophe", '~': "grave_accent", '<': "comma", '>': "dot", '?': "slash",
	}
)

// character returns the chord that types r on a US keyboard, or nil.
func character(r rune) Chord {
	switch {
	case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
		return Chord{string(r)}
	case r >= 'A' && r <= 'Z':
		return Chord{"shift", string(unicode.ToLower(r))}
	}
	if key := plain[r]; key != "" {
		return Chord{key}
	}
	if key := shifted[r]; key != "" {
		return Chord{"shift", key}
	}
	return nil
}

// Parse reads a key or a chord: keys joined by "-", such as "ctrl-alt-delete".
// A key is a name, a character that the layout types with one key, or a scan code such as "0x1c".
func (l *Layout) Parse(chord string) (Chord, error) {
	if chord == "" {
		return nil, errors.New("a key is missing")
	}
	var out Chord
	for _, part := range split(chord) {
		keys, err := l.parseKey(part)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", chord, err)
		}
		for _, k := range keys {
			if !slices.Contains(out, k) { // "shift-A" presses it once
				out = append(out, k)
			}
		}
	}
	return out, nil
}

// split cuts at "-", except where that is a key itself: "-" and "ctrl--".
func split(chord string) []string {
	if rest, ok := strings.CutSuffix(chord, "-"); ok {
		if rest == "" {
			return []string{"-"}
		}
		if before, ok := strings.CutSuffix(rest, "-"); ok && before != "" {
			return append(strings.Split(before, "-"), "-")
		}
	}
	return strings.Split(chord, "-")
}

func (l *Layout) parseKey(key string) (Chord, error) {
	if r := []rune(key); len(r) == 1 {
		if c := l.types[r[0]]; len(c) == 1 {
			return c[0], nil
		}
	}
	name := strings.ToLower(key)
	if alias := aliases[name]; alias != "" {
		name = alias
	}
	if slices.Contains(names, name) {
		return Chord{name}, nil
	}
	if code, ok := strings.CutPrefix(name, "0x"); ok {
		if n, err := strconv.ParseUint(code, 16, 8); err == nil && n > 0 {
			return Chord{name}, nil
		}
		return nil, fmt.Errorf("%s is not a scan code; want 0x01 to 0xff", key)
	}
	return nil, &UnknownKeyError{key}
}

// An UnknownKeyError is a name that no key has.
type UnknownKeyError struct{ Key string }

func (e *UnknownKeyError) Error() string {
	return fmt.Sprintf("unknown key %q; keys are named as in QEMU: ret, spc, tab, esc, ctrl, alt, shift, meta_l, delete, up, f1, kp_1, …", e.Key)
}
