package operation

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest"
)

var jobsTable = []*Operation{
	{
		Name: "spawn", Subject: "Jobs", Result: "job",
		Params: slices.Concat([]Param{commandParam, {Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the command; none unless given"}}, commandParams),
		Doc: "Starts a command as `succeed` does, and returns while it runs.\n\n" +
			"The job ends by itself, by its `kill`, or with its machine. One that `setup` has started goes on in every test, " +
			"and one that ran when a checkpoint was made goes on when that is restored; `jobs` gives its handle. " +
			"Its output is in the log line by line as it comes.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			j, err := t.machine.Spawn(ctx, a.String("command"), a.command()...)
			if err != nil {
				return nil, err
			}
			return jobHandle(t, j), nil
		},
	},
	{
		Name: "jobs", Subject: "Jobs", Result: "list of jobs",
		Doc: "Returns the jobs of the machine since it has booted, in the order of their start.\n\n" +
			"In a test these are also the jobs that ran at the end of `setup`, with their output since then; `wait` and `kill` work as in `setup`.",
		call: func(ctx context.Context, t target, _ Args) (any, error) {
			jobs, err := t.machine.Jobs(ctx)
			handles := make([]Handle, len(jobs))
			for i, j := range jobs {
				handles[i] = jobHandle(t, j)
			}
			return handles, err
		},
	},
	{
		Name: "command", On: Job, Subject: "Jobs", Result: String, Property: true,
		Doc:  "What the job runs.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.job().Command(), nil },
	},
	{
		Name: "wait", On: Job, Subject: "Jobs", Result: Pair,
		Params: []Param{limitParam},
		Doc:    "Waits until the job has ended and returns the pair of its exit code and standard output. After a timeout the test fails, and the job goes on.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return pair(t.job().Wait(ctx, a.limit()))
		},
	},
	{
		Name: "wait_for_output", On: Job, Subject: "Jobs", Result: String,
		Params: []Param{{Name: "regex", Type: String, Doc: "a regular expression in Go's syntax; `^` and `$` match at lines"}, limitParam},
		Doc: "Waits until the job has written something that matches to standard output or standard error, and returns the match.\n\n" +
			"It considers the output since the last match. It fails at once when the job ends without a match.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.job().WaitForOutput(ctx, a.String("regex"), a.limit())
		},
	},
	{
		Name: "kill", On: Job, Subject: "Jobs", Result: None,
		Params: []Param{{Name: "signal", Type: String, Default: "SIGTERM", Doc: "the name of a signal, with or without SIG, or its number"}},
		Doc:    "Sends a signal to the job's process group, and does not wait for its end. A job that has ended is left alone.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			sig, err := signal(a.String("signal"))
			if err != nil {
				return nil, err
			}
			return nil, t.job().Kill(ctx, sig)
		},
	},
	{
		Name: "running", On: Job, Subject: "Jobs", Result: Bool, Property: true,
		Doc:  "Reports whether the job still runs.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.job().Running(), nil },
	},
	{
		Name: "stdout", On: Job, Subject: "Jobs", Result: String, Property: true,
		Doc:  "What the job has written to standard output so far; the last 8 MiB of it.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.job().Stdout(), nil },
	},
	{
		Name: "stderr", On: Job, Subject: "Jobs", Result: String, Property: true,
		Doc:  "What the job has written to standard error so far; the last 8 MiB of it.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.job().Stderr(), nil },
	},
}

func jobHandle(t target, j *attest.Job) Handle {
	return Handle{Job, fmt.Sprintf("%s: %s", t.machine.Name(), j.Command()), j}
}

func (t target) job() *attest.Job { return t.object.(*attest.Job) }

// signal reads a signal as people write it: "SIGTERM", "term", "15".
func signal(name string) (syscall.Signal, error) {
	upper := strings.ToUpper(name)
	if n, err := strconv.Atoi(name); err == nil && unix.SignalName(syscall.Signal(n)) != "" {
		return syscall.Signal(n), nil
	}
	for _, full := range []string{upper, "SIG" + upper} {
		if s := unix.SignalNum(full); s != 0 {
			return s, nil
		}
	}
	return 0, &ArgumentError{"kill", fmt.Sprintf("there is no signal %q", name)}
}
