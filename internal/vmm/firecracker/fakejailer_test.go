package firecracker

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
)

// The fake refuses what the jailer of Firecracker 1.17 refuses, in its words.
func TestFakeJailer(t *testing.T) {
	program, base := fake.InstallJailer(t, fake.JailerOptions{}), t.TempDir()
	good := []string{"--id", "a", "--exec-file", "/bin/true", "--uid", "1", "--gid", "1", "--chroot-base-dir", base}
	with := func(name, value string) []string {
		args := slices.Clone(good)
		for i := range args {
			if args[i] == name {
				args[i+1] = value
			}
		}
		return args
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "Failed to parse arguments: Argument 'exec-file' required, but not found."},
		{append(good[:len(good):len(good)], "--nope"), "Failed to parse arguments: Found argument 'nope' which wasn't expected, or isn't valid in this context."},
		{append(good[:len(good):len(good)], "--id", "b"), "Failed to parse arguments: The argument 'id' was provided more than once."},
		{append(good[:len(good):len(good)], "--netns"), "Failed to parse arguments: The argument 'netns' requires a value, but none was supplied."},
		{with("--id", "a_b"), "Invalid instance ID: Invalid char (_) at position 1"},
		{with("--id", strings.Repeat("a", 70)), "Invalid instance ID: Invalid len (70);  the length must be between 1 and 64"},
		{with("--exec-file", "/nox"), "Failed to canonicalize path /nox: No such file or directory (os error 2)"},
		{with("--exec-file", "/"), "/ is not a file"},
		{with("--chroot-base-dir", "/nox"), "Failed to canonicalize path /nox: No such file or directory (os error 2)"},
		{with("--uid", "x"), "Invalid uid: x"},
	} {
		c := exec.Command(program, tt.args...)
		out, err := c.CombinedOutput()
		if c.ProcessState.ExitCode() != 1 || strings.TrimSpace(string(out)) != tt.want {
			t.Errorf("%q: %v, %q, want %q", tt.args, err, out, tt.want)
		}
	}
}
