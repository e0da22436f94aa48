package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/repl"
	"github.com/attest-vm/attest/internal/suite"
)

func newDebug() *cobra.Command {
	var c conversation
	var shell string
	cmd := &cobra.Command{
		Use:   "debug [flags] DIR",
		Short: "Open the lab that a failed test left",
		Long: "debug opens a lab that attest run --keep has kept, or any other that was saved,\n" +
			"as it was at that moment: its machines run, and so does what ran in them. You\n" +
			"operate them as in attest repl, with the machines and functions of the test file,\n" +
			"or in a shell on one of them. Nothing changes what was kept: the next time it\n" +
			"is the same again.",
		Example: "  attest debug out/kept/web_test-test_serves\n" +
			"  attest debug out/kept/web_test-test_serves --shell server",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.debug(cmd, args[0], shell) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&shell, "shell", "", "open a shell on this `machine`, and end with it")
	flags.StringVarP(&c.OutDir, "output", "o", "", "`directory` for what is copied out of machines; made if missing")
	flags.BoolVarP(&c.verbose, "verbose", "v", false, "show every step, console line and command output as it comes")
	return cmd
}

// debug opens a lab that was saved.
func (c *conversation) debug(cmd *cobra.Command, dir, shell string) (err error) {
	kept, err := suite.ReadKept(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if kept != nil {
		c.file = kept.File
	}
	ctx := cmd.Context()
	done := c.begin(ctx)
	defer func() { err = done(err) }()
	lab, err := c.OpenSaved(dir, c.file)
	if err != nil {
		return err
	}
	if shell != "" {
		return c.shell(cmd, lab, shell)
	}
	var machines []attest.MachineConfig
	for _, m := range lab.Machines() {
		machines = append(machines, m.Config())
	}
	c.about = told(machines, kept)
	if c.file != "" {
		err := c.Load(c.file, nil)
		if err == nil {
			return c.talk(ctx)
		}
		say(os.Stderr, fmt.Errorf("%s has changed or cannot be read, so only its machines are available: %w", c.file, err))
	}
	if err := c.Load("", machines); err != nil {
		return c.explained(ctx, err)
	}
	return c.talk(ctx)
}

// told is what there is to say of a lab.
func told(machines []attest.MachineConfig, k *suite.Kept) string {
	text := about(machines)
	if k == nil {
		return text
	}
	name := k.Test
	if k.Boot != "" {
		name += " [" + k.Boot + "]"
	}
	message, _, _ := strings.Cut(k.Message, "\n")
	if k.Place != "" {
		message = k.Place + ": " + message
	}
	return text + "\n" + printable.Text(name+" of "+k.File+" failed here:\n  "+message)
}

// shell gives the terminal to a machine; the exit code is the shell's.
func (c *conversation) shell(cmd *cobra.Command, lab *attest.Lab, name string) error {
	m := lab.Machine(name)
	if m == nil {
		var names []string
		for _, m := range lab.Machines() {
			names = append(names, m.Name())
		}
		return fmt.Errorf("--shell %s: no such machine; the machines are %s", name, strings.Join(names, ", "))
	}
	terminal, giveBack, err := repl.OpenTerminal(os.Stdin, os.Stdout)
	if err != nil {
		return err
	}
	c.terminal.Hold(true)
	code, err := m.Shell(cmd.Context(), terminal)
	giveBack()
	c.terminal.Hold(false)
	var down *attest.DownError
	switch {
	case errors.As(err, &down):
		return &attest.InfraError{Machine: name, Action: "open a shell", Err: err}
	case err == nil && code != 0:
		return exitCode(code)
	}
	return err
}
