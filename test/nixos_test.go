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

// testDrivers runs two drivers of one user at once, on a machine of one name, that begin with its
// snapshot: what one does in its machine, in forks of it and before a checkpoint is not there in the other.
func testDrivers(t *testing.T, startScript string) {
	dir, state, runtimeDir := t.TempDir(), newStateDir(t), t.TempDir()
	script := writeFile(t, filepath.Join(dir, "script.py"), `
me = driver.out_dir.name
start_all()
job = box.spawn("until [ -e /tmp/over ]; do sleep 0.1; done; echo is over")
box.succeed(f"echo {me} > /root/file")

with subtest("both run"):
    (driver.out_dir.parent / (me + ".here")).write_text(str(box.state_dir))
    retry(lambda last: len(list(driver.out_dir.parent.glob("*.here"))) == 2)
    assert len({p.read_text() for p in driver.out_dir.parent.glob("*.here")}) == 2

with subtest("a fork"):
    with lab.fork():
        assert box.succeed("cat /root/file; rm /root/file; touch /tmp/over") == me + "\n"
        with lab.fork():
            box.fail("test -e /root/file")
    assert job.running
    try:
        with lab.fork():
            box.succeed("false")
        raise Exception("it passed")
    except AssertionError as e:
        assert "exit code 1" in str(e), e
    assert box.succeed("cat /root/file") == me + "\n"

checkpoint("here")
box.succeed("rm /root/file; touch /tmp/over")
assert job.wait() == (0, "is over\n")
restore("here")
assert box.succeed("cat /root/file; test ! -e /tmp/over") == me + "\n"
print(me, "has ended")
`)
	var drivers []*program
	for _, name := range []string{"one", "two"} {
		out := filepath.Join(dir, name)
		if err := os.Mkdir(out, 0o700); err != nil {
			t.Fatal(err)
		}
		drivers = append(drivers, start(t, state, []string{"XDG_RUNTIME_DIR=" + runtimeDir}, attestBinary,
			"nixos-test-driver", "--start-scripts", startScript, "--vlans", "1", "--log-level", "warning", "-o", out, script))
	}
	for i, p := range drivers {
		name := []string{"one", "two"}[i]
		if code := p.exitCode(t); code != 0 || !strings.Contains(p.said(), name+" has ended") || strings.Contains(p.said(), "box: booting") == warm() {
			t.Errorf("driver %s: exit code %d", name, code)
		}
	}
}

// However attest ends while a script runs, no Python stays, nor what it has started; Ctrl-C ends each
// kind of wait.
func TestNoPythonIsLeft(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		source string
		signal syscall.Signal
		code   int // -1: none
	}{
		"killed":                   {"web.succeed('hang')", syscall.SIGKILL, -1},
		"terminated":               {"web.succeed('hang')", syscall.SIGTERM, 143},
		"a command":                {"web.succeed('hang')", syscall.SIGINT, 130},
		"commands at once":         {"from concurrent.futures import ThreadPoolExecutor as P\nwith P(3) as pool: list(pool.map(web.succeed, ['hang'] * 3))", syscall.SIGINT, 130},
		"a try that is repeated":   {"web.wait_until_succeeds('false')", syscall.SIGINT, 130},
		"a unit":                   {"web.wait_for_unit('slow.service')", syscall.SIGINT, 130},
		"a file":                   {"web.wait_for_file('/none')", syscall.SIGINT, 130},
		"a port":                   {"web.wait_for_open_port(81)", syscall.SIGINT, 130},
		"a socket":                 {"web.wait_for_open_unix_socket('/none')", syscall.SIGINT, 130},
		"a console":                {"web.wait_for_console_text('never')", syscall.SIGINT, 130},
		"a console, by Python":     {"web.wait_for_console_text('never(?=again)')", syscall.SIGINT, 130},
		"a shutdown":               {"web.wait_for_shutdown()", syscall.SIGINT, 130},
		"all shutdowns":            {"join_all()", syscall.SIGINT, 130},
		"a retry":                  {"retry(lambda last: False)", syscall.SIGINT, 130},
		"a condition":              {"polling_condition(lambda: False, seconds_interval=0.1).wait()", syscall.SIGINT, 130},
		"a job":                    {"web.spawn('hang').wait()", syscall.SIGINT, 130},
		"a sleep in the guest":     {"web.sleep(3600)", syscall.SIGINT, 130},
		"a sleep in Python":        {"import time\ntime.sleep(3600)", syscall.SIGINT, 130},
		"a script that catches it": {"while True:\n    try: web.succeed('hang')\n    except BaseException: pass", syscall.SIGINT, 130},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			script := writeFile(t, filepath.Join(dir, "script.py"), "import subprocess\nsubprocess.Popen(['sh', '-c', 'sleep 86400; : "+dir+"'])\nweb.start()\nprint('it runs', flush=True)\n"+tt.source+"\n")
			config := writeFile(t, filepath.Join(dir, "lab.json"), `{"machines": [{"name": "web", "backend": "mock", "script": {"units": {"slow.service": "activating"},
				"answers": [{"command": "hang", "delay": "1h"}, {"command": "false", "exit_code": 1}, {"match": "sleep.*", "delay": "1h"}]}}]}`)
			state := newStateDir(t)
			p := start(t, state, nil, attestBinary, "nixos-test-driver", "-c", config, script)
			for end := time.Now().Add(patience); !strings.Contains(p.said(), "it runs"); {
				if time.Now().After(end) {
					t.Fatal("the script does not run")
				}
				<-time.After(20 * time.Millisecond)
			}
			p.cmd.Process.Signal(tt.signal)
			if code := p.exitCode(t); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
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
