package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/keyboard"
	"github.com/attest-vm/attest/internal/repl"
	"github.com/attest-vm/attest/internal/report"
	"github.com/attest-vm/attest/internal/session"
	"github.com/attest-vm/attest/internal/suite"
)

func newREPL() *cobra.Command {
	var c conversation
	cmd := &cobra.Command{
		Use:   "repl [flags] [FILE]",
		Short: "Operate machines by hand",
		Long: "repl reads statements of the test language and runs them: the machines and\n" +
			"functions of a test file, or machines that are declared at the prompt. A block\n" +
			"ends with an empty line. Tab completes, help(x) explains, m.shell() is a shell on\n" +
			"a machine. Ctrl-C ends what runs, Ctrl-D ends all.\n\n" +
			"Over a pipe it exits as attest run does, by the worst end of a statement.",
		Example: "  attest repl web_test.star\n" +
			"  echo 'setup(); web.succeed(\"systemctl status nginx\")' | attest repl web_test.star",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				c.file = args[0]
			}
			return c.run(cmd)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&c.OutDir, "output", "o", "", "`directory` for what is copied out of machines; made if missing")
	flags.StringVar(&c.Host.Backend, "backend", "auto", "`name` of the backend for machines that name none")
	flags.StringVar(&c.Host.Keymap, "keymap", "us", "`layout` that guests expect of their keyboards: "+strings.Join(keyboard.Layouts(), ", "))
	flags.StringVar((*string)(&c.Host.Boot), "boot", "", "the `way` in which machines start: warm (from a snapshot) or cold")
	flags.Var((*varsFlag)(&c.Script.Vars), "var", "give the test file a variable, `NAME=VALUE`, which it asks for by var(NAME); can be given again")
	flags.StringVar(&c.machineConfig, "machine-config", os.Getenv("machineConfig"), "JSON `file` with machines (environment: machineConfig)")
	flags.BoolVarP(&c.verbose, "verbose", "v", false, "show every step, console line and command output as it comes")
	return cmd
}

// A conversation is a person's, with a session.
type conversation struct {
	session.Options
	file          string // with machines and functions; may be empty
	machineConfig string
	machines      []attest.MachineConfig // further ones
	in            *os.File               // where statements come from; nil: standard input
	first         []string               // functions that are called first, those of them that the file has
	verbose       bool
	about         string // what is said at the beginning; empty: the machines there are

	*session.Session
	terminal *report.Terminal
	color    bool
}

func (c *conversation) run(cmd *cobra.Command) (err error) {
	machines, err := suite.ConfiguredMachines(c.machineConfig)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	done := c.begin(ctx)
	defer func() { err = done(err) }()
	if err := c.Load(c.file, slices.Concat(machines, c.machines)); err != nil {
		return c.explained(ctx, err)
	}
	for _, function := range c.first {
		if _, words := c.Complete(function); !slices.Contains(words, function+"(") {
			continue
		}
		if passed, err := c.begins(ctx, function+"()"); err != nil {
			return c.explained(ctx, err)
		} else if !passed {
			break // and a person goes on from there
		}
	}
	return c.talk(ctx)
}

// begin begins a session, and shows on the terminal what happens from here on.
// done ends both.
func (c *conversation) begin(ctx context.Context) (done func(error) error) {
	level := report.Normal
	if c.verbose {
		level = report.Verbose
	}
	o := report.StandardTerminal(level)
	o.Live = false // the lines that are typed and the tree would get into each other's way
	c.terminal, c.color = report.NewTerminal(o), o.ColorStderr
	c.Options.Record, c.Script.Stdout = c.terminal.Record, c.terminal.Stdout()
	c.Session = session.Begin(ctx, c.Options)
	return func(err error) error {
		if closeErr := c.Close(); err == nil {
			err = closeErr
		}
		c.terminal.Close()
		return err
	}
}

func (c *conversation) talk(ctx context.Context) error {
	in := cmp.Or(c.in, os.Stdin)
	interactive := repl.Interactive(in)
	if interactive {
		fmt.Fprintln(os.Stderr, "attest "+version()+", "+cmp.Or(c.about, about(c.Machines())))
		fmt.Fprintln(os.Stderr, "Tab completes, help(x) explains, Ctrl-C ends what runs, Ctrl-D ends all.")
	}
	worst, err := repl.Run(ctx, repl.Options{
		Session: c.Session, In: in, Out: os.Stdout, Err: os.Stderr, History: historyPath(),
		Interrupts: interruptionOf(ctx).interrupts, Hold: c.terminal.Hold,
		Explain: func(ctx context.Context, err error) (string, event.Status) {
			f := suite.Failure(ctx, err)
			return report.Explain(f, c.color), f.Status
		},
	})
	if code := worst.ExitCode(); err == nil && code != 0 && !interactive {
		return exitCode(code)
	}
	return err
}

// begins runs a statement, and shows what became of it.
func (c *conversation) begins(ctx context.Context, text string) (passed bool, err error) {
	lines := []string{text + "\n"}
	statement, err := c.Read(func(bool) (string, error) {
		if len(lines) == 0 {
			return "\n", nil
		}
		line := lines[0]
		lines = lines[1:]
		return line, nil
	})
	if err != nil {
		return false, err
	}
	if _, err := c.Run(ctx, statement); err != nil {
		f := suite.Failure(ctx, err)
		fmt.Fprint(os.Stderr, report.Explain(f, c.color))
		return false, nil
	}
	return true, nil
}

// explained shows an error as attest run would, and returns its exit code.
func (c *conversation) explained(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	f := suite.Failure(ctx, err)
	fmt.Fprint(os.Stderr, report.Explain(f, c.color))
	return exitCode(f.Status.ExitCode())
}

func about(machines []attest.MachineConfig) string {
	if len(machines) == 0 {
		return "no machines yet: m = machine(image = debian())"
	}
	var names []string
	for _, m := range machines {
		names = append(names, m.Name)
	}
	return "machines: " + strings.Join(names, ", ")
}

// historyPath is where the XDG base directory specification has what outlives a
// restart of a program and is not worth keeping.
func historyPath() string {
	dir := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "attest", "history")
}
