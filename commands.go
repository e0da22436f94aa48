package attest

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
)

// Execute runs a command in a fresh bash with "set -euo pipefail", as root, in
// /tmp, and waits for its end and for the end of its standard output. That a
// command fails is not an error of Execute. It is ended after Timeout, or
// after 15 minutes.
func (m *Machine) Execute(ctx context.Context, command string, opts ...CommandOption) (Result, error) {
	var result Result
	err := step(ctx, m.Name(), "execute", strconv.Quote(command), func(ctx context.Context) (err error) {
		o := collect(opts)
		o.timeout, o.hasTimeout = o.limit(m.lab.host, defaultTimeout), true
		result, err = m.command(ctx, "execute", command, o)
		if err == nil && result.HeldBy != "" {
			event.Publish(ctx, event.Log{Machine: m.Name(), Level: "warning", Text: "the command timed out; it had ended, and its standard output is held open by " + result.HeldBy})
		}
		return err
	})
	return result, err
}

// Detach starts a command as Execute does and returns as soon as it runs: nobody
// learns what it writes or how it ends. [Machine.Spawn] is for those that a test has
// to do with later.
func (m *Machine) Detach(ctx context.Context, command string, opts ...DetachOption) error {
	return step(ctx, m.Name(), "execute", strconv.Quote(command), func(ctx context.Context) error {
		o := collect(opts)
		o.timeout, o.hasTimeout = o.limit(m.lab.host, defaultTimeout), true
		o.detach = true
		_, err := m.command(ctx, "execute", command, o)
		return err
	})
}

// Succeed runs a command as Execute does, with no time limit unless Timeout is
// given, and returns its standard output. A non-zero exit code is a
// *CommandError.
func (m *Machine) Succeed(ctx context.Context, command string, opts ...CommandOption) (string, error) {
	return m.expect(ctx, []string{command}, succeeds, opts)
}

// SucceedAll is Succeed for several commands, one after the other, up to the
// first that fails. It returns what all of them wrote to standard output.
func (m *Machine) SucceedAll(ctx context.Context, commands []string, opts ...CommandOption) (string, error) {
	return m.expect(ctx, commands, succeeds, opts)
}

// Fail is Succeed for a command that must have a non-zero exit code.
func (m *Machine) Fail(ctx context.Context, command string, opts ...CommandOption) (string, error) {
	return m.expect(ctx, []string{command}, fails, opts)
}

// FailAll is SucceedAll for commands that must all fail.
func (m *Machine) FailAll(ctx context.Context, commands []string, opts ...CommandOption) (string, error) {
	return m.expect(ctx, commands, fails, opts)
}

// An expectation is how a command has to end.
type expectation struct {
	operation string
	met       func(Result) bool
}

var (
	succeeds = expectation{"succeed", func(r Result) bool { return r.ExitCode == 0 }}
	fails    = expectation{"fail", func(r Result) bool { return r.ExitCode != 0 }}
)

func (m *Machine) expect(ctx context.Context, commands []string, want expectation, opts []CommandOption) (string, error) {
	var out strings.Builder
	for i, command := range commands {
		err := step(ctx, m.Name(), want.operation, strconv.Quote(command), func(ctx context.Context) error {
			result, err := m.command(ctx, want.operation, command, collect(opts))
			out.WriteString(result.Stdout)
			if err == nil && !want.met(result) {
				failed := &CommandError{Machine: m.Name(), Operation: want.operation, Command: command, Number: i + 1, Of: len(commands),
					Result: result, Console: m.console.Tail(commandConsoleTail)}
				if r := m.running(); r != nil {
					l := r.inspect(ctx, "")
					failed.State, failed.Details = l.state, l.details()
				}
				err = failed
			}
			return err
		})
		if err != nil {
			return out.String(), err
		}
	}
	return out.String(), nil
}

// commandConsoleTail is less than elsewhere: a command's own output says more.
const commandConsoleTail = 8

// command runs a command on behalf of an operation.
func (m *Machine) command(ctx context.Context, operation, command string, o options) (Result, error) {
	r, err := m.use(ctx, operation)
	if err != nil {
		return Result{}, err
	}
	c := o.command(command)
	var log *console.Output
	if c.Stderr == nil {
		log = newOutput(ctx, guest.DefaultLimit, m.Name(), "stderr")
		c.Stderr = log
	}
	began := time.Now()
	watch := r.watchStep(ctx, command)
	res, err := r.guest.Run(ctx, c)
	seen := watch.stop()
	result := resultOf(res)
	if log != nil {
		result.Stderr = log.Finish()
	}
	if err != nil && ctx.Err() != nil {
		if result.HeldBy != "" {
			seen = look{held: res.Held}.String()
		}
		return result, &UnderWayError{m.Name(), operation, strconv.Quote(command), time.Since(began), seen, context.Cause(ctx)}
	}
	if err != nil {
		left := m.lab.host.scale(downPatience)
		if o.timeout > 0 {
			left = min(left, max(o.timeout-time.Since(began), time.Second))
		}
		return result, r.explainWithin(ctx, operation, left, err)
	}
	if result.Stdout != "" {
		event.Publish(ctx, event.Output{Machine: m.Name(), Stream: "stdout", Data: result.Stdout})
	}
	return result, nil
}

func (o options) command(script string) guest.Command {
	c := guest.Command{
		Script: script, User: o.user, Env: o.env, Dir: o.dir, Timeout: o.timeout,
		Stdout: o.stdout, Stderr: o.stderr, Detach: o.detach,
	}
	if o.stdin != nil {
		c.Stdin = o.stdin()
	}
	return c
}

func resultOf(r guest.Result) Result {
	return Result{
		ExitCode: r.ExitCode, Signal: r.Signal, Duration: r.Duration, TimedOut: r.TimedOut,
		Stdout: string(r.Stdout), Stderr: string(r.Stderr), HeldBy: processes(r.Held),
	}
}

// Sleep waits for d of the guest's time.
func (m *Machine) Sleep(ctx context.Context, d time.Duration) error {
	return step(ctx, m.Name(), "sleep", d.String(), func(ctx context.Context) error {
		_, err := m.command(ctx, "sleep", "sleep "+strconv.FormatFloat(d.Seconds(), 'f', -1, 64), options{})
		return err
	})
}

// Log writes a line with the machine's name to the run's log.
func (m *Machine) Log(ctx context.Context, text string) {
	event.Publish(ctx, event.Log{Machine: m.Name(), Level: "info", Text: text})
}

// Nested runs fn as a step of its own in the run's log and in reports.
func (m *Machine) Nested(ctx context.Context, text string, fn func(context.Context) error) error {
	return step(ctx, m.Name(), "nested", strconv.Quote(text), fn)
}
