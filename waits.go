package attest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// errMachineGone ends a wait for something of a machine that is off.
var errMachineGone = errors.New("the machine is down")

// A wait is one operation that waits: its name and arguments for the report,
// and its one deadline in wall-clock time.
type wait struct {
	machine   *Machine
	operation string
	args      string
	limit     time.Duration
	start     time.Time
}

// newWait is a wait whose limit is that of the options, or otherwise scaled to
// the host.
func (m *Machine) newWait(operation, args string, o options, otherwise time.Duration) *wait {
	return &wait{m, operation, args, o.limit(m.lab.host, otherwise), time.Now()}
}

// do runs fn as a step under the wait's deadline. fn returns a *WaitError
// without the fields that wait knows, or another error, and the run that it was
// about if it got that far.
func (w *wait) do(ctx context.Context, fn func(context.Context) (*run, error)) error {
	return step(ctx, w.machine.Name(), w.operation, w.args, func(outer context.Context) error {
		w.start = time.Now()
		return w.limited(outer, w.limit, fn)
	})
}

// limited is do inside of the step.
func (w *wait) limited(outer context.Context, limit time.Duration, fn func(context.Context) (*run, error)) error {
	ctx, cancel := context.WithTimeoutCause(outer, limit, errWaitOver)
	defer cancel()
	r, err := fn(ctx)
	return w.explain(outer, ctx, r, err)
}

// wait is do for what happens in the guest. The limit counts from the moment
// at which the guest can be asked: how long it may take to boot is limited by
// itself, and one that does not is another kind of failure.
func (m *Machine) wait(ctx context.Context, operation, args string, o options, fn func(context.Context, *run) error) error {
	w := m.newWait(operation, args, o, defaultTimeout)
	return step(ctx, m.Name(), operation, args, func(outer context.Context) error {
		r, err := m.use(outer, operation)
		if err != nil {
			return w.explain(outer, outer, r, err)
		}
		w.start = time.Now()
		limit := w.limit
		if limit <= 0 { // one look at the guest takes the time that it takes
			limit = m.lab.host.scale(defaultTimeout)
		}
		return w.limited(outer, limit, func(ctx context.Context) (*run, error) { return r, fn(ctx, r) })
	})
}

// once says whether a wait is for one look.
func (o options) once() bool { return o.hasTimeout && o.timeout <= 0 }

// looked makes what the guest said about a wait into the operation's error.
func looked(ctx context.Context, seen wire.Observation, err error) error {
	if errors.Is(err, guest.ErrNotYet) || err != nil && context.Cause(ctx) == errWaitOver {
		return &WaitError{LastSeen: seen.Seen, Tries: seen.Tries}
	}
	return err
}

var errWaitOver = errors.New("the time is over")

// explain fills in what the wait knows, and tells its own deadline from the
// caller's.
func (w *wait) explain(outer, ctx context.Context, r *run, err error) error {
	if err == nil {
		return nil
	}
	if outer.Err() != nil {
		if boot := (*BootError)(nil); errors.As(err, &boot) {
			return boot // it knows what the console said
		}
		return context.Cause(outer)
	}
	var we *WaitError
	if !errors.As(err, &we) && context.Cause(ctx) == errWaitOver {
		we = &WaitError{}
		var seen *guest.WaitError
		switch {
		case r == nil:
			we.LastSeen = "the guest had not answered yet"
		case errors.As(err, &seen):
			we.LastSeen = seen.LastSeen
		}
	}
	if we != nil {
		we.Machine, we.Operation, we.Args = w.machine.Name(), w.operation, w.args
		we.Elapsed, we.Limit = time.Since(w.start), w.limit
		w.attach(outer, r, we)
		return we
	}
	if r != nil {
		if errors.Is(err, errMachineGone) {
			<-r.over
			err = r.down
		}
		return r.explain(ctx, w.operation, err)
	}
	return err
}

