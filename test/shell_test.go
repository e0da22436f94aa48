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

// Through the shell a script has the results that it has through the agent: every method, called
// from Python.
func TestShellResultsAreEqual(t *testing.T) {
	if !*bothWays {
		t.Skip("-args -shell runs it; TestShellTransport is a short form")
	}
	g := newForeignGuest(t)
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "lab.json"), fmt.Sprintf(`{"machines": [{"name": "box", "backend": "qemu", "start_command": %q, "vlans": [], "allow_reboot": true}]}`, g.script(t, "box")))
	results := map[string]map[string]string{}
	for _, upgrade := range []string{"always", "never"} {
		cmd := exec.CommandContext(t.Context(), attestBinary, "run", "--cold", "-o", filepath.Join(dir, upgrade), "--machine-config", config, "testdata/equal/equal.py")
		cmd.Env = append(os.Environ(), "ATTEST_UPGRADE="+upgrade, "ATTEST_STATE_DIR="+newStateDir(t))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", upgrade, err, out)
		}
		results[upgrade] = map[string]string{}
		for line := range strings.Lines(string(out)) {
			var got []json.RawMessage
			if json.Unmarshal([]byte(line), &got) == nil && len(got) == 2 {
				results[upgrade][string(got[0])] = string(got[1])
			}
		}
	}
	if n := len(results["always"]); n < 60 {
		t.Errorf("only %d results", n)
	}
	for name, want := range results["always"] {
		if got := results["never"][name]; got != want {
			t.Errorf("%s: by the shell\n%s\nby the agent\n%s", name, got, want)
		}
	}
}
