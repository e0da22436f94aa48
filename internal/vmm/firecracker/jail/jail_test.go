package jail

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Every machine has an identifier that the jailer takes.
func TestID(t *testing.T) {
	for name, want := range map[string]string{"web-1": "web-1", "data_base.2": "data-base-2", "größe": "gr--e", strings.Repeat("a", 70): strings.Repeat("a", 64)} {
		if got := ID(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// A helper that cannot do what it is told says why, and ends as a program that has failed.
func TestHelperFails(t *testing.T) {
	for order, want := range map[string]string{
		"nonsense": "invalid character",
		`{"Dir": "/nonexistent", "ID": "a", "Jailer": "/bin/true", "Firecracker": "/bin/true"}`: "",
	} {
		c := exec.Command("/proc/self/exe")
		c.Args = []string{helperName, order}
		out, err := c.CombinedOutput()
		if want == "" {
			if want = "make a mount namespace: operation not permitted"; Try() == nil {
				want = "open /nonexistent: no such file or directory"
			} else if os.Geteuid() == 0 {
				continue // how far it gets is what Try says
			}
		}
		if c.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v, %q, want %q", order, err, out, want)
		}
	}
}
