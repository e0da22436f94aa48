package guest

import (
	"fmt"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// ProtocolError is bytes on the channel that an agent of this version does not
// send. The client begins a new session; what was under way failed with this.
type ProtocolError struct {
	Machine string
	Detail  string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("%s: garbage on the guest channel: %s", e.Machine, e.Detail)
}

// VersionError is an agent of another build of attest, whose protocol this one does
// not speak. The machine has to be started with an agent of this build.
type VersionError struct {
	Machine string
	Guest   int // the agent's version of the protocol
}

func (e *VersionError) Error() string {
	age := "an older"
	if e.Guest > wire.Version {
		age = "a newer"
	}
	return fmt.Sprintf("%s: the agent in the guest is of %s build of attest: it speaks version %d of the protocol, this build version %d", e.Machine, age, e.Guest, wire.Version)
}

// OverdueError is an agent that is there, and has not done what it was asked for
// in the time that is enough for a guest that is merely slow.
type OverdueError struct {
	Machine   string
	Operation string // wire.OpExec, …; never empty
	After     time.Duration
	LastSeen  string // of the agent; empty of a root shell that did not say that it is there
	Silent    bool   // it did not say that it is there, either
	StandIn   bool   // it is the guest's root shell
}

func (e *OverdueError) Error() string {
	text := fmt.Sprintf("%s: %s: the %s in the guest has not answered within %v", e.Machine, e.Operation, who(e.StandIn), e.After.Round(time.Millisecond))
	if e.LastSeen != "" {
		text += " (last seen: " + e.LastSeen + ")"
	}
	return text
}

// UnresponsiveError is an agent that does not answer a ping: the guest hangs,
// or the agent does. A guest that is merely slow answers.
type UnresponsiveError struct {
	Machine string
	Silent  time.Duration // since the last byte came from it
	StandIn bool          // it is the guest's root shell
}

func (e *UnresponsiveError) Error() string {
	return fmt.Sprintf("%s: the guest does not respond: its %s sent nothing for %v and did not answer a ping", e.Machine, who(e.StandIn), e.Silent.Round(time.Second))
}

// who is who answers for a guest.
func who(standIn bool) string {
	if standIn {
		return "root shell"
	}
	return "agent"
}

// RestartedError is a guest whose agent started anew, by a reboot as a rule,
// while an operation was under way.
type RestartedError struct{ Machine string }

func (e *RestartedError) Error() string {
	return e.Machine + ": the guest restarted"
}

// AgentError is an agent that was killed while an operation was under way. The
// guest goes on, and so does the next operation, with another agent.
type AgentError struct{ Machine string }

func (e *AgentError) Error() string {
	return e.Machine + ": attest's agent in the guest was killed; another one has taken over, but what this operation did is lost"
}

// DisconnectedError is a channel that was cut while an operation was under way, and
// did not come back within Options.Reconnect.
type DisconnectedError struct {
	Machine string
	Err     error
}

func (e *DisconnectedError) Error() string {
	return fmt.Sprintf("%s: the guest channel is closed: %v", e.Machine, e.Err)
}

func (e *DisconnectedError) Unwrap() error { return e.Err }

// OpError is what the agent says when an operation failed in the guest.
type OpError struct {
	Machine   string
	Operation string // wire.OpExec, …
	Kind      string // wire.KindNotFound, …
	Message   string
}

func (e *OpError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.Machine, e.Operation, e.Message)
}

// UnitError is a unit that cannot become active.
type UnitError struct {
	Machine string
	Unit    string
	User    string // whose manager; empty: the system's
	State   wire.UnitState
	Reason  string // `reached state "failed"`
}

func (e *UnitError) Error() string {
	unit := fmt.Sprintf("unit %q", e.Unit)
	if e.User != "" {
		unit += fmt.Sprintf(" of user %q", e.User)
	}
	return fmt.Sprintf("%s: %s %s", e.Machine, unit, e.Reason)
}

// OutputLimitError is a command that wrote more than what is kept. It was ended.
type OutputLimitError struct {
	Machine string
	Stream  string // "stdout" or "stderr"
	Limit   int64  // bytes
}

func (e *OutputLimitError) Error() string {
	return fmt.Sprintf("%s: the command wrote more than %d MiB to %s, which is the limit, and was ended; have it write to a file, and copy that file (copy_from_machine)", e.Machine, e.Limit>>20, e.Stream)
}

// WaitError is an operation that was given up because its context ended.
type WaitError struct {
	Machine   string
	Operation string
	After     time.Duration
	LastSeen  string // what the guest saw last; may be empty
	Err       error  // the context's cause
}

func (e *WaitError) Error() string {
	msg := fmt.Sprintf("%s: %s: %v after %v", e.Machine, e.Operation, e.Err, e.After.Round(time.Millisecond))
	if e.LastSeen != "" {
		msg += " (last seen: " + e.LastSeen + ")"
	}
	return msg
}

func (e *WaitError) Unwrap() error { return e.Err }

func describe(s wire.UnitState) string {
	var parts []string
	for _, p := range [][2]string{{"ActiveState", s.ActiveState}, {"SubState", s.SubState}, {"LoadState", s.LoadState}, {"Result", s.Result}} {
		if p[1] != "" {
			parts = append(parts, p[0]+"="+p[1])
		}
	}
	if len(parts) == 0 {
		return s.Reason
	}
	return strings.Join(parts, " ")
}
