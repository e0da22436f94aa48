package protocol

import (
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/script"
)

// A ThrownError is an error of the peer's language.
type ThrownError struct{ Thrown *Thrown }

func (e *ThrownError) Error() string {
	switch {
	case e.Thrown.Class == "":
		return e.Thrown.Message
	case e.Thrown.Message == "":
		return e.Thrown.Class
	}
	return e.Thrown.Class + ": " + e.Thrown.Message
}

// Status is what the peer says it is: otherwise a claim that does not hold.
func (e *ThrownError) Status() event.Status {
	switch e.Thrown.Status {
	case event.Invalid, event.Unsupported:
		return e.Thrown.Status
	}
	return event.Failed
}

// Explain makes an error of what the peer has thrown, with its place. An error that comes from an
// operation is that one.
func (s *Server) Explain(t *Thrown) *script.Error { return t.explain(s.errors.get(t.Error)) }

// Explain makes an error of what was thrown before there was a Server.
func (t *Thrown) Explain() *script.Error { return t.explain(nil) }

func (t *Thrown) explain(err error) *script.Error {
	out := &script.Error{Stack: t.Stack, Source: t.Source, Err: err}
	if out.Err == nil {
		out.Err = &ThrownError{t}
	}
	if n := len(t.Stack); n > 0 {
		out.Position = t.Stack[n-1]
	}
	return out
}
