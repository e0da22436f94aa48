package starlark

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

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
	open    script.OpenLab
	owner   *thread // of the objects that statements leave: it lasts as long as the session

	mu    sync.Mutex
	lab   operation.Runner // nil until the first operation
	known int              // how many of the machines it has

	unread string // a line that belongs to the next statement
	inputs int
}

// NewSession begins a session, with the machines and functions of a file unless
// path is empty. open is called with the machines that are declared when the
// first operation needs a lab; the caller closes it.
func NewSession(ctx context.Context, path string, opts script.Options, open script.OpenLab) (*Session, error) {
	s := &Session{loader: newLoader(ctx, opts), open: open}
	s.owner = s.thread(ctx)
	s.globals = maps.Clone(s.loader.env)
	s.globals["help"] = sl.NewBuiltin("help", help)
	if path == "" {
		return s, nil
	}
	f, err := s.loader.file(path, func(*File, *module) []*script.Error { return nil })
	if err != nil {
		return nil, err
	}
	maps.Copy(s.globals, f.globals)
	return s, nil
}

// Machines are those declared so far.
func (s *Session) Machines() []attest.MachineConfig {
	var out []attest.MachineConfig
	for _, m := range s.loader.machines {
		out = append(out, m.config)
	}
	return out
}

// sessionLab is the session's lab for its threads. It is made when it is
// needed; machines that are declared later are added to it.
type sessionLab struct{ *Session }

func (l sessionLab) Invoke(ctx context.Context, object any, o *operation.Operation, args operation.Args) (any, error) {
	if err := l.update(ctx); err != nil {
		return nil, err
	}
	return l.lab.Invoke(ctx, object, o, args)
}

// update makes the lab have all machines that are declared.
func (l sessionLab) update(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lab != nil && len(l.loader.machines) == l.known {
		return nil
	}
	var declared File
	if errs := l.loader.checkMachines(&declared); len(errs) > 0 {
		return errs[0]
	}
	if l.lab == nil {
		lab, err := l.open(ctx, declared.machines)
		if err != nil {
			return err
		}
		l.lab, l.known = lab, len(declared.machines)
	}
	for _, c := range declared.machines[l.known:] {
		if err := create(ctx, l.lab, c); err != nil {
			return err
		}
		l.known++
	}
	return nil
}

// create adds a machine to a lab that runs.
func create(ctx context.Context, lab operation.Runner, c attest.MachineConfig) error {
	o := operation.Find(operation.Lab, "create_machine")
	named := []operation.Named{
		{Name: "name", Value: c.Name}, {Name: "backend", Value: c.Backend},
		{Name: "memory", Value: int64(c.Memory)}, {Name: "cpus", Value: int64(c.CPUs)}, {Name: "type", Value: c.Type},
		{Name: "cmdline", Value: c.Cmdline}, {Name: "display", Value: c.Display}, {Name: "allow_reboot", Value: c.AllowReboot},
	}
	if c.StartCommand != "" {
		named = append(named, operation.Named{Name: "start_command", Value: c.StartCommand})
	} else {
		named = append(named, operation.Named{Name: "image", Value: c.Image})
	}
	if c.Networks != nil {
		named = append(named, operation.Named{Name: "networks", Value: anyList(c.Networks, func(n int) any { return int64(n) })})
	}
	if c.Egress != nil {
		named = append(named, operation.Named{Name: "egress", Value: anyList(c.Egress, func(s string) any { return s })})
	}
	args, err := o.Bind(nil, named)
	if err == nil {
		_, err = lab.Invoke(ctx, nil, o, args)
	}
	return err
}

func anyList[T any](list []T, value func(T) any) []any {
	out := make([]any, len(list))
	for i, x := range list {
		out[i] = value(x)
	}
	return out
}

func (sessionLab) Close() error { return nil }

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
	return in, nil
}

func (s *Session) thread(ctx context.Context) *thread {
	return &thread{
		sources: s.loader.sources, lab: sessionLab{s}, load: s.loader.loadFrom("."), print: s.loader.print,
		session: s, interpreter: &sync.Mutex{}, ctx: ctx,
	}
}

// Run runs a statement, and returns the value of an expression as it is shown;
// empty for None. Its errors are those of File.Call, and *LoadErrors.
func (s *Session) Run(ctx context.Context, statement script.Statement) (string, error) {
	in := statement.(*input)
	th := s.thread(ctx)
	v, err := th.run(func(t *sl.Thread) (sl.Value, error) {
		if len(in.file.Stmts) == 1 {
			if x, ok := in.file.Stmts[0].(*syntax.ExprStmt); ok {
				return sl.EvalExprOptions(in.file.Options, t, x.X, s.globals)
			}
		}
		return sl.None, sl.ExecREPLChunk(in.file, t, s.globals)
	})
	s.nameMachines(in)
	var unresolved resolve.ErrorList
	if errors.As(err, &unresolved) {
		return "", &script.LoadError{Path: in.name, Errors: s.loader.sources.parseErrors(unresolved, s.globals)}
	}
	if err != nil || v == sl.None {
		return "", err
	}
	s.globals["_"] = v
	return v.String(), nil
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
		name := x.Name()[strings.LastIndex(x.Name(), ".")+1:]
		for _, on := range operation.Kinds() {
			if o := operation.Find(on, name); o != nil {
				return o.Help()
			}
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
