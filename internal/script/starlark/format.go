package starlark

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest/internal/operation"
)

// Starlark's text % values takes conversions such as %s and %d, but no width and no
// precision: "%.1f" is an error. Files get both: in each a % b the left side is given
// to a function of this name, which no file can write, and which makes a text one
// that knows more of %.
const formatName = "(format)"

func init() {
	sl.Universe[formatName] = sl.NewBuiltin(formatName, func(_ *sl.Thread, _ *sl.Builtin, args sl.Tuple, _ []sl.Tuple) (sl.Value, error) {
		if s, ok := args[0].(sl.String); ok {
			return formatText{s}, nil
		}
		return args[0], nil
	})
}

// universe are the names that Starlark itself has.
func universe() []string {
	return slices.DeleteFunc(sl.Universe.Keys(), func(name string) bool { return name == formatName || name == askName })
}

// A machine is the same value in all tests of a file, and its guest is another one in
// each. A property such as m.addresses is asked of the guest of the test that runs: in
// each m.addresses the left side is given to a function of this name, which no file can
// write, and which knows that test.
const askName = "(ask)"

func init() {
	sl.Universe[askName] = sl.NewBuiltin(askName, func(t *sl.Thread, _ *sl.Builtin, args sl.Tuple, _ []sl.Tuple) (sl.Value, error) {
		m, ok := args[0].(*machine)
		if !ok {
			return args[0], nil
		}
		asked := *m
		asked.maker = threadOf(t)
		return &asked, nil
	})
}

// extend changes a file that was parsed and not resolved.
func extend(f *syntax.File) {
	called := func(name string, x syntax.Expr) syntax.Expr {
		at := syntax.Start(x)
		return &syntax.CallExpr{Fn: &syntax.Ident{NamePos: at, Name: name}, Lparen: at, Args: []syntax.Expr{x}, Rparen: at}
	}
	syntax.Walk(f, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.DotExpr:
			if o := operation.Find(operation.Machine, n.Name.Name); o != nil && o.Property {
				n.X = called(askName, n.X)
			}
		case *syntax.BinaryExpr:
			if n.Op == syntax.PERCENT {
				n.X = called(formatName, n.X)
			}
		case *syntax.AssignStmt:
			if name, ok := n.LHS.(*syntax.Ident); ok && n.Op == syntax.PERCENT_EQ {
				// It is left to the case above, which comes to it next.
				value := &syntax.Ident{NamePos: name.NamePos, Name: name.Name}
				n.Op, n.RHS = syntax.EQ, &syntax.BinaryExpr{X: value, OpPos: n.OpPos, Op: syntax.PERCENT, Y: n.RHS}
			}
		}
		return true
	})
}

// A formatText is the left side of a %.
type formatText struct{ text sl.String }

func (f formatText) String() string        { return f.text.String() }
func (f formatText) Type() string          { return f.text.Type() }
func (f formatText) Freeze()               {}
func (f formatText) Truth() sl.Bool        { return f.text.Truth() }
func (f formatText) Hash() (uint32, error) { return f.text.Hash() }

func (f formatText) Binary(op syntax.Token, y sl.Value, side sl.Side) (sl.Value, error) {
	if op != syntax.PERCENT || side != sl.Left {
		return nil, nil
	}
	return format(string(f.text), y)
}

// conversion is one of Python's, of which Starlark knows those without flags, width
// and precision.
var conversion = regexp.MustCompile(`^%(\([^)]*\))?([-+ #0]*)([0-9]*)(?:\.([0-9]*))?([a-zA-Z%])`)

// maxWidth bounds the width and the precision of one value.
const maxWidth = 1000

// format is text % values. What Starlark does itself is left to it.
func format(text string, values sl.Value) (sl.Value, error) {
	tuple, several := values.(sl.Tuple)
	if !several {
		tuple = sl.Tuple{values}
	}
	var out strings.Builder
	var left sl.Tuple // of the values, for Starlark
	used, named := 0, false
	for {
		i := strings.IndexByte(text, '%')
		if i < 0 {
			break
		}
		out.WriteString(text[:i])
		text = text[i:]
		c := conversion.FindStringSubmatch(text)
		if c == nil {
			break // Starlark says what is wrong
		}
		text = text[len(c[0]):]
		plain := c[2] == "" && c[3] == "" && !strings.Contains(c[0][:len(c[0])-1], ".")
		value, key := sl.Value(nil), strings.Trim(c[1], "()")
		switch mapping, ok := values.(sl.Mapping); {
		case c[5] == "%":
			out.WriteString(c[0])
			continue
		case c[1] != "" && ok:
			named = true
			if v, found, err := mapping.Get(sl.String(key)); err == nil && found {
				value = v
			}
		case c[1] == "" && used < len(tuple):
			value = tuple[used]
			used++
		}
		if plain || value == nil {
			out.WriteString(c[0])
			if value != nil && c[1] == "" {
				left = append(left, value)
			}
			continue
		}
		formatted, err := convert(c, value)
		if err != nil {
			return nil, err
		}
		out.WriteString(strings.ReplaceAll(formatted, "%", "%%"))
	}
	out.WriteString(text)
	if !named && (several || used > 0 && len(left) < used) {
		values = append(left, tuple[used:]...)
	}
	return sl.Binary(syntax.PERCENT, sl.String(out.String()), values)
}

// convert is a value as a conversion with a flag, a width or a precision has it.
func convert(c []string, value sl.Value) (string, error) {
	flags, width, verb := c[2], c[3], c[5]
	precision := ""
	if strings.Contains(c[0], ".") {
		precision = "." + c[4]
	}
	for _, n := range []string{width, c[4]} {
		if n, err := strconv.Atoi(n); err == nil && n > maxWidth || errorsIsRange(err) {
			return "", usagef("%s: the largest width and precision are %d", c[0], maxWidth)
		}
	}
	bare := func(verb string) (string, error) { // as Starlark has it, or its error
		v, err := sl.Binary(syntax.PERCENT, sl.String("%"+verb), sl.Tuple{value})
		if err != nil {
			return "", err
		}
		return string(v.(sl.String)), nil
	}
	text := func(s string) string {
		if !strings.Contains(flags, "-") {
			return fmt.Sprintf("%"+width+precision+"s", s)
		}
		return fmt.Sprintf("%-"+width+precision+"s", s)
	}
	switch verb {
	case "d", "i", "o", "x", "X":
		if _, err := bare(verb); err != nil {
			return "", err
		}
		n, err := sl.NumberToInt(value)
		if err != nil {
			return "", err
		}
		switch {
		case verb == "i":
			verb = "d"
		case verb == "o" && strings.Contains(flags, "#"):
			verb, flags = "O", strings.ReplaceAll(flags, "#", "")
		}
		return fmt.Sprintf("%"+flags+width+precision+verb, n.BigInt()), nil
	case "e", "E", "f", "F", "g", "G":
		if _, err := bare(verb); err != nil {
			return "", err
		}
		f, ok := sl.AsFloat(value)
		if !ok || math.IsInf(f, 0) || math.IsNaN(f) {
			s, err := bare(verb)
			precision = ""
			return text(s), err
		}
		return fmt.Sprintf("%"+flags+width+precision+verb, f), nil
	}
	s, err := bare(verb)
	if verb != "s" && verb != "r" {
		precision = ""
	}
	return text(s), err
}

// errorsIsRange reports whether a number has more digits than fit.
func errorsIsRange(err error) bool {
	e, ok := err.(*strconv.NumError)
	return ok && e.Err == strconv.ErrRange
}
