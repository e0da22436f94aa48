package python

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Every method of the NixOS driver's machines is called on a real guest by make test-shell, through the agent and
// through the shell, but for these.
func TestMethodsAreCompared(t *testing.T) {
	text, err := os.ReadFile("../../../test/testdata/equal/equal.py")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := []string{
		"switch_root",  // TestForeignSwitchRoot
		"forward_port", // the shell has no way to forward one
	}
	for line := range strings.Lines(strings.TrimSpace(upstream)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "(")
		if called := strings.Contains(string(text), "."+name+"("); called == slices.Contains(elsewhere, name) {
			t.Errorf("%s: called is %v", name, called)
		}
	}
}
