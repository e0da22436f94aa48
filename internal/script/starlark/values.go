package starlark

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	sl "go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/operation"
)

// plain makes a Starlark value into one that operations take.
func plain(v sl.Value) any {
	switch v := v.(type) {
	case sl.NoneType:
		return nil
	case sl.Bool:
		return bool(v)
	case sl.String:
		return string(v)
	case sl.Bytes:
		return []byte(v)
	case sl.Float:
		return float64(v)
	case sl.Int:
		if i, ok := v.Int64(); ok {
			return i
		}
	case *sl.List:
		return plainList(v)
	case sl.Tuple:
		return plainList(v)
	case machineList:
		return plainList(v)
	case *sl.Dict:
		dict := map[string]any{}
		for k, x := range v.Entries() {
			key, ok := sl.AsString(k)
			if !ok {
				return operation.Opaque("dict with a key that is not a string")
			}
			dict[key] = plain(x)
		}
		return dict
	case *starlarkstruct.Struct:
		fields := map[string]any{}
		for _, name := range v.AttrNames() {
			x, err := v.Attr(name)
			if err != nil {
				return operation.Opaque(v.Type())
			}
			fields[name] = plain(x)
		}
		return fields
	case *machine:
		return operation.MachineName(v.name())
	case *image:
		return v.source
	case *object:
		if h, ok := v.of.(operation.Handle); ok {
			return h
		}
	}
	return operation.Opaque(v.Type())
}

func plainList(list sl.Iterable) []any {
	out := []any{}
	for x := range sl.Elements(list) {
		out = append(out, plain(x))
	}
	return out
}

// plainArgs are the arguments of a call by t; a function among them runs on t.
func (th *thread) plainArgs(t *sl.Thread, args sl.Tuple, kwargs []sl.Tuple) ([]any, []operation.Named) {
	arg := func(v sl.Value) any {
		if fn, ok := v.(sl.Callable); ok {
			return th.callback(t, fn)
		}
		return plain(v)
	}
	positional := make([]any, len(args))
	for i, a := range args {
		positional[i] = arg(a)
	}
	named := make([]operation.Named, len(kwargs))
	for i, kv := range kwargs {
		named[i] = operation.Named{Name: string(kv[0].(sl.String)), Value: arg(kv[1])}
	}
	return positional, named
}

// value makes the result of an operation, or the argument of a callback, into a
// Starlark value.
func (th *thread) value(v any) sl.Value {
	switch v := v.(type) {
	case nil:
		return sl.None
	case string:
		return sl.String(v)
	case []byte:
		return sl.Bytes(v)
	case bool:
		return sl.Bool(v)
	case int:
		return sl.MakeInt(v)
	case int64:
		return sl.MakeInt64(v)
	case float64:
		return sl.Float(v)
	case []string:
		return listValue(th, v)
	case []any:
		return listValue(th, v)
	case []operation.Handle:
		return listValue(th, v)
	case []operation.MachineName:
		return listValue(th, v)
	case map[string]string:
		return dictValue(th, v)
	case map[string]any:
		return dictValue(th, v)
	case operation.MachineName:
		return &machine{config: attest.MachineConfig{Name: string(v)}}
	case operation.Handle:
		maker := th
		if th.session != nil {
			maker = th.session.owner
		}
		return &object{on: v.On, of: v, maker: maker}
	case operation.Result:
		return result{Result: v}
	}
	panic(fmt.Sprintf("operation result of type %T", v)) // the table has no such type
}

func listValue[T any](th *thread, list []T) sl.Value {
	values := make([]sl.Value, len(list))
	for i, x := range list {
		values[i] = th.value(x)
	}
	return sl.NewList(values)
}

func dictValue[T any](th *thread, m map[string]T) sl.Value {
	dict := sl.NewDict(len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		dict.SetKey(sl.String(k), th.value(m[k]))
	}
	return dict
}

// A result is the pair of status and output that execute returns, with the rest
// as attributes.
type result struct {
	operation.Result
	read *reading // nil: nobody is to know
}

// A reading makes a text of what a command wrote. Each stream is warned of once.
type reading struct {
	text           func(string) string
	stdout, stderr sync.Once
}

func (r result) text(stream string) string {
	if r.read != nil && !utf8.ValidString(stream) {
		once := &r.read.stdout
		if stream == r.Stderr && stream != r.Output {
			once = &r.read.stderr
		}
		once.Do(func() { r.read.text(stream) })
	}
	return operation.Unicode(stream)
}

var (
	_ sl.Sequence   = result{}
	_ sl.Indexable  = result{}
	_ sl.HasAttrs   = result{}
	_ sl.Comparable = result{}
)

func (r result) tuple() sl.Tuple {
	return sl.Tuple{sl.MakeInt(r.Status), sl.String(r.text(r.Output))}
}
func (r result) String() string        { return r.tuple().String() }
func (r result) Type() string          { return "result" }
func (r result) Freeze()               {}
func (r result) Truth() sl.Bool        { return true }
func (r result) Hash() (uint32, error) { return r.tuple().Hash() }
func (r result) Len() int              { return 2 }
func (r result) Index(i int) sl.Value  { return r.tuple()[i] }
func (r result) Iterate() sl.Iterator  { return r.tuple().Iterate() }
func (r result) AttrNames() []string {
	return []string{"duration", "exit_code", "stderr", "stderr_bytes", "stdout", "stdout_bytes"}
}

func (r result) CompareSameType(op syntax.Token, y sl.Value, depth int) (bool, error) {
	return r.tuple().CompareSameType(op, y.(result).tuple(), depth)
}

func (r result) Attr(name string) (sl.Value, error) {
	switch name {
	case "exit_code":
		return sl.MakeInt(r.ExitCode), nil
	case "stdout":
		return sl.String(r.text(r.Stdout)), nil
	case "stdout_bytes":
		return sl.Bytes(r.Stdout), nil
	case "stderr":
		return sl.String(r.text(r.Stderr)), nil
	case "stderr_bytes":
		return sl.Bytes(r.Stderr), nil
	case "duration":
		return sl.Float(r.Duration.Seconds()), nil
	}
	return nil, nil
}

// describe names a value in an error, briefly.
func describe(v sl.Value) string {
	if m, ok := v.(*machine); ok {
		return m.name()
	}
	return shorten(v.String(), 60)
}

// shorten cuts the middle out of a long text.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	head, tail := s[:limit/2], s[len(s)-limit/2:]
	return strings.ToValidUTF8(head, "") + " … " + strings.ToValidUTF8(tail, "")
}