// attach adds what helps to understand a failed wait: the end of the console,
// and the units that failed, if the guest still answers quickly.
func (w *wait) attach(ctx context.Context, r *run, we *WaitError) {
	if tail := w.machine.console.tail(consoleTail); len(tail) > 0 {
		we.Details = append(we.Details, Detail{Title: "last console lines of " + w.machine.Name(), Text: strings.Join(tail, "\n")})
	}
	if r == nil || r.awake(w.operation) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.machine.lab.host.scale(attachTimeout))
	defer cancel()
	res, err := r.guest.Run(ctx, guest.Command{Script: "systemctl --no-pager --plain --no-legend --failed list-units", Timeout: attachTimeout})
	if text := strings.TrimSpace(string(res.Stdout)); err == nil && res.ExitCode == 0 && text != "" {
		we.Details = append([]Detail{{Title: "failed units", Text: text}}, we.Details...)
	}
}

// attachTimeout limits the look at the guest after a failed wait.
const attachTimeout = 3 * time.Second

// WaitUntilSucceeds runs a command again and again, at first after 10 ms and
// then up to 250 ms apart, until it succeeds, and returns its output.
func (m *Machine) WaitUntilSucceeds(ctx context.Context, command string, opts ...Option) (string, error) {
	return m.waitUntil(ctx, "wait_until_succeeds", command, true, opts)
}

// WaitUntilFails is WaitUntilSucceeds for a command that is to fail.
func (m *Machine) WaitUntilFails(ctx context.Context, command string, opts ...Option) (string, error) {
	return m.waitUntil(ctx, "wait_until_fails", command, false, opts)
}

func (m *Machine) waitUntil(ctx context.Context, operation, command string, success bool, opts []Option) (string, error) {
	o := collect(opts)
	var out string
	err := m.wait(ctx, operation, strconv.Quote(command), o, func(ctx context.Context, r *run) error {
		c := o.command(command)
		c.Timeout = 0 // the wait's own deadline limits each attempt
		deadline, _ := ctx.Deadline()
		last, err := r.guest.RunUntil(ctx, c, guest.UntilOptions{Fail: !success, Once: o.once(), Timeout: time.Until(deadline)})
		result := resultOf(last.Result)
		out = result.Stdout
		if err == nil && last.Met {
			return nil
		}
		if err != nil && context.Cause(ctx) != errWaitOver {
			return err
		}
		we := &WaitError{Tries: last.Tries, Result: &result}
		switch {
		case last.Tries == 0:
			we.LastSeen, we.Result = "the first attempt had not begun", nil
		case result.TimedOut:
			we.LastSeen = "the last attempt had not ended" + lastLine(result.Stderr, result.Stdout)
			if last.Ended != nil {
				we.LastSeen += fmt.Sprintf("; the one before had exit code %d", *last.Ended)
			}
		case success:
			we.LastSeen = fmt.Sprintf("exit code %d%s", result.ExitCode, lastLine(result.Stderr, result.Stdout))
		default:
			we.LastSeen = "the command succeeded" + lastLine(result.Stdout)
		}
		return we
	})
	return out, err
}

// lastLine is the last line of the first text that has one, as an addition to
// a sentence.
func lastLine(texts ...string) string {
	for _, t := range texts {
		lines := strings.Split(strings.TrimSpace(t), "\n")
		if last := lines[len(lines)-1]; last != "" {
			return ": " + last
		}
	}
	return ""
}

// WaitForUnit waits until a systemd unit is active. It fails at once when the
// unit has failed, does not exist, or is inactive with nothing pending.
func (m *Machine) WaitForUnit(ctx context.Context, unit string, opts ...Option) error {
	o := collect(opts)
	return m.wait(ctx, "wait_for_unit", strconv.Quote(unit), o, func(ctx context.Context, r *run) error {
		state, err := r.guest.WaitUnit(ctx, unit, o.user, o.once())
		if err == nil {
			return nil
		}
		we := &WaitError{LastSeen: describeUnit(state)}
		var hopeless *guest.UnitError
		switch {
		case errors.As(err, &hopeless):
			we.Reason = hopeless.Reason
		case !errors.Is(err, guest.ErrNotYet) && context.Cause(ctx) != errWaitOver:
			return err
		}
		if text := r.unitJournal(unit, o.user); text != "" {
			we.Details = append(we.Details, Detail{Title: "journal of " + unit, Text: text})
		}
		return we
	})
}

