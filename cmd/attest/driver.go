package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/machineconfig"
	"github.com/attest-vm/attest/internal/report"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/suite"
	"github.com/attest-vm/attest/internal/vmm"
)

// driverName is the program that this one stands in for, as argv[0] or as a sub-command.
const driverName = "nixos-test-driver"

// A driver is the command line of the NixOS test driver, of all its versions.
type driver struct {
	config, script                               string
	keepState, keepStateOld                      bool
	interactive, batch                           bool
	attach, outDir, junit, logLevel              string
	startScripts, vmNames, vmStartScripts        []string
	vlans, containerNames, containerStartScripts []string
	timeout                                      string
	vsocks                                       int
}

func newDriver() *cobra.Command {
	d := &driver{}
	cmd := &cobra.Command{
		Use:   driverName + " [flags] [TESTSCRIPT]",
		Short: "Run a NixOS test as the NixOS test driver does",
		Long: "nixos-test-driver takes the flags and the environment of the NixOS test driver, in\n" +
			"all versions from NixOS 24.05 on, and runs the test script on the machines of its\n" +
			"start scripts. It is what attest does if it is called by this name.\n\n" +
			"It exits with 0 when the test passed, with 1 when it did not or a machine did not\n" +
			"start, with 2 when the usage or the configuration is wrong, with 130 or 143 when\n" +
			"SIGINT or SIGTERM ended it, with 143 when its time was over, and with the code that\n" +
			"the script gives to sys.exit.",
		Example:            "  nixos-test-driver --config driver.json -o out\n  attest nixos-test-driver --start-scripts ./run-web-vm --vlans 1 --interactive script.py",
		DisableFlagParsing: true, // its lists and abbreviations are not those of other commands
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.DisableFlagParsing = false
			if err := cmd.ParseFlags(argparse(cmd.Flags(), args)); err != nil {
				return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
			}
			if help, _ := cmd.Flags().GetBool("help"); help {
				return cmd.Help()
			}
			return d.run(cmd, cmd.Flags().Args())
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&d.config, "config", "c", "", "JSON `file` with the machines, the networks and the script")
	flags.StringVar(&d.script, "test-script", "", "the test script, a `file`; wins over that of the configuration")
	flags.BoolVarP(&d.keepState, "keep-machine-state", "K", false, "keep the files of machines, and begin with those of the last run that kept them")
	flags.BoolVar(&d.keepStateOld, "keep-vm-state", false, "the same")
	flags.BoolVarP(&d.interactive, "interactive", "I", false, "give a Python prompt instead of running the script")
	flags.BoolVar(&d.batch, "no-interactive", false, "run the script (the default)")
	flags.StringVar(&d.attach, "debug-hook-attach", "", "wait with Python's debugger after a failure; `command` is how to get to this process")
	flags.StringVarP(&d.outDir, "output_directory", "o", ".", "an existing `directory` for what the script copies out and for reports")
	flags.StringVar(&d.junit, "junit-xml", "", "write a JUnit XML `file`, below the output directory")
	flags.StringVar(&d.logLevel, "log-level", cmp.Or(os.Getenv("logLevel"), "info"), "`level` of what is shown: debug, info, warning or error (environment: logLevel)")
	flags.StringArrayVar(&d.startScripts, "start-scripts", strings.Fields(os.Getenv("startScripts")), "start `scripts` of the machines (environment: startScripts)")
	flags.StringArrayVar(&d.vlans, "vlans", strings.Fields(os.Getenv("vlans")), "`numbers` of the networks (environment: vlans)")
	flags.StringVar(&d.timeout, "global-timeout", os.Getenv("globalTimeout"), "limit of the run in `seconds` (environment: globalTimeout)")
	flags.StringArrayVar(&d.vmNames, "vm-names", nil, "`names` of the machines")
	flags.StringArrayVar(&d.vmStartScripts, "vm-start-scripts", nil, "start `scripts` of the machines, in the order of their names")
	flags.StringArrayVar(&d.containerNames, "container-names", nil, "`names` of containers, which attest does not run")
	flags.StringArrayVar(&d.containerStartScripts, "container-start-scripts", nil, "start `scripts` of containers")
	flags.IntVar(&d.vsocks, "dump-vsocks", 0, "accepted; attest has no SSH backdoor")
	for _, name := range []string{"keep-vm-state", "no-interactive", "container-names", "container-start-scripts", "dump-vsocks"} {
		flags.MarkHidden(name)
	}
	return cmd
}

