package operation

import (
	"context"
	"strings"
	"time"

	"github.com/attest-vm/attest"
)

// waitLimit is the NixOS driver's limit of execute and of all waits. Where the
// caller gives none, it is attest's own default, scaled to the host's speed.
const waitLimit = 15 * time.Minute

var (
	commandParam = Param{Name: "command", Type: String, Doc: "a bash script"}
	// The first is for waits, which always have a limit; the second for
	// commands, which may have none.
	limitParam = Param{Name: "timeout", Type: Duration, Default: waitLimit, Doc: "the limit of the wait; more than the default on a host without hardware virtualisation"}
	timeParam  = Param{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of each command; none unless given"}
	userParam  = Param{Name: "user", Type: String, Default: Absent, Doc: "ask the service manager of this user instead of the system's"}
	portParam  = Param{Name: "port", Type: Int, Doc: "a TCP port, 1 to 65535"}
	addrParam  = Param{Name: "addr", Type: String, Default: "localhost", Doc: "where to connect to, as seen from the guest"}
)

var table = []*Operation{
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
	{
		Name: "wait_until_succeeds", Subject: "Waits", Result: String,
		Params: []Param{commandParam, limitParam},
		Doc:    "Runs a command again and again until it succeeds, and returns its standard output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.WaitUntilSucceeds(ctx, a.String("command"), a.limit()...)
		},
	},
	{
		Name: "wait_until_fails", Subject: "Waits", Result: String,
		Params: []Param{commandParam, limitParam},
		Doc:    "Runs a command again and again until it fails, and returns its standard output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.WaitUntilFails(ctx, a.String("command"), a.limit()...)
		},
	},
	{
		Name: "wait_for_unit", Subject: "Waits", Result: None,
		Params: []Param{{Name: "unit", Type: String, Doc: "a systemd unit, such as `nginx.service`"}, userParam, limitParam},
		Doc: "Waits until a systemd unit is active.\n\n" +
			"It fails at once when that cannot happen any more: the unit has failed, does not exist, or is inactive with no job pending.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForUnit(ctx, a.String("unit"), append(a.user(), a.limit()...)...)
		},
	},
	{
		Name: "wait_for_open_port", Subject: "Waits", Result: None,
		Params: []Param{portParam, addrParam, limitParam},
		Doc:    "Waits until something accepts TCP connections at a port.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForOpenPort(ctx, a.Int("port"), append(a.address(), a.limit()...)...)
		},
	},
	{
		Name: "wait_for_closed_port", Subject: "Waits", Result: None,
		Params: []Param{portParam, addrParam, limitParam},
		Doc:    "Waits until nothing accepts TCP connections at a port.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForClosedPort(ctx, a.Int("port"), append(a.address(), a.limit()...)...)
		},
	},
	{
		Name: "wait_for_file", Subject: "Waits", Result: None,
		Params: []Param{{Name: "filename", Type: String, Doc: "a path in the guest"}, limitParam},
		Doc:    "Waits until a file, or anything else, exists at a path.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForFile(ctx, a.String("filename"), a.limit()...)
		},
	},
	{
		Name: "wait_for_console_text", Subject: "Waits", Result: None,
		Params: []Param{{Name: "regex", Type: String, Doc: "a regular expression in Go's syntax; `^` and `$` match at lines"},
			{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; 15 minutes unless given"}},
		Doc: "Waits until the serial console has said something that matches.\n\n" +
			"It looks at what came since the machine was started or since the last match.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForConsoleText(ctx, a.String("regex"), a.limit()...)
		},
	},
	{
		Name: "copy_from_host", Subject: "Files", Result: None,
		Params: []Param{
			{Name: "source", Type: String, Doc: "a file or a directory of the host; relative to the test file"},
			{Name: "target", Type: String, Doc: "a path in the guest"},
		},
		Doc: "Copies a file or a directory tree into the guest, as `cp -r` does: into the target if that is a directory, otherwise to that name. Missing parent directories are made.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.CopyFromHost(ctx, a.String("source"), a.String("target"))
		},
	},
	{
		Name: "copy_from_machine", Aliases: []string{"copy_from_vm"}, Subject: "Files", Result: None,
		Params: []Param{
			{Name: "source", Type: String, Doc: "a file or a directory of the guest"},
			{Name: "target_dir", Type: String, Default: "", Doc: "a directory below the output directory (`-o`); it is made if missing"},
		},
		Doc: "Copies a file or a directory tree from the guest to the host, with its own name.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.CopyFromMachine(ctx, a.String("source"), a.String("target_dir"))
		},
	},
	{
		Name: "start", Subject: "Power", Result: None,
		Params: []Param{{Name: "allow_reboot", Type: Bool, Default: false, Doc: "let the guest reboot by itself; otherwise its reset ends the machine"}},
		Doc: "Starts the machine if it is off. It does not wait for the guest to boot; the next operation does.\n\n" +
			"A machine that was never started also starts with its first operation.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Start(ctx, attest.StartOptions{AllowReboot: a.Bool("allow_reboot")})
		},
	},
	{
		Name: "shutdown", Subject: "Power", Result: None,
		Doc:  "Powers the guest off in an orderly way and waits until it is off.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Shutdown(ctx) },
	},
	{
		Name: "wait_for_shutdown", Subject: "Power", Result: None,
		Params: []Param{{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; 5 minutes unless given"}},
		Doc:    "Waits until the guest has powered itself off, without asking it to.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForShutdown(ctx, a.limit()...)
		},
	},
	{
		Name: "reboot", Subject: "Power", Result: None,
		Doc:  "Restarts the guest in an orderly way and waits until it answers again.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Reboot(ctx) },
	},
	{
		Name: "crash", Subject: "Power", Result: None,
		Doc: "Ends the machine as if its plug were pulled: what the guest had synced stays on its disk, the rest is lost.\n\n" +
			"`start` boots it again.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Crash(ctx) },
	},
	{
		Name: "is_up", Subject: "Power", Result: Bool,
		Doc:  "Says whether the machine runs and its guest has answered.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.machine.IsUp(), nil },
	},
	{
		Name: "get_console_log", Subject: "Others", Result: String,
		Doc:  "Returns what the serial console has said since the machine was started.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.machine.ConsoleLog(), nil },
	},
	{
		Name: "sleep", Subject: "Others", Result: None,
		Params: []Param{{Name: "secs", Type: Duration, Doc: "how long"}},
		Doc:    "Waits for some of the guest's time. A wait for what the test really needs is faster and does not flake.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Sleep(ctx, a.Duration("secs"))
		},
	},
	{
		Name: "log", Subject: "Others", Result: None,
		Params: []Param{{Name: "msg", Type: String, Doc: "the text"}},
		Doc:    "Writes a line with the machine's name to the log of the run.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			t.machine.Log(ctx, a.String("msg"))
			return nil, nil
		},
	},
	{
		Name: "start_all", On: Lab, Subject: "Machines", Result: None,
		Doc:  "Starts all machines that are off, at once. It does not wait for the guests to boot.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.lab.StartAll(ctx) },
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

// limit, user and address are the options that the arguments of these names stand for.

func (a Args) limit() []attest.Option {
	if !a.Given("timeout") {
		return nil
	}
	return []attest.Option{attest.Timeout(a.Duration("timeout"))}
}

func (a Args) user() []attest.Option {
	if !a.Given("user") {
		return nil
	}
	return []attest.Option{attest.User(a.String("user"))}
}

func (a Args) address() []attest.Option {
	if !a.Given("addr") {
		return nil
	}
	return []attest.Option{attest.Address(a.String("addr"))}
}
