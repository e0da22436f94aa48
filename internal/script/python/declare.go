package python

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/protocol"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/vmm"
)

//go:embed declare.py
var declarer string

// A function is one that the top level of a file defines.
type function struct {
	Name     string
	Line     int
	Title    string
	Required []string // parameters that have to be given
}

// declarations are what the top level of a test file declares.
type declarations struct {
	names    []string // of the machines that the file declares itself, in its order
	networks map[int]attest.NetworkConfig
	tests    []script.Test
	setup    *script.Test
	keep     bool
}

// declared is what declare.py says.
type declared struct {
	Error    *protocol.Thrown
	Machines []struct {
		Settings map[string]json.RawMessage
		At       event.Position
		Variable string
	}
	Networks []struct {
		Number, DHCP, DNS, RA json.RawMessage
		At                    event.Position
	}
	KeepOnFailure bool `json:"keep_on_failure"`
}

// beginDeclaring starts the Python that runs the top level of a test file, and does not let it.
func (f *file) beginDeclaring(ctx context.Context, python string, opts script.Options) (*brief, error) {
	input, err := libraryAsJSON()
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, m := range opts.Machines {
		names = append(names, m.Name)
	}
	memory, err := script.MemoryLimit()
	if err != nil {
		return nil, err
	}
	return begin(ctx, python, []string{"-B"}, declarer, append(input, '\n'), f.path, asJSON(names), fmt.Sprint(memory))
}

// declare runs the top level of a test file in a Python of its own, and reads what it has declared.
func (f *file) declare(ctx context.Context, begun *brief, opts script.Options, c *checked, source []byte) (err error) {
	if begun == nil {
		if begun, err = f.beginDeclaring(ctx, f.python, opts); err != nil {
			return err
		}
	}
	text, err := begun.finish("run\n")
	if err != nil {
		return err
	}
	var d declared
	if err := json.Unmarshal(text, &d); err != nil {
		return &attest.InfraError{Action: "load " + f.path + " with " + program(), Err: fmt.Errorf("its answer makes no sense: %w", err)}
	}
	if d.Error != nil {
		at := d.Error.Explain()
		if at.Position.File == "" {
			at.Position.File = f.path
		}
		return &script.LoadError{Path: f.path, Errors: []*script.Error{at}}
	}
	f.declared = &declarations{networks: map[int]attest.NetworkConfig{}, keep: d.KeepOnFailure}
	errs := f.declareMachines(&d, opts.Backend)
	errs = append(errs, f.declareNetworks(&d)...)
	errs = append(errs, f.chooseTests(c.Functions)...)
	if len(errs) > 0 {
		quote(errs, f.path, source)
		return &script.LoadError{Path: f.path, Errors: errs}
	}
	return nil
}

// quote adds the lines of the file to errors in it.
func quote(errs []*script.Error, path string, source []byte) {
	lines := strings.Split(string(source), "\n")
	for _, e := range errs {
		if n := e.Position.Line; e.Source == "" && e.Position.File == path && n > 0 && n <= len(lines) {
			e.Source = lines[n-1]
		}
	}
}

// libraryAsJSON is the library as declare.py takes it: the text of each module.
func libraryAsJSON() ([]byte, error) {
	names, err := fs.Glob(library, "lib/test_driver/*.py")
	modules := map[string]string{imagesModule: imagesSource()}
	for _, name := range names {
		text, readErr := library.ReadFile(name)
		err = errors.Join(err, readErr)
		modules[strings.TrimPrefix(name, "lib/")] = string(text)
	}
	if err != nil {
		return nil, &attest.InfraError{Action: "read the Python library", Err: err}
	}
	return json.Marshal(modules)
}

// imagesModule is a module of the library that is made of the table of functions which
// make images: the names of their arguments, in their order, and which of them have paths.
const imagesModule = "test_driver/_images.py"

func imagesSource() string {
	var b strings.Builder
	b.WriteString("ARGUMENTS = {\n")
	for _, f := range operation.ImageFunctions {
		fmt.Fprintf(&b, "    %q: {", f.Name)
		for _, p := range f.Params {
			path := ""
			switch {
			case p.Type == operation.Files:
				path = "files"
			case p.Type == operation.Kernel:
				path = "kernel"
			case p.Path:
				path = "path"
			}
			fmt.Fprintf(&b, "%q: %q, ", p.Name, path)
		}
		b.WriteString("},\n")
	}
	return b.String() + "}\n"
}

