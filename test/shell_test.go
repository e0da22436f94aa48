package test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

var bothWays = flag.Bool("shell", false, "run all of testdata/equal through the agent and through the shell")

// TestShellTransport runs what test files ask for on a guest in which attest's agent has no
// place: its root shell stands in for the agent.
func TestShellTransport(t *testing.T) {
	t.Parallel()
	g := newForeignGuest(t)
	lab := openLab(t.Context(), t, attest.HostConfig{}, attest.LabConfig{Machines: []attest.MachineConfig{
		{StartCommand: g.scriptWith(t, "box", "foreign.noexec"), Networks: []int{}, Boot: attest.BootCold},
	}})
	box := tried{lab.Machine("box"), t}
	r := box.execute("echo out; echo err >&2; exit 3")
	if r.ExitCode != 3 || r.Stdout != "out\n" || r.Stderr != "err\n" {
		t.Errorf("got %+v", r)
	}
	if got := box.succeed("cat /proc/self/cgroup; grep SigIgn /proc/self/status; echo $0 $SHLVL; tty || :"); got != "0::/init.scope\nSigIgn:\t0000000000000000\nbash 2\nnot a tty\n" {
		t.Errorf("got %q", got)
	}
	if err := box.WaitForUnit(t.Context(), "multi-user.target"); err != nil {
		t.Error(err)
	}
	testCopies(t, box)
	typed, keyboard := io.Pipe()
	defer keyboard.Close()
	if _, err := box.Shell(t.Context(), attest.Terminal{Input: typed, Output: io.Discard, Type: "vt100"}); err == nil || !strings.Contains(err.Error(), "needs attest's agent") {
		t.Errorf("got %v", err)
	}
	// It dies in the middle of a command.
	ended := make(chan error, 1)
	go func() { _, err := box.Succeed(t.Context(), "touch /tmp/here; sleep 99999"); ended <- err }()
	if err := box.WaitForFile(t.Context(), "/tmp/here"); err != nil {
		t.Error(err)
	}
	if err := box.Crash(t.Context()); err != nil {
		t.Error(err)
	}
	if down := (*attest.DownError)(nil); !errors.As(<-ended, &down) {
		t.Errorf("got %v", down)
	}
}

// A script has the same results through the shell and through the agent: those of
// testdata/equal/results, which has a line for every method.
func TestShellResultsAreEqual(t *testing.T) {
	if !*bothWays {
		t.Skip("-args -shell runs it; TestShellTransport is a short form")
	}
	text, err := os.ReadFile("testdata/equal/results")
	if err != nil {
		t.Fatal(err)
	}
	want := resultsOf(t, string(text))
	box := newForeignGuest(t).script(t, "box", "-vga none", card(1, 1))
	peer := sharingPeer(t)
	for way, upgrade := range map[string]string{"agent": "always", "shell": "never"} {
		t.Run(way, func(t *testing.T) {
			dir := t.TempDir()
			config := writeFile(t, filepath.Join(dir, "lab.json"), fmt.Sprintf(`{"machines": [
				{"name": "box", "backend": "qemu", "start_command": %q, "vlans": [1], "allow_reboot": true},
				{"name": "peer", "backend": "qemu", "start_command": %q, "vlans": [1]}]}`, box, peer))
			cmd := exec.CommandContext(t.Context(), attestBinary, "run", "--cold", "-o", filepath.Join(dir, "out"), "--machine-config", config, "testdata/equal/equal.py")
			cmd.Env = append(os.Environ(), "ATTEST_UPGRADE="+upgrade, "ATTEST_STATE_DIR="+newStateDir(t))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			got := resultsOf(t, string(out))
			for name := range want {
				if got[name] != want[name] {
					t.Errorf("%s: got\n%s\nwant\n%s", name, got[name], want[name])
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d results, want %d; all of them:\n%s", len(got), len(want), out)
			}
		})
	}
}

// sharingPeer is the start script of a machine with a screen, which shares two directories with this host, as those
// of NixOS do: all machines' and its own. Debian's cloud kernel cannot mount them.
func sharingPeer(t *testing.T) string {
	t.Helper()
	source := foreignImage
	source.Kernel = "debian:linux-image-amd64"
	path := newForeignGuestOf(t, source).script(t, "peer", "-vga std", card(1, 2),
		`-virtfs local,path="$SHARED_DIR",security_model=none,mount_tag=shared`, `-virtfs local,path="$TMPDIR/xchg",security_model=none,mount_tag=xchg`)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, path, strings.Replace(string(text), "set -eu\n", "set -eu\nmkdir -p \"$TMPDIR/xchg\"\n", 1))
}

// resultsOf are the lines that equal.py writes, by their names.
func resultsOf(t *testing.T, text string) map[string]string {
	t.Helper()
	results := map[string]string{}
	for line := range strings.Lines(text) {
		var got []json.RawMessage
		if json.Unmarshal([]byte(line), &got) == nil && len(got) == 2 {
			results[string(got[0])] = string(got[1])
		}
	}
	return results
}
