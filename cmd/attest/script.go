package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/vmm"
)

// scriptName is the hidden sub-command that a command line without one stands for.
const scriptName = "script"

// A scriptCommand is attest [options] [test-script]: a command line without a sub-command, with the
// flags and the environment of start scripts that generators write.
type scriptCommand struct {
	runFlags
	interactive, keep   bool
	startScripts, vlans string
	testScript          string
	seconds             string
}

func newScript() *cobra.Command {
	s := &scriptCommand{}
	cmd := &cobra.Command{
		Use:    "script [flags] [TESTSCRIPT]",
		Short:  "Run one test script",
		Hidden: true,
		Args:   cobra.MaximumNArgs(1),
		RunE:   s.run,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&s.interactive, "interactive", "i", false, "give a prompt after the script")
	flags.BoolVarP(&s.keep, "keep-vm-state", "k", false, "keep the files of machines with a start script, and begin with those of the last run")
	flags.BoolVarP(&s.keep, "keep-machine-state", "K", false, "the same")
	flags.StringVarP(&s.seconds, "global-timeout", "t", os.Getenv("globalTimeout"), "limit of the run in `seconds` (environment: globalTimeout)")
	flags.StringVarP(&s.OutDir, "output-dir", "o", "", "`directory` for what the script copies out and for reports")
	flags.StringVar(&s.startScripts, "start-scripts", os.Getenv("startScripts"), "start `scripts` of the machines, separated by blanks (environment: startScripts)")
	flags.StringVar(&s.MachineConfig, "machine-config", os.Getenv("machineConfig"), "JSON `file` with machines (environment: machineConfig)")
	flags.StringVar(&s.vlans, "vlans", os.Getenv("vlans"), "`numbers` of the networks, separated by blanks (environment: vlans)")
	flags.StringVar(&s.testScript, "test-script", "", "the script, a `file` (environment: testScript)")
	flags.BoolVar(&s.verbose, "verbose", slices.Contains([]string{"debug", "info"}, os.Getenv("ATTEST_LOG_LEVEL")), "show every step, console line and command output as it comes")
	return cmd
}

// scriptFlags are those of the command that take a value, and scriptSwitches the others.
var (
	scriptFlags    = []string{"-t", "--global-timeout", "-o", "--output-dir", "--start-scripts", "--machine-config", "--vlans", "--test-script"}
	scriptSwitches = []string{"-i", "--interactive", "-k", "-K", "--keep-vm-state", "--keep-machine-state", "--verbose"}
)

// withoutCommand reports whether a command line has no sub-command but a script, or flags that
// belong to one.
func withoutCommand(args []string) bool {
	if len(args) == 0 {
		return os.Getenv("testScript") != ""
	}
	for i := 0; i < len(args); i++ {
		flag, _, given := strings.Cut(args[i], "=")
		switch {
		case slices.Contains(scriptFlags, flag):
			if !given {
				i++
			}
		case slices.Contains(scriptSwitches, flag):
		case strings.HasPrefix(flag, "-"):
			return false
		default:
			return isScript(args[i])
		}
	}
	return true
}

// isScript reports whether a word is a test script rather than a command: by its ending, or
// because it is a path of a file.
func isScript(word string) bool {
	for _, l := range script.Languages() {
		if filepath.Ext(word) == l.Ending {
			return true
		}
	}
	st, err := os.Stat(word)
	return strings.Contains(word, "/") && err == nil && st.Mode().IsRegular()
}

func (s *scriptCommand) run(cmd *cobra.Command, args []string) error {
	name := cmp.Or(slices.Concat(args, []string{""})[0], s.testScript, os.Getenv("testScript"))
	if name == "" && !s.interactive {
		return fmt.Errorf("attest %s: there is neither a test script nor --interactive; use --help", version())
	}
	s.Language = "Python"
	if err := s.machines(); err != nil {
		return err
	}
	if s.keep {
		s.StateDir = cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), os.TempDir())
	}
	if s.seconds != "" {
		if err := s.timeout.Set(s.seconds); err != nil || s.timeout == 0 {
			return fmt.Errorf("--global-timeout %s: want a positive number of seconds", s.seconds)
		}
	}
	s.Jobs = 1
	if !s.interactive {
		s.limited = s.seconds != ""
		if !s.limited && s.MachineConfig == "" {
			s.timeout = durationFlag(defaultTimeout)
		}
		return s.runFlags.run(cmd, []string{name})
	}
	return s.talk(cmd, name)
}

