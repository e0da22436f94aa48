package image

import "github.com/attest-vm/attest/internal/event"

// What is the user's to mend is invalid; what is the host's is not.

func (*SpecError) Status() event.Status    { return event.Invalid }
func (*PackageError) Status() event.Status { return event.Invalid }
func (*RunError) Status() event.Status     { return event.Invalid }
func (*SpaceError) Status() event.Status   { return event.Infra }
func (*BuildError) Status() event.Status   { return event.Infra }
