package python

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

func init() {
	script.Register(script.Language{Name: "Python", Ending: ".py", OnlyNamed: true, Foreign: foreign, Load: func(ctx context.Context, path string, opts script.Options) (script.File, error) {
		f, err := load(ctx, path, opts)
		if err != nil {
			return nil, err
		}
		return f, nil
	}})
}

// declaration is a call of machine(…).
var declaration = regexp.MustCompile(`(?m)^(?:[^#\n]*[^#\w.\n])?machine\(`)

// foreign: a script's machines are in a machine configuration.
func foreign(text []byte) bool { return !declaration.Match(text) }

//go:embed check.py
var checker string

// symbols are the names that a script finds besides Python's own, its machines and
// its networks.
var symbols = []string{
	"start_all", "join_all", "test_script", "run_tests", "machines", "machines_qemu", "machines_nspawn", "vlans", "driver", "log", "os",
	"create_machine", "subtest", "retry", "serial_stdout_off", "serial_stdout_on", "polling_condition", "t", "debug",
	"BaseMachine", "QemuMachine", "NspawnMachine", "Machine", "lab", "dump_machine_ssh",
}

// forms are methods that machines have besides the operations.
var forms = []string{
	"connect", "release", "log_serial", "run_callbacks", "cleanup_statedir", "ssh_backdoor_command", "console_interact", "wait_for_monitor_prompt",
	"dump_efi_vars", "read_efi_vars", "create_efi_vars", "write_efi_vars",
}

// checked is what the checker says.
type checked struct {
	Version    string
	Executable string            // the Python that runs
	Environ    map[string]string // what Python and the linker look at
	Title      string
	Declares   bool // it is a test file
	Functions  []function
	Calls      []call
	Errors     []struct {
		Line, Column             int
		Message, Text, Operation string
		Name                     string
	}
}

// A call is one of an operation, on a machine that is certain, where its error is not caught.
type call struct {
	Machine, Operation string // the machine's variable
	Line, Column       int
	Text               string // the line
}

// load compiles a script, and looks at the names in it. Nothing of it is run.
func load(ctx context.Context, path string, opts script.Options) (*file, error) {
	if _, err := script.MemoryLimit(); err != nil {
		return nil, err
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, &script.LoadError{Path: path, Errors: []*script.Error{{Position: event.Position{File: path}, Err: err}}}
	}
	f := &file{path: path, machines: slices.Clone(opts.Machines), stdout: opts.Stdout, driver: opts.Driver, vars: opts.Vars,
		variables: map[string]attest.MachineConfig{}}
	if f.stdout == nil {
		f.stdout = io.Discard
	}
	names, err := variables(path, f.machines)
	if err != nil {
		return nil, err
	}
	known := slices.Concat(symbols, operation.Names(operation.Lab), names)
	for _, on := range operation.Kinds() {
		if g := on.Global(); g != "" {
			known = append(known, g)
		}
	}
	for _, n := range f.networks() {
		known = append(known, fmt.Sprint("vlan", n))
	}
	operations := append(operation.Names(operation.Machine), forms...)
	checking, err := begin(ctx, program(), isolated, checker, source, path, asJSON(known), asJSON([]any{names, operations}))
	if err != nil {
		return nil, err
	}
	defer checking.drop()
	early, err := f.prepare(ctx, opts, source)
	if err != nil {
		return nil, err
	}
	defer early.drop()
	text, err := checking.finish("")
	if err != nil {
		return nil, asNoPython(err)
	}
	if len(text) == 0 {
		return nil, missing("it is not Python 3")
	}
	var c checked
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, &attest.InfraError{Action: "check " + path + " with " + program(), Err: fmt.Errorf("its answer makes no sense: %w", err)}
	}
	if err := checkVersion(c.Version); err != nil {
		return nil, err
	}
	f.python, f.title = resolve(c.Executable, c.Environ), c.Title
	for i, name := range names {
		f.variables[name] = f.machines[min(i, len(f.machines)-1)] // the last may be machine, of one that is alone
	}
	if err := c.asError(path, c.Declares || len(f.machines) > 0, known, operations); err != nil {
		return nil, err
	}
	if c.Declares {
		if err := f.declare(ctx, early, opts, &c, source); err != nil {
			return nil, err
		}
	}
	if err := f.supports(c.Calls); err != nil || c.Declares {
		return f, err
	}
	if len(f.machines) == 0 && f.prompt() == nil && !bytes.Contains(source, []byte("create_machine")) {
		return nil, f.invalid("the script has no machines; name a machine configuration (--machine-config), or declare them: web = machine(image=debian())")
	}
	return f, nil
}

