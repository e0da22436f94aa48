package starlark

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	sl "go.starlark.net/starlark"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// An object is anything else than a machine that has operations: a Handle that
// an operation has returned, or a kind's global object.
type object struct {
	on    operation.On
	of    any     // a Handle; nil for the global object
	maker *thread // asks for properties, which know no thread; nil for the global object
}

var _ sl.HasAttrs = (*object)(nil)

func (o *object) String() string {
	if h, ok := o.of.(operation.Handle); ok && h.Name != "" {
		return fmt.Sprintf("<%s %s>", o.on, h.Name)
	}
	return fmt.Sprintf("<%s>", o.on)
}

func (o *object) Type() string          { return o.on.String() }
func (o *object) Freeze()               {} // nothing that a script could change
func (o *object) Truth() sl.Bool        { return true }
func (o *object) Hash() (uint32, error) { return 0, usagef("a %s cannot be the key of a dict", o.on) }

func (o *object) AttrNames() []string {
	names := operation.Names(o.on)
	sort.Strings(names)
	return names
}

func (o *object) Attr(name string) (sl.Value, error) {
	op := operation.Find(o.on, name)
	switch {
	case op == nil:
		return nil, noOperation(o.on, name)
	case !op.Property:
		return operate(o.on.String(), o.of, op), nil
	case o.maker == nil:
		return nil, noLab(o.on.String() + "." + name)
	}
	return o.maker.property(o.of, op)
}

// property is what an object says at once.
func (th *thread) property(of any, o *operation.Operation) (sl.Value, error) {
	args, err := o.Bind(nil, nil)
	if err != nil {
		return nil, err
	}
	v, err := th.lab.Invoke(th.ctx, of, o, args)
	if err != nil {
		return nil, &operation.Error{Operation: o.Name, Err: err}
	}
	return th.value(v), nil
}

func noOperation(on operation.On, name string) error {
	return usagef("%s has no operation %s%s", on, name, operation.DidYouMean(name, operation.Names(on)))
}

func noLab(name string) error {
	return usagef("%s: machines exist only while setup(), a test or main() runs; this is the top level of the file", name)
}

// operate is an operation of an object as a function. owner is what a call is
// shown with; it is empty for operations of the lab.
func operate(owner string, on any, o *operation.Operation) *sl.Builtin {
	name := o.Name
	if owner != "" {
		name = owner + "." + o.Name
	}
	return sl.NewBuiltin(name, func(t *sl.Thread, _ *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		th := threadOf(t)
		if th.lab == nil {
			return nil, noLab(name)
		}
		bound, err := th.bind(t, o, args, kwargs)
		if err != nil {
			return nil, err
		}
		var v any
		ctx := event.WithPosition(th.ctx, th.position(t))
		th.unlocked(func() { v, err = th.lab.Invoke(ctx, on, o, bound) })
		var inner *script.Error
		switch {
		case errors.As(err, &inner):
			return nil, err // of a callback, with its place
		case err != nil:
			machine, _ := on.(operation.MachineName)
			return nil, &operation.Error{Machine: string(machine), Operation: o.Name, Err: err}
		}
		if r, ok := v.(operation.Result); ok {
			return result{r, &reading{text: func(s string) string { return operation.Text(ctx, on, o, s) }}}, nil
		}
		return th.value(v), nil
	})
}

// bind checks the arguments of a call by t. Paths are relative to the file with
// the call.
func (th *thread) bind(t *sl.Thread, o *operation.Operation, args sl.Tuple, kwargs []sl.Tuple) (operation.Args, error) {
	positional, named := th.plainArgs(t, args, kwargs)
	for i, v := range positional {
		if i < len(o.Params) && o.Params[i].Path {
			positional[i] = o.Params[i].Relative(v, th.relative(t))
		}
	}
	for i, n := range named {
		at := slices.IndexFunc(o.Params, func(p operation.Param) bool { return p.Name == n.Name && p.Path })
		if at >= 0 {
			named[i].Value = o.Params[at].Relative(n.Value, th.relative(t))
		}
	}
	return o.Bind(positional, named)
}

// callback is a function that an operation which t calls may call, as often as
// it likes and from any goroutine while it runs itself. Each call is a thread of
// its own whose operations end with the context that it is given.
func (th *thread) callback(t *sl.Thread, fn sl.Callable) operation.Func {
	at := th.child(t, th.ctx)
	return func(ctx context.Context, args ...any) (any, error) {
		c := *at
		c.ctx = ctx
		values := make([]sl.Value, len(args))
		for i, a := range args {
			values[i] = c.value(a)
		}
		v, err := c.call(fn, values...)
		if err != nil {
			return nil, err
		}
		return plain(v), nil
	}
}
