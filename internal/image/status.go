package image

import "github.com/attest-vm/attest/internal/event"

// What is the user's to mend is invalid; what is the host's is not.

func (*SpecError) Status() event.Status    { return event.Invalid }
func (*PackageError) Status() event.Status { return event.Invalid }
func (*SpaceError) Status() event.Status   { return event.Infra }
func (*BuildError) Status() event.Status   { return event.Infra }

// Status says that a line is the user's to mend, unless the host has killed it.
func (e *RunError) Status() event.Status {
	if e.Code == killedCode {
		return event.Infra
	}
	return event.Invalid
}
