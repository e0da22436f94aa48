package operation

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
)

// On is what an operation belongs to: a kind of object.
type On int

const (
	Machine On = iota // a method of a machine
	Lab               // a function of the test file
	Network           // a method of the lab's network
	Fault             // a method of something that is wrong with it
	Capture           // a method of a capture of its frames
	Job               // a method of what spawn returns
)

// kinds are the kinds of objects, in the order of the reference.
var kinds = []struct {
	name   string // "machine": how the reference calls an object, and a front end its type
	global string // the variable that is the one object of this kind that every lab has; mostly there is none
}{
	Machine: {name: "machine"},
	Lab:     {name: "lab"},
	Network: {name: "network", global: "network"},
	Fault:   {name: "fault"},
	Capture: {name: "capture"},
	Job:     {name: "job"},
}

// Kinds are all kinds of objects that have operations.
func Kinds() []On {
	out := make([]On, len(kinds))
	for i := range kinds {
		out[i] = On(i)
	}
	return out
}

func (on On) String() string { return kinds[on].name }

// Global is the variable that front ends predeclare for the one object of this
// kind that every lab has; empty if objects of this kind are made by operations.
func (on On) Global() string { return kinds[on].global }

// Type is the type of a parameter or a result. The name of a kind is a type
// too: the result is a Handle.
type Type string

const (
	None     Type = "None" // the result of an operation that has none
	String   Type = "string"
	Bytes    Type = "string or bytes"
	Bool     Type = "bool"
	Int      Type = "int"
	Float    Type = "number"
	Size     Type = "size"           // of a disk: a string as vmm.ParseSize reads it; an int64 of bytes
	Disk     Type = "disk or string" // an attest.Disk; of a string, the one with this serial
	Disks    Type = "list of disks"  // []attest.Disk
	Duration Type = "duration"       // a number of seconds, or a string as time.ParseDuration reads it
	Strings  Type = "string or list of strings"
	Dict     Type = "dict of strings"
	Ints     Type = "list of integers"
	Image    Type = "image"           // an attest.Image
	Kernel   Type = "path or package" // of the host, or debian:PACKAGE
	Machines Type = "machine or list of machines"
	Function Type = "function" // of the test file; see Func
	Filter   Type = "string, dict or function"
	Pair     Type = "result" // see Result
	List     Type = "list of strings"
	AnyDict  Type = "dict"
	Files    Type = "dict of files" // see FilesOf
	Paths    Type = "dict of paths" // of the host, by paths in the guest
)

// On is the kind of object that a type stands for.
func (t Type) On() (On, bool) {
	for i, k := range kinds {
		if string(t) == k.name {
			return On(i), true
		}
	}
	return 0, false
}

// A Func is a function of the test file. An operation calls it, from whatever
// goroutine, before it returns itself. The operations that the function calls
// end with ctx. Arguments and results are values as Bind takes them.
type Func func(ctx context.Context, args ...any) (any, error)

// A MachineName is a machine as front ends know it: the guest of that name in
// whatever lab the test runs in.
type MachineName string

// A Handle is an object that an operation has returned and that has operations
// itself, such as a job. Front ends pass it on without looking into it.
type Handle struct {
	On    On
	Name  string // what tells it from others, in messages
	Value any    // the root package's own, such as *attest.Job
}

// An Operation is one thing that a test can ask for.
type Operation struct {
	Name    string
	Aliases []string // older names that scripts use
	On      On
	Subject string // heading in the reference
	Params  []Param
	Result  Type
	// Property is an operation without parameters that says something at once;
	// front ends offer it as an attribute.
	Property bool
	Needs    vmm.Capability // of the machine; most operations need none
	Doc      string         // the first sentence says what it does; what follows may be several paragraphs

	call func(context.Context, target, Args) (any, error)
}

// A Param is one parameter. Callers give it by position or by name.
type Param struct {
	Name     string
	Type     Type
	Default  any  // a Go value of Type, or Absent; nil: the caller must give one
	Nullable bool // the caller can say None although there is a default
	Variadic bool // any number of strings by position, at least one; the last parameter that has a position
	Named    bool // given by name only, as is everything that follows
	Path     bool // a path of the host; front ends make it relative to the file with the call
	// Check says what is wrong with a value of Type, so that literals are
	// refused before anything boots.
	Check func(v any) error
	Doc   string
}

// Absent is the default of a parameter that has none and need not be given: None.
var Absent = absent{}

type absent struct{}

// target is what an operation is called on.
type target struct {
	lab     *attest.Lab
	machine *attest.Machine // of operations of a machine
	object  any             // Value of the handle; nil for a kind's global object
}

// Result is what Pair operations return: a pair of status and output for
// callers that unpack it, and everything about the command for those that ask.
type Result struct {
	Status int    // ExitCode; -1 if the caller did not want it, -2 if the command was only started
	Output string // Stdout, for Text
	attest.Result
}

// Find returns the operation of this name or alias, or nil.
func Find(on On, name string) *Operation {
	for _, o := range table {
		if o.On != on {
			continue
		}
		if o.Name == name {
			return o
		}
		for _, alias := range o.Aliases {
			if alias == name {
				return o
			}
		}
	}
	return nil
}

// All returns the operations of one kind, in the order of the reference.
func All(on On) []*Operation {
	var out []*Operation
	for _, o := range table {
		if o.On == on {
			out = append(out, o)
		}
	}
	return out
}

// Names are all names and aliases of the operations of one kind.
func Names(on On) []string {
	var out []string
	for _, o := range All(on) {
		out = append(append(out, o.Name), o.Aliases...)
	}
	return out
}

// Signature is the operation as the reference shows it:
// "wait_for_unit(unit, user=None, timeout=900)".
func (o *Operation) Signature() string {
	if o.Property {
		return o.Name
	}
	var parts []string
	named := false // what follows is given by name
	for _, p := range o.Params {
		if p.Named && !named {
			named = true
			parts = append(parts, "*")
		}
		switch {
		case p.Variadic:
			named = true
			parts = append(parts, "*"+p.Name)
		case p.Default == nil:
			parts = append(parts, p.Name)
		default:
			parts = append(parts, p.Name+"="+literal(p.Default))
		}
	}
	return o.Name + "(" + strings.Join(parts, ", ") + ")"
}

// In has the engine write arguments and settings, in reports and errors, as test
// files have them.
func In(ctx context.Context) context.Context {
	return event.WithLiteral(ctx, func(v any) string {
		if b, ok := v.(bool); ok {
			return literal(b)
		}
		return event.Neutral(v)
	})
}

// literal writes a default value as both Starlark and Python read it.
func literal(v any) string {
	switch v := v.(type) {
	case nil, absent:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case string:
		return strconv.Quote(v)
	case time.Duration:
		return strconv.FormatFloat(v.Seconds(), 'f', -1, 64)
	}
	return fmt.Sprint(v)
}
