package main

import (
	"flag"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "rewrite docs/command-line.md")

const referencePage = "../../docs/command-line.md"

// docs/command-line.md has what the program's help has, of every command.
func TestReference(t *testing.T) {
	for _, name := range []string{"machineConfig", "testScript", "startScripts", "vlans", "globalTimeout", "logLevel", "ATTEST_LOG_LEVEL"} {
		t.Setenv(name, "") // a default that a variable has is not everybody's
	}
	want := reference(newRoot(io.Discard, io.Discard))
	if *update {
		if err := os.WriteFile(referencePage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("make generate writes another %s:\n%s", referencePage, diff)
	}
}

// reference is the page with the help of all commands.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# The command line\n\n<!-- Written by make generate from the program's help. -->\n\n" +
		"Every command with its flags, as `attest COMMAND --help` has them. [The README](../README.md#results) has the exit codes, and\n" +
		"[environment.md](environment.md) the variables.\n")
	var commands []*cobra.Command
	var collect func(*cobra.Command)
	collect = func(c *cobra.Command) {
		if c.Runnable() {
			commands = append(commands, c)
		}
		for _, sub := range c.Commands() {
			if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
				collect(sub)
			}
		}
	}
	collect(root)
	b.WriteString("\n")
	for _, c := range commands {
		b.WriteString("- [" + c.CommandPath() + "](#" + anchor(c.CommandPath()) + "): " + c.Short + "\n")
	}
	for _, c := range commands {
		c.InitDefaultHelpFlag()
		b.WriteString("\n## " + c.CommandPath() + "\n\n```\n" + strings.TrimSpace(helpOf(c)) + "\n```\n")
	}
	return b.String()
}

func anchor(title string) string { return strings.ReplaceAll(title, " ", "-") }

var trailingSpace = regexp.MustCompile(`(?m)[ \t]+$`)

// helpOf is what a person sees with --help.
func helpOf(c *cobra.Command) string {
	var b strings.Builder
	c.SetOut(&b)
	defer c.SetOut(nil)
	c.Help()
	return trailingSpace.ReplaceAllString(b.String(), "")
}
