package starlark

import (
	"fmt"
	"regexp"
	"sort"
	"strings"

	sl "go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
)

// reModule is the module re: Python's functions of that name with the regular
// expressions of Go, which need no time that grows with more than the text.
var reModule = func() *starlarkstruct.Module {
	m := &starlarkstruct.Module{Name: "re", Members: sl.StringDict{}}
	for name, anchored := range map[string]string{"search": `%s`, "match": `^(?:%s)`, "fullmatch": `^(?:%s)$`} {
		m.Members[name] = sl.NewBuiltin("re."+name, func(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
			re, text, err := patternAndText(b, args, kwargs, anchored)
			if err != nil {
				return nil, err
			}
			if at := re.FindStringSubmatchIndex(text); at != nil {
				return &match{re, text, at}, nil
			}
			return sl.None, nil
		})
	}
	m.Members["findall"] = sl.NewBuiltin("re.findall", findAll)
	m.Members["split"] = sl.NewBuiltin("re.split", reSplit)
	m.Members["sub"] = sl.NewBuiltin("re.sub", reSub)
	m.Members["escape"] = sl.NewBuiltin("re.escape", func(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		var text string
		if err := unpack(b, args, kwargs, "text", &text); err != nil {
			return nil, err
		}
		return sl.String(regexp.QuoteMeta(text)), nil
	})
	return m
}()

// compile makes a pattern one of Go. anchored is for re.match and re.fullmatch, whose
// flags, such as (?m), must not make ^ and $ match at lines.
func compile(b *sl.Builtin, pattern, anchored string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(pattern); err != nil {
		return nil, usagef("%s: %v", b.Name(), err)
	}
	anchored = strings.NewReplacer("^", `\A`, "$", `\z`).Replace(anchored)
	re, err := regexp.Compile(fmt.Sprintf(anchored, pattern))
	if err != nil {
		return nil, usagef("%s: %v", b.Name(), err)
	}
	return re, nil
}

func patternAndText(b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple, anchored string) (*regexp.Regexp, string, error) {
	var pattern, text string
	if err := unpack(b, args, kwargs, "pattern", &pattern, "text", &text); err != nil {
		return nil, "", err
	}
	re, err := compile(b, pattern, anchored)
	return re, text, err
}

// findAll is re.findall(pattern, text): all matches, or of a pattern with groups what
// is in them, as a tuple if there are several.
func findAll(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	re, text, err := patternAndText(b, args, kwargs, "%s")
	if err != nil {
		return nil, err
	}
	var found []sl.Value
	for _, m := range re.FindAllStringSubmatch(text, -1) {
		switch groups := m[1:]; len(groups) {
		case 0:
			found = append(found, sl.String(m[0]))
		case 1:
			found = append(found, sl.String(groups[0]))
		default:
			var t sl.Tuple
			for _, g := range groups {
				t = append(t, sl.String(g))
			}
			found = append(found, t)
		}
	}
	return sl.NewList(found), nil
}

// reSplit is re.split(pattern, text, maxsplit=0).
func reSplit(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var pattern, text string
	most := 0
	if err := unpack(b, args, kwargs, "pattern", &pattern, "text", &text, "maxsplit?", &most); err != nil {
		return nil, err
	}
	re, err := compile(b, pattern, "%s")
	if err != nil {
		return nil, err
	}
	n := -1
	if most > 0 {
		n = most + 1
	}
	var parts []sl.Value
	for _, s := range re.Split(text, n) {
		parts = append(parts, sl.String(s))
	}
	return sl.NewList(parts), nil
}

// backReference is a group in the replacement of re.sub: \1, \g<1> or \g<name>.
var backReference = regexp.MustCompile(`\\(?:([0-9]{1,2})|g<(\w+)>|(\\))`)

// reSub is re.sub(pattern, repl, text, count=0). repl is a text, with \1 and \g<name>
// for groups, or a function of the match.
func reSub(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var pattern, text string
	var repl sl.Value
	count := 0
	if err := unpack(b, args, kwargs, "pattern", &pattern, "repl", &repl, "text", &text, "count?", &count); err != nil {
		return nil, err
	}
	re, err := compile(b, pattern, "%s")
	if err != nil {
		return nil, err
	}
	var with func(*match) (string, error)
	switch repl := repl.(type) {
	case sl.String:
		with = func(m *match) (string, error) { return m.expand(b, string(repl)) }
	case sl.Callable:
		with = func(m *match) (string, error) {
			v, err := sl.Call(t, repl, sl.Tuple{m}, nil)
			if err != nil {
				return "", err
			}
			s, ok := sl.AsString(v)
			if !ok {
				return "", usagef("%s: repl returned %s, not a string", b.Name(), what(v))
			}
			return s, nil
		}
	default:
		return nil, usagef("%s: repl must be a string or a function, not %s", b.Name(), what(repl))
	}
	var out strings.Builder
	end := 0
	limit := -1
	if count > 0 {
		limit = count
	}
	for _, at := range re.FindAllStringSubmatchIndex(text, limit) {
		s, err := with(&match{re, text, at})
		if err != nil {
			return nil, err
		}
		out.WriteString(text[end:at[0]] + s)
		end = at[1]
	}
	return sl.String(out.String() + text[end:]), nil
}

