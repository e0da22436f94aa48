package event

import "slices"

// Status is how a test, a step or a run ended. The four failures are different
// things with different remedies, in every report and in the exit code.
type Status string

const (
	Passed      Status = "passed"
	Failed      Status = "failed"      // the test's own claim did not hold
	BootFailed  Status = "boot_failed" // a guest did not come up, or died under the test
	Infra       Status = "infra"       // the host is broken: no VMM, no space, …
	Unsupported Status = "unsupported" // this backend or host cannot do it
	Invalid     Status = "invalid"     // wrong usage, or an invalid test file or configuration
	Interrupted Status = "interrupted" // somebody stopped the run
	Skipped     Status = "skipped"     // did not run
)

// severity has the worst status first: what is to be mended before anything else
// can be known.
var severity = []Status{Interrupted, Invalid, Failed, BootFailed, Infra, Unsupported, Passed, Skipped}

// Worst returns the status that decides for the whole; Skipped if there is none.
// A status that this version does not know counts as Failed.
func Worst(statuses ...Status) Status {
	worst := Skipped
	rank := func(s Status) int {
		if i := slices.Index(severity, s); i >= 0 {
			return i
		}
		return slices.Index(severity, Failed)
	}
	for _, s := range statuses {
		if rank(s) < rank(worst) {
			worst = s
		}
	}
	return worst
}

// ExitCode is the exit code of a command that ended like this:
//
//	0    passed, or nothing ran
//	1    failed
//	2    invalid
//	3    boot_failed, infra
//	4    unsupported
//	130  interrupted, as a shell reports SIGINT
func (s Status) ExitCode() int {
	switch s {
	case Passed, Skipped:
		return 0
	case Invalid:
		return 2
	case BootFailed, Infra:
		return 3
	case Unsupported:
		return 4
	case Interrupted:
		return 130
	}
	return 1
}