func (f *file) declareMachines(d *declared, backend string) []*script.Error {
	var errs []*script.Error
	known := map[string]event.Position{}
	for _, m := range f.machines {
		known[strings.ToLower(m.Name)] = event.Position{}
	}
	for _, m := range d.Machines {
		bad := func(err error) { errs = append(errs, &script.Error{Position: m.At, Err: err}) }
		args, err := bindSettings(m.Settings)
		if err != nil {
			bad(err)
			continue
		}
		c := operation.MachineConfigOf(args)
		if c.Backend == "" {
			c.Backend = backend
		}
		if c.Name == "" {
			c.Name = (&vmm.Command{Line: c.StartCommand}).MachineName()
		}
		if c.Name == "" {
			c.Name = m.Variable
		}
		other, twice := known[strings.ToLower(c.Name)]
		switch err := access.Check(attest.LabConfig{Machines: []attest.MachineConfig{c}}); {
		case c.Name == "":
			bad(errors.New("this machine has no name: give it name=, or assign it to a variable of its own"))
		case twice && other.Line == 0:
			bad(fmt.Errorf("two machines have the name %q: this one and one of the machine configuration", c.Name))
		case twice:
			bad(fmt.Errorf("two machines have the name %q: this one and the one at %s", c.Name, other))
		case access.NeedsImage(c):
			bad(fmt.Errorf("machine %q: it has no image; give it one, such as debian()", c.Name))
		case err != nil:
			bad(err)
		}
		known[strings.ToLower(c.Name)] = m.At
		f.machines = append(f.machines, c)
		f.variables[m.Variable] = c
		f.declared.names = append(f.declared.names, c.Name)
	}
	return errs
}

// bindSettings are the arguments of machine(…).
func bindSettings(settings map[string]json.RawMessage) (operation.Args, error) {
	var named []operation.Named
	for name, text := range settings {
		v, err := protocol.Decode(text)
		if err != nil {
			return operation.Args{}, fmt.Errorf("machine: %s: %w", name, err)
		}
		named = append(named, operation.Named{Name: name, Value: v})
	}
	slices.SortFunc(named, func(a, b operation.Named) int { return strings.Compare(a.Name, b.Name) })
	return operation.DeclareMachine.Bind(nil, named)
}

func (f *file) declareNetworks(d *declared) []*script.Error {
	var errs []*script.Error
	for _, n := range d.Networks {
		var number int
		services := make([]bool, 3)
		err := json.Unmarshal(n.Number, &number)
		for i, text := range []json.RawMessage{n.DHCP, n.DNS, n.RA} {
			err = errors.Join(err, json.Unmarshal(text, &services[i]))
		}
		_, twice := f.declared.networks[number]
		switch {
		case err != nil:
			err = errors.New("network(number, dhcp=True, dns=True, ra=True): number is an integer, and the others are True or False")
		case number < 1 || number > 255:
			err = fmt.Errorf("network %d is out of range; want 1 to 255", number)
		case twice:
			err = fmt.Errorf("network %d is declared twice", number)
		}
		if err != nil {
			errs = append(errs, &script.Error{Position: n.At, Err: err})
			continue
		}
		f.declared.networks[number] = attest.NetworkConfig{NoDHCP: !services[0], NoDNS: !services[1], NoRA: !services[2]}
	}
	return errs
}

// chooseTests finds the functions that are run.
func (f *file) chooseTests(functions []function) []*script.Error {
	var errs []*script.Error
	var alone *script.Test
	tests := map[string]int{}
	for _, fn := range functions {
		isTest := strings.HasPrefix(fn.Name, "test_")
		if !isTest && fn.Name != script.Setup && fn.Name != main {
			continue
		}
		at := event.Position{File: f.path, Line: fn.Line}
		if len(fn.Required) > 0 {
			errs = append(errs, &script.Error{Position: at, Err: fmt.Errorf("%s is called without arguments, but has the parameter %s", fn.Name, fn.Required[0])})
		}
		test := script.Test{Name: fn.Name, Title: fn.Title, Position: at}
		before, again := tests[fn.Name]
		switch {
		case again:
			errs = append(errs, &script.Error{Position: at, Err: fmt.Errorf("there are two functions %s: this one and the one at line %d", fn.Name, before)})
		case isTest:
			f.declared.tests = append(f.declared.tests, test)
		case fn.Name == script.Setup:
			f.declared.setup = &test
		default:
			alone = &test
		}
		tests[fn.Name] = fn.Line
	}
	switch {
	case len(errs) > 0:
	case alone != nil && len(f.declared.tests) > 0:
		errs = append(errs, &script.Error{Position: alone.Position, Err: fmt.Errorf(
			"the file has both main() and tests such as %s(); main() is for files without test_* functions, so call it test_main or remove it", f.declared.tests[0].Name)})
	case alone != nil:
		f.declared.tests = []script.Test{*alone}
	case len(f.declared.tests) == 0 && f.declared.setup == nil:
		errs = append(errs, &script.Error{Position: event.Position{File: f.path}, Err: errors.New(
			"the file declares machines and has nothing to run: no function test_* and no main()")})
	}
	return errs
}