// A match is what re.search and the like return.
type match struct {
	re   *regexp.Regexp
	text string
	at   []int // as regexp.FindStringSubmatchIndex has it
}

var _ sl.HasAttrs = (*match)(nil)

func (m *match) String() string {
	return fmt.Sprintf("<match %s>", shorten(sl.String(m.whole()).String(), 60))
}
func (m *match) Type() string          { return "match" }
func (m *match) Freeze()               {}
func (m *match) Truth() sl.Bool        { return true }
func (m *match) Hash() (uint32, error) { return 0, usagef("a match cannot be the key of a dict") }

func (m *match) whole() string { return m.text[m.at[0]:m.at[1]] }

// matchMethods are the methods of a match; each takes the call's arguments.
var matchMethods = map[string]func(*match, *sl.Builtin, sl.Tuple, []sl.Tuple) (sl.Value, error){
	"group": func(m *match, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		if len(kwargs) > 0 {
			return nil, usagef("%s takes no arguments by name", b.Name())
		}
		if len(args) == 0 {
			args = sl.Tuple{sl.MakeInt(0)}
		}
		var out sl.Tuple
		for _, a := range args {
			n, err := m.index(b, a)
			if err != nil {
				return nil, err
			}
			out = append(out, m.group(n))
		}
		if len(out) == 1 {
			return out[0], nil
		}
		return out, nil
	},
	"groups": func(m *match, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		if err := unpack(b, args, kwargs); err != nil {
			return nil, err
		}
		out := sl.Tuple{}
		for n := 1; n <= m.re.NumSubexp(); n++ {
			out = append(out, m.group(n))
		}
		return out, nil
	},
	"groupdict": func(m *match, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		if err := unpack(b, args, kwargs); err != nil {
			return nil, err
		}
		out := sl.NewDict(0)
		for n, name := range m.re.SubexpNames() {
			if name != "" {
				out.SetKey(sl.String(name), m.group(n))
			}
		}
		return out, nil
	},
	"start": func(m *match, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		return m.edge(b, args, kwargs, 0)
	},
	"end": func(m *match, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		return m.edge(b, args, kwargs, 1)
	},
}

func (m *match) AttrNames() []string {
	var names []string
	for name := range matchMethods {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (m *match) Attr(name string) (sl.Value, error) {
	method, ok := matchMethods[name]
	if !ok {
		return nil, nil
	}
	return sl.NewBuiltin("match."+name, func(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		return method(m, b, args, kwargs)
	}), nil
}

// group is what the n-th group matched: None if it took no part.
func (m *match) group(n int) sl.Value {
	if m.at[2*n] < 0 {
		return sl.None
	}
	return sl.String(m.text[m.at[2*n]:m.at[2*n+1]])
}

// index is the number of a group that is given by its number or its name.
func (m *match) index(b *sl.Builtin, v sl.Value) (int, error) {
	if name, ok := sl.AsString(v); ok {
		if n := m.re.SubexpIndex(name); n >= 0 {
			return n, nil
		}
	} else if n, err := sl.AsInt32(v); err == nil && n >= 0 && n <= m.re.NumSubexp() {
		return n, nil
	}
	return 0, usagef("%s: the pattern has no group %s", b.Name(), v)
}

// edge is where a group begins or ends, in bytes as all of Starlark's texts; -1 if it
// took no part.
func (m *match) edge(b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple, which int) (sl.Value, error) {
	group := sl.Value(sl.MakeInt(0))
	if err := unpack(b, args, kwargs, "group?", &group); err != nil {
		return nil, err
	}
	n, err := m.index(b, group)
	if err != nil {
		return nil, err
	}
	return sl.MakeInt(m.at[2*n+which]), nil
}

// expand puts groups into a replacement.
func (m *match) expand(b *sl.Builtin, repl string) (string, error) {
	var failed error
	text := backReference.ReplaceAllStringFunc(repl, func(s string) string {
		ref := backReference.FindStringSubmatch(s)
		if ref[3] != "" {
			return `\`
		}
		var v sl.Value = sl.String(ref[2])
		var n int
		if _, err := fmt.Sscan(ref[1]+ref[2], &n); err == nil {
			v = sl.MakeInt(n)
		}
		n, err := m.index(b, v)
		if err != nil {
			failed = err
			return ""
		}
		group, _ := sl.AsString(m.group(n))
		return group
	})
	return text, failed
}
