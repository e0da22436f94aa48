package starlark

import (
	"go.starlark.net/resolve"
	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest/internal/operation"
)

// check looks at each operation that the file calls on a machine of its top
// level, so that a misspelt one is found before anything boots and not at the
// end of a long test.
func (m *module) check(s sources) []*Error {
	var errs []*Error
	calls := map[*syntax.DotExpr]*syntax.CallExpr{}
	syntax.Walk(m.syntax, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.CallExpr:
			if dot, ok := n.Fn.(*syntax.DotExpr); ok {
				calls[dot] = n
			}
		case *syntax.DotExpr:
			if m.machine(n.X) == nil || n.Name.Name == "name" {
				break
			}
			err := checkOperation(n.Name.Name, calls[n])
			if err != nil {
				errs = append(errs, s.errorAt(positionOf(n.Name.NamePos), err))
			}
		}
		return true
	})
	return errs
}

// machine is the machine that an expression is for certain; nil if it is not known.
func (m *module) machine(x syntax.Expr) *machine {
	id, ok := x.(*syntax.Ident)
	if !ok {
		return nil
	}
	if b, ok := id.Binding.(*resolve.Binding); !ok || b.Scope != resolve.Global {
		return nil
	}
	v, _ := m.globals[id.Name].(*machine)
	return v
}

// checkOperation checks an operation's name and, if it is called, the arguments.
func checkOperation(name string, call *syntax.CallExpr) error {
	o := operation.Find(operation.Machine, name)
	if o == nil {
		return noOperation(name)
	}
	if call == nil {
		return nil
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
				named = append(named, operation.Named{Name: arg.X.(*syntax.Ident).Name, Value: constant(arg.Y)})
				continue
			}
		}
		positional = append(positional, constant(arg))
	}
	_, err := o.Bind(positional, named)
	return err
}

// constant is the value of a literal; anything else is not known.
func constant(x syntax.Expr) any {
	switch x := x.(type) {
	case *syntax.ParenExpr:
		return constant(x.X)
	case *syntax.Literal:
		switch v := x.Value.(type) {
		case string, int64, float64:
			if x.Token != syntax.BYTES {
				return v
			}
		}
	case *syntax.UnaryExpr:
		if v, ok := constant(x.X).(int64); ok && x.Op == syntax.MINUS {
			return -v
		}
	case *syntax.ListExpr:
		return operation.Opaque("list")
	case *syntax.DictExpr:
		return operation.Opaque("dict")
	case *syntax.Ident:
		if b, ok := x.Binding.(*resolve.Binding); ok && b.Scope == resolve.Universal {
			if v, ok := sl.Universe[x.Name]; ok && (x.Name == "None" || x.Name == "True" || x.Name == "False") {
				return plain(v)
			}
		}
	}
	return operation.Unknown
}
