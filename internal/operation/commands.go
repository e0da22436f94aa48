package operation

import (
	"context"
	"strings"

	"github.com/attest-vm/attest"
)

var commandsTable = []*Operation{
	{
		Name: "succeed", Subject: "Commands", Result: String,
		Params: []Param{{Name: "commands", Type: String, Variadic: true, Doc: "bash scripts, run one after the other"}, timeParam},
		Doc: "Runs commands that must succeed, and returns what they wrote to standard output.\n\n" +
			"Each runs in a fresh bash with `set -euo pipefail`, as root, in `/tmp`, and is over when it has ended and its standard output is closed. " +
			"The first that ends with another exit code than 0 fails the test.",
		call: func(ctx context.Context, t target, a Args) (any, error) { return each(ctx, a, t.machine.Succeed) },
	},
	{
		Name: "fail", Subject: "Commands", Result: String,
		Params: []Param{{Name: "commands", Type: String, Variadic: true, Doc: "bash scripts, run one after the other"}, timeParam},
		Doc:    "Runs commands that must fail, as `succeed` does, and returns what they wrote to standard output.",
		call:   func(ctx context.Context, t target, a Args) (any, error) { return each(ctx, a, t.machine.Fail) },
	},
	{
		Name: "execute", Subject: "Commands", Result: Pair,
		Params: []Param{
			commandParam,
			{Name: "check_return", Type: Bool, Default: true, Doc: "False: the status is -1"},
			{Name: "check_output", Type: Bool, Default: true, Doc: "False: only start the command; the result is `(-2, \"\")` at once"},
			{Name: "timeout", Type: Duration, Default: waitLimit, Nullable: true, Doc: "the limit of the command; None or 0 for none"},
		},
		Doc: "Runs a command as `succeed` does and returns the pair of its exit code and standard output, whatever they are.\n\n" +
			"The exit code is 128+N after signal N, and 124 when the time is over.",
		call: execute,
	},
	{
		Name: "systemctl", Subject: "Commands", Result: Pair,
		Params: []Param{{Name: "q", Type: String, Doc: "arguments, such as `restart nginx.service`"}, userParam},
		Doc:    "Runs `systemctl` and returns the pair of its exit code and standard output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			r, err := t.machine.Systemctl(ctx, a.String("q"), a.user()...)
			return Result{r.ExitCode, r.Stdout, r}, err
		},
	},
}

func each(ctx context.Context, a Args, run func(context.Context, string, ...attest.Option) (string, error)) (any, error) {
	var out strings.Builder
	for _, command := range a.Strings("commands") {
		s, err := run(ctx, command, a.limit()...)
		if err != nil {
			return nil, err
		}
		out.WriteString(s)
	}
	return out.String(), nil
}

// execute differs from the NixOS driver in one thing: a command whose output
// nobody wants leaves the next command's answer alone.
func execute(ctx context.Context, t target, a Args) (any, error) {
	opts := a.limit()
	if a.None("timeout") {
		opts = append(opts, attest.Timeout(0))
	}
	started := !a.Bool("check_output")
	if started {
		opts = append(opts, attest.Detach())
	}
	r, err := t.machine.Execute(ctx, a.String("command"), opts...)
	if err != nil {
		return nil, err
	}
	result := Result{r.ExitCode, r.Stdout, r}
	switch {
	case started:
		result.Status, result.Output = -2, ""
	case !a.Bool("check_return"):
		result.Status = -1
	}
	return result, nil
}
