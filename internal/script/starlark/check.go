package starlark

import (
	"context"

	"go.starlark.net/resolve"
	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// check looks at each operation that the file calls on an object whose kind is
// known for certain, so that a misspelt one is found before anything boots and
// not at the end of a long test.
func (m *module) check(s sources, env sl.StringDict) []*script.Error {
	var errs []*script.Error
	calls := map[*syntax.DotExpr]*syntax.CallExpr{}
	c := checker{m, assignments(m.syntax), env}
	syntax.Walk(m.syntax, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.CallExpr:
			switch fn := n.Fn.(type) {
			case *syntax.DotExpr:
				calls[fn] = n
			case *syntax.Ident:
				if o := c.function(fn); o != nil {
					if err := c.operation(o.On, o.Name, n); err != nil {
						errs = append(errs, s.errorAt(positionOf(fn.NamePos), err))
					}
				}
			}
		case *syntax.DotExpr:
			on, known := c.kind(n.X)
			if !known || on == operation.Machine && n.Name.Name == "name" {
				break
			}
			err := c.operation(on, n.Name.Name, calls[n])
			if err == nil {
				err = c.supported(n)
			}
			if err != nil {
				errs = append(errs, s.errorAt(positionOf(n.Name.NamePos), err))
			}
		}
		return true
	})
	return errs
}

// A checker knows of which kind the objects in a file are.
type checker struct {
	*module
	assigned map[*syntax.Ident]syntax.Expr // by the variable's first occurrence
	env      sl.StringDict                 // what is predeclared, machines of the machine configuration included
}

// assignments are the variables of functions that have one value for all their
// life, with the expression that it comes from.
func assignments(f *syntax.File) map[*syntax.Ident]syntax.Expr {
	out := map[*syntax.Ident]syntax.Expr{}
	count := map[*syntax.Ident]int{}
	set := func(x, value syntax.Expr) {
		syntax.Walk(x, func(n syntax.Node) bool {
			id, ok := n.(*syntax.Ident)
			if !ok {
				return true
			}
			if b, ok := id.Binding.(*resolve.Binding); ok && b.First != nil {
				count[b.First]++
				if id == x && id == b.First { // otherwise it was a parameter before
					out[b.First] = value
				}
			}
			return true
		})
	}
	syntax.Walk(f, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.AssignStmt:
			if n.Op == syntax.EQ {
				set(n.LHS, n.RHS)
			} else {
				set(n.LHS, nil)
			}
		case *syntax.ForStmt:
			set(n.Vars, nil)
		}
		return true
	})
	for id, n := range count {
		if n > 1 || out[id] == nil {
			delete(out, id)
		}
	}
	return out
}

// kind is what an expression is for certain.
func (c checker) kind(x syntax.Expr) (on operation.On, known bool) {
	switch x := x.(type) {
	case *syntax.ParenExpr:
		return c.kind(x.X)
	case *syntax.Ident:
		b, ok := x.Binding.(*resolve.Binding)
		if !ok {
			return 0, false
		}
		if _, ok := c.named(x).(*machine); ok {
			return operation.Machine, true
		}
		switch b.Scope {
		case resolve.Global:
		case resolve.Predeclared:
			for _, on := range operation.Kinds() {
				if on.Global() == x.Name {
					return on, true
				}
			}
		default:
			if value := c.assigned[b.First]; value != nil {
				return c.kind(value)
			}
		}
	case *syntax.CallExpr:
		var o *operation.Operation
		switch fn := x.Fn.(type) {
		case *syntax.DotExpr:
			if on, known := c.kind(fn.X); known {
				o = operation.Find(on, fn.Name.Name)
			}
		case *syntax.Ident:
			if fn.Name == askName {
				return c.kind(x.Args[0])
			}
			o = c.function(fn)
		}
		if o != nil {
			return o.Result.On()
		}
	}
	return 0, false
}

