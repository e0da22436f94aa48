package starlark

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

func assertf(format string, args ...any) error { return &AssertError{fmt.Sprintf(format, args...)} }

// fail(text) ends the test.
func fail(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var text string
	if err := unpack(b, args, kwargs, "text", &text); err != nil {
		return nil, err
	}
	return nil, assertf("%s", text)
}

// assert_eq(got, want)
func assertEq(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var got, want sl.Value
	if err := unpack(b, args, kwargs, "got", &got, "want", &want); err != nil {
		return nil, err
	}
	// The pair that execute returns is compared as the pair that it is.
	got, want = asTuple(got), asTuple(want)
	equal, err := sl.Equal(got, want)
	if err != nil || equal {
		return sl.None, err
	}
	return nil, assertf("assert_eq: %s", difference(got, want))
}

func asTuple(v sl.Value) sl.Value {
	if r, ok := v.(result); ok {
		return r.tuple()
	}
	return v
}

// Values that are longer than this, or have several lines, are shown as a diff, too.
const shortValue = 100

// difference shows both values in one line, which is all that some reports show, and
// below it what differs, where the line cannot.
func difference(got, want sl.Value) string {
	g, w := got.String(), want.String()
	gType, wType := "", ""
	if got.Type() != want.Type() {
		gType, wType = " ("+got.Type()+")", " ("+want.Type()+")"
	}
	line := fmt.Sprintf("got %s%s, want %s%s", shorten(g, shortValue), gType, shorten(w, shortValue), wType)
	gl, wl := layOut(got), layOut(want)
	_, text := got.(sl.String)
	lines := max(strings.Count(gl, "\n"), strings.Count(wl, "\n"))
	if gType != "" || max(len(g), len(w)) <= shortValue && !(text && lines > 1) {
		return line
	}
	return line + "\n" + clip(strings.TrimSuffix(string(diff.Diff("want", []byte(wl), "got", []byte(gl))), "\n"))
}

// layOut writes a value on several lines, so that a diff shows what differs in
// it: a string as its lines, a list or dict with an element to each.
func layOut(v sl.Value) string {
	var b strings.Builder
	switch v := v.(type) {
	case sl.String:
		return string(v)
	case *sl.Dict:
		for k, x := range v.Entries() {
			fmt.Fprintf(&b, "%s: %s\n", k, x)
		}
	case *sl.List:
		for x := range v.Elements() {
			fmt.Fprintf(&b, "%s\n", x)
		}
	default:
		return v.String() + "\n"
	}
	return b.String()
}

// assert_contains(text, part): part in text, for everything that has "in".
func assertContains(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var text, part sl.Value
	if err := unpack(b, args, kwargs, "text", &text, "part", &part); err != nil {
		return nil, err
	}
	in, err := sl.Binary(syntax.IN, part, text)
	if err != nil {
		return nil, usagef("assert_contains: cannot look for %s in %s", what(part), what(text))
	}
	if in.Truth() {
		return sl.None, nil
	}
	return nil, assertf("assert_contains: %s is not in %s", clip(part.String()), quoted(text))
}

// what names a value's type with an article.
func what(v sl.Value) string { return "a " + v.Type() }

// assert_matches(text, regexp): a match anywhere in the text.
func assertMatches(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var text, pattern string
	if err := unpack(b, args, kwargs, "text", &text, "regexp", &pattern); err != nil {
		return nil, err
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, usagef("assert_matches: %v", err)
	}
	if re.MatchString(text) {
		return sl.None, nil
	}
	return nil, assertf("assert_matches: %q does not match %s", pattern, quoted(sl.String(text)))
}

// quoted shows a value, a text of several lines as these.
func quoted(v sl.Value) string {
	if s, ok := sl.AsString(v); ok && strings.Contains(strings.TrimSuffix(s, "\n"), "\n") {
		return "this text:\n\t" + strings.ReplaceAll(strings.TrimSuffix(clip(s), "\n"), "\n", "\n\t")
	}
	return clip(v.String())
}

// clip keeps an error readable when a value is huge.
func clip(s string) string { return shorten(s, 8<<10) }
