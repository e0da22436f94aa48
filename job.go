package attest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/event"
)

// Spawn starts a command as Execute does and returns while it runs. Timeout
// limits the command itself; none unless given. What it writes is in the log as
// it comes, and the end of it is kept, 8 MiB of each stream; with Stdout or
// Stderr it goes there instead. ctx limits the start only.
func (m *Machine) Spawn(ctx context.Context, command string, opts ...CommandOption) (*Job, error) {
	o := collect(opts)
	j := &Job{machine: m, state: jobState{ID: rand.Text(), Command: command, Timeout: o.timeout}, out: [2]io.Writer{o.stdout, o.stderr}}
	err := step(ctx, m.Name(), "spawn", strconv.Quote(command), func(ctx context.Context) error {
		r, err := m.use(ctx, "spawn")
		if err != nil {
			return err
		}
		// What the job says belongs to the test that started it, after this step too.
		l := j.newLive(event.WithScope(m.lab.ctx, event.ScopeOf(ctx)), r)
		c := o.command(command)
		c.Job = j.state.ID
		c.Stdout, c.Stderr = j.writers(l)
		if l.process, err = r.guest.Start(m.lab.ctx, c); err != nil {
			return r.explain(ctx, "spawn", err)
		}
		j.live.Store(l)
		m.mu.Lock()
		m.jobs = append(m.jobs, j)
		m.mu.Unlock()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return j, nil
}

// Jobs are the jobs of the machine since it has booted, in the order in which they
// were started. In a fork they are those that ran when the snapshot was taken, with
// their output since then. Jobs of a machine that is restored to a checkpoint keep
// their objects.
func (m *Machine) Jobs(ctx context.Context) ([]*Job, error) {
	if r := m.running(); r != nil { // what it goes on with is known when its guest has answered
		if err := r.awaitReady(ctx); err != nil {
			return nil, outward(err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.jobs), nil
}

// Command is what the job runs.
func (j *Job) Command() string { return j.state.Command }

// Machine is the machine on which it runs.
func (j *Job) Machine() *Machine { return j.machine }

// Stdout is what the job has written to standard output so far.
func (j *Job) Stdout() string { return j.live.Load().stdout.String() }

// Stderr is what the job has written to standard error so far.
func (j *Job) Stderr() string { return j.live.Load().stderr.String() }

// Wait waits until the job has ended, as Execute does: that it failed is not an
// error. Timeout limits the wait, 15 minutes unless given, and not the job,
// which goes on.
func (j *Job) Wait(ctx context.Context, opts ...WaitOption) (Result, error) {
	var result Result
	w := j.machine.newWait("job.wait", strconv.Quote(j.state.Command), collect(opts), defaultTimeout)
	l := j.live.Load()
	err := w.do(ctx, func(ctx context.Context) (*run, error) {
		select {
		case <-l.process.Done():
		case <-ctx.Done():
			if !j.Running() {
				break // it has ended in time, or the limit is 0
			}
			return l.run, &WaitError{LastSeen: "the job still runs" + lastLine(j.Stderr(), j.Stdout())}
		}
		r, err := l.process.Wait()
		result = resultOf(r)
		result.Stdout, result.Stderr = l.stdout.finish(), l.stderr.finish()
		return l.run, err
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
	l := j.live.Load()
	err = w.do(ctx, func(ctx context.Context) (*run, error) {
		match, err = l.search(ctx, re)
		switch {
		case err == nil:
			return l.run, nil
		case !errors.Is(err, console.ErrGone):
			return l.run, &WaitError{LastSeen: strings.TrimPrefix(lastLine(j.Stderr(), j.Stdout()), ": ")}
		}
		r, err := l.process.Wait()
		if err == nil {
			result := resultOf(r)
			result.Stdout, result.Stderr = l.stdout.finish(), l.stderr.finish()
			err = &WaitError{Reason: fmt.Sprintf("the job has ended with exit code %d", r.ExitCode), Result: &result,
				LastSeen: strings.TrimPrefix(lastLine(result.Stderr, result.Stdout), ": ")}
		}
		return l.run, err
	})
	return match, err
}

// search looks at both streams at once.
func (l *liveJob) search(ctx context.Context, re *regexp.Regexp) (string, error) {
	type found struct {
		match string
		err   error
	}
	ctx, cancel := context.WithCancelCause(ctx)
	streams := []*jobOutput{l.stdout, l.stderr}
	answers := make(chan found, len(streams))
	for _, s := range streams {
		go func() {
			match, err := s.WaitText(ctx, re, l.process.Done())
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
			j.live.Load().process.Signal(s)
		}
		return nil
	})
}
