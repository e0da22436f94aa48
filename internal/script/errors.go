package script

import (
	"strings"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
)

// An Error is something that went wrong at a place in a test file.
type Error struct {
	Position event.Position   // zero if the place is unknown
	Source   string           // the line at Position
	Stack    []event.Position // the calls that led there, outermost first
	Err      error            // what went wrong
}

func (e *Error) Error() string {
	if e.Position.File == "" {
		return e.Err.Error()
	}
	return e.Position.String() + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// A LoadError is a test file that cannot be run.
type LoadError struct {
	Path   string
	Errors []*Error // at least one, in the order of the file
}

func (e *LoadError) Error() string {
	var b strings.Builder
	for i, x := range e.Errors {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(x.Error())
		if source := strings.TrimSpace(x.Source); source != "" {
			b.WriteString("\n\t" + source)
		}
	}
	return b.String()
}

func (e *LoadError) Unwrap() []error {
	errs := make([]error, len(e.Errors))
	for i, x := range e.Errors {
		errs[i] = x
	}
	return errs
}

// Status is Invalid, or Unsupported where every error is that its machines cannot do
// something: the file is right then, and another backend may run it.
func (e *LoadError) Status() attest.Status {
	for _, x := range e.Errors {
		if attest.StatusOf(x) != attest.Unsupported {
			return attest.Invalid
		}
	}
	return attest.Unsupported
}
