package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/keyboard"
	"github.com/attest-vm/attest/internal/report"
	"github.com/attest-vm/attest/internal/suite"
)

// defaultTimeout limits a run for which nobody gave a limit, as it does in the
// NixOS driver.
const defaultTimeout = time.Hour

type runFlags struct {
	suite.Options
	junit, html, json string
	pattern           string
	cold              bool
	timeout           durationFlag
	verbose, quiet    bool
	limited           bool // timeout was given
	watch             bool
}

func newRun() *cobra.Command {
	f := &runFlags{timeout: durationFlag(defaultTimeout)}
	cmd := &cobra.Command{
		Use:   "run [flags] FILE...",
		Short: "Run test files",
		Long: "run boots the machines that test files declare and runs their tests. A\n" +
			"directory stands for the *_test.star below it.\n\n" +
			"It exits with 0 when all tests passed, 1 when a test failed, 2 when the usage,\n" +
			"a test file, an image or a configuration is wrong, 3 when the infrastructure\n" +
			"failed (no VMM, a guest that did not boot, no space), 4 when this host or the\n" +
			"backend cannot do what a test needs, and 130 when it was interrupted. Results go\n" +
			"to standard output, progress to standard error.",
		Example: "  attest run web_test.star\n" +
			"  attest run -o out -j 4 --run 'partition|failover' tests/",
		Args: cobra.MinimumNArgs(1),
		RunE: f.run,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&f.OutDir, "output", "o", "", "`directory` for reports (junit.xml, report.html, events.jsonl) and for what tests copy out; made if missing")
	flags.StringVar(&f.junit, "junit", "", "write a JUnit XML `file`")
	flags.StringVar(&f.html, "html", "", "write an HTML `file`")
	flags.StringVar(&f.json, "json", "", "write every event as a line of JSON to a `file`")
	flags.IntVarP(&f.Jobs, "jobs", "j", max(1, runtime.NumCPU()/2), "run up to `N` tests at once, as memory and processors allow")
	flags.Lookup("jobs").DefValue = "half of the processors"
	flags.StringVar(&f.pattern, "run", "", "run only tests whose name, or FILE:NAME, matches this `regexp`")
	flags.StringVar(&f.Host.Backend, "backend", "auto", "`name` of the backend for machines that name none; with several, as in qemu,firecracker, each test runs on each")
	flags.StringVar(&f.Host.Keymap, "keymap", "us", "`layout` that guests expect of their keyboards: "+strings.Join(keyboard.Layouts(), ", "))
	flags.BoolVar(&f.cold, "cold", false, "boot every machine instead of starting it from a snapshot")
	flags.StringVar(&f.Boot, "boot", "", "the `way` in which machines start: warm (from a snapshot), cold, or both: each test once either way")
	flags.StringVar(&f.From, "from", "", "begin from the state in this `directory`, of attest snapshot build, instead of running setup")
	flags.BoolVar(&f.Keep, "keep", false, "keep the lab of each failed test, in the output directory, for attest debug")
	flags.Var(&f.timeout, "timeout", "`limit` of the whole run, in seconds or as 90s, 10m; 0 for none")
	flags.Int64Var(&f.Seed, "seed", 0, "seed `N` of all that is random, the order of the tests too; 0 chooses one")
	flags.StringVar(&f.Pcap, "pcap", "", "capture the networks: a pcapng `file` for each test in this directory, or one file (*.pcapng) for one test")
	flags.StringVar(&f.MachineConfig, "machine-config", os.Getenv("machineConfig"), "JSON `file` with machines (environment: machineConfig)")
	flags.Var((*varsFlag)(&f.Vars), "var", "give the test files a variable, `NAME=VALUE`, which they ask for by var(NAME); can be given again")
	flags.BoolVar(&f.NoBuild, "no-build", false, "do not run the commands by which test files build what they test")
	flags.BoolVar(&f.watch, "watch", false, "run again whenever a test file, or a file that its machines or builds take from this host, changes")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "show every step, console line and command output as it comes")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show failures and the last line only")
	return cmd
}

