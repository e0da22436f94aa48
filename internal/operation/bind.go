package operation

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest"
)

// The values that Bind takes are those that every front end has: nil (None),
// bool, int64, float64, string, and these two.

// Opaque is a value that no parameter takes, such as a list. It is the name of
// its type in the front end.
type Opaque string

// Unknown is a value that is not known yet: it fits everywhere. With it a call
// can be checked before it is made.
var Unknown = unknown{}

type unknown struct{}

// A Named is an argument given by name.
type Named struct {
	Name  string
	Value any
}

// Args are the arguments of one call, checked and converted.
type Args struct {
	operation *Operation
	values    map[string]any // string, bool, int, time.Duration, nil for None; []string of a variadic one
}

// An ArgumentError is a call that does not fit the operation's parameters, or
// an operation that does not exist: a mistake in the test file.
type ArgumentError struct {
	Call   string // the operation's signature, or what was called
	Reason string
}

func (e *ArgumentError) Error() string         { return e.Call + ": " + e.Reason }
func (e *ArgumentError) Status() attest.Status { return attest.Invalid }

// Bind checks the arguments of a call. Its error is an *ArgumentError.
func (o *Operation) Bind(positional []any, named []Named) (Args, error) {
	b := binder{o, map[string]any{}}
	if err := b.bind(positional, named); err != nil {
		return Args{}, err
	}
	return Args{o, b.values}, nil
}

type binder struct {
	*Operation
	values map[string]any
}

func (b binder) errorf(format string, args ...any) error {
	return &ArgumentError{b.Signature(), fmt.Sprintf(format, args...)}
}

func (b binder) bind(positional []any, named []Named) error {
	for i, p := range b.Params {
		if p.Variadic {
			if err := b.bindRest(p, positional[min(i, len(positional)):]); err != nil {
				return err
			}
			positional = nil
			break
		}
		if i < len(positional) {
			if err := b.set(p, positional[i]); err != nil {
				return err
			}
		}
	}
	if len(positional) > len(b.Params) {
		return b.errorf("it takes at most %d, not %d arguments", len(b.Params), len(positional))
	}
	for _, n := range named {
		if err := b.bindNamed(n); err != nil {
			return err
		}
	}
	for _, p := range b.Params {
		if _, given := b.values[p.Name]; !given && p.Default == nil {
			return b.errorf("argument %s is missing", p.Name)
		}
	}
	return nil
}

func (b binder) bindRest(p Param, values []any) error {
	var list []string
	for _, v := range values {
		c, err := p.convert(v)
		if err != nil {
			return b.errorf("%v", err)
		}
		s, _ := c.(string) // Unknown stays empty
		list = append(list, s)
	}
	if list != nil {
		b.values[p.Name] = list
	}
	return nil
}

func (b binder) bindNamed(n Named) error {
	i := slices.IndexFunc(b.Params, func(p Param) bool { return p.Name == n.Name })
	if i < 0 {
		names := make([]string, len(b.Params))
		for i, p := range b.Params {
			names[i] = p.Name
		}
		return b.errorf("there is no argument %q%s", n.Name, DidYouMean(n.Name, names))
	}
	p := b.Params[i]
	if p.Variadic {
		return b.errorf("*%s is given by position, without its name", p.Name)
	}
	if _, given := b.values[p.Name]; given {
		return b.errorf("argument %s is given twice", p.Name)
	}
	return b.set(p, n.Value)
}

func (b binder) set(p Param, v any) error {
	c, err := p.convert(v)
	if err != nil {
		return b.errorf("%v", err)
	}
	b.values[p.Name] = c
	return nil
}

// convert makes a front end's value into one of the parameter's type.
func (p Param) convert(v any) (any, error) {
	switch v.(type) {
	case unknown:
		return nil, nil
	case nil:
		if p.Nullable || p.Default == Absent {
			return nil, nil
		}
	}
	switch p.Type {
	case String:
		if s, ok := v.(string); ok {
			return s, nil
		}
	case Bool:
		if b, ok := v.(bool); ok {
			return b, nil
		}
	case Int:
		if i, ok := v.(int64); ok {
			return int(i), nil
		}
	case Duration:
		switch v.(type) {
		case int64, float64, string:
			d, err := ParseDuration(v)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.Name, err)
			}
			return d, nil
		}
	}
	return nil, fmt.Errorf("%s must be %s, not %s", p.Name, p.Type.phrase(), Describe(v))
}

func (t Type) phrase() string {
	switch t {
	case String:
		return "a string"
	case Bool:
		return "True or False"
	case Int:
		return "an integer"
	case Duration:
		return `a duration (a number of seconds, or a string such as "200ms")`
	}
	return string(t)
}

// Describe names a value in an error.
func Describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		return literal(v)
	case string:
		if len(v) > 60 {
			v = v[:60] + "…"
		}
		return "the string " + strconv.Quote(strings.ToValidUTF8(v, "\uFFFD"))
	case int64:
		return fmt.Sprintf("the number %d", v)
	case float64:
		return fmt.Sprintf("the number %v", v)
	case Opaque:
		return "a value of type " + string(v)
	}
	return fmt.Sprintf("a value of type %T", v)
}

// ParseDuration reads a duration as test files write it: a number of seconds
// (int64 or float64), or a string as time.ParseDuration takes it.
func ParseDuration(v any) (time.Duration, error) {
	var d time.Duration
	switch v := v.(type) {
	case int64:
		return ParseDuration(float64(v))
	case float64:
		if math.IsNaN(v) || math.Abs(v) >= math.MaxInt64/float64(time.Second) {
			return 0, fmt.Errorf("%v seconds is out of range", v)
		}
		d = time.Duration(math.Round(v * float64(time.Second)))
	case string:
		var err error
		if d, err = time.ParseDuration(v); err != nil {
			hint := ""
			if _, isNumber := strconv.ParseFloat(v, 64); isNumber == nil {
				hint = fmt.Sprintf("; for seconds write the number without quotes, or %q", v+"s")
			}
			return 0, fmt.Errorf("%q is not a duration such as \"200ms\" or \"1m30s\"%s", v, hint)
		}
	default:
		return 0, fmt.Errorf("must be %s, not %s", Duration.phrase(), Describe(v))
	}
	if d < 0 {
		return 0, fmt.Errorf("a duration of %v is negative", d)
	}
	return d, nil
}

// String is the argument, or the parameter's default.
func (a Args) String(name string) string { return get[string](a, name) }

// Bool is the argument, or the parameter's default.
func (a Args) Bool(name string) bool { return get[bool](a, name) }

// Int is the argument, or the parameter's default.
func (a Args) Int(name string) int { return get[int](a, name) }

// Duration is the argument, or the parameter's default.
func (a Args) Duration(name string) time.Duration { return get[time.Duration](a, name) }

// Strings are the arguments of a variadic parameter.
func (a Args) Strings(name string) []string { return get[[]string](a, name) }

// Given says whether the caller gave the argument, and not as None.
func (a Args) Given(name string) bool { return a.values[name] != nil }

// None says whether the caller gave the argument as None.
func (a Args) None(name string) bool {
	v, given := a.values[name]
	return given && v == nil
}

// get is the zero value where there is neither an argument nor a default.
func get[T any](a Args, name string) T {
	if v, ok := a.values[name].(T); ok {
		return v
	}
	for _, p := range a.operation.Params {
		if p.Name == name {
			v, _ := p.Default.(T)
			return v
		}
	}
	panic(fmt.Sprintf("operation %s has no parameter %q", a.operation.Name, name))
}