// argparse makes a command line of Python's argparse into one of pflag: long flags may be
// abbreviated, and a list goes on until the next flag.
func argparse(flags *pflag.FlagSet, args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(out, args[i:]...)
		}
		name, value, given := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !strings.HasPrefix(arg, "--") {
			out = append(out, arg)
			if f := flags.ShorthandLookup(lastLetter(arg)); f != nil && f.NoOptDefVal == "" && i+1 < len(args) && len(arg) == 2 {
				i++
				out = append(out, args[i])
			}
			continue
		}
		f := abbreviated(flags, name)
		switch {
		case f == nil:
			out = append(out, arg)
		case f.Value.Type() == "stringArray":
			if given {
				out = append(out, "--"+f.Name+"="+value)
			}
			for ; i+1 < len(args) && !strings.HasPrefix(args[i+1], "-"); i++ {
				out = append(out, "--"+f.Name+"="+args[i+1])
			}
		case given:
			out = append(out, "--"+f.Name+"="+value)
		case f.NoOptDefVal == "" && i+1 < len(args):
			i++
			out = append(out, "--"+f.Name, args[i])
		default:
			out = append(out, "--"+f.Name)
		}
	}
	return out
}

func lastLetter(arg string) string {
	if len(arg) == 2 && arg[0] == '-' {
		return arg[1:]
	}
	return "-"
}

// abbreviated is the flag that a name, or the beginning of one, means; nil if there is none,
// or more than one.
func abbreviated(flags *pflag.FlagSet, name string) *pflag.Flag {
	name = strings.ReplaceAll(name, "-", "_")
	var found []*pflag.Flag
	var exact *pflag.Flag
	flags.VisitAll(func(f *pflag.Flag) {
		switch full := strings.ReplaceAll(f.Name, "-", "_"); {
		case full == name:
			exact = f
		case name != "" && strings.HasPrefix(full, name):
			found = append(found, f)
		}
	})
	if exact != nil || len(found) != 1 {
		return exact
	}
	return found[0]
}

// run runs the script, or a prompt.
func (d *driver) run(cmd *cobra.Command, args []string) error {
	c, err := d.configuration(cmd, args)
	if err != nil {
		return err
	}
	level, err := d.level()
	if err != nil {
		return err
	}
	if err := writableDirectory(d.outDir); err != nil {
		return fmt.Errorf("-o %s: %w", d.outDir, err)
	}
	r := &driverRun{level: level}
	r.options = suite.Options{
		Files: []string{c.script}, Language: "Python", Machines: c.machines, MachineConfig: c.attest, OutDir: d.outDir, Jobs: 1, Timeout: c.timeout, Version: version(),
		Driver: &script.Driver{Networks: c.vlans, Attach: d.attach, Timeout: c.timeout, Exited: func(code int) { r.exited = &code }},
	}
	if d.keepState || d.keepStateOld {
		r.options.StateDir = cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), os.TempDir())
	}
	if d.interactive && !d.batch {
		r.options.Timeout = -1
		r.prompt(cmd.Context())
	}
	r.reports = report.Options{XML: xmlLog()}
	if d.junit != "" {
		r.reports.JUnit = d.junit
		if !filepath.IsAbs(d.junit) {
			r.reports.JUnit = filepath.Join(d.outDir, d.junit)
		}
	}
	return r.run(cmd)
}

// xmlLog is where the log as XML is wanted; empty: nowhere.
func xmlLog() string {
	if path := os.Getenv("LOGFILE"); path != os.DevNull {
		return path
	}
	return ""
}

