package agent

import (
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// A Stage is what an agent serves that does not run in a guest of its own: its
// files and processes are real, but the system around them, such as the clock
// and the power switch, is not its to change.
type Stage interface {
	// Info changes who answers: what the agent finds is the real system's.
	Info(*wire.Info)
	// Operate does one operation, or has the agent do it by next, with the same
	// request or another.
	Operate(stream *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error)
}

// perform does one operation.
func (s *Server) perform(stream *wire.Stream, r wire.Request) (any, error) {
	if s.Stage == nil {
		return s.operation(stream, r)
	}
	return s.Stage.Operate(stream, r, func(r wire.Request) (any, error) { return s.operation(stream, r) })
}

// announcement is what the agent says when it starts.
func (s *Server) announcement() wire.AnnounceMessage {
	i := s.info()
	return wire.AnnounceMessage{Instance: i.Instance, BootID: i.BootID}
}

// Settle makes the guest somebody as far as its files, its name and its networks
// go: all of an Identity but entropy and time, which are the kernel's.
func Settle(id wire.Identity) error {
	id.Entropy, id.Time = nil, time.Time{}
	return applyIdentity(id, "/")
}
