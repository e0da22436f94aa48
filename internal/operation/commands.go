package operation

import (
	"context"
	"slices"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/vmm"
)

var commandsTable = []*Operation{
	{
		Name: "succeed", Subject: "Commands", Result: String,
		Params: slices.Concat([]Param{{Name: "commands", Type: String, Variadic: true, Doc: "bash scripts, run one after the other"}, timeParam}, commandParams),
		Doc: "Runs commands that must succeed, and returns what they wrote to standard output.\n\n" +
			"Each runs in a fresh bash with `set -euo pipefail`, as root, in `/tmp`. It is over when it has ended and its standard output is closed. " +
			"The first command with a non-zero exit code fails the test.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.SucceedAll(ctx, a.Strings("commands"), a.command()...)
		},
	},
	{
		Name: "fail", Subject: "Commands", Result: String,
		Params: slices.Concat([]Param{{Name: "commands", Type: String, Variadic: true, Doc: "bash scripts, run one after the other"}, timeParam}, commandParams),
		Doc:    "Runs commands that must all fail, as `succeed` does, and returns what they wrote to standard output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.FailAll(ctx, a.Strings("commands"), a.command()...)
		},
	},
	{
		Name: "execute", Subject: "Commands", Result: Pair,
		Params: slices.Concat([]Param{
			commandParam,
			{Name: "check_return", Type: Bool, Default: true, Doc: "False: the status is -1"},
			{Name: "check_output", Type: Bool, Default: true, Doc: "False: only start the command; the result is `(-2, \"\")` at once"},
			{Name: "timeout", Type: Duration, Default: waitLimit, Nullable: true, Doc: "the limit of the command; None or 0 for none"},
		}, commandParams),
		Doc: "Runs a command as `succeed` does, and returns the pair of its exit code and standard output. A non-zero exit code is not a failure.\n\n" +
			"The exit code is 128+N after signal N, and 124 after a timeout.",
		call: execute,
	},
	{
		Name: "execute_with_reboots", Subject: "Commands", Result: Pair, Needs: vmm.CanReset,
		Params: slices.Concat([]Param{
			commandParam,
			{Name: "timeout", Type: Duration, Default: waitLimit, Doc: "the limit of all boots together"},
		}, commandParams),
		Doc: "Runs a command as `execute` does, and again after each reboot that it asks for, until it ends without asking.\n\n" +
			"It asks as Debian's autopkgtest has it, by `/tmp/autopkgtest-reboot MARK`, and finds the mark in `AUTOPKGTEST_REBOOT_MARK` and `ADT_REBOOT_MARK` in the next boot, or as tmt has it, by `tmt-reboot`. " +
			"`TMT_REBOOT_COUNT` is how often it has asked. The output is that of all boots.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return pair(t.machine.ExecuteWithReboots(ctx, a.String("command"), a.command()...))
		},
	},
}

// execute differs from the NixOS driver in one thing: a command with
// check_output=False does not disturb the result of the next command.
func execute(ctx context.Context, t target, a Args) (any, error) {
	command := a.String("command")
	if !a.Bool("check_output") {
		if a.Given("stdin") {
			return nil, &attest.ConfigError{Subject: t.machine.Name() + ": execute", Reason: "a command that is only started (check_output) reads no stdin; spawn starts one that does"}
		}
		opts := a.detached()
		if a.None("timeout") {
			opts = append(opts, attest.Timeout(0))
		}
		if err := t.machine.Detach(ctx, command, opts...); err != nil {
			return nil, err
		}
		return Result{Status: -2, Result: attest.Result{ExitCode: -2}}, nil
	}
	opts := a.command()
	if a.None("timeout") {
		opts = append(opts, attest.Timeout(0))
	}
	r, err := t.machine.Execute(ctx, command, opts...)
	if err != nil {
		return nil, err
	}
	result := Result{r.ExitCode, r.Stdout, r}
	if !a.Bool("check_return") {
		result.Status = -1
	}
	return result, nil
}

// pair is a result of which both parts are wanted.
func pair(r attest.Result, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return Result{r.ExitCode, r.Stdout, r}, nil
}
