package operation

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/vmm"
)

// The values that Bind takes are those that every front end has: nil (None),
// bool, int64, float64, string, []byte, []any, map[string]any, MachineName, Func,
// Handle, attest.Image, and these two.

// Opaque is a value that no parameter takes, such as a set. It is the name of
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
	values    map[string]any // as convert makes them, nil for None; []string of a variadic one
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
	call := b.Signature()
	if len(call) > maxCall || b.Result == Image {
		call = b.Name + "(…)"
	}
	return &ArgumentError{call, fmt.Sprintf(format, args...)}
}

// maxCall is how long a signature in an error may be.
const maxCall = 160

func (b binder) bind(positional []any, named []Named) error {
	if err := b.checkCount(len(positional)); err != nil {
		return err
	}
	for i, p := range b.Params {
		if p.Variadic {
			if err := b.bindRest(p, positional[min(i, len(positional)):]); err != nil {
				return err
			}
			break
		}
		if i < len(positional) {
			if err := b.set(p, positional[i]); err != nil {
				return err
			}
		}
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

// checkCount refuses more arguments by position than there are positions.
func (b binder) checkCount(given int) error {
	for i, p := range b.Params {
		switch {
		case p.Variadic:
			return nil
		case p.Named && given > i:
			return b.errorf("takes at most %d positional arguments, not %d; give the others by name", i, given)
		}
	}
	if given > len(b.Params) {
		return b.errorf("takes at most %d arguments, not %d", len(b.Params), given)
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
	c, err := p.Type.convert(v)
	if err == nil && c == nil {
		err = fmt.Errorf("must be %s, not %s", p.Type.phrase(), Describe(v))
	}
	if err == nil && p.Check != nil && !partlyUnknown(v) {
		err = p.Check(c)
	}
	if err == nil {
		return c, nil
	}
	if reason := err.Error(); strings.HasPrefix(reason, "must be ") {
		return nil, fmt.Errorf("%s %s", p.Name, reason)
	}
	return nil, fmt.Errorf("%s: %w", p.Name, err)
}

// partlyUnknown reports whether a value is a list of which not all is known yet.
func partlyUnknown(v any) bool {
	list, _ := v.([]any)
	return slices.ContainsFunc(list, func(x any) bool { _, is := x.(unknown); return is })
}

// convert returns nil, without an error, for a value of another type.
func (t Type) convert(v any) (any, error) {
	switch t {
	case String, Kernel:
		return as[string](v), nil
	case Bytes:
		if s, ok := v.(string); ok {
			return []byte(s), nil
		}
		return as[[]byte](v), nil
	case Bool:
		return as[bool](v), nil
	case Int:
		if i, ok := v.(int64); ok {
			return int(i), nil
		}
	case Float:
		if i, ok := v.(int64); ok {
			return float64(i), nil
		}
		return as[float64](v), nil
	case Duration:
		switch v.(type) {
		case int64, float64, string:
			return ParseDuration(v)
		}
	case Size:
		if s, ok := v.(string); ok {
			return vmm.ParseSize(s)
		}
	case Disk:
		if serial, ok := v.(string); ok {
			return attest.Disk{Serial: serial}, nil
		}
		return as[attest.Disk](v), nil
	case Disks:
		return listOf[attest.Disk](v, "a disk(…)")
	case Strings:
		return listOf[string](v, "a string")
	case List:
		if _, one := v.(string); !one {
			return listOf[string](v, "a string")
		}
	case Destinations:
		return destinationsOf(v)
	case Machines:
		return listOf[MachineName](v, "a machine")
	case AnyDict:
		return as[map[string]any](v), nil
	case Dict, Paths:
		return dictOf(v)
	case Files:
		return filesOf(v)
	case Ints:
		return intsOf(v)
	case Image:
		return as[attest.Image](v), nil
	case Function:
		return as[Func](v), nil
	case Filter:
		switch v.(type) {
		case string, map[string]any, Func:
			return v, nil
		}
	}
	if h, ok := v.(Handle); ok && h.On.String() == string(t) {
		return h, nil
	}
	return nil, nil
}

// as is v if it is a T, and nil otherwise.
func as[T any](v any) any {
	if _, ok := v.(T); ok {
		return v
	}
	return nil
}

// listOf takes one value of a type, or a list of them. What is not known yet is
// left out.
func listOf[T any](v any, what string) (any, error) {
	if one, ok := v.(T); ok {
		return []T{one}, nil
	}
	list, ok := v.([]any)
	if !ok {
		return nil, nil
	}
	out := []T{}
	for _, x := range list {
		if one, ok := x.(T); ok {
			out = append(out, one)
		} else if x != Unknown {
			return nil, fmt.Errorf("%s in the list is not %s", Describe(x), what)
		}
	}
	return out, nil
}

func intsOf(v any) (any, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, nil
	}
	out := []int{}
	for _, x := range list {
		if i, ok := x.(int64); ok {
			out = append(out, int(i))
		} else if x != Unknown {
			return nil, fmt.Errorf("%s in the list is not an integer", Describe(x))
		}
	}
	return out, nil
}

func dictOf(v any) (any, error) {
	dict, ok := v.(map[string]any)
	if !ok {
		return nil, nil
	}
	out := map[string]string{}
	for k, x := range dict {
		s, ok := x.(string)
		if !ok && x != Unknown {
			return nil, fmt.Errorf("the value of %q must be a string, not %s", k, Describe(x))
		}
		out[k] = s
	}
	return out, nil
}

func (t Type) phrase() string {
	switch t {
	case Bool:
		return "True or False"
	case Int:
		return "an integer"
	case Image:
		return "an image: debian(…), rootfs(…) or disk(…)"
	case Kernel:
		return `the path of a kernel, or "debian:PACKAGE"`
	case Destinations:
		return "True, False or a list of destinations"
	case Ints:
		return "a list of numbers, such as [1, 2]"
	case Files:
		return "a dict of paths in the guest and contents"
	case Paths:
		return "a dict of paths in the guest and paths of the host"
	case Disk:
		return "a disk(…), or the serial of one"
	case Disks:
		return "a list of disk(…)"
	case Size:
		return `a size such as "512M" or "2G"`
	case Duration:
		return `a duration (a number of seconds, or a string such as "200ms")`
	}
	return "a " + string(t)
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
	case []byte:
		return "bytes"
	case []any:
		return "a list"
	case map[string]any:
		return "a dict"
	case MachineName:
		return "machine " + string(v)
	case Func:
		return "a function"
	case Handle:
		return "a " + v.On.String()
	case attest.Image:
		return "an image"
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

// Float is the argument, or the parameter's default.
func (a Args) Float(name string) float64 { return get[float64](a, name) }

// Bytes is the argument; nil if it is not given.
func (a Args) Bytes(name string) []byte { return get[[]byte](a, name) }

// Strings are the arguments of a variadic parameter, or the strings of a list.
func (a Args) Strings(name string) []string { return get[[]string](a, name) }

// Ints are the numbers of a list; nil if it is not given.
func (a Args) Ints(name string) []int { return get[[]int](a, name) }

// Dict is the argument; nil if it is not given.
func (a Args) Dict(name string) map[string]string { return get[map[string]string](a, name) }

// Machines are the argument's machines in the lab of the call.
func (a Args) Machines(t target, name string) ([]*attest.Machine, error) {
	names := get[[]MachineName](a, name)
	out := make([]*attest.Machine, len(names))
	for i, n := range names {
		if out[i] = t.lab.Machine(string(n)); out[i] == nil {
			return nil, fmt.Errorf("the lab has no machine %q", n)
		}
	}
	return out, nil
}

// Handle is the argument, of the type that its kind has.
func (a Args) Handle(name string) Handle { return get[Handle](a, name) }

// Func is the argument; nil if it is not given.
func (a Args) Func(name string) Func { return get[Func](a, name) }

// Given reports whether the caller gave the argument, and not as None.
func (a Args) Given(name string) bool { return a.values[name] != nil }

// None reports whether the caller gave the argument as None.
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
