package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/script/python"
	"github.com/attest-vm/attest/internal/suite"
)

// newCheck looks at test files without running them.
func newCheck() *cobra.Command {
	opts := suite.Options{Jobs: runtime.NumCPU()}
	noTypes := false
	cmd := &cobra.Command{
		Use:   "check [flags] FILE...",
		Short: "Check test files without running them",
		Long: "check reads test files as run does, and boots nothing: the syntax, names and\n" +
			"operations that do not exist, their arguments, and the machines. Of scripts in\n" +
			"Python the types are checked too, by mypy or ty, if this host has one of them.\n\n" +
			"It exits with 2 if run would refuse a file, or if a type is wrong. A file that has\n" +
			"setup() and no tests, for snapshot build, is fine.",
		Example: "  attest check tests/\n" +
			"  attest check --machine-config lab.json script.py",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			opts.Files = files
			return check(cmd, opts, !noTypes)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.MachineConfig, "machine-config", os.Getenv("machineConfig"), "JSON `file` with machines (environment: machineConfig)")
	flags.StringVar(&opts.Host.Backend, "backend", "auto", "`name` of the backend for machines that name none")
	flags.BoolVar(&noTypes, "no-types", false, "do not check types")
	return cmd
}

func check(cmd *cobra.Command, opts suite.Options, types bool) error {
	ctx := cmd.Context()
	files, err := suite.Check(ctx, opts)
	if err != nil {
		return ended(cmd, invalidAtLeast(err), err)
	}
	status := event.Passed
	for _, f := range files {
		by := ""
		if f.Err == nil && types && filepath.Ext(f.Path) == ".py" {
			var checker string
			if checker, f.Err = python.CheckTypes(ctx, f.Path, f.Machines); checker != "" {
				by = ", types by " + checker
			}
		}
		if f.Err != nil {
			fmt.Fprintln(cmd.OutOrStdout(), printable.Text(f.Err.Error()))
			status = event.Worst(status, invalidAtLeast(f.Err))
			continue
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: no mistakes found (%s, %s%s)\n", f.Path,
			english.Plural(len(f.Machines), "machine", ""), english.Plural(len(f.Tests), "test", ""), by)
	}
	return ended(cmd, status)
}

// invalidAtLeast is the status of an error that is not about a test.
func invalidAtLeast(err error) event.Status {
	if status := event.Status(attest.StatusOf(err)); status != event.Failed {
		return status
	}
	return event.Invalid
}

// newPythonStubs is for editors and type checkers.
func newPythonStubs() *cobra.Command {
	return &cobra.Command{
		Use:   "python-stubs DIR",
		Short: "Write the types of Python's package test_driver",
		Long: "python-stubs writes the types of what scripts in Python find, as the package\n" +
			"test_driver, into a directory. Editors and type checkers look for it there, for\n" +
			"example with MYPYPATH=DIR.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := python.WriteStubs(args[0]); err != nil {
				return &attest.InfraError{Action: "write the types", Err: err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n", filepath.Join(args[0], "test_driver"))
			return nil
		},
	}
}

// symbolsFile is where the NixOS test driver's generate-driver-symbols puts its result.
const symbolsFile = "driver-symbols"

// symbolsName is the name of that program.
const symbolsName = "generate-driver-symbols"

// newDriverSymbols is what nixpkgs asks for the names that pyflakes shall know.
func newDriverSymbols() *cobra.Command {
	return &cobra.Command{
		Use:   symbolsName,
		Short: "Write the names that scripts in Python find to the file " + symbolsFile,
		Long: "generate-driver-symbols writes all names that a script in Python finds, except its\n" +
			"machines and networks, to the file " + symbolsFile + " in this directory, with commas\n" +
			"in between. It is for the build step of nixpkgs.",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			if err := os.WriteFile(symbolsFile, []byte(strings.Join(python.Symbols(), ",")), 0o644); err != nil {
				return &attest.InfraError{Action: "write the names", Err: err}
			}
			return nil
		},
	}
}
