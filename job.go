package attest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
)

// A Job is a command that runs in the background. It ends by itself, by Kill,
// or with its machine. Its methods can be called from any goroutine.
type Job struct {
	machine *Machine
	command string
	run     *run
	process *guest.Process
	stdout  *jobOutput
	stderr  *jobOutput
}

// Spawn starts a command as Execute does and returns while it runs. Timeout
// limits the command itself; none unless given. What it writes is in the log as
// it comes, and the end of it is kept, 8 MiB of each stream; with Stdout or
// Stderr it goes there instead. ctx limits the start only.
func (m *Machine) Spawn(ctx context.Context, command string, opts ...CommandOption) (*Job, error) {
	j := &Job{machine: m, command: command}
	err := step(ctx, m.Name(), "spawn", strconv.Quote(command), func(ctx context.Context) error {
		r, err := m.use(ctx, "spawn")
		if err != nil {
			return err
		}
		j.run = r
		o := collect(opts)
		c := o.command(command)
		// What the job says belongs to the test that started it, after this step too.
		log := event.WithScope(m.lab.ctx, event.ScopeOf(ctx))
		j.stdout, j.stderr = newJobOutput(log, m.Name(), "stdout"), newJobOutput(log, m.Name(), "stderr")
		if c.Stdout == nil {
			c.Stdout = j.stdout
		}
		if c.Stderr == nil {
			c.Stderr = j.stderr
		}
		j.process, err = r.guest.Start(m.lab.ctx, c)
		return r.explain(ctx, "spawn", err)
	})
	if err != nil {
		return nil, err
	}
	return j, nil
}

// Command is what the job runs.
func (j *Job) Command() string { return j.command }

// Machine is the machine on which it runs.
func (j *Job) Machine() *Machine { return j.machine }

// Running says whether the job has not ended yet.
func (j *Job) Running() bool {
	select {
	case <-j.process.Done():
		return false
	default:
		return true
	}
}

// Done is closed when the job has ended.
func (j *Job) Done() <-chan struct{} { return j.process.Done() }

// Stdout is what the job has written to standard output so far.
func (j *Job) Stdout() string { return j.stdout.String() }

// Stderr is what the job has written to standard error so far.
func (j *Job) Stderr() string { return j.stderr.String() }

// Wait waits until the job has ended, as Execute does: that it failed is not an
// error. Timeout limits the wait, 15 minutes unless given, and not the job,
// which goes on.
func (j *Job) Wait(ctx context.Context, opts ...WaitOption) (Result, error) {
	var result Result
	w := j.machine.newWait("job.wait", strconv.Quote(j.command), collect(opts), defaultTimeout)
	err := w.do(ctx, func(ctx context.Context) (*run, error) {
		select {
		case <-j.process.Done():
		case <-ctx.Done():
			if !j.Running() {
				break // it has ended in time, or the limit is 0
			}
			return j.run, &WaitError{LastSeen: "the job still runs" + lastLine(j.Stderr(), j.Stdout())}
		}
		r, err := j.process.Wait()
		result = resultOf(r)
		result.Stdout, result.Stderr = j.stdout.finish(), j.stderr.finish()
		return j.run, err
	})
	return result, err
}

// WaitForOutput waits until a regular expression (Go's syntax, ^ and $ match at
// lines) matches what the job has written to standard output or standard error
// since the last match in that stream, and returns the match. It fails at once
// when the job has ended without.
func (j *Job) WaitForOutput(ctx context.Context, pattern string, opts ...WaitOption) (string, error) {
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return "", &ConfigError{j.machine.Name(), fmt.Sprintf("wait_for_output: not a regular expression: %v", err)}
	}
	var match string
	w := j.machine.newWait("job.wait_for_output", strconv.Quote(pattern), collect(opts), defaultTimeout)
	err = w.do(ctx, func(ctx context.Context) (*run, error) {
		match, err = j.search(ctx, re)
		switch {
		case err == nil:
			return j.run, nil
		case !errors.Is(err, console.ErrGone):
			return j.run, &WaitError{LastSeen: strings.TrimPrefix(lastLine(j.Stderr(), j.Stdout()), ": ")}
		}
		r, err := j.process.Wait()
		if err == nil {
			result := resultOf(r)
			result.Stdout, result.Stderr = j.stdout.finish(), j.stderr.finish()
			err = &WaitError{Reason: fmt.Sprintf("the job has ended with exit code %d", r.ExitCode), Result: &result,
				LastSeen: strings.TrimPrefix(lastLine(result.Stderr, result.Stdout), ": ")}
		}
		return j.run, err
	})
	return match, err
}

// search looks at both streams at once.
func (j *Job) search(ctx context.Context, re *regexp.Regexp) (string, error) {
	type found struct {
		match string
		err   error
	}
	ctx, cancel := context.WithCancelCause(ctx)
	streams := []*jobOutput{j.stdout, j.stderr}
	answers := make(chan found, len(streams))
	for _, s := range streams {
		go func() {
			match, err := s.WaitText(ctx, re, j.process.Done())
			answers <- found{match, err}
		}()
	}
	first := <-answers
	if first.err == nil {
		cancel(nil)
	}
	second := <-answers
	cancel(nil)
	if first.err != nil && second.err == nil {
		return second.match, nil
	}
	return first.match, first.err
}

// Kill sends a signal to the process group of the job, SIGTERM unless another
// one is given, and does not wait. A job that has ended is left alone.
func (j *Job) Kill(ctx context.Context, signals ...syscall.Signal) error {
	if len(signals) == 0 {
		signals = []syscall.Signal{syscall.SIGTERM}
	}
	var names []string
	for _, s := range signals {
		names = append(names, unix.SignalName(s))
	}
	return step(ctx, j.machine.Name(), "job.kill", strings.Join(names, ", "), func(context.Context) error {
		for _, s := range signals {
			j.process.Signal(s)
		}
		return nil
	})
}

// A jobOutput is one stream of a job: its text for waits, its lines for the log.
type jobOutput struct {
	console.Transcript
	mu  sync.Mutex
	log *console.Output
}

func newJobOutput(ctx context.Context, machine, stream string) *jobOutput {
	return &jobOutput{Transcript: console.NewTranscript(), log: newOutput(ctx, 0, machine, stream)}
}

func (o *jobOutput) Write(p []byte) (int, error) {
	o.Append(p)
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Write(p)
}

// finish is String of a process that has ended.
func (o *jobOutput) finish() string {
	o.mu.Lock()
	o.log.Finish()
	o.mu.Unlock()
	return o.String()
}
