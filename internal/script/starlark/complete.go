package starlark

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	sl "go.starlark.net/starlark"

	"github.com/attest-vm/attest/internal/operation"
)

var (
	wordAtEnd = regexp.MustCompile(`(?:[A-Za-z_]\w*\.)*(?:[A-Za-z_]\w*)?$`)
	openCall  = regexp.MustCompile(`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\($`)
	stringLit = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'`)
)

// Complete says how the text before the cursor can go on: head is the part that
// stays, and each of words is one that can stand behind it.
func (s *Session) Complete(text string) (head string, words []string) {
	if rest := stringLit.ReplaceAllString(text, ""); strings.ContainsAny(rest, `"'#`) {
		return text, nil // in a string or a comment
	}
	word := wordAtEnd.FindString(text)
	head = strings.TrimSuffix(text, word)
	dot := strings.LastIndexByte(word, '.')
	if dot < 0 {
		value := func(name string) sl.Value { return s.globals[name] }
		if words = s.matching(s.parameters(head), word, value); len(words) > 0 && word != "" {
			return head, words
		}
		all := slices.Concat(slices.Collect(maps.Keys(s.globals)), universe())
		return head, append(words, s.matching(all, word, value)...)
	}
	owner, _ := s.lookUp(word[:dot]).(sl.HasAttrs)
	if owner == nil {
		return text, nil
	}
	head += word[:dot+1]
	return head, s.matching(owner.AttrNames(), word[dot+1:], func(name string) sl.Value {
		if o, ok := owner.(*object); ok {
			if op := operation.Find(o.on, name); op != nil && op.Property {
				return nil // asking for it would run it
			}
		}
		v, _ := owner.Attr(name)
		return v
	})
}

// lookUp is the value of a name with dots; nil if there is none.
func (s *Session) lookUp(path string) sl.Value {
	first, rest, more := strings.Cut(path, ".")
	v := s.globals[first]
	for more && v != nil {
		owner, ok := v.(sl.HasAttrs)
		if !ok {
			return nil
		}
		first, rest, more = strings.Cut(rest, ".")
		if v, _ = owner.Attr(first); v == nil {
			return nil
		}
	}
	return v
}

// matching are the words that begin with prefix, those of functions with an
// opening parenthesis.
func (s *Session) matching(words []string, prefix string, value func(string) sl.Value) []string {
	var out []string
	for _, w := range words {
		if !strings.HasPrefix(w, prefix) || w == prefix && prefix != "" && !strings.HasSuffix(w, "=") && value(w) == nil {
			continue
		}
		if _, ok := value(w).(sl.Callable); ok {
			w += "("
		}
		out = append(out, w)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// parameters are those of the operation in whose call the text ends, as
// "timeout=".
func (s *Session) parameters(text string) []string {
	rest := stringLit.ReplaceAllString(text, "")
	depth := 0
	for i := len(rest) - 1; i >= 0; i-- {
		switch rest[i] {
		case ')', ']', '}':
			depth++
		case '[', '{':
			depth--
		case '(':
			if depth--; depth >= 0 {
				continue
			}
			call := openCall.FindStringSubmatch(rest[:i+1])
			if call == nil {
				return nil
			}
			b, ok := s.lookUp(call[1]).(*sl.Builtin)
			if !ok {
				return nil
			}
			return parametersOf(b)
		}
	}
	return nil
}

func parametersOf(b *sl.Builtin) []string {
	o := operationOf(b)
	if o == nil {
		return nil
	}
	var out []string
	for _, p := range o.Params {
		if !p.Variadic {
			out = append(out, p.Name+"=")
		}
	}
	return out
}

// operationOf is the operation that a function stands for, or machine(…); nil for
// any other.
func operationOf(b *sl.Builtin) *operation.Operation {
	name := b.Name()[strings.LastIndexByte(b.Name(), '.')+1:]
	for _, on := range operation.Kinds() {
		if o := operation.Find(on, name); o != nil {
			return o
		}
	}
	if name == operation.DeclareMachine.Name {
		return operation.DeclareMachine
	}
	return nil
}