func (f *runFlags) run(cmd *cobra.Command, files []string) error {
	if f.Jobs < 1 {
		return fmt.Errorf("-j %d: want at least 1", f.Jobs)
	}
	if f.cold {
		if f.Boot != "" && f.Boot != string(attest.BootCold) {
			return fmt.Errorf("--cold and --boot=%s contradict each other", f.Boot)
		}
		f.Boot = string(attest.BootCold)
	}
	if f.pattern != "" {
		re, err := regexp.Compile(f.pattern)
		if err != nil {
			return fmt.Errorf("--run %s: not a regular expression: %w", f.pattern, err)
		}
		f.Select = re
	}
	f.Files, f.Version = files, version()
	f.Timeout = time.Duration(f.timeout)
	if f.MachineConfig != "" && !f.limited && !cmd.Flags().Changed("timeout") {
		f.Timeout = 0 // that of the file
	}
	if f.watch {
		return f.runAgain(cmd)
	}
	status, errs, err := f.once(cmd)
	if err != nil {
		return err
	}
	return ended(cmd, status, errs...)
}

// once runs the tests once, with reports of their own. err is that nothing was run.
func (f *runFlags) once(cmd *cobra.Command) (status event.Status, errs []error, err error) {
	reports, err := report.Open(f.reports())
	if err != nil {
		return "", nil, err
	}
	bus := &event.Bus{}
	unsubscribe := bus.Subscribe(reports.Record)
	f.Stdout = reports.Stdout()
	interruption := interruptionOf(cmd.Context())
	lastWords := func() {
		unsubscribe()
		reports.Close()
	}
	interruption.lastWords.Store(&lastWords)
	f.GiveUp = func(err error) { interruption.giveUp(event.Status(attest.StatusOf(err)), err) }
	summary, err := suite.Run(event.WithBus(cmd.Context(), bus), f.Options)
	interruption.lastWords.Store(nil)
	unsubscribe()
	_, reportErr := reports.Close()
	status = summary.Status
	if reportErr != nil {
		status = event.Worst(status, event.Infra)
		reportErr = fmt.Errorf("write the reports: %w", reportErr)
	}
	return status, []error{err, reportErr}, nil
}

// ended shows errors, and ends the command with the exit code of a status.
func ended(cmd *cobra.Command, status event.Status, errs ...error) error {
	for _, err := range errs {
		if err != nil {
			say(cmd.ErrOrStderr(), err)
		}
	}
	if code := status.ExitCode(); code != 0 {
		return exitCode(code)
	}
	return nil
}

// reports are those that were asked for by name, and with -o all of them.
func (f *runFlags) reports() report.Options {
	level := report.Normal
	switch {
	case f.verbose:
		level = report.Verbose
	case f.quiet:
		level = report.Quiet
	}
	terminal := report.StandardTerminal(level)
	o := report.Options{Terminal: &terminal, JUnit: f.junit, HTML: f.html, JSON: f.json}
	if f.OutDir != "" {
		o.JUnit = cmp.Or(o.JUnit, filepath.Join(f.OutDir, "junit.xml"))
		o.HTML = cmp.Or(o.HTML, filepath.Join(f.OutDir, "report.html"))
		o.JSON = cmp.Or(o.JSON, filepath.Join(f.OutDir, "events.jsonl"))
	}
	return o
}

// A durationFlag is a number of seconds, or a duration as Go reads it.
type durationFlag time.Duration

func (d *durationFlag) String() string { return time.Duration(*d).String() }
func (d *durationFlag) Type() string   { return "duration" }

func (d *durationFlag) Set(s string) error {
	v, err := time.ParseDuration(s)
	if seconds, numErr := strconv.ParseFloat(s, 64); numErr == nil {
		v, err = time.Duration(seconds*float64(time.Second)), nil
	}
	if err != nil || v < 0 {
		return errors.New("want a number of seconds or a duration such as 90s or 10m")
	}
	*d = durationFlag(v)
	return nil
}
