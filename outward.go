package attest

import (
	"errors"

	"github.com/attest-vm/attest/internal/backdoor"
	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/snapshot"
	"github.com/attest-vm/attest/internal/vmm"
)

// An UnsupportedError is an operation or a setting that a backend does not have.
type UnsupportedError struct {
	Machine   string // may be empty
	Operation string // "screenshot", "machine type microvm"
	Backend   string
	Can       []string // the backends that can
	Reason    string   // why not, if there is more to say
}

func (e *UnsupportedError) Error() string { return (*vmm.UnsupportedError)(e).Error() }

// Status is Unsupported.
func (*UnsupportedError) Status() Status { return Unsupported }

// A MissingError is something that the host lacks: a program, a device, space.
type MissingError struct {
	What   string // "qemu-system-x86_64"
	Reason string // "not found on PATH (/usr/bin:/bin)"
	Remedy string // "apt-get install qemu-system-x86"
}

func (e *MissingError) Error() string { return (*doctor.MissingError)(e).Error() }

// Status is Infra.
func (*MissingError) Status() Status { return Infra }

// An AgentError is attest's agent in a guest that was killed while an operation was
// under way. The next operation works again.
type AgentError struct{ Machine string }

func (e *AgentError) Error() string { return (*guest.AgentError)(e).Error() }

// Status is Failed: the test, or what it tests, has killed the agent.
func (*AgentError) Status() Status { return Failed }

// An InstallError is a guest in which attest's agent cannot be started; it is the
// cause of a [BootError].
type InstallError struct {
	Machine string
	Reason  string
}

func (e *InstallError) Error() string { return (*backdoor.InstallError)(e).Error() }

// Status is BootFailed.
func (*InstallError) Status() Status { return BootFailed }

// A SnapshotDamagedError is a saved machine that is not what was written.
type SnapshotDamagedError struct{ Dir, Reason string }

func (e *SnapshotDamagedError) Error() string { return (*snapshot.DamagedError)(e).Error() }

// Status is Infra.
func (*SnapshotDamagedError) Status() Status { return Infra }

// A SnapshotMismatchError is a saved machine that does not fit this host, or what
// it shall go on as.
type SnapshotMismatchError struct {
	Dir  string
	What string // "version of attest", "amount of memory", …
	// Saved and Now are what it was when the machine was saved, and what it is now.
	Saved, Now string
}

func (e *SnapshotMismatchError) Error() string { return (*snapshot.MismatchError)(e).Error() }

// Status is Unsupported.
func (*SnapshotMismatchError) Status() Status { return Unsupported }

// outward makes an error ready for the caller of this package: errors.As finds in it
// the types above, which stand for those of the packages below.
func outward(err error) error {
	if err == nil {
		return nil
	}
	for _, t := range twins {
		if t.hides(err) {
			return outwardError{err}
		}
	}
	return err
}

// An outwardError reads as the error in it, and is found by either of its types.
type outwardError struct{ error }

func (e outwardError) Unwrap() error { return e.error }

func (e outwardError) As(target any) bool {
	for _, t := range twins {
		if t.as(e.error, target) {
			return true
		}
	}
	return false
}

// A twin is a type of this package that stands for one below.
type twin interface {
	// hides reports whether err has the one below, and not ours.
	hides(err error) bool
	// as is errors.As for our type.
	as(err error, target any) bool
}

var twins = []twin{
	of[*vmm.UnsupportedError, *UnsupportedError](func(e *vmm.UnsupportedError) *UnsupportedError { return (*UnsupportedError)(e) }),
	of[*doctor.MissingError, *MissingError](func(e *doctor.MissingError) *MissingError { return (*MissingError)(e) }),
	of[*guest.AgentError, *AgentError](func(e *guest.AgentError) *AgentError { return (*AgentError)(e) }),
	of[*backdoor.InstallError, *InstallError](func(e *backdoor.InstallError) *InstallError { return (*InstallError)(e) }),
	of[*snapshot.DamagedError, *SnapshotDamagedError](func(e *snapshot.DamagedError) *SnapshotDamagedError { return (*SnapshotDamagedError)(e) }),
	of[*snapshot.MismatchError, *SnapshotMismatchError](func(e *snapshot.MismatchError) *SnapshotMismatchError { return (*SnapshotMismatchError)(e) }),
}

type of[Below, Ours error] func(Below) Ours

func (of[Below, Ours]) hides(err error) bool {
	var below Below
	var ours Ours
	return errors.As(err, &below) && !errors.As(err, &ours)
}

func (convert of[Below, Ours]) as(err error, target any) bool {
	ours, ok := target.(*Ours)
	var below Below
	if !ok || !errors.As(err, &below) {
		return false
	}
	*ours = convert(below)
	return true
}