// prepare starts the Pythons that a file needs when it was checked, and lets them wait. It
// returns the one that declares; nil: it is not started yet.
func (f *file) prepare(ctx context.Context, opts script.Options, source []byte) (*brief, error) {
	if !direct() {
		return nil, nil
	}
	if opts.Early != nil && f.prompt() == nil {
		f.early = make(chan *process, 1)
		go func() {
			defer close(f.early)
			if p, err := f.start(ctx, program(), opts.Early); err == nil { // otherwise the call says why
				f.early <- p
			}
		}()
	}
	if foreign(source) {
		return nil, nil
	}
	return f.beginDeclaring(ctx, program(), opts)
}

// supports refuses calls of what a machine cannot do, before anything boots.
func (f *file) supports(calls []call) error {
	var errs []*script.Error
	for _, c := range calls {
		m, known := f.variables[c.Machine]
		o := operation.Find(operation.Machine, c.Operation)
		if !known || o == nil || o.Needs == "" {
			continue
		}
		if err := access.Supports(operation.In(context.Background()), m, o.Name, o.Needs); err != nil {
			errs = append(errs, &script.Error{Position: event.Position{File: f.path, Line: c.Line, Column: c.Column}, Source: c.Text, Err: err})
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return &script.LoadError{Path: f.path, Errors: errs}
}

// asNoPython is the error of a program that does not take Python's options, such as a Python 2. A Python 3 ends with 1 if
// what it runs fails.
func asNoPython(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() <= 1 {
		return err
	}
	said, _, _ := strings.Cut(errors.Unwrap(err).Error(), "\n")
	return missing("it is not Python 3 (" + said + ")")
}

// invalid is that the file as a whole makes no sense.
func (f *file) invalid(reason string) error {
	return &script.LoadError{Path: f.path, Errors: []*script.Error{{Position: event.Position{File: f.path}, Err: errors.New(reason)}}}
}

func asJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and lists
	}
	return string(text)
}

func (c *checked) asError(path string, machines bool, known, operations []string) error {
	var errs []*script.Error
	for _, e := range c.Errors {
		hint := ""
		switch {
		case e.Name == "machine" && !slices.Contains(known, "machine"):
			hint = "; the machines of a script are in a machine configuration (--machine-config), and only one that is alone is also called machine"
		case e.Name != "":
			if hint = operation.DidYouMean(e.Name, known); hint == "" && !machines {
				hint = "; the script has no machines: those of a script are in a machine configuration (--machine-config)"
			}
		case e.Operation != "":
			hint = operation.DidYouMean(e.Operation, operations)
		}
		errs = append(errs, &script.Error{Position: event.Position{File: path, Line: e.Line, Column: e.Column}, Source: e.Text, Err: errors.New(e.Message + hint)})
	}
	if len(errs) == 0 {
		return nil
	}
	return &script.LoadError{Path: path, Errors: errs}
}

// variables are the names of machines as variables. Two machines must not have the same one.
func variables(path string, machines []attest.MachineConfig) ([]string, error) {
	out := []string{} // JSON's, not null
	of := map[string]string{}
	for _, m := range machines {
		v := variable(m.Name)
		if other, twice := of[v]; twice {
			return nil, &script.LoadError{Path: path, Errors: []*script.Error{{
				Position: event.Position{File: path}, Err: fmt.Errorf("the machines %s and %s are both the variable %s in Python; rename one", other, m.Name, v),
			}}}
		}
		of[v] = m.Name
		out = append(out, v)
	}
	if len(machines) == 1 && out[0] != "machine" {
		out = append(out, "machine")
	}
	return out, nil
}

// variable is a machine's name with _ for what a variable cannot have.
func variable(name string) string {
	v := []byte(name)
	for i, c := range v {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			v[i] = '_'
		}
	}
	return string(v)
}
