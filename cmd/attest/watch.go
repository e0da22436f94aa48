package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/suite"
)

// runAgain runs the tests, and again whenever something that they depend on changes,
// until it is interrupted. What setups have left stands from one run to the next.
func (f *runFlags) runAgain(cmd *cobra.Command) (err error) {
	standing := &suite.Standing{}
	f.Standing = standing
	defer func() {
		if closeErr := standing.Close(); closeErr != nil {
			say(cmd.ErrOrStderr(), fmt.Errorf("clean up: %w", closeErr))
			err = exitCode(event.Infra.ExitCode())
		}
	}()
	say := func(format string, args ...any) {
		if !f.quiet {
			fmt.Fprintf(cmd.ErrOrStderr(), "attest: "+format+"\n", args...)
		}
	}
	told := map[string]bool{} // commands that do not say what they read
	for {
		status, errs, err := f.once(cmd)
		if err != nil {
			return err
		}
		if cmd.Context().Err() != nil {
			return ended(cmd, event.Interrupted, errs...)
		}
		ended(cmd, status, errs...) // says the errors; the next run has another end
		paths, blind := standing.Following()
		for _, command := range blind {
			if !told[command] {
				say("build %q names no inputs, so changes of what it reads are not seen; give it inputs = [\"…\"]", command)
			}
			told[command] = true
		}
		say("waiting for a change of %s (Ctrl-C ends)", english.Plural(len(paths), "file or directory", "files and directories"))
		changed, err := standing.Await(cmd.Context())
		switch {
		case cmd.Context().Err() != nil:
			return exitCode(event.Interrupted.ExitCode())
		case err != nil:
			return &attest.InfraError{Action: "wait for changes", Err: err}
		}
		say("%s changed", suite.Names(changed))
	}
}

// A varsFlag is NAME=VALUE, any number of times.
type varsFlag map[string]string

func (v *varsFlag) String() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(*v)) {
		out = append(out, name+"="+(*v)[name])
	}
	return strings.Join(out, " ")
}

func (*varsFlag) Type() string { return "NAME=VALUE" }

func (v *varsFlag) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return errors.New("want NAME=VALUE")
	}
	if *v == nil {
		*v = varsFlag{}
	}
	(*v)[name] = value
	return nil
}
