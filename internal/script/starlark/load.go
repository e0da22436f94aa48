package starlark

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.starlark.net/resolve"
	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// dialect is what people who know Python expect, as far as Starlark has it.
var dialect = &syntax.FileOptions{Set: true, While: true, TopLevelControl: true, GlobalReassign: true, Recursion: true}

// testNames are the functions that a file of whatever text would have run.
var testNames = regexp.MustCompile(`(?m)^(?:def[ \t]+)?(test_\w*|main)[ \t]*[(=]`)

func init() {
	script.Register(script.Language{
		Name: "Starlark", Ending: ".star",
		Load: func(ctx context.Context, path string, opts script.Options) (script.File, error) {
			f, err := Load(ctx, path, opts)
			if err != nil {
				return nil, err // and not a *File that is nil
			}
			return f, nil
		},
		Names: func(text []byte) []string {
			var names []string
			for _, m := range testNames.FindAllSubmatch(text, -1) {
				names = append(names, string(m[1]))
			}
			return names
		},
		NewSession: func(ctx context.Context, path string, opts script.Options, lab operation.Runner) (script.Session, error) {
			s, err := NewSession(ctx, path, opts, lab)
			if err != nil {
				return nil, err
			}
			return s, nil
		},
	})
}

// Load reads a test file and the files that it loads, runs their top level,
// and checks all that can be checked without a machine. A file that cannot be
// run is a *script.LoadError. Nothing is started.
func Load(ctx context.Context, path string, opts script.Options) (*File, error) {
	return newLoader(ctx, opts).file(path, (*File).choose)
}

// file loads a file and all that it loads, and checks them; choose finds what
// in it is run.
func (l *loader) file(path string, choose func(*File, *module) []*script.Error) (*File, error) {
	if _, err := memoryLimit(); err != nil {
		return nil, err
	}
	in := newInterpreter()
	in.loading = true
	outer := l.ctx
	f, err := evaluate(l.ctx, in, func(ctx context.Context) (*File, error) {
		in.Lock() // until the end: no machine is waited for
		defer in.Unlock()
		l.ctx = ctx
		return l.read(path, choose)
	})
	var stuck *StuckError
	if errors.As(err, &stuck) {
		return nil, &script.LoadError{Path: path, Errors: []*script.Error{{Position: event.Position{File: path}, Err: err}}}
	}
	l.ctx = outer
	return f, err
}

func newLoader(ctx context.Context, opts script.Options) *loader {
	l := &loader{options: opts, sources: sources{}, print: &printer{out: cmp.Or[io.Writer](opts.Stdout, io.Discard)}, ctx: ctx, backend: opts.Backend, modules: map[string]*module{},
		networks: map[int]attest.NetworkConfig{}, declared: map[int]string{}}
	l.env = l.predeclared()
	for _, c := range opts.Machines {
		m := &machine{config: c}
		l.machines = append(l.machines, m)
		l.env[variable(c.Name)] = m
	}
	return l
}

func (l *loader) read(path string, choose func(*File, *module) []*script.Error) (*File, error) {
	f := &File{path: path, sources: l.sources, print: l.print}
	m, err := l.load(path)
	if err != nil {
		return nil, l.failed(path, err)
	}
	f.globals, f.loaded = m.globals, l.loadedBy(m)
	errs := l.checkMachines(f)
	for _, m := range l.order {
		errs = append(errs, m.check(l.sources, l.env)...)
		errs = append(errs, f.addBuilds(m)...)
	}
	errs = append(errs, l.checkImages(f)...)
	f.order, f.options = l.order, l.options
	errs = append(errs, choose(f, m)...)
	if len(errs) > 0 {
		return nil, l.failed(path, &script.LoadError{Path: path, Errors: errs})
	}
	return f, nil
}

// A loader loads one test file with the files that it loads.
type loader struct {
	options  script.Options
	sources  sources
	print    *printer
	ctx      context.Context
	backend  string // of machines that name none
	env      sl.StringDict
	modules  map[string]*module // by absolute path
	order    []*module          // that were loaded, innermost first
	machines []*machine         // in the order of their declaration
	images   []declaredImage
	networks map[int]attest.NetworkConfig
	declared map[int]string // where the networks are
}

// A module is one file.
type module struct {
	path      string
	loading   bool
	syntax    *syntax.File
	globals   sl.StringDict
	names     []string // of the globals, in the order of the file
	positions map[string]event.Position
}

// failed makes every error a *script.LoadError, except that somebody stopped it.
func (l *loader) failed(path string, err error) error {
	var load *script.LoadError
	if !errors.As(err, &load) {
		var one *script.Error
		if !errors.As(err, &one) {
			one = &script.Error{Position: event.Position{File: path}, Err: err}
		}
		if why := context.Cause(l.ctx); why != nil && errors.Is(err, why) && attest.StatusOf(why) != attest.Invalid {
			return one // somebody stopped it, or the time was over: the file may be fine
		}
		load = &script.LoadError{Path: path, Errors: []*script.Error{one}}
	}
	load.Path = path
	return load
}

