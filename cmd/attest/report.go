package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/report"
)

func newReport() *cobra.Command {
	var o report.Options
	var quiet bool
	cmd := &cobra.Command{
		Use:   "report [flags] EVENTS.jsonl",
		Short: "Make the reports of a run from its JSON lines",
		Long: "report reads what attest run --json has written (- is standard input) and makes\n" +
			"the reports that the run itself would have made: the summary on standard output,\n" +
			"and those that are asked for. It exits with 0 when they are made, whatever the\n" +
			"run's end was, and with 2 when the file has no events.",
		Example: "  attest report --html report.html --junit junit.xml out/events.jsonl",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			level := report.Normal
			if quiet {
				level = report.Quiet
			}
			terminal := report.StandardTerminal(level)
			terminal.Live, terminal.Shared = false, false
			o.Terminal = &terminal
			return makeReport(cmd, o, args[0])
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.JUnit, "junit", "", "write a JUnit XML `file`")
	flags.StringVar(&o.HTML, "html", "", "write an HTML `file`")
	flags.BoolVarP(&quiet, "quiet", "q", false, "show failures and the last line only")
	return cmd
}

func makeReport(cmd *cobra.Command, o report.Options, path string) error {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	set, err := report.Open(o)
	if err != nil {
		return err
	}
	if err := set.Replay(in); err != nil {
		set.Abandon()
		return fmt.Errorf("%s: %w", path, err)
	}
	if _, err := set.Close(); err != nil {
		return ended(cmd, event.Infra, &attest.InfraError{Action: "write the reports", Err: err})
	}
	return nil
}
