package starlark

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.starlark.net/resolve"
	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// build is the global variable with the commands of the host that make what is tested.
const build = "build"

// Builds are the commands of the host that the file and those that it loads want run.
func (f *File) Builds() []script.Build { return f.builds }

// Declared is where a machine is declared.
func (f *File) Declared(name string) *script.Error {
	for _, m := range f.declared {
		if m.config.Name == name && m.declared.Line > 0 {
			return f.sources.errorAt(m.declared, nil)
		}
	}
	return nil
}

// addBuilds reads the variable build of a module: a command, what describes one, or a
// list of either. A function of that name is the file's own.
func (f *File) addBuilds(m *module) []*script.Error {
	v, ok := m.globals[build]
	if _, function := v.(sl.Callable); !ok || function {
		return nil
	}
	dir, err := filepath.Abs(filepath.Dir(m.path))
	place := f.sources.errorAt(m.positions[build], nil)
	list := []any{plain(v)}
	if several, ok := list[0].([]any); ok {
		list = several
	}
	for _, one := range list {
		if err != nil {
			break
		}
		b := script.Build{Dir: dir, Place: place}
		if err = readBuild(&b, one); err == nil {
			f.builds = append(f.builds, b)
		}
	}
	if err != nil {
		return []*script.Error{f.sources.errorAt(m.positions[build], err)}
	}
	return nil
}

var buildFields = []string{"command", "inputs", "outputs"}

func readBuild(b *script.Build, v any) error {
	if command, ok := v.(string); ok {
		v = map[string]any{"command": command}
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return usagef("build must be a command, a dict with command, inputs and outputs, or a list of those; not %s", operation.Describe(v))
	}
	for name, v := range fields {
		switch name {
		case "command":
			b.Command, _ = v.(string)
			if strings.TrimSpace(b.Command) == "" {
				return usagef("build: command must be a line for sh, not %s", operation.Describe(v))
			}
		case "inputs", "outputs":
			paths, err := buildPaths(name, v)
			if err != nil {
				return err
			}
			if name == "inputs" {
				b.Inputs = paths
			} else {
				b.Outputs = paths
			}
		default:
			return usagef("build: there is no field %q; the fields are command, inputs and outputs%s", name, operation.DidYouMean(name, buildFields))
		}
	}
	switch {
	case b.Command == "":
		return usagef("build: command is missing")
	case len(b.Outputs) > 0 && len(b.Inputs) == 0:
		return usagef("build: outputs without inputs: name the files and directories that the command reads, too")
	}
	return nil
}

func buildPaths(name string, v any) ([]string, error) {
	list, ok := v.([]any)
	if path, one := v.(string); one {
		list, ok = []any{path}, true
	}
	var out []string
	for _, x := range list {
		path, isPath := x.(string)
		if !isPath || path == "" {
			return nil, usagef("build: %s must be a list of paths; it has %s", name, operation.Describe(x))
		}
		if _, err := filepath.Match(path, ""); err != nil {
			return nil, usagef("build: %s: %q is not a valid pattern", name, path)
		}
		out = append(out, path)
	}
	if !ok {
		return nil, usagef("build: %s must be a list of paths, not %s", name, operation.Describe(v))
	}
	return out, nil
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// variable is var(name, default=): what --var or the environment gives.
func (l *loader) variable(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var name string
	var otherwise sl.Value
	if err := unpack(b, args, kwargs, "name", &name, "default?", &otherwise); err != nil {
		return nil, err
	}
	if !variableName.MatchString(name) {
		return nil, usagef("var: %q is not a name: want letters, digits and _, not beginning with a digit", name)
	}
	if v, ok := l.options.Var(name); ok {
		return sl.String(v), nil
	}
	if otherwise == nil {
		return nil, usagef("var(%q): it has no value: give it one by --var %s=…, by %s%s in the environment, or by default=", name, name, script.VarEnv, name)
	}
	return otherwise, nil
}

// Asks reports whether a call of var in the file may be for a variable.
func (f *File) Asks(name string) bool {
	asks := false
	for _, m := range f.order {
		syntax.Walk(m.syntax, func(n syntax.Node) bool {
			call, ok := n.(*syntax.CallExpr)
			if !ok {
				return true
			}
			if fn, ok := call.Fn.(*syntax.Ident); ok && fn.Name == "var" {
				if b, ok := fn.Binding.(*resolve.Binding); ok && b.Scope == resolve.Predeclared {
					asks = asks || mentions(call, name)
				}
			}
			return true
		})
	}
	return asks
}

// mentions reports whether a call of var is for a name, or may be.
func mentions(call *syntax.CallExpr, name string) bool {
	for _, arg := range call.Args {
		if named, ok := arg.(*syntax.BinaryExpr); ok && named.Op == syntax.EQ {
			if id, ok := named.X.(*syntax.Ident); !ok || id.Name != "name" {
				continue
			}
			arg = named.Y
		}
		literal, ok := arg.(*syntax.Literal)
		return !ok || literal.Value == name
	}
	return true
}

// SetupKey is of all that the file was read from but its tests. If something else than a
// test refers to one, they count, too.
func (f *File) SetupKey() string {
	h := sha256.New()
	for _, m := range f.order {
		fmt.Fprintf(h, "%s\n", m.path)
		for _, line := range f.withoutTests(m) {
			fmt.Fprintf(h, "%s\n", line)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.options.Vars)) {
		fmt.Fprintf(h, "%q=%q\n", name, f.options.Vars[name])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// withoutTests are the lines of a module that are not of a test.
func (f *File) withoutTests(m *module) []string {
	lines := f.sources[m.path]
	tests := map[string]bool{}
	for _, t := range f.tests {
		tests[t.Name] = true
	}
	own := m == f.order[len(f.order)-1] // the others' are not run
	skip := map[int]bool{}
	used := false
	for _, stmt := range m.syntax.Stmts {
		if def, ok := stmt.(*syntax.DefStmt); ok && own && tests[def.Name.Name] {
			start, end := def.Span()
			for n := start.Line; n <= end.Line; n++ {
				skip[int(n)] = true
			}
			continue
		}
		syntax.Walk(stmt, func(n syntax.Node) bool {
			if id, ok := n.(*syntax.Ident); ok && tests[id.Name] {
				used = true
			}
			return true
		})
	}
	if used {
		return lines
	}
	var out []string
	for i, line := range lines {
		if !skip[i+1] {
			out = append(out, line)
		}
	}
	return out
}
