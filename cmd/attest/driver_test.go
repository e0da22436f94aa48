package main

import (
	"slices"
	"testing"
)

func TestArgparse(t *testing.T) {
	for _, tt := range []struct{ in, want []string }{
		{[]string{"--start-scripts", "a", "b", "--vlans", "1", "2", "-o", "out"}, []string{"--start-scripts=a", "--start-scripts=b", "--vlans=1", "--vlans=2", "-o", "out"}},
		{[]string{"--start-scripts", "--vlans=1", "2", "script"}, []string{"--vlans=1", "--vlans=2", "--vlans=script"}},
		{[]string{"script", "--debug-hook=x y", "--output", "out", "--junit", "j"}, []string{"script", "--debug-hook-attach=x y", "--output_directory", "out", "--junit-xml", "j"}},
		{[]string{"--output-directory", "out", "--keep-m", "-I", "script"}, []string{"--output_directory", "out", "--keep-machine-state", "-I", "script"}},
		{[]string{"--keep", "-K", "--", "--vlans", "1"}, []string{"--keep", "-K", "--", "--vlans", "1"}}, // ambiguous: left to be refused
		{[]string{"-c", "--odd-name", "--none", "x"}, []string{"-c", "--odd-name", "--none", "x"}},
		{[]string{"--config"}, []string{"--config"}},
	} {
		if got := argparse(newDriver().Flags(), tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("%q:\ngot  %q\nwant %q", tt.in, got, tt.want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, tt := range []struct{ in, want []string }{
		{[]string{"/nix/store/x/bin/nixos-test-driver", "-I"}, []string{"nixos-test-driver", "-I"}},
		{[]string{"attest", "run", "x"}, []string{"run", "x"}},
		{[]string{}, []string{}},
	} {
		if got := commandLine(tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestWithoutCommand(t *testing.T) {
	t.Setenv("testScript", "")
	for _, tt := range []struct {
		args []string
		want bool
	}{
		{nil, false},
		{[]string{"run", "x.star"}, false},
		{[]string{"rnu"}, false},
		{[]string{"x.star"}, true},
		{[]string{"-t", "60", "-o", "run", "x.py"}, true},
		{[]string{"--machine-config=a.json", "-i"}, true},
		{[]string{"-t"}, true},
		{[]string{"--help"}, false},
		{[]string{"-i", "--version"}, false},
		{[]string{"./driver_test.go"}, true},
		{[]string{"./none"}, false},
	} {
		if got := withoutCommand(tt.args); got != tt.want {
			t.Errorf("%q: got %v", tt.args, got)
		}
	}
	t.Setenv("testScript", "x.py")
	if !withoutCommand(nil) || withoutCommand([]string{"run"}) {
		t.Error("testScript is not the script of a command line without anything else, or of one that has a command")
	}
}
