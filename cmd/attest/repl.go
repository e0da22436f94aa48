package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/repl"
	"github.com/attest-vm/attest/internal/report"
	"github.com/attest-vm/attest/internal/script"
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
			"Over a pipe it exits with 1 if a statement failed.",
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
	flags.StringVarP(&c.outDir, "output", "o", "", "`directory` for what is copied out of machines; made if missing")
	flags.StringVar(&c.host.Backend, "backend", "auto", "`name` of the backend for machines that name none")
	flags.StringVar((*string)(&c.host.Boot), "boot", "", "the `way` in which machines start: warm (from a snapshot) or cold")
	flags.StringVar(&c.machineConfig, "machine-config", os.Getenv("machineConfig"), "JSON `file` with machines (environment: machineConfig)")
	flags.BoolVarP(&c.verbose, "verbose", "v", false, "show every step, console line and command output as it comes")
	return cmd
}

// A conversation is a person's, with a lab.
type conversation struct {
	file          string // with machines and functions; may be empty
	outDir        string
	machineConfig string
	host          attest.HostConfig
	verbose       bool
	about         string // what is said at the beginning; empty: the machines there are

	terminal *report.Terminal
	color    bool
	opened   *attest.Host
	lab      *attest.Lab
}

func (c *conversation) run(cmd *cobra.Command) (err error) {
	ctx, done := c.begin(cmd.Context())
	defer func() { err = done(err) }()
	machines, err := suite.ConfiguredMachines(c.machineConfig)
	if err != nil {
		return err
	}
	session, err := c.session(ctx, machines)
	if err != nil {
		return c.explained(ctx, err)
	}
	return c.talk(ctx, session)
}

// begin shows on the terminal what happens from here on. done ends it, and all
// that was opened.
func (c *conversation) begin(ctx context.Context) (_ context.Context, done func(error) error) {
	level := report.Normal
	if c.verbose {
		level = report.Verbose
	}
	o := report.StandardTerminal(level)
	o.Live = false // the lines that are typed and the tree would get into each other's way
	c.terminal, c.color = report.NewTerminal(o), o.ColorStderr
	bus := &event.Bus{}
	bus.Subscribe(c.terminal.Record)
	return event.WithBus(ctx, bus), func(err error) error {
		if closeErr := c.close(); err == nil {
			err = closeErr
		}
		c.terminal.Close()
		return err
	}
}

// session is one with the file, if there is one, on the lab, if it is there.
func (c *conversation) session(ctx context.Context, machines []attest.MachineConfig) (script.Session, error) {
	options := script.Options{Stdout: os.Stdout, Machines: machines}
	return script.NewSession(ctx, c.file, options, func(_ context.Context, machines []attest.MachineConfig) (operation.Runner, error) {
		if c.lab == nil { // it lives as long as the conversation, not as the statement
			if err := c.newLab(ctx, machines); err != nil {
				return nil, err
			}
		}
		return operation.Of(c.lab), nil
	})
}

func (c *conversation) talk(ctx context.Context, session script.Session) error {
	interactive := repl.Interactive(os.Stdin)
	if interactive {
		fmt.Fprintln(os.Stderr, "attest "+version()+", "+cmp.Or(c.about, about(session.Machines())))
		fmt.Fprintln(os.Stderr, "Tab completes, help(x) explains, Ctrl-C ends what runs, Ctrl-D ends all.")
	}
	failed, err := repl.Run(ctx, repl.Options{
		Session: session, In: os.Stdin, Out: os.Stdout, Err: os.Stderr, History: historyPath(),
		Interrupts: interrupts(ctx), Hold: c.terminal.Hold,
		Explain: func(ctx context.Context, err error) string { return report.Explain(suite.Failure(ctx, err), c.color) },
	})
	if err == nil && failed && !interactive {
		err = exitCode(attest.Failed.ExitCode())
	}
	return err
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

// newLab makes the lab, on a host that is opened if need be.
func (c *conversation) newLab(ctx context.Context, machines []attest.MachineConfig) error {
	if err := c.openHost(ctx); err != nil {
		return err
	}
	config := c.labConfig()
	config.Name, config.Machines = "repl", machines
	lab, err := c.opened.NewLab(ctx, config)
	if err == nil {
		c.lab = lab
	}
	return err
}

func (c *conversation) openHost(ctx context.Context) (err error) {
	if c.outDir != "" {
		if err := os.MkdirAll(c.outDir, 0o755); err != nil {
			return &attest.ConfigError{Subject: "output directory", Reason: err.Error()}
		}
	}
	if c.opened == nil {
		c.opened, err = attest.OpenHost(ctx, c.host)
	}
	return err
}

func (c *conversation) labConfig() attest.LabConfig {
	return attest.LabConfig{OutDir: c.outDir, SourceDir: filepath.Dir(cmp.Or(c.file, "x"))}
}

func (c *conversation) close() error {
	var err error
	if c.lab != nil {
		err = c.lab.Close()
	}
	if c.opened != nil {
		if hostErr := c.opened.Close(); err == nil {
			err = hostErr
		}
	}
	return err
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