// function is the operation of the lab that a name stands for; nil if it is none.
func (c checker) function(name *syntax.Ident) *operation.Operation {
	if b, ok := name.Binding.(*resolve.Binding); !ok || b.Scope != resolve.Predeclared {
		return nil
	}
	return operation.Find(operation.Lab, name.Name)
}

// supported checks that the machine which an operation is for can do it, where
// that is known: it is refused before anything boots.
func (c checker) supported(call *syntax.DotExpr) error {
	id, ok := call.X.(*syntax.Ident)
	if !ok {
		return nil
	}
	o := operation.Find(operation.Machine, call.Name.Name)
	m, ok := c.named(id).(*machine)
	if !ok || o == nil || o.Needs == "" {
		return nil
	}
	return access.Supports(operation.In(context.Background()), m.config, o.Name, o.Needs)
}

// operation checks an operation's name and, if it is called, the arguments.
func (c checker) operation(on operation.On, name string, call *syntax.CallExpr) error {
	o := operation.Find(on, name)
	if o == nil {
		return noOperation(on, name)
	}
	if call == nil {
		return nil
	}
	if o.Property {
		return usagef("%s is an attribute, not a function: write .%s", name, name)
	}
	var positional []any
	var named []operation.Named
	for _, arg := range call.Args {
		switch arg := arg.(type) {
		case *syntax.UnaryExpr:
			if arg.Op == syntax.STAR || arg.Op == syntax.STARSTAR {
				return nil // not known before the call
			}
		case *syntax.BinaryExpr:
			if arg.Op == syntax.EQ {
				named = append(named, operation.Named{Name: arg.X.(*syntax.Ident).Name, Value: c.constant(arg.Y)})
				continue
			}
		}
		positional = append(positional, c.constant(arg))
	}
	_, err := o.Bind(positional, named)
	return err
}

// constant is the value of an expression as far as it is known before the file
// runs: literals, machines and functions.
func (c checker) constant(x syntax.Expr) any {
	switch x := x.(type) {
	case *syntax.ParenExpr:
		return c.constant(x.X)
	case *syntax.Literal:
		if x.Token == syntax.BYTES {
			return []byte(x.Value.(string))
		}
		switch v := x.Value.(type) {
		case string, int64, float64:
			return v
		}
	case *syntax.UnaryExpr:
		if v, ok := c.constant(x.X).(int64); ok && x.Op == syntax.MINUS {
			return -v
		}
	case *syntax.ListExpr:
		return c.constants(x.List)
	case *syntax.TupleExpr:
		return c.constants(x.List)
	case *syntax.DictExpr:
		dict := map[string]any{}
		for _, e := range x.List {
			entry := e.(*syntax.DictEntry)
			key, ok := c.constant(entry.Key).(string)
			if !ok {
				return operation.Unknown
			}
			dict[key] = c.constant(entry.Value)
		}
		return dict
	case *syntax.LambdaExpr:
		return operation.Func(nil)
	case *syntax.Ident:
		if v := c.named(x); v != nil {
			return plainConstant(v)
		}
	}
	return operation.Unknown
}

func (c checker) constants(list []syntax.Expr) []any {
	out := []any{}
	for _, x := range list {
		out = append(out, c.constant(x))
	}
	return out
}

// named is the value of a name that is the same wherever it is used; nil if it
// is not known.
func (c checker) named(x *syntax.Ident) sl.Value {
	b, ok := x.Binding.(*resolve.Binding)
	if !ok {
		return nil
	}
	switch b.Scope {
	case resolve.Universal:
		return sl.Universe[x.Name]
	case resolve.Global:
		return c.globals[x.Name]
	case resolve.Predeclared:
		if m, ok := c.env[x.Name].(*machine); ok {
			return m
		}
	}
	return nil
}

func plainConstant(v sl.Value) any {
	if _, ok := v.(sl.Callable); ok {
		return operation.Func(nil)
	}
	return plain(v)
}
