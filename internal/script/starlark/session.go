package starlark

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"go.starlark.net/resolve"
	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// A Session runs what a person types, statement by statement, on one lab. It
// has all that a test file has, and the functions and machines of one, whose
// names it can give other values.
type Session struct {
	loader  *loader
	globals sl.StringDict
	lab     operation.Runner
	owner   *thread // of the objects that statements leave: it lasts as long as the session

	unread string // a line that belongs to the next statement
	inputs int
}

// NewSession begins a session; see script.Language.
func NewSession(ctx context.Context, path string, opts script.Options, lab operation.Runner) (*Session, error) {
	s := &Session{loader: newLoader(ctx, opts), lab: lab}
	s.owner = s.thread(ctx)
	s.globals = maps.Clone(s.loader.env)
	s.globals["help"] = sl.NewBuiltin("help", help)
	if path == "" {
		_, err := memoryLimit()
		return s, err
	}
	f, err := s.loader.file(path, func(*File, *module) []*script.Error { return nil })
	if err != nil {
		return nil, err
	}
	maps.Copy(s.globals, f.loaded)
	maps.Copy(s.globals, f.globals)
	return s, nil
}

// Machines are those declared so far; one that makes no sense is an *script.Error.
func (s *Session) Machines() ([]attest.MachineConfig, error) {
	var declared File
	if errs := s.loader.checkMachines(&declared); len(errs) > 0 {
		return declared.machines, errs[0]
	}
	return declared.machines, nil
}

// Networks are those declared so far.
func (s *Session) Networks() map[int]attest.NetworkConfig { return s.loader.networks }

// An input is one statement.
type input struct {
	name string
	file *syntax.File
}

// Read reads one statement; a def, for, while or if ends with an empty line, or
// before a line that is not indented. line returns a line, with its newline,
// and is told whether it is the first. What it returns as error ends Read;
// io.EOF at the first line is the end of the session.
func (s *Session) Read(line func(first bool) (string, error)) (script.Statement, error) {
	var lines []string
	var stop error
	s.inputs++
	in := &input{name: fmt.Sprintf("input %d", s.inputs)}
	options := *dialect
	options.LoadBindsGlobally = true
	f, err := options.ParseCompoundStmt(in.name, func() ([]byte, error) {
		var text string
		if text = s.unread; text != "" {
			s.unread = ""
		} else if text, stop = line(len(lines) == 0); stop != nil && (stop != io.EOF || text == "") {
			if stop == io.EOF && len(lines) > 0 {
				lines = append(lines, "\n")
				return []byte("\n"), nil // the end of the block, too
			}
			return nil, stop
		}
		lines = append(lines, text)
		return []byte(text), nil
	})
	if stop != nil && (stop != io.EOF || len(lines) == 0) {
		return nil, stop
	}
	s.loader.sources.add(in.name, []byte(strings.Join(lines, "")))
	if err != nil {
		return nil, &script.LoadError{Path: in.name, Errors: s.loader.sources.parseErrors(err, s.globals)}
	}
	if n := len(f.Stmts); n > 0 && len(lines) > 1 {
		// The parser looks at the line behind a block to see that it has ended.
		last := lines[len(lines)-1]
		if _, end := f.Stmts[n-1].Span(); int(end.Line) < len(lines) && strings.TrimSpace(last) != "" {
			s.unread = last
		}
	}
	in.file = f
	extend(f)
	return in, nil
}

func (s *Session) thread(ctx context.Context) *thread {
	return &thread{
		sources: s.loader.sources, lab: s.lab, load: s.loader.loadFrom("."), print: s.loader.print,
		session: s, interpreter: newInterpreter(), ctx: ctx,
	}
}

// Run runs a statement, and returns the value of an expression as it is shown;
// empty for None. Its errors are those of File.Call, and *LoadErrors.
func (s *Session) Run(ctx context.Context, statement script.Statement) (string, error) {
	in := statement.(*input)
	type shown struct {
		value sl.Value
		text  string
	}
	lock := newInterpreter()
	v, err := evaluate(ctx, lock, func(ctx context.Context) (shown, error) {
		th := s.thread(ctx)
		th.interpreter = lock
		v, err := th.run(func(t *sl.Thread) (sl.Value, error) {
			if len(in.file.Stmts) == 1 {
				if x, ok := in.file.Stmts[0].(*syntax.ExprStmt); ok {
					return sl.EvalExprOptions(in.file.Options, t, x.X, s.globals)
				}
			}
			return sl.None, sl.ExecREPLChunk(in.file, t, s.globals)
		})
		if err != nil || v == sl.None {
			return shown{}, err
		}
		lock.Lock() // a value may take long to write, too
		defer lock.Unlock()
		return shown{v, v.String()}, nil
	})
	var stuck *StuckError
	if errors.As(err, &stuck) {
		return "", err // and leave what it may still use
	}
	s.nameMachines(in)
	var unresolved resolve.ErrorList
	if errors.As(err, &unresolved) {
		return "", &script.LoadError{Path: in.name, Errors: s.loader.sources.parseErrors(unresolved, s.globals)}
	}
	if err != nil || v.value == nil {
		return "", err
	}
	s.globals["_"] = v.value
	return v.text, nil
}

// nameMachines gives machines the names of the variables to which a statement
// assigned them.
func (s *Session) nameMachines(in *input) {
	m, ok := in.file.Module.(*resolve.Module)
	if !ok {
		return
	}
	for _, b := range m.Globals {
		if v, ok := s.globals[b.First.Name].(*machine); ok && v.config.Name == "" {
			v.config.Name = b.First.Name
		}
	}
}

// help(x) explains an operation, a function, or what there is.
func help(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var x sl.Value = sl.None
	if err := unpack(b, args, kwargs, "x?", &x); err != nil {
		return nil, err
	}
	th := threadOf(t)
	th.print.line(t, th.session.help(x))
	return sl.None, nil
}

func (s *Session) help(x sl.Value) string {
	switch x := x.(type) {
	case *machine:
		return x.name() + ": a machine. Its operations, of which help(" + x.name() + ".succeed) and the like say more:\n" + columns(operation.Names(operation.Machine))
	case *sl.Builtin:
		if o := operationOf(x); o != nil {
			return o.Help()
		}
	case *sl.Function:
		if x.Doc() != "" {
			return x.Name() + ": " + x.Doc()
		}
	case sl.NoneType:
		var names []string
		for _, m := range s.loader.machines {
			names = append(names, m.name())
		}
		text := "Machines: " + strings.Join(names, ", ") + "\n"
		if len(names) == 0 {
			text = "There is no machine yet: m = machine(image = debian())\n"
		}
		return text + "help(m) lists a machine's operations, help(m.succeed) explains one; m.shell() is a shell on it.\nFunctions:\n" + columns(slices.Sorted(maps.Keys(s.globals)))
	}
	return x.String()
}

// columns lays out words in lines that fit on a terminal.
func columns(words []string) string {
	var b strings.Builder
	room := 0
	for _, w := range words {
		if room -= len(w) + 2; room < 0 {
			b.WriteString("\n  ")
			room = 76 - len(w)
		}
		b.WriteString(w + "  ")
	}
	return strings.TrimPrefix(b.String(), "\n")
}
