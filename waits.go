package attest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// WaitUntilSucceeds runs a command again and again, at first after 10 ms and
// then up to 250 ms apart, until it succeeds, and returns its output.
func (m *Machine) WaitUntilSucceeds(ctx context.Context, command string, opts ...CommandOption) (string, error) {
	return m.waitUntil(ctx, "wait_until_succeeds", command, true, opts)
}

// WaitUntilFails is WaitUntilSucceeds for a command that is to fail.
func (m *Machine) WaitUntilFails(ctx context.Context, command string, opts ...CommandOption) (string, error) {
	return m.waitUntil(ctx, "wait_until_fails", command, false, opts)
}

func (m *Machine) waitUntil(ctx context.Context, operation, command string, success bool, opts []CommandOption) (string, error) {
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
		case result.TimedOut, last.Ended == nil:
			we.LastSeen = "the last attempt had not ended" + lastLine(result.Stderr, result.Stdout)
			if last.Ended != nil {
				we.LastSeen += fmt.Sprintf("; the one before had exit code %d", *last.Ended)
			}
			if !result.TimedOut {
				we.Result = nil // of no attempt
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

// WaitForUnit waits until a systemd unit is active. It fails at once when the
// unit has failed, does not exist, or is inactive with nothing pending.
func (m *Machine) WaitForUnit(ctx context.Context, unit string, opts ...UnitOption) error {
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
		we.attach = func(we *WaitError) { we.Details = append(we.Details, r.unitJournal(unit, o.user)...) }
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

// unitJournal is the end of a unit's journal, for a failure's details, or why a guest that
// is there did not give it in time.
func (r *run) unitJournal(unit, user string) []Detail {
	limit := min(r.machine.lab.host.scale(attachTimeout), maxAttach)
	ctx, cancel := context.WithTimeout(r.machine.lab.ctx, limit)
	defer cancel()
	if !r.responds(ctx) {
		return nil // it would not come
	}
	flag := "--unit"
	if user != "" {
		flag = "--user-unit"
	}
	res, err := r.guest.Run(ctx, guest.Command{Argv: []string{"journalctl", "--no-pager", "--lines=30", "--output=short-monotonic", flag, unit}, Timeout: limit})
	text := strings.ToValidUTF8(strings.TrimSpace(string(res.Stdout)), "\uFFFD")
	switch {
	case ctx.Err() == context.DeadlineExceeded || err == nil && res.TimedOut:
		text = fmt.Sprintf("not read: journalctl had not ended after %v", limit)
	case err != nil || res.ExitCode != 0 || text == "":
		return nil
	}
	return []Detail{{Title: "journal of " + unit, Text: text}}
}

// WaitForOpenPort waits until something in the guest accepts TCP connections
// at a port of Address, localhost unless given. With Unit it fails at once when that
// unit has failed.
func (m *Machine) WaitForOpenPort(ctx context.Context, port int, opts ...OpenPortOption) error {
	return m.waitForPort(ctx, "wait_for_open_port", port, true, collect(opts))
}

// WaitForClosedPort waits until nothing accepts connections there.
func (m *Machine) WaitForClosedPort(ctx context.Context, port int, opts ...PortOption) error {
	return m.waitForPort(ctx, "wait_for_closed_port", port, false, collect(opts))
}

func (m *Machine) waitForPort(ctx context.Context, operation string, port int, open bool, o options) error {
	args := strconv.Itoa(port)
	if o.address == "" {
		o.address = "localhost"
	} else {
		args += fmt.Sprintf(", %q", o.address)
	}
	if o.unit != "" {
		args += ", " + written(ctx, argument{"unit", o.unit})
	}
	if port < 1 || port > 65535 {
		return &ConfigError{m.Name(), fmt.Sprintf("%s(%s): want a port from 1 to 65535", operation, args)}
	}
	return m.wait(ctx, operation, args, o, func(ctx context.Context, r *run) error {
		seen, err := r.guest.WaitPort(ctx, o.address, port, o.unit, open, o.once())
		if o.unit == "" || err == nil {
			return looked(ctx, seen, err)
		}
		we := &WaitError{LastSeen: seen.Seen, Tries: seen.Tries}
		var failed *guest.UnitError
		switch {
		case errors.As(err, &failed):
			we.Reason = failed.Reason
		case !errors.Is(err, guest.ErrNotYet) && context.Cause(ctx) != errWaitOver:
			return err
		}
		we.attach = func(we *WaitError) { we.Details = append(we.Details, r.unitJournal(o.unit, "")...) }
		return we
	})
}

// WaitForOpenUnixSocket waits until a unix socket in the guest accepts
// connections, or with Datagram datagrams.
func (m *Machine) WaitForOpenUnixSocket(ctx context.Context, path string, opts ...SocketOption) error {
	o := collect(opts)
	args := written(ctx, argument{"", path}, unless("is_datagram", o.datagram, false))
	return m.wait(ctx, "wait_for_open_unix_socket", args, o, func(ctx context.Context, r *run) error {
		seen, err := r.guest.WaitUnixSocket(ctx, path, o.datagram, o.once())
		return looked(ctx, seen, err)
	})
}

// WaitForFile waits until a path exists in the guest.
func (m *Machine) WaitForFile(ctx context.Context, path string, opts ...WaitOption) error {
	o := collect(opts)
	return m.wait(ctx, "wait_for_file", strconv.Quote(path), o, func(ctx context.Context, r *run) error {
		seen, err := r.guest.WaitFile(ctx, path, o.once())
		return looked(ctx, seen, err)
	})
}

// WaitForConsoleText waits until a regular expression (Go's syntax, ^ and $
// match at lines) matches what the serial console has said since the last
// match, or since the machine was started.
func (m *Machine) WaitForConsoleText(ctx context.Context, pattern string, opts ...WaitOption) error {
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return &ConfigError{m.Name(), fmt.Sprintf("wait_for_console_text: not a regular expression: %v", err)}
	}
	w := m.newWait("wait_for_console_text", strconv.Quote(pattern), collect(opts), defaultTimeout)
	return w.do(ctx, func(ctx context.Context) (*run, error) {
		m.mu.Lock()
		r, down := m.current, m.ended
		m.mu.Unlock()
		if r == nil && down == nil {
			var err error
			if r, err = m.start(ctx, m.config.AllowReboot); err != nil {
				return nil, err
			}
		}
		over := closed // what it said before it went down can still match
		if r != nil {
			over = r.over
		}
		_, err := m.console.WaitText(ctx, re, over)
		if errors.Is(err, console.ErrGone) && r == nil {
			return nil, m.downError(w.operation, down)
		}
		if err != nil && context.Cause(ctx) == errWaitOver {
			err = &WaitError{LastSeen: strings.Join(m.console.Tail(1), "")}
		}
		return r, err
	})
}

// closed is a channel that is closed, for a start that has ended.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
