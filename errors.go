package attest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/attest-vm/attest/internal/event"
)

// Status says what kind of end a test, a step or an error is. See StatusOf.
type Status string

// The kinds of ends. They are different things with different remedies, so
// they are told apart in every report and in the exit code of attest run.
const (
	Passed      Status = "passed"
	Failed      Status = "failed"      // the test's own claim did not hold
	BootFailed  Status = "boot_failed" // a guest did not come up
	Infra       Status = "infra"       // the host is broken: no VMM, no space, …
	Unsupported Status = "unsupported" // this backend or this host cannot do it
	Invalid     Status = "invalid"     // wrong usage, an invalid test file or configuration
	Interrupted Status = "interrupted" // somebody stopped the run
)

// A Detail is a titled block of text that belongs to a failure, such as the
// journal of a unit.
type Detail struct {
	Title, Text string
	// Pictures are shown beside each other; Text is for reports that cannot.
	Pictures []Picture
}

// A Picture is a PNG file.
type Picture struct{ Title, Path string }

// A CommandError is a command whose exit status was not the one the test required.
type CommandError struct {
	Machine   string
	Operation string // "succeed", "fail"
	Command   string
	Number    int // which of several commands it was, from 1
	Of        int // how many they were
	Result    Result
	Console   []string // the machine's last console lines
	State     string   // of the machine, if the command timed out and nothing goes on as usual
	Details   []Detail // units that failed, or that systemd restarts
}

func (e *CommandError) Error() string {
	which := fmt.Sprintf("%s: command `%s`", e.Machine, e.Command)
	if e.Of > 1 {
		which = fmt.Sprintf("%s: command %d of %d, `%s`,", e.Machine, e.Number, e.Of, e.Command)
	}
	if e.Operation == "fail" {
		return which + " unexpectedly succeeded"
	}
	how := fmt.Sprintf("exit code %d", e.Result.ExitCode)
	switch {
	case e.Result.TimedOut:
		how = fmt.Sprintf("timed out after %v, exit code %d", e.Result.Duration.Round(time.Millisecond), e.Result.ExitCode)
	case e.Result.Signal != "":
		how += ", " + e.Result.Signal
	}
	text := fmt.Sprintf("%s failed (%s)", which, how)
	if e.Result.HeldBy != "" {
		text += "; it had ended, and its standard output is held open by " + e.Result.HeldBy
	}
	if e.State != "" {
		text += "; " + e.State
	}
	return text
}

// Status is that of a test whose claim did not hold.
func (*CommandError) Status() Status { return Failed }

func (e *CommandError) describe(f *event.Failure) {
	f.Command, f.Console = e.Command, e.Console
	setResult(f, e.Result)
	setDetails(f, e.Details)
}

// A WaitError is a wait that failed: it timed out, or can no longer succeed.
type WaitError struct {
	Machine   string        // empty for waits that are not for one machine
	Operation string        // "wait_for_unit"
	Args      string        // `"nginx.service"`
	Elapsed   time.Duration // how long it waited
	Limit     time.Duration // how long it was ready to wait
	Tries     int           // 0 where nothing is tried: the wait is for an event
	LastSeen  string        // what was observed last
	Reason    string        // why it can no longer succeed; empty: it timed out
	Result    *Result       // the last attempt, where the attempts are commands
	State     string        // of the machine, if nothing goes on in it as usual: "the machine is suspended"
	Details   []Detail

	attach func(*WaitError) // adds what takes time of its own, once the wait is over; nil: nothing does
}

func (e *WaitError) Error() string {
	var b strings.Builder
	if e.Machine != "" {
		b.WriteString(e.Machine + ": ")
	}
	fmt.Fprintf(&b, "%s(%s) ", e.Operation, e.Args)
	if e.Reason != "" {
		fmt.Fprintf(&b, "can no longer succeed: %s (after %v", e.Reason, roundDuration(e.Elapsed))
	} else {
		fmt.Fprintf(&b, "timed out after %v (limit %v", roundDuration(e.Elapsed), roundDuration(e.Limit))
	}
	if e.Tries > 0 {
		fmt.Fprintf(&b, ", %s", english.Plural(e.Tries, "try", ""))
	}
	b.WriteString(")")
	if e.LastSeen != "" {
		fmt.Fprintf(&b, "; last seen: %s", e.LastSeen)
	}
	if e.State != "" {
		b.WriteString("; " + e.State)
	}
	return b.String()
}

// Status is that of a test whose claim did not hold.
func (*WaitError) Status() Status { return Failed }

