package starlark

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	sl "go.starlark.net/starlark"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// A File is a test file that was loaded and found to make sense.
type File struct {
	path     string
	sources  sources
	print    *printer
	globals  sl.StringDict
	loaded   sl.StringDict // what load() has brought into it
	machines []attest.MachineConfig
	networks map[int]attest.NetworkConfig
	setup    *script.Test
	keep     bool
	tests    []script.Test
	builds   []script.Build

	declared []*machine
	order    []*module // with those that it loads, innermost first
	options  script.Options
}

// Global variables that are settings of the file.
const (
	keepOnFailure = "keep_on_failure"
	timeout       = "timeout" // of each test; a parameter of this name is that of a function
)

// Path is the file's name, as it was given.
func (f *File) Path() string { return f.path }

// Machines are the machines of the file, in the order of their declaration.
func (f *File) Machines() []attest.MachineConfig { return f.machines }

// Networks are those that the file has declared, by their numbers.
func (f *File) Networks() map[int]attest.NetworkConfig { return f.networks }

// Setup is the function setup; nil if there is none.
func (f *File) Setup() *script.Test { return f.setup }

// KeepOnFailure reports whether the file wants the labs of its failed tests kept.
func (f *File) KeepOnFailure() bool { return f.keep }

// Tests are the functions to run, in the order of the file.
func (f *File) Tests() []script.Test { return f.tests }

// Call runs setup or a test on a lab. Operations publish their events on the
// bus of ctx. Its error is an *script.Error that wraps what the operation, the
// assertion or Starlark said; it is the cause of ctx if that ended.
func (f *File) Call(ctx context.Context, lab operation.Runner, name string) error {
	fn, ok := f.globals[name]
	if !ok {
		return fmt.Errorf("%s: there is no function %s", f.path, name)
	}
	in := newInterpreter()
	_, err := evaluate(ctx, in, func(ctx context.Context) (sl.Value, error) {
		th := &thread{sources: f.sources, lab: lab, print: f.print, interpreter: in, ctx: ctx}
		return th.call(fn)
	})
	var stuck *StuckError
	if fn, ok := fn.(*sl.Function); ok && errors.As(err, &stuck) {
		return f.sources.errorAt(positionOf(fn.Position()), err)
	}
	return err
}

// choose finds the functions of the file that are run.
func (f *File) choose(m *module) []*script.Error {
	var errs []*script.Error
	var main *script.Test
	if v, ok := m.globals[keepOnFailure]; ok {
		keep, ok := v.(sl.Bool)
		if !ok {
			errs = append(errs, f.sources.errorAt(m.positions[keepOnFailure], usagef("%s must be True or False, not %s", keepOnFailure, operation.Describe(plain(v)))))
		}
		f.keep = bool(keep)
	}
	var each time.Duration
	if v, ok := m.globals[timeout]; ok && !callable(v) {
		var err error
		if each, err = limitOf(v); err != nil {
			errs = append(errs, f.sources.errorAt(m.positions[timeout], err))
		}
	}
	for _, name := range m.names {
		isTest := strings.HasPrefix(name, "test_")
		if !isTest && name != script.Setup && name != "main" {
			continue
		}
		fn, err := runnable(name, m.globals[name])
		if err != nil {
			errs = append(errs, f.sources.errorAt(m.positions[name], err))
			continue
		}
		doc, _, _ := strings.Cut(strings.TrimSpace(fn.Doc()), "\n")
		test := script.Test{Name: name, Title: doc, Position: positionOf(fn.Position())}
		if name != script.Setup {
			test.Timeout = each
		}
		if own, err := ownLimit(fn); err != nil {
			errs = append(errs, f.sources.errorAt(test.Position, err))
		} else if own > 0 {
			test.Timeout = own
		}
		switch {
		case isTest:
			f.tests = append(f.tests, test)
		case name == script.Setup:
			f.setup = &test
		default:
			main = &test
		}
	}
	switch {
	case len(errs) > 0:
	case main != nil && len(f.tests) > 0:
		errs = append(errs, f.sources.errorAt(main.Position, usagef("the file has both main() and tests such as %s(); main() is for files without test_* functions, so call it test_main or remove it", f.tests[0].Name)))
	case main != nil:
		f.tests = []script.Test{*main}
	case len(f.tests) == 0 && f.setup == nil:
		errs = append(errs, f.sources.errorAt(event.Position{File: f.path}, usagef("the file has nothing to run: no function test_* and no main()")))
	}
	return errs
}

// ownLimit is the limit that a function gives itself by the default of its parameter
// timeout; 0 if it has none.
func ownLimit(fn *sl.Function) (time.Duration, error) {
	for i := range fn.NumParams() {
		if name, _ := fn.Param(i); name == timeout && fn.ParamDefault(i) != nil {
			return limitOf(fn.ParamDefault(i))
		}
	}
	return 0, nil
}

// limitOf is a limit of a test as a duration.
func limitOf(v sl.Value) (time.Duration, error) {
	d, err := operation.ParseDuration(plain(v))
	if err != nil || d <= 0 {
		return 0, usagef("timeout is the limit of a test, a number of seconds or a duration such as \"2m\", greater than 0; not %s", operation.Describe(plain(v)))
	}
	return d, nil
}

func callable(v sl.Value) bool {
	_, ok := v.(sl.Callable)
	return ok
}

// runnable checks that a global is a function which can be called without arguments.
func runnable(name string, v sl.Value) (*sl.Function, error) {
	fn, ok := v.(*sl.Function)
	if !ok {
		return nil, usagef("%s must be a function, not %s", name, operation.Describe(plain(v)))
	}
	for i := range fn.NumParams() {
		variadic := fn.HasVarargs() && i == fn.NumParams()-1 || fn.HasKwargs()
		if !variadic && fn.ParamDefault(i) == nil {
			param, _ := fn.Param(i)
			return nil, usagef("%s is called without arguments, but has the parameter %s", name, param)
		}
	}
	return fn, nil
}