// load loads one file. Its error is a *script.LoadError or an *script.Error.
func (l *loader) load(path string) (*module, error) {
	key, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if m := l.modules[key]; m != nil {
		if m.loading {
			return nil, usagef("%s and a file that it loads would load each other", path)
		}
		return m, nil
	}
	if l.options.Opened != nil {
		l.options.Opened(key)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &module{path: path, loading: true, positions: map[string]event.Position{}}
	l.modules[key] = m
	defer func() { m.loading = false }()
	l.sources.add(path, text)
	var program *sl.Program
	if m.syntax, err = dialect.Parse(path, text, 0); err == nil {
		extend(m.syntax)
		program, err = sl.FileProgram(m.syntax, l.env.Has)
	}
	if err != nil {
		return nil, &script.LoadError{Path: path, Errors: l.sources.parseErrors(err, l.env)}
	}
	if err := l.run(m, program); err != nil {
		return nil, err
	}
	for _, b := range m.syntax.Module.(*resolve.Module).Globals {
		name := b.First.Name
		m.names = append(m.names, name)
		m.positions[name] = positionOf(b.First.NamePos)
		if v, ok := m.globals[name].(*machine); ok && v.config.Name == "" {
			v.config.Name = name
		}
	}
	l.order = append(l.order, m)
	return m, nil
}

// run runs a file's top level.
func (l *loader) run(m *module, program *sl.Program) error {
	th := &thread{sources: l.sources, print: l.print, interpreter: newInterpreter(), ctx: l.ctx}
	th.load = l.loadFrom(m.path)
	t, stop := th.start()
	defer stop()
	th.interpreter.Lock()
	defer th.interpreter.Unlock()
	globals, err := program.Init(t, l.env)
	m.globals = globals
	globals.Freeze()
	if err != nil {
		e := th.explain(err)
		// A loaded file's own mistakes are the news, not that it was loaded.
		var load *script.LoadError
		if errors.As(e, &load) {
			return load
		}
		return e
	}
	return nil
}

// loadedBy are the names that load() has brought into a file. To Starlark they are
// variables of the file, which nobody else sees.
func (l *loader) loadedBy(m *module) sl.StringDict {
	names := sl.StringDict{}
	syntax.Walk(m.syntax, func(n syntax.Node) bool {
		load, ok := n.(*syntax.LoadStmt)
		if !ok {
			return true
		}
		key, err := filepath.Abs(filepath.Join(filepath.Dir(m.path), load.ModuleName()))
		from := l.modules[key]
		for i := range load.To {
			if err == nil && from != nil {
				names[load.To[i].Name] = from.globals[load.From[i].Name]
			}
		}
		return false
	})
	return names
}

// loadFrom is load("name", …) in the file at path.
func (l *loader) loadFrom(path string) func(*sl.Thread, string) (sl.StringDict, error) {
	return func(_ *sl.Thread, name string) (sl.StringDict, error) {
		if name == "" || filepath.IsAbs(name) {
			return nil, usagef("load(%q): the path of a file, relative to %s", name, path)
		}
		loaded, err := l.load(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			return nil, err
		}
		return loaded.globals, nil
	}
}

// checkMachines gives the file its machines, and finds those that make no
// sense. Host names do not differ by case.
func (l *loader) checkMachines(f *File) []*script.Error {
	var errs []*script.Error
	f.networks, f.declared = l.networks, l.machines
	byName := map[string]*machine{}
	for _, m := range l.machines {
		c := m.config
		f.machines = append(f.machines, c)
		key := strings.ToLower(c.Name)
		other := byName[key]
		switch err := access.Check(attest.LabConfig{Machines: []attest.MachineConfig{c}}); {
		case c.Name == "":
			errs = append(errs, l.sources.errorAt(m.declared, usagef("this machine has no name: give it name=, or assign it to a variable of its own")))
		case other != nil && other.declared.Line == 0:
			errs = append(errs, l.sources.errorAt(m.declared, usagef("two machines have the name %q: this one and one of the machine configuration", c.Name)))
		case other != nil:
			errs = append(errs, l.sources.errorAt(m.declared, usagef("two machines have the name %q: this one and the one at %s", c.Name, other.declared)))
		case access.NeedsImage(c):
			errs = append(errs, l.sources.errorAt(m.declared, usagef("machine %q: it has no image; give it one, such as debian()", c.Name)))
		case err != nil:
			errs = append(errs, l.sources.errorAt(m.declared, err))
		}
		byName[key] = m
	}
	slices.SortStableFunc(errs, func(a, b *script.Error) int { return cmp.Compare(a.Position.Line, b.Position.Line) })
	return errs
}

var notInVariables = regexp.MustCompile(`[^A-Za-z0-9_]|^[0-9]`)

// variable is the name that a machine of the configuration has in a script.
func variable(name string) string { return notInVariables.ReplaceAllString(name, "_") }