func (e *WaitError) describe(f *event.Failure) {
	f.Duration, f.Tries, f.LastSeen = e.Elapsed, e.Tries, e.LastSeen
	setDetails(f, e.Details)
	if e.Result != nil {
		setResult(f, *e.Result)
	}
}

// Timeout reports whether the wait timed out, as net.Error does.
func (e *WaitError) Timeout() bool { return e.Reason == "" }

// A BootError is a guest that did not come up: its kernel panicked, it never
// answered, its init gave up.
type BootError struct {
	Machine string
	Reason  string        // "kernel panic", "the guest did not answer within 5m0s"
	After   time.Duration // since the VMM started
	Console []string      // the last lines of the console
	Err     error         // what ended the wait for the first answer early, such as the end of the test's time

	final bool // another boot would end in the same way
}

func (e *BootError) Unwrap() error { return e.Err }

func (e *BootError) Error() string {
	msg := fmt.Sprintf("%s: guest did not boot: %s (after %v)", e.Machine, e.Reason, roundDuration(e.After))
	if len(e.Console) == 0 {
		return msg + "; the console stayed silent"
	}
	return msg
}

// Status is BootFailed, unless somebody has stopped the run meanwhile.
func (e *BootError) Status() Status {
	if errors.Is(e.Err, context.Canceled) {
		return Interrupted
	}
	return BootFailed
}

func (e *BootError) describe(f *event.Failure) { f.Duration, f.Console = e.After, e.Console }

// A DownError is a machine that is not running, or stopped under an operation.
type DownError struct {
	Machine   string
	Operation string
	Reason    string // "powered off", "kernel panic", "was never started"
	Broken    bool   // the VMM gave up by itself: the host's fault, not the guest's
	Console   []string
}

func (e *DownError) Error() string {
	what := e.Machine
	if e.Operation != "" {
		what += ": " + e.Operation
	}
	return what + ": the machine is down: " + e.Reason
}

// Status is Failed, or Infra where the VMM is to blame.
func (e *DownError) Status() Status {
	if e.Broken {
		return Infra
	}
	return Failed
}

func (e *DownError) describe(f *event.Failure) { f.Console = e.Console }

// A MissingProgramError is an operation that needs a program which is not installed on
// this host.
type MissingProgramError struct {
	Machine   string
	Operation string // "wait_for_text"
	Program   string // "tesseract"
	Reason    string // "not found on PATH (/usr/bin:/bin)"
	Remedy    string // "apt-get install tesseract-ocr"
}

func (e *MissingProgramError) Error() string {
	return fmt.Sprintf("%s: %s needs the program %s on this host: %s; %s", e.Machine, e.Operation, e.Program, e.Reason, e.Remedy)
}

// Status is Unsupported.
func (*MissingProgramError) Status() Status { return Unsupported }

// A ConfigError is a lab, a machine or an argument that makes no sense. Nothing
// was started.
type ConfigError struct {
	Subject string // `machine "server"`, "--machine-config lab.json: /machines/0/memory"
	Reason  string
}

func (e *ConfigError) Error() string {
	if e.Subject == "" {
		return e.Reason
	}
	return e.Subject + ": " + e.Reason
}

// Status is Invalid.
func (*ConfigError) Status() Status { return Invalid }

// StatusOf reports which kind of failure err is; Passed for nil. Errors say so
// themselves, by a method Status. An error without one is Failed, since it came
// from the test, unless this host has run out of something.
func StatusOf(err error) Status {
	switch {
	case err == nil:
		return Passed
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	if s, ok := statusIn(err); ok {
		return s
	}
	for _, exhausted := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, exhausted) {
			return Infra
		}
	}
	return Failed
}

