package operation

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest"
)

// On is what an operation belongs to.
type On int

const (
	Machine On = iota // a method of a machine
	Lab               // a function of the test file
)

// Type is the type of a parameter or a result.
type Type string

const (
	None     Type = "None" // the result of an operation that has none
	String   Type = "string"
	Bool     Type = "bool"
	Int      Type = "int"
	Duration Type = "duration" // a number of seconds, or a string as time.ParseDuration reads it
	Pair     Type = "result"   // see Result
)

// An Operation is one thing that a test can ask for.
type Operation struct {
	Name    string
	Aliases []string // older names that scripts use
	On      On
	Subject string // heading in the reference
	Params  []Param
	Result  Type
	Doc     string // the first sentence says what it does; what follows may be several paragraphs

	call func(context.Context, target, Args) (any, error)
}

// A Param is one parameter. Callers give it by position or by name.
type Param struct {
	Name     string
	Type     Type
	Default  any  // a Go value of Type, or Absent; nil: the caller must give one
	Nullable bool // the caller can say None although there is a default
	Variadic bool // any number of values by position, at least one; the last parameter that has a position
	Doc      string
}

// Absent is the default of a parameter that has none and need not be given: None.
var Absent = absent{}

type absent struct{}

// target is what an operation is called on.
type target struct {
	lab     *attest.Lab
	machine *attest.Machine // nil for operations of the lab
}

// Result is what Pair operations return: a pair of status and output for
// callers that unpack it, and everything about the command for those that ask.
type Result struct {
	Status int    // ExitCode; -1 if the caller did not want it, -2 if the command was only started
	Output string // Stdout
	attest.Result
}

// Find returns the operation of this name or alias; nil if there is none.
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
	parts := make([]string, len(o.Params))
	for i, p := range o.Params {
		switch {
		case p.Variadic:
			parts[i] = "*" + p.Name
		case p.Default == nil:
			parts[i] = p.Name
		default:
			parts[i] = p.Name + "=" + literal(p.Default)
		}
	}
	return o.Name + "(" + strings.Join(parts, ", ") + ")"
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