func (d *driver) level() (report.Level, error) {
	switch strings.ToLower(d.logLevel) {
	case "debug", "info":
		return report.Verbose, nil // as that driver shows everything
	case "warning":
		return report.Normal, nil
	case "error":
		return report.Quiet, nil
	}
	return 0, fmt.Errorf("--log-level %s: want debug, info, warning or error", d.logLevel)
}

func writableDirectory(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return errors.Unwrap(err)
	case !st.IsDir():
		return errors.New("not a directory")
	}
	return unix.Access(path, unix.W_OK)
}

// A driverConfig is what a driver runs.
type driverConfig struct {
	machines []attest.MachineConfig
	attest   string // path of a machine configuration of attest's own, in place of machines
	vlans    []int
	script   string
	timeout  time.Duration
}

// configuration is that of the file, or of the older flags.
func (d *driver) configuration(cmd *cobra.Command, args []string) (driverConfig, error) {
	for _, name := range []string{"start-scripts", "vlans", "vm-names", "vm-start-scripts", "container-names", "container-start-scripts"} {
		if d.config != "" && cmd.Flags().Changed(name) {
			return driverConfig{}, fmt.Errorf("--%s and --config contradict each other: the configuration has the machines and the networks", name)
		}
	}
	var c machineconfig.Driver
	own := machineconfig.HasMachines(d.config)
	if d.config != "" && !own {
		read, err := machineconfig.ReadDriver(d.config)
		if err != nil {
			return driverConfig{}, asUsage(err)
		}
		c = *read
	} else if err := d.olderFlags(&c); err != nil {
		return driverConfig{}, err
	}
	if len(args) > 1 {
		return driverConfig{}, fmt.Errorf("unrecognized arguments: %s; see %s --help", strings.Join(args[1:], " "), cmd.CommandPath())
	}
	out := driverConfig{vlans: c.VLANs, timeout: c.GlobalTimeout}
	if own {
		out.attest, out.timeout = d.config, 0 // that of the file
	}
	out.script = cmp.Or(d.script, slices.Concat(args, []string{""})[0], c.TestScript)
	if d.config == "" {
		out.script = cmp.Or(out.script, os.Getenv("testScript"))
	}
	if out.script == "" {
		if !d.interactive {
			return out, fmt.Errorf("no test script given%s; see %s --help", hintAtLists(cmd.Flags()), cmd.CommandPath())
		}
		out.script = os.DevNull
	}
	if d.timeout != "" {
		seconds, err := strconv.ParseFloat(d.timeout, 64)
		if err != nil || !(seconds > 0 && seconds < 1e9) {
			return out, fmt.Errorf("--global-timeout %s: want a positive number of seconds", d.timeout)
		}
		out.timeout = time.Duration(seconds * float64(time.Second))
	}
	if len(c.Containers) > 0 {
		return out, &attest.UnsupportedError{Operation: "containers (" + strings.Join(c.Containers, ", ") + ")", Reason: "this version runs virtual machines only"}
	}
	if c.SSHBackdoor {
		say(cmd.ErrOrStderr(), errors.New("warning: there is no SSH backdoor; machine.shell_interact() at the prompt (--interactive) is a shell of a guest"))
	}
	for _, vm := range c.VMs {
		networks := append([]int{}, c.VLANs...)
		out.machines = append(out.machines, attest.MachineConfig{Name: vm.Name, StartCommand: vm.StartScript, Networks: networks})
	}
	slices.SortFunc(out.machines, func(a, b attest.MachineConfig) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// hintAtLists says where a script may have gone.
func hintAtLists(flags *pflag.FlagSet) (hint string) {
	flags.Visit(func(f *pflag.Flag) {
		if f.Value.Type() == "stringArray" {
			hint = "; --" + f.Name + " takes all that follows it up to the next flag, so name the script before it, or after --"
		}
	})
	return hint
}

// asUsage makes an error of the file system one of usage.
func asUsage(err error) error {
	if attest.StatusOf(err) == attest.Failed {
		return &attest.ConfigError{Reason: err.Error()}
	}
	return err
}

// olderFlags are those that drivers before --config had.
func (d *driver) olderFlags(c *machineconfig.Driver) error {
	c.GlobalTimeout = defaultTimeout
	c.Containers = d.containerNames
	if len(d.containerNames) == 0 {
		c.Containers = d.containerStartScripts
	}
	if len(d.vmNames) != 0 && len(d.vmNames) != len(d.vmStartScripts) {
		return fmt.Errorf("--vm-names has %d names, and --vm-start-scripts %d scripts", len(d.vmNames), len(d.vmStartScripts))
	}
	for i, path := range slices.Concat(d.startScripts, d.vmStartScripts) {
		vm := machineconfig.DriverVM{StartScript: path}
		if n := i - len(d.startScripts); n >= 0 && len(d.vmNames) > 0 {
			vm.Name = d.vmNames[n]
		}
		vm.Name = cmp.Or(vm.Name, (&vmm.Command{Line: path}).MachineName(), "machine")
		c.VMs = append(c.VMs, vm)
	}
	for _, text := range d.vlans {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 255 {
			return fmt.Errorf("--vlans %s: want numbers from 1 to 255", text)
		}
		c.VLANs = append(c.VLANs, n)
	}
	return nil
}

// A driverRun is one run with the exit codes of the NixOS test driver.
type driverRun struct {
	options suite.Options
	reports report.Options
	level   report.Level
	exited  *int // the script's own exit code
}

// prompt has the script's names typed at this terminal.
func (r *driverRun) prompt(ctx context.Context) {
	r.options.Driver.Prompt = &script.Prompt{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Interrupts: interruptionOf(ctx).interrupts,
		History: filepath.Join(".", ".nixos-test-history"),
	}
}

func (r *driverRun) run(cmd *cobra.Command) error {
	terminal := report.StandardTerminal(r.level)
	if r.options.Driver.Prompt != nil {
		terminal.Live = false // what is typed and the tree would get into each other's way
	}
	r.reports.Terminal = &terminal
	reports, err := report.Open(r.reports)
	if err != nil {
		return err
	}
	bus := &event.Bus{}
	unsubscribe := bus.Subscribe(reports.Record)
	r.options.Stdout = reports.Stdout()
	interruption := interruptionOf(cmd.Context())
	lastWords := func() {
		unsubscribe()
		reports.Close()
	}
	interruption.lastWords.Store(&lastWords)
	r.options.GiveUp = func(err error) { interruption.giveUp(event.Status(attest.StatusOf(err)), err) }
	ctx := event.WithBus(cmd.Context(), bus)
	summary, err := suite.Run(ctx, r.options)
	interruption.lastWords.Store(nil)
	unsubscribe()
	_, reportErr := reports.Close()
	for _, err := range []error{err, reportErr} {
		if err != nil {
			say(cmd.ErrOrStderr(), err)
		}
	}
	if code := r.exitCode(ctx, summary, err, reportErr); code != 0 {
		return exitCode(code)
	}
	return nil
}

// terminated is the exit code of what SIGTERM has ended, as a shell has it.
const terminated = 128 + int(unix.SIGTERM)

// exitCode is that of the NixOS test driver: 1 for everything that went wrong with the test.
func (r *driverRun) exitCode(ctx context.Context, s suite.Summary, err, reportErr error) int {
	var signal errInterrupted
	switch {
	case errors.As(context.Cause(ctx), &signal):
		return 128 + int(signal.signal)
	case s.TimedOut:
		return terminated
	case s.Status == event.Failed && r.exited != nil && s.Counts[event.Failed] == 1:
		return *r.exited
	case err != nil && s.Status == event.Invalid: // nothing has begun
		return event.Invalid.ExitCode()
	case s.Status.ExitCode() != 0 || reportErr != nil:
		return event.Failed.ExitCode()
	}
	return 0
}

// commandLine is the command line of a program that was called by a name: this program is
// also the NixOS test driver, and what nixpkgs has beside it.
func commandLine(args []string) []string {
	if len(args) > 0 {
		if name := filepath.Base(args[0]); name == driverName || name == symbolsName {
			return append([]string{name}, args[1:]...)
		}
	}
	return args[min(1, len(args)):]
}
