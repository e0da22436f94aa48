package script

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/supervise"
)

// A File is a test file that was loaded and found to make sense. It holds no
// state between calls, so several labs can be used at once.
type File interface {
	// Path is the file's name, as it was given.
	Path() string
	// Machines are the machines of the file, in the order of their declaration.
	Machines() []attest.MachineConfig
	// Networks are those whose services are not the usual ones, by their numbers.
	Networks() map[int]attest.NetworkConfig
	// Tests are the functions to run, in the order of the file.
	Tests() []Test
	// Setup is what runs before the tests; nil: nothing does.
	Setup() *Test
	// KeepOnFailure reports whether the file wants the labs of its failed tests kept.
	KeepOnFailure() bool
	// Call runs Setup or a test on a lab. Operations publish their events on the
	// bus of ctx. Its error has the place as an *Error and wraps what the operation
	// said; it wraps the cause of ctx if that ended, soon after it did.
	Call(ctx context.Context, lab operation.Runner, name string) error
}

// A Builder is a File that has commands of the host run before its tests.
type Builder interface {
	// Builds are these commands, in the order in which they run.
	Builds() []Build
}

// A Build is a command of the host that makes what the machines of a file get.
type Build struct {
	Command string // for sh -c
	Dir     string // where it runs, and where relative paths begin
	// Inputs are files, directories with all that is in them, and patterns as
	// filepath.Match has them. With Outputs, the command runs only if one of either has
	// changed since it succeeded last.
	Inputs, Outputs []string
	Place           *Error // of the declaration, without Err
}

// A Locator is a File that knows where its machines are declared.
type Locator interface {
	// Declared is the place of a machine's declaration, without Err; nil: it is not in
	// the file.
	Declared(machine string) *Error
}

// A Comparer is a File that can be compared with what it was before.
type Comparer interface {
	// SetupKey is another one when setup may do something else than before: when anything
	// of the file or of those that it loads has changed but its tests.
	SetupKey() string
	// Asks reports whether the file may ask for a variable of Options.Vars.
	Asks(name string) bool
}

// A Test is something in a file that runs in a lab of its own.
type Test struct {
	Name     string
	Title    string // what it is about, in one line; may be empty
	Position event.Position
	Timeout  time.Duration // of its run, not scaled to the host; 0: none of its own
}

// Setup is the name of what runs before the tests.
const Setup = "setup"

// Options change how files are loaded. The zero value is ready to use.
type Options struct {
	Stdout io.Writer // where print writes; nil: nowhere
	// Machines that the file does not declare itself: they are variables of
	// their names, with _ for what a variable cannot have.
	Machines []attest.MachineConfig
	Backend  string // of machines that name none; empty: attest's default
	Language string // of files whose ending is no language's; empty: such a file is an error
	// Driver has scripts run as the NixOS test driver runs them, where the language knows
	// a difference. Nil: as a test file.
	Driver *Driver
	// Vars are what the file can ask for by name. Those of the environment
	// (VarEnv and the name) come after them.
	Vars map[string]string
	// Early starts a program that the first Call is going to need, while the file is still
	// read; nil: nothing does.
	Early Starter
	// Opened is called with each file before it is read; nil: nobody wants to know.
	Opened func(path string)
}

// A Starter starts a program of this host, which may have files in a directory.
type Starter func(ctx context.Context, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error)

// VarEnv begins the names of the environment's variables that test files can ask for.
const VarEnv = "ATTEST_VAR_"

// Var returns the value of a variable.
func (o Options) Var(name string) (string, bool) {
	if v, ok := o.Vars[name]; ok {
		return v, true
	}
	return os.LookupEnv(VarEnv + name)
}

// A Driver is what the NixOS test driver does differently from a run of test files. The
// zero value runs a script without anybody at a terminal.
type Driver struct {
	Networks []int // numbers of all networks, whether a declared machine is on them or not
	// Prompt is the terminal of a person who types instead of running the script; nil:
	// nobody does.
	Prompt *Prompt
	// Attach is the command by which a person gets to where the script runs; it is shown
	// when a failed script waits for one (--debug-hook-attach). Empty: it does not wait.
	Attach string
	// Timeout is the limit of the run, which scripts can ask for; 0: not known.
	Timeout time.Duration
	// Exited is called when the script ends by sys.exit, with its code.
	Exited func(code int)
}

// A Prompt is where a person types.
type Prompt struct {
	In, Out, Err *os.File
	Interrupts   <-chan error    // has a value for each Ctrl-C
	Hold         func(held bool) // keeps others from writing to the terminal
	History      string          // path of a file; empty: none is kept
	After        bool            // the script runs first
}

// A Session is a language that somebody types, statement by statement, on one lab.
type Session interface {
	// Machines are those declared so far; one that makes no sense is an *Error.
	Machines() ([]attest.MachineConfig, error)
	// Networks are those declared so far.
	Networks() map[int]attest.NetworkConfig
	// Read reads one statement. line returns a line, with its newline, and is told
	// whether it is the first. What it returns as error ends Read; io.EOF at the
	// first line is the end of the session.
	Read(line func(first bool) (string, error)) (Statement, error)
	// Run runs a statement, and returns its value as it is shown; empty for none.
	// Its errors are those of File.Call, and *LoadErrors.
	Run(context.Context, Statement) (string, error)
	// Complete says how the text before the cursor can go on: head is the part that
	// stays, and each of words is one that can stand behind it.
	Complete(text string) (head string, words []string)
}

// A Statement is what Session.Read has read for Session.Run.
type Statement any

// Exhausted is called when scripts have so much memory that the process has to end
// at once. The command replaces it by a way to end that says what happened.
var Exhausted = func(err error) { panic(err) }