func describeUnit(s wire.UnitState) string {
	if s.ActiveState == "" {
		return s.Reason // why nothing is known
	}
	text := s.ActiveState + " (" + s.SubState + ")"
	if s.Result != "" && s.Result != "success" {
		text += ", result " + s.Result
	}
	return text
}

// unitJournal is the end of a unit's journal, for a failure's details.
func (r *run) unitJournal(unit, user string) string {
	ctx, cancel := context.WithTimeout(r.machine.lab.ctx, r.machine.lab.host.scale(attachTimeout))
	defer cancel()
	flag := "--unit"
	if user != "" {
		flag = "--user-unit"
	}
	res, err := r.guest.Run(ctx, guest.Command{Argv: []string{"journalctl", "--no-pager", "--lines=30", "--output=short-monotonic", flag, unit}, Timeout: attachTimeout})
	if err != nil || res.ExitCode != 0 {
		return ""
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(res.Stdout)), "\uFFFD")
}

// WaitForOpenPort waits until something in the guest accepts TCP connections
// at a port of Address, localhost unless given.
func (m *Machine) WaitForOpenPort(ctx context.Context, port int, opts ...Option) error {
	return m.waitForPort(ctx, "wait_for_open_port", port, true, opts)
}

// WaitForClosedPort waits until nothing accepts connections there.
func (m *Machine) WaitForClosedPort(ctx context.Context, port int, opts ...Option) error {
	return m.waitForPort(ctx, "wait_for_closed_port", port, false, opts)
}

func (m *Machine) waitForPort(ctx context.Context, operation string, port int, open bool, opts []Option) error {
	o := collect(opts)
	args := strconv.Itoa(port)
	if o.address == "" {
		o.address = "localhost"
	} else {
		args += fmt.Sprintf(", %q", o.address)
	}
	if port < 1 || port > 65535 {
		return &ConfigError{m.Name(), fmt.Sprintf("%s(%s): a port is 1 to 65535", operation, args)}
	}
	return m.wait(ctx, operation, args, o, func(ctx context.Context, r *run) error {
		seen, err := r.guest.WaitPort(ctx, o.address, port, open, o.once())
		return looked(ctx, seen, err)
	})
}

// WaitForOpenUnixSocket waits until a unix socket in the guest accepts
// connections, or with Datagram datagrams.
func (m *Machine) WaitForOpenUnixSocket(ctx context.Context, path string, opts ...Option) error {
	o := collect(opts)
	args := strconv.Quote(path)
	if o.datagram {
		args += ", is_datagram=True"
	}
	return m.wait(ctx, "wait_for_open_unix_socket", args, o, func(ctx context.Context, r *run) error {
		seen, err := r.guest.WaitUnixSocket(ctx, path, o.datagram, o.once())
		return looked(ctx, seen, err)
	})
}

// WaitForFile waits until a path exists in the guest.
func (m *Machine) WaitForFile(ctx context.Context, path string, opts ...Option) error {
	o := collect(opts)
	return m.wait(ctx, "wait_for_file", strconv.Quote(path), o, func(ctx context.Context, r *run) error {
		seen, err := r.guest.WaitFile(ctx, path, o.once())
		return looked(ctx, seen, err)
	})
}

// WaitForConsoleText waits until a regular expression (Go's syntax, ^ and $
// match at lines) matches what the serial console has said since the last
// match, or since the machine was started.
func (m *Machine) WaitForConsoleText(ctx context.Context, pattern string, opts ...Option) error {
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return &ConfigError{m.Name(), fmt.Sprintf("wait_for_console_text: not a regular expression: %v", err)}
	}
	w := m.newWait("wait_for_console_text", strconv.Quote(pattern), collect(opts), defaultTimeout)
	return w.do(ctx, func(ctx context.Context) (*run, error) {
		m.mu.Lock()
		r, ended := m.current, m.ended
		m.mu.Unlock()
		if r == nil {
			r = ended // what it said before it went down can still match
		}
		if r == nil {
			var err error
			if r, err = m.start(ctx, m.config.AllowReboot); err != nil {
				return nil, err
			}
		}
		_, err := m.console.waitText(ctx, re, r.over)
		if err != nil && context.Cause(ctx) == errWaitOver {
			err = &WaitError{LastSeen: strings.Join(m.console.tail(1), "")}
		}
		return r, err
	})
}