// machines are those of the start scripts.
func (s *scriptCommand) machines() error {
	networks := []int{}
	for _, text := range strings.Fields(s.vlans) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 255 {
			return fmt.Errorf("--vlans %s: want numbers from 1 to 255", text)
		}
		networks = append(networks, n)
	}
	for _, path := range strings.Fields(s.startScripts) {
		name := cmp.Or((&vmm.Command{Line: path}).MachineName(), "machine")
		s.Machines = append(s.Machines, attest.MachineConfig{Name: name, StartCommand: path, Networks: networks})
	}
	return nil
}

// talk runs the script, and gives a prompt on what it has left.
func (s *scriptCommand) talk(cmd *cobra.Command, name string) error {
	if filepath.Ext(name) == ".star" || name == "" {
		c := conversation{file: name, machineConfig: s.MachineConfig, machines: s.Machines, verbose: s.verbose}
		c.OutDir = s.OutDir
		if name != "" {
			c.first = []string{"setup", "main"}
		}
		return c.run(cmd)
	}
	if s.OutDir != "" {
		if err := os.MkdirAll(s.OutDir, 0o755); err != nil {
			return &attest.ConfigError{Subject: "output directory", Reason: err.Error()}
		}
	}
	r := &driverRun{options: s.Options}
	r.options.Files, r.options.Version, r.options.Timeout = []string{name}, version(), -time.Second
	r.options.Driver = &script.Driver{Exited: func(code int) { r.exited = &code }}
	r.prompt(cmd.Context())
	r.options.Driver.Prompt.After = true
	return r.run(cmd)
}

// newEval runs statements of the test language.
func newEval() *cobra.Command {
	return evalCommand("eval CODE...", "Run statements", "each CODE is a statement, or several lines of them",
		`  attest eval --machine-config lab.json 'web.succeed("uname -r")'`,
		func(args []string) (string, error) { return strings.Join(args, "\n") + "\n\n", nil })
}

// newEvalFile runs the statements of a file, as if they were typed.
func newEvalFile() *cobra.Command {
	return evalCommand("eval-file PATH", "Run the statements of a file", "as if its lines were typed at the prompt of attest repl",
		"  attest eval-file --machine-config lab.json statements.star",
		func(args []string) (string, error) {
			if len(args) != 1 {
				return "", errors.New("eval-file: want one file")
			}
			text, err := os.ReadFile(args[0])
			if err != nil {
				return "", &attest.ConfigError{Reason: err.Error()}
			}
			return string(text) + "\n\n", nil
		})
}

func evalCommand(use, short, long, example string, read func([]string) (string, error)) *cobra.Command {
	var c conversation
	name, _, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use:     use,
		Short:   short,
		Long:    name + " runs statements of the test language, " + long + ". Values are\nshown. It exits as attest run does, by the worst end of a statement.",
		Example: example,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := read(args)
			if err != nil {
				return err
			}
			r, w, err := os.Pipe()
			if err != nil {
				return &attest.InfraError{Action: "make a pipe", Err: err}
			}
			defer r.Close()
			go func() {
				w.WriteString(text) // an error is that nobody reads any more
				w.Close()
			}()
			c.in = r
			return c.run(cmd)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&c.OutDir, "output", "o", "", "`directory` for what is copied out of machines; made if missing")
	flags.StringVar(&c.Host.Backend, "backend", "auto", "`name` of the backend for machines that name none")
	flags.StringVar(&c.machineConfig, "machine-config", os.Getenv("machineConfig"), "JSON `file` with machines (environment: machineConfig)")
	flags.BoolVarP(&c.verbose, "verbose", "v", false, "show every step, console line and command output as it comes")
	return cmd
}