// statusIn is what the first error of a tree that has a status says. Those of the
// packages below say it in their own type.
func statusIn(err error) (Status, bool) {
	switch e := err.(type) {
	case interface{ Status() Status }:
		return e.Status(), true
	case interface{ Status() event.Status }:
		return Status(e.Status()), true
	case interface{ Unwrap() error }:
		return statusIn(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, e := range e.Unwrap() {
			if s, ok := statusIn(e); ok {
				return s, true
			}
		}
	}
	return "", false
}

// An InfraError is something that went wrong on the host, not in the test.
type InfraError struct {
	Machine string // may be empty
	Action  string // "create the overlay disk"
	Err     error
}

func (e *InfraError) Error() string {
	msg := fmt.Sprintf("%s: %v", e.Action, e.Err)
	if e.Machine != "" {
		msg = e.Machine + ": " + msg
	}
	return msg
}

func (e *InfraError) Unwrap() error { return e.Err }

// Status is Infra.
func (*InfraError) Status() Status { return Infra }

// failureOf lays an error out for the reports.
func failureOf(err error, machine, operation string) *event.Failure {
	if err == nil {
		return nil
	}
	f := &event.Failure{Status: event.Status(StatusOf(err)), Message: err.Error(), Machine: machine, Operation: operation}
	if detailed := (detailed)(nil); errors.As(err, &detailed) {
		detailed.describe(f)
	}
	return f
}

// A detailed error knows more than its text, for the reports.
type detailed interface {
	error
	describe(*event.Failure)
}

func setResult(f *event.Failure, r Result) {
	code := r.ExitCode
	f.ExitCode, f.Duration = &code, r.Duration
	f.Stdout, f.Stderr = strings.ToValidUTF8(r.Stdout, "\uFFFD"), strings.ToValidUTF8(r.Stderr, "\uFFFD")
}

func setDetails(f *event.Failure, details []Detail) {
	for _, d := range details {
		detail := event.Detail{Title: d.Title, Text: d.Text}
		for _, p := range d.Pictures {
			detail.Pictures = append(detail.Pictures, event.Picture(p))
		}
		f.Details = append(f.Details, detail)
	}
}

func roundDuration(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Millisecond)
}

// A Result is how a command ended and what it said.
type Result struct {
	ExitCode int    // 128+N after signal N; 124 after a timeout
	Signal   string // "SIGKILL", if one ended it
	Stdout   string // byte for byte, up to 64 MiB: a command that writes more is ended, unless Stdout says where it goes
	Stderr   string // likewise
	Duration time.Duration
	TimedOut bool
	HeldBy   string // which processes kept standard output open when the command itself had ended, and its time was over
}

// A PausedError is an operation that needs the guest of a machine that Pause has
// stopped.
type PausedError struct{ Machine, Operation string }

func (e *PausedError) Error() string {
	return fmt.Sprintf("%s: %s: the machine is paused; resume it first", e.Machine, e.Operation)
}

// Status is that of a test that asked for the impossible.
func (*PausedError) Status() Status { return Failed }

// A SuspendedError is an operation that needs the guest of a machine that sleeps.
type SuspendedError struct{ Machine, Operation string }

func (e *SuspendedError) Error() string {
	return fmt.Sprintf("%s: %s: the machine is suspended; wake it first", e.Machine, e.Operation)
}

// Status is that of a test that asked for the impossible.
func (*SuspendedError) Status() Status { return Failed }

// A RefusedError is an operation that the guest refused, such as a copy of a file that
// does not exist. Err is the agent's error.
type RefusedError struct {
	Machine   string
	Operation string // "copy_from_machine"
	Args      string // `"/etc/nothing"`
	Message   string // "no such file or directory"
	Err       error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: %s(%s): %s", e.Machine, e.Operation, e.Args, e.Message)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// Status is that of a test whose claim did not hold.
func (*RefusedError) Status() Status { return Failed }

// A UnitError is a systemd unit that is not in the required state, or that
// systemd does not know.
type UnitError struct {
	Machine   string
	Operation string // "require_unit_state"
	Unit      string
	User      string // the user of the service manager; empty: the system's
	Reason    string
	Details   []Detail // the unit's journal
}

func (e *UnitError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.Machine, e.Operation, e.Reason)
}

// Status is that of a test whose claim did not hold.
func (*UnitError) Status() Status { return Failed }

func (e *UnitError) describe(f *event.Failure) { setDetails(f, e.Details) }

// A FilesError is files of the host ([MachineConfig.Files], [MachineConfig.Mount]) that
// did not come into a guest.
type FilesError struct {
	Machine string
	Path    string // in the guest
	Source  string // on the host; empty: the content is in the configuration
	Err     error

	refused bool // they cannot be read on the host, or the guest has no place for them
}

func (e *FilesError) Error() string {
	from := ""
	if e.Source != "" {
		from = " from " + e.Source
	}
	return fmt.Sprintf("%s: %s%s: %v", e.Machine, e.Path, from, e.Err)
}

func (e *FilesError) Unwrap() error { return e.Err }

// Status is Invalid if the host cannot read the files or the guest has no place for
// them, and that of the cause otherwise.
func (e *FilesError) Status() Status {
	if e.refused {
		return Invalid
	}
	return StatusOf(e.Err)
}
