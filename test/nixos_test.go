package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNixOSDriver runs a script in the manner of NixOS tests on a machine of a start script, by
// the command line of the NixOS test driver, and again on the state that it has kept.
func TestNixOSDriver(t *testing.T) {
	t.Parallel()
	g := newForeignGuest(t)
	// Helpers that the script forks keep its standard output open.
	path := g.script(t, "box", "-vga none", card(1, 1))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	helped := strings.Replace(string(text), "set -eu\n", "set -eu\nsleep 86400 &\n", 1)
	if err := os.WriteFile(path, []byte(helped), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	runtimeDir := filepath.Join(dir, strings.Repeat("a-long-path/", 12))
	out := filepath.Join(dir, "out")
	for _, d := range []string{runtimeDir, out} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, run := range []struct{ script, want string }{{`
import json, threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

start_all()
box.wait_for_unit("multi-user.target")

with subtest("commands, also at once"):
    status, output = box.execute("echo out; echo err >&2; exit 3")
    assert (status, output) == (3, "out\n")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: box.succeed(f"sleep 0.1; echo {n}"), range(8))) == [f"{n}\n" for n in range(8)]
    assert box.execute("printf '\\xff\\n'") == (0, "\ufffd\n")
    t.assertEqual(box.succeed("hostname", timeout=timedelta(seconds=900)), "itself\n")

with subtest("waits and units"):
    box.succeed("(sleep 0.5; touch /tmp/late) >&2 &")
    box.wait_for_file("/tmp/late")
    assert json.loads(box.succeed("systemctl show -P ActiveState addresses.service | jq -R . 2>/dev/null || echo '\"active\"'")) == "active"
    with t.assertRaisesRegex(Exception, 'unit "none.service" is inactive and there are no pending jobs'):
        box.wait_for_unit("none.service")

with subtest("a condition holds while a command runs"):
    @polling_condition(seconds_interval=0.2)
    def there():
        box.succeed("test -e /tmp/late")
    with t.assertRaisesRegex(Exception, "there"):
        with there:
            box.succeed("rm /tmp/late; sleep 3600")

box.succeed("echo kept > /root/kept; sync")
box.copy_from_machine("/root/kept")
assert (driver.out_dir / "kept").read_text() == "kept\n"
assert box.state_dir.name == "vm-state-box" and (box.state_dir / "box.qcow2").exists()

with subtest("a guest that dies in the middle of a command"):
    dying = threading.Timer(1, box.crash)
    dying.start()
    with t.assertRaisesRegex(Exception, "box: .*the machine is down"):
        box.succeed("sleep 3600")
    dying.join()
print("the end")
`, "\nthe end\n"}, {`
assert box.succeed("cat /root/kept") == "kept\n"
box.shutdown()
print("it was kept")
`, "\nit was kept\n"}} {
		script := filepath.Join(dir, "script")
		if err := os.WriteFile(script, []byte(run.script), 0o600); err != nil {
			t.Fatal(err)
		}
		p := start(t, t.TempDir(), []string{"XDG_RUNTIME_DIR=" + runtimeDir}, attestBinary,
			"nixos-test-driver", "-K", "--start-scripts", path, "--vlans", "1", "--log-level", "warning", "-o", out, script)
		if code := p.exitCode(t); code != 0 || !strings.Contains("\n"+p.said(), run.want) {
			t.Fatalf("exit code %d", code)
		}
	}
}

// However attest ends while a script runs, no Python stays, nor what it has started.
func TestNoPythonIsLeft(t *testing.T) {
	t.Parallel()
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "terminated": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			script, config := filepath.Join(dir, "script.py"), filepath.Join(dir, "lab.json")
			for path, text := range map[string]string{
				script: "import subprocess\nsubprocess.Popen(['sh', '-c', 'sleep 86400; : " + dir + "'])\nprint('it runs', flush=True)\nweb.succeed('hang')\n",
				config: `{"machines": [{"name": "web", "backend": "mock", "script": {"answers": [{"command": "hang", "delay": "1h"}]}}]}`,
			} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			state, err := os.MkdirTemp("/tmp", "at")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(state)
			p := start(t, state, nil, attestBinary, "nixos-test-driver", "-c", config, script)
			for end := time.Now().Add(patience); !strings.Contains(p.said(), "it runs"); {
				if time.Now().After(end) {
					t.Fatal("the script does not run")
				}
				<-time.After(20 * time.Millisecond)
			}
			p.cmd.Process.Signal(signal)
			code := p.exitCode(t)
			if want := 128 + int(signal); signal == syscall.SIGTERM && code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
			for end := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
				left, _ := exec.Command("pgrep", "-af", dir).Output()
				if len(left) == 0 && len(leftovers(state)) == 0 {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("this is left: %s%v", left, leftovers(state))
				}
			}
		})
	}
}
