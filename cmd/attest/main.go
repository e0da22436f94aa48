// Command attest runs integration tests on real virtual machines.
//
// The same static binary is the command line, the /init and the agent of its
// guests, and the supervisor that cleans up behind a run; argv[0] tells which.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/inguest"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/script"
	_ "github.com/attest-vm/attest/internal/script/python"   // registers the language
	_ "github.com/attest-vm/attest/internal/script/starlark" // registers the language
)

func main() {
	inguest.Main()
	// Go's runtime ends a program that has no memory left, or crashed, with exit code 2,
	// which is that of wrong usage here. By a signal it is neither.
	debug.SetTraceback("crash")
	os.Exit(run(commandLine(os.Args), os.Stdout, os.Stderr))
}

// run is the command line; it returns the exit code, which is that of a status
// (event.Status.ExitCode). An error that says nothing of its kind is one of usage:
// the command line's own are.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := interruptible(context.Background(), stderr)
	defer stop()
	script.Exhausted = func(err error) { interruptionOf(ctx).giveUp(event.Status(attest.StatusOf(err)), err) }
	if withoutCommand(args) {
		args = append([]string{scriptName}, args...)
	}
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	err := knownCommands(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	var code exitCode
	switch {
	case err == nil:
		return event.Passed.ExitCode()
	case errors.As(err, &code):
		return int(code)
	}
	say(stderr, err)
	status := event.Status(attest.StatusOf(err))
	if status == event.Failed {
		status = event.Invalid
	}
	return status.ExitCode()
}

// say writes an error, harmless whoever has put a name into it.
func say(w io.Writer, err error) { fmt.Fprintf(w, "attest: %s\n", printable.Text(err.Error())) }

// An exitCode ends the program with this code; everything has been said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// errInterrupted is the cause of a context that a signal ended.
type errInterrupted struct{ signal syscall.Signal }

func (e errInterrupted) Error() string         { return "interrupted (" + unix.SignalName(e.signal) + ")" }
func (e errInterrupted) Status() attest.Status { return attest.Interrupted }

// lastResort is how long a command may take to end when it was told to. What it has
// started does not outlive it: its supervisor ends that.
const lastResort = 20 * time.Second

// oneWish is how soon after a signal another one comes of the same wish: timeout(1) sends its
// signal to its child and then to the child's group, and others pass on what the terminal has sent.
const oneWish = 100 * time.Millisecond

// An interruption is what signals do to a command.
type interruption struct {
	interrupts chan error             // has a value for each SIGINT for which somebody waits
	lastWords  atomic.Pointer[func()] // to be said when the command is given up; nil: nothing
	stderr     io.Writer
}

// giveUp ends the program on the spot, with the exit code of a status. What is to
// be said at the end has a moment for that.
func (i *interruption) giveUp(status event.Status, err error) {
	say(i.stderr, err)
	if say := i.lastWords.Load(); say != nil {
		said := make(chan struct{})
		go func() {
			(*say)()
			close(said)
		}()
		select {
		case <-said:
		case <-time.After(2 * time.Second):
		}
	}
	os.Exit(status.ExitCode())
}

// interruptible returns a context that ends with the first SIGINT, SIGTERM or
// SIGHUP. A second signal, unless it is of the same wish, ends the program on the spot, and so
// does lastResort; the supervisor cleans up after it then too. A SIGINT that somebody waits for
// (interrupts) is theirs.
func interruptible(ctx context.Context, stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	in := &interruption{interrupts: make(chan error), stderr: stderr}
	ctx = context.WithValue(ctx, interruptionKey{}, in)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		var first time.Time
		for s := range signals {
			cause := errInterrupted{s.(syscall.Signal)}
			if s == syscall.SIGINT {
				select {
				case in.interrupts <- cause:
					continue
				default:
				}
			}
			switch {
			case ctx.Err() == nil:
				first = time.Now()
			case time.Since(first) < oneWish:
				continue
			default:
				os.Exit(event.Interrupted.ExitCode())
			}
			cancel(cause)
			time.AfterFunc(lastResort, func() {
				in.giveUp(event.Interrupted, fmt.Errorf("%w: still not ended %v later, so it is given up; what it has started is ended by its supervisor", cause, lastResort))
			})
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel(nil)
	}
}

type interruptionKey struct{}

func interruptionOf(ctx context.Context) *interruption {
	return ctx.Value(interruptionKey{}).(*interruption)
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "attest",
		Short: "Run integration tests on real virtual machines",
		Long: "attest boots one or many virtual machines, runs a test against them, and says\n" +
			"what happened. It needs no root and no daemon.",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetVersionTemplate("attest {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	root.SetHelpCommand(newHelp())
	root.AddCommand(newRun(), newCheck(), newREPL(), newDebug(), newReport(), newDoctor(), newBench(), newImage(), newSnapshot(), newNeedle(), newGC(), newMan(), newDriver(), newScript(), newEval(), newEvalFile(), newPythonStubs(), newDriverSymbols())
	for _, cmd := range root.Commands() {
		sayUsage(cmd)
	}
	return root
}

// sayUsage has a command that gets too few or too many arguments say what it takes.
func sayUsage(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			n := len(args)
			for n > 0 && check(cmd, args[:n]) != nil {
				n--
			}
			switch {
			case check(cmd, args) == nil:
				return nil
			case n == 0 && check(cmd, nil) != nil:
				return fmt.Errorf("an argument is missing: %s; see %s --help", cmd.UseLine(), cmd.CommandPath())
			}
			return fmt.Errorf("%q is an argument too many: %s; see %s --help", args[n], cmd.UseLine(), cmd.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		sayUsage(sub)
	}
}

// knownCommands refuses a word that is no command wherever a command belongs,
// whatever follows: "attest rnu --help" is a mistake, too.
func knownCommands(root *cobra.Command, args []string) error {
	if len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd) {
		return nil // a shell asks, by a command that cobra adds later
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if cmd.HasSubCommands() {
		return knownCommand(cmd, slices.DeleteFunc(slices.Clone(rest), func(arg string) bool { return strings.HasPrefix(arg, "-") }))
	}
	return nil
}

// knownCommand returns an error for an unknown command, with a guess what was meant.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	msg := fmt.Sprintf("unknown command %q", args[0])
	if guesses := cmd.SuggestionsFor(args[0]); len(guesses) > 0 {
		msg += fmt.Sprintf("; did you mean %s?", strings.Join(guesses, " or "))
	}
	return fmt.Errorf("%s (see %s --help)", msg, cmd.CommandPath())
}

// newHelp is help for a command by name. Unlike cobra's it refuses a name that is
// none.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := knownCommands(cmd.Root(), args); err != nil {
				return err
			}
			about, _, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			return about.Help()
		},
	}
}

// built is the version that the linker was given; scripts/build does that.
var built string

func version() string {
	info, ok := debug.ReadBuildInfo()
	switch {
	case built != "":
		return built
	case !ok || info.Main.Version == "" || info.Main.Version == "(devel)":
		return "development"
	}
	return info.Main.Version
}
