package python

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// host is that of all labs, whose machines are mocks with canned answers.
var host *attest.Host

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ap")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for name, value := range map[string]string{
		"XDG_CACHE_HOME": filepath.Join(dir, "cache"), "ATTEST_STATE_DIR": filepath.Join(dir, "s"), accel.Env: accel.KVM,
	} {
		os.Setenv(name, value)
	}
	if host, err = attest.OpenHost(context.Background(), attest.HostConfig{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := errors.Join(host.Close(), goleak.Find()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

const answers = `{"answers": [
	{"command": "false", "exit_code": 1, "stdout": "no\n"},
	{"command": "hang", "delay": "1h"},
	{"command": "bytes", "stdout": "héllo"},
	{"command": "large", "stdout": %s},
	{"command": "stderr", "stdout": "out", "stderr": "err", "exit_code": 3},
	{"match": "echo (.*)", "stdout": "hello\n"},
	{"match": ".*"}
], "monitor": {"query-status": "{\"status\": \"running\", \"n\": 5}"}, "ports": [80], "files": {"/etc/a": "x"}, "units": {"web.service": "active", "bad.service": "failed", "off.service": "inactive", "slow.service": "activating"}}`

// machines are those of a script. Its large answer is there only if the script asks for it,
// because each lab reads it.
func machines(source string) []attest.MachineConfig {
	large := []byte(`""`)
	if strings.Contains(source, `"large"`) {
		large, _ = json.Marshal(strings.Repeat("0123456789abcde\n", 70_000)) // more than the protocol has in one message
	}
	var out []attest.MachineConfig
	for _, name := range []string{"web", "b-1"} {
		out = append(out, attest.MachineConfig{Name: name, Backend: "mock", MockScript: fmt.Appendf(nil, answers, large)})
		large = []byte(`""`) // one is enough
	}
	return out
}

// A ran script is what it came to.
type ran struct {
	err    error
	stdout string
	events []event.Record
}

func run(t *testing.T, ctx context.Context, source string) ran {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script.py")
	if err := os.WriteFile(path, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "beside.py"), []byte("def twice(x):\n    return 2 * x\n\ndef broken(m):\n    m.succeed('false')\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var r ran
	var bus event.Bus
	bus.Subscribe(func(rec event.Record) { r.events = append(r.events, rec) })
	ctx, cancel := context.WithTimeout(event.WithBus(ctx, &bus), 5*time.Minute)
	defer cancel()
	var stdout bytes.Buffer
	f, err := script.Load(ctx, path, script.Options{Machines: machines(source), Stdout: &stdout})
	if err != nil {
		r.err = err
		return r
	}
	lab, err := host.NewLab(ctx, attest.LabConfig{Machines: f.Machines(), OutDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	r.err = f.Call(ctx, operation.Of(lab), f.Tests()[0].Name)
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
	if left := pythons(t, path); left != "" {
		t.Errorf("processes are left: %s", left)
	}
	r.stdout = stdout.String()
	return r
}

// pythons are the processes that run a script.
func pythons(t *testing.T, path string) string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, name := range all {
		if text, err := os.ReadFile(name); err == nil && bytes.Contains(text, []byte(path)) {
			left = append(left, name+": "+string(bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
		}
	}
	return strings.Join(left, ", ")
}

func TestScriptsThatPass(t *testing.T) {
	for name, source := range map[string]string{
		"commands": `
start_all()
assert web.succeed("echo x") == "hello\n"
assert web.succeed("echo x", "echo y") == "hello\nhello\n"
rc, out = web.execute("false")
assert (rc, out) == (1, "no\n"), (rc, out)
assert web.fail("false") == "no\n"
r = web.execute("stderr", timeout=5)
assert r == (3, "out") and r.stderr == "err" and r.exit_code == 3 and r.duration >= 0 and r.stdout_bytes == b"out"
assert web.execute("true", check_return=False)[0] == -1
assert web.execute(command="true", check_output=False) == (-2, "")
assert web.succeed("bytes") == "h\u00e9llo"
`,
		"large output": `
assert len(web.succeed("large")) == 16 * 70_000
`,
		"large arguments": `
assert web.succeed("true #" + "x" * (2 << 20)) == ""
web.succeed("true", stdin=b"\0\xff" * (3 << 20))
`,
		"durations": `
from datetime import timedelta
web.wait_for_open_port(80, timeout=timedelta(seconds=10))
web.wait_for_file("/etc/a", timeout=10)
web.wait_for_unit("web.service", None, 10)
web.wait_until_succeeds("true", timeout=0.5)
retry(lambda last: True, timeout_seconds=1)
retry(lambda last: True, timeout=timedelta(minutes=1))
`,
		"names": `
b_1.succeed("true")
assert [m.name for m in machines] == ["b-1", "web"], machines
assert machines_qemu == machines and machines_nspawn == []
assert isinstance(web, Machine) and isinstance(web, QemuMachine) and isinstance(web, BaseMachine)
assert repr(web) == "<QemuMachine 'web'>" and repr(vlan1) == "<Vlan Nr. 1>" and vlans == [vlan1]
assert os.path.isdir(driver.out_dir)
debug.breakpoint()
log.info("x"); log.warning("y"); web.log("z")
with log.nested("a"): pass
import test_driver.machine
assert test_driver.machine.Machine is Machine
def typed(m: Machine) -> None: m.succeed("true")
typed(web)
`,
		"exceptions": `
from test_driver.errors import RequestedAssertionFailed, MachineError
try:
    web.succeed("false")
    raise Exception("it passed")
except RequestedAssertionFailed as e:
    assert str(e) == "command ` + "`false`" + ` failed (exit code 1)" and e.__context__ is None, e
try:
    web.fail("true")
    raise Exception("it passed")
except AssertionError as e:
    assert str(e) == "command ` + "`true`" + ` unexpectedly succeeded", e
try:
    web.succeed(7)
    raise Exception("it passed")
except TypeError as e:
    assert "must be a string, not the number 7" in str(e), e
try:
    t.assertEqual(1, 2)
    raise Exception("it passed")
except RequestedAssertionFailed as e:
    assert "1 != 2" in str(e)
try:
    retry(lambda last: False, timeout_seconds=0.1)
    raise Exception("it passed")
except RequestedAssertionFailed as e:
    assert str(e).startswith("action timed out after 0.") and str(e).endswith("(timeout=0.1)"), e
try:
    retry(lambda last: True, 1, 1)
    raise Exception("it passed")
except TypeError:
    pass
`,
		"the language": `
import json, re, time, shlex, dataclasses, contextlib, beside
@dataclasses.dataclass
class User:
    name: str
    def check(self):
        return web.succeed(f"echo {shlex.quote(self.name)}")
def users():
    for n in ("a", "b"):
        yield User(n)
@contextlib.contextmanager
def around():
    web.succeed("true")
    yield [u.check() for u in users()]
    web.succeed("true")
def decorated(fn):
    def inner(*args): return fn(*args)
    return inner
@decorated
def closure(x): return lambda: x + len(machines)
with around() as got:
    assert got == ["hello\n"] * 2
assert closure(1)() == 3 and beside.twice(2) == 4
assert json.loads('{"a": 1}')["a"] == 1 and re.search("a", "bab")
if (n := len(machines)) == 2: print(f"{n=}", end="")
if __name__ == "__main__": print(" main")
`,
		"threads": `
import threading
from concurrent.futures import ThreadPoolExecutor
with subtest("all at once"):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: (web, b_1)[i % 2].succeed("echo x"), range(64))) == ["hello\n"] * 64
done = []
th = threading.Thread(target=lambda: done.append(web.succeed("true")))
th.start(); th.join()
assert done == [""]
late = threading.Thread(target=lambda: b_1.succeed("true"))
late.start()
`,
		"conditions and blocks": `
calls = []
@polling_condition
def fine():
    "all is well"
    calls.append(web.succeed("true"))
@polling_condition(seconds_interval=0.01, description="never")
def never(): return len(calls) < 3 or calls.append(1)
with fine, web.nested("inside"):
    web.succeed("true")
assert calls and fine.description == "all is well"
fine.wait(timeout_seconds=1)
@polling_condition(seconds_interval=0.01)
def turns():
    calls.append(1)
    return len(calls) < 10
from test_driver.errors import PollingConditionError
try:
    with turns:
        web.succeed("hang")
    raise Exception("it passed")
except PollingConditionError as e:
    assert "turns" in str(e), e
`,
		"beyond": `
job = web.spawn("echo x")
assert job.wait() == (0, "hello\n") and job.stdout == "hello\n" and not job.running
fault = network.drop(web, rate=0.5)
assert fault.frames == 0
fault.heal()
seen = []
network.partition([web], [b_1], during=lambda: seen.append(b_1.succeed("true")))
assert seen == [""]
`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t, t.Context(), source)
			if r.err != nil {
				t.Errorf("%v\n%s", r.err, r.stdout)
			}
		})
	}
}

func TestScriptsThatFail(t *testing.T) {
	for name, tt := range map[string]struct {
		source, want string
		line         int
		status       attest.Status
	}{
		"a command":      {"\nweb.succeed('true', 'false')\n", "web: command 2 of 2, `false`, failed (exit code 1)", 2, attest.Failed},
		"in a function":  {"def f():\n    web.succeed('false')\n\nf()\n", "web: command `false` failed (exit code 1)", 2, attest.Failed},
		"in a module":    {"import beside\nbeside.broken(web)\n", "web: command `false` failed (exit code 1)", 5, attest.Failed},
		"caught, raised": {"try:\n    web.succeed('false')\nexcept Exception as e:\n    raise\n", "web: command `false` failed (exit code 1)", 2, attest.Failed},
		"an assert":      {"x = 1\nassert x == 2\n", "the assertion does not hold: assert x == 2", 2, attest.Failed},
		"with a message": {"assert False, 'it is so'\n", "AssertionError: it is so", 1, attest.Failed},
		"of t":           {"t.assertIn('a', 'b')\n", "'a' not found in 'b'", 1, attest.Failed},
		"an exception":   {"x = {}\nx['k']\n", "KeyError: 'k'", 2, attest.Failed},
		"log.error":      {"log.error('over')\n", "over", 1, attest.Failed},
		"an argument":    {"web.wait_for_open_port('80')\n", "port must be an integer, not the string \"80\"", 1, attest.Invalid},
		"a unit":         {"web.wait_for_unit('bad.service')\n", "bad.service", 1, attest.Failed},
		"in a subtest":   {"with subtest('part'):\n    web.succeed('false')\n", "web: command `false` failed (exit code 1)", 2, attest.Failed},
		"a condition":    {"@polling_condition\ndef bad(): return False\nwith bad:\n    pass\n", "polling condition failed: bad (check 1): it returned False", 3, attest.Failed},
		"syntax":         {"x = 1\nreturn x\n", "'return' outside function", 2, attest.Invalid},
		"indentation":    {"if True:\nx = 1\n", "expected an indented block", 2, attest.Invalid},
		"a name":         {"web.succeed('true')\nwbe.succeed('true')\n", "name 'wbe' is not defined; did you mean web?", 2, attest.Invalid},
		"an operation":   {"web.sucede('true')\n", "a machine has no operation sucede; did you mean succeed?", 1, attest.Invalid},
		"machine of two": {"machine.succeed('true')\n", "name 'machine' is not defined; the machines of a script are in", 1, attest.Invalid},
		"NUL":            {"x = '\x00'\n", "null byte", 0, attest.Invalid},
		"sys.exit":       {"import sys\nsys.exit(0)\n", "the script called sys.exit(0), which does not say whether the test has passed", 2, attest.Failed},
		"os._exit":       {"web.succeed('true')\nos._exit(3)\n", "Python has ended (exit status 3) before the script came to its end", 1, attest.Failed},
		"killed":         {"web.succeed('true')\nos.kill(os.getpid(), 9)\n", "its Python was killed by SIGKILL", 1, attest.Infra},
		"exec":           {"web.succeed('true')\nos.execv('/bin/true', ['true'])\n", "Python has ended (exit status 0) before the script came to its end", 1, attest.Failed},
		"a forked child": {"pid = os.fork()\nif pid == 0:\n    try:\n        web.succeed('true')\n    except Exception as e:\n        os._exit('use threads' in str(e))\nassert os.waitpid(pid, 0)[1] == 0\n", "os.waitpid(pid, 0)[1] == 0", 7, attest.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t, t.Context(), tt.source)
			if r.err == nil {
				t.Fatal("it passed")
			}
			var at *script.Error
			if !errors.As(r.err, &at) || at.Position.Line != tt.line || attest.StatusOf(r.err) != tt.status || !strings.Contains(at.Err.Error(), tt.want) {
				t.Errorf("got %v (%s)\nwant line %d, %s: %s", r.err, attest.StatusOf(r.err), tt.line, tt.status, tt.want)
			}
			for _, p := range at.Stack {
				if strings.Contains(p.File, "test_driver") {
					t.Errorf("the stack has %v", p)
				}
			}
		})
	}
}

// A list without end is an error of the script, with its place, and so it is while the file is read.
func TestMemory(t *testing.T) {
	old := script.MemoryLimit
	script.MemoryLimit = func() (int64, error) { return 96 << 20, nil }
	defer func() { script.MemoryLimit = old }()
	for name, grow := range map[string]string{
		"of small things": "x = []\nwhile True: x.append('x' * 1000 + str(len(x)))\n",
		"in one call":     "x = list(range(10 ** 9))\n",
		"in a thread":     "import threading\ndef grow():\n    global x\n    x = bytearray(1 << 30)\nt = threading.Thread(target=grow)\nt.start()\nt.join()\nx\n",
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t, t.Context(), "print('before')\n"+grow).err
			var at *script.Error
			want := "the script has more than 96 MiB in memory, which is the limit (ATTEST_SCRIPT_MEMORY sets another)"
			if name == "in a thread" {
				want = "name 'x' is not defined" // Python has said on its standard error why
			}
			if err == nil || !errors.As(err, &at) || at.Position.Line < 2 || attest.StatusOf(err) != attest.Failed || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v (%s)", err, attest.StatusOf(err))
			}
		})
	}
	path := filepath.Join(t.TempDir(), "x_test.py")
	if err := os.WriteFile(path, []byte("web = machine(backend='mock')\nx = 'x' * (1 << 30)\ndef test_a(): pass\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var loadErr *script.LoadError
	if _, err := script.Load(t.Context(), path, script.Options{}); !errors.As(err, &loadErr) || !strings.Contains(err.Error(), "more than 96 MiB") || loadErr.Errors[0].Position.Line != 2 {
		t.Errorf("got %v", err)
	}
}

// However a script waits or goes on, it ends when the run does.
func TestInterrupted(t *testing.T) {
	for name, source := range map[string]string{
		"a command":   "print('here')\nweb.succeed('hang')\n",
		"a sleep":     "import time\nprint('here')\ntime.sleep(3600)\n",
		"a loop":      "print('here')\nwhile True: pass\n",
		"it refuses":  "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('here')\nwhile True:\n    try: web.succeed('hang')\n    except BaseException: pass\n",
		"a unit":      "print('here')\nweb.wait_for_unit('slow.service')\n",
		"a port":      "print('here')\nweb.wait_for_open_port(81)\n",
		"a file":      "print('here')\nweb.wait_for_file('/none')\n",
		"a console":   "print('here')\nweb.wait_for_console_text('never')\n",
		"a shutdown":  "web.start()\nprint('here')\nweb.wait_for_shutdown()\n",
		"a job":       "j = web.spawn('hang')\nprint('here')\nj.wait()\n",
		"a retry":     "print('here')\nretry(lambda last: False)\n",
		"a thread":    "import threading\nth = threading.Thread(target=lambda: web.succeed('hang'))\nth.start()\nprint('here')\nth.join()\n",
		"a condition": "@polling_condition(seconds_interval=0.01)\ndef c(): web.succeed('true')\nwith c:\n    print('here')\n    b_1.succeed('hang')\n",
		"a subtest":   "with subtest('x'):\n    print('here')\n    web.wait_until_succeeds('false')\n",
		"a child":     "import subprocess\nsubprocess.Popen(['sleep', '3600'])\nprint('here')\nweb.succeed('hang')\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			over := errors.New("somebody has stopped the run")
			f := &file{path: filepath.Join(t.TempDir(), "script.py"), python: program(), machines: machines(source), stdout: writer(func() { cancel(over) })}
			if err := os.WriteFile(f.path, []byte(source), 0o644); err != nil {
				t.Fatal(err)
			}
			lab, err := host.NewLab(t.Context(), attest.LabConfig{Machines: f.machines, OutDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer lab.Close()
			if err := f.Call(ctx, operation.Of(lab), main); !errors.Is(err, over) {
				t.Errorf("got %v", err)
			}
			if left := pythons(t, f.path); left != "" {
				t.Errorf("processes are left: %s", left)
			}
		})
	}
}

// A writer is told that something was written.
type writer func()

func (w writer) Write(b []byte) (int, error) { w(); return len(b), nil }

func TestSubtestsAndPositionsAreReported(t *testing.T) {
	r := run(t, t.Context(), "with subtest('outer'):\n    with subtest('inner'):\n        web.succeed('echo x')\nprint('out')\nimport sys\nprint('err', file=sys.stderr)\n")
	if r.err != nil {
		t.Fatal(r.err)
	}
	var seen []string
	for _, rec := range r.events {
		switch e := rec.Event.(type) {
		case event.StepStarted:
			if e.Operation == "succeed" {
				seen = append(seen, fmt.Sprintf("%s in %s at line %d", e.Operation, rec.Scope.Subtest, e.Position.Line))
			}
		case event.SubtestFinished:
			seen = append(seen, fmt.Sprintf("%s %s", e.Name, e.Status))
		case event.Log:
			if e.Level == "warning" {
				seen = append(seen, e.Text)
			}
		}
	}
	if got := strings.Join(seen, "; "); got != "succeed in outer/inner at line 3; inner passed; outer passed; err" || r.stdout != "out\n" {
		t.Errorf("got %s; printed %q", got, r.stdout)
	}
}

func TestPythonThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "python3.8")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho '{\"version\": \"3.8.18\", \"errors\": []}'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "python2")
	if err := os.WriteFile(other, []byte("#!/bin/sh\necho \"Unknown option: -I\nusage: $0 [option] ...\" >&2\nexit 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]string{
		filepath.Join(dir, "none"): "there is none on this host",
		old:                        "it is Python 3.8.18",
		other:                      "it is not Python 3 (exit status 2: Unknown option: -I); install python3",
		"/bin/true":                "it is not Python 3; install python3",
	} {
		t.Setenv("ATTEST_PYTHON", program)
		r := run(t, t.Context(), "start_all()\n")
		if r.err == nil || !strings.Contains(r.err.Error(), "Python 3.9 or newer") || !strings.Contains(r.err.Error(), want) || attest.StatusOf(r.err) != attest.Infra {
			t.Errorf("%s: got %v (%s)", program, r.err, attest.StatusOf(r.err))
		}
	}
}

// A shim chooses the Python once. What sets Python's environment has to do so each time.
func TestShim(t *testing.T) {
	real, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		set    string
		starts int
	}{{"", 1}, {"PYTHONPATH=/made/up", 2}} {
		dir := t.TempDir()
		shim, log := filepath.Join(dir, "python"), filepath.Join(dir, "log")
		text := fmt.Sprintf("#!/bin/sh\necho start >>%s\n%s exec %s \"$@\"\n", log, test.set, real)
		if err := os.WriteFile(shim, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("ATTEST_PYTHON", shim)
		r := run(t, t.Context(), "import os\nprint(os.environ.get('PYTHONPATH'))\n")
		_, path, set := strings.Cut(test.set, "=")
		if !set {
			path = cmp.Or(os.Getenv("PYTHONPATH"), "None")
		}
		if r.err != nil || r.stdout != path+"\n" {
			t.Errorf("%q: got %q, %v", test.set, r.stdout, r.err)
		}
		started, err := os.ReadFile(log)
		if got := strings.Count(string(started), "start"); err != nil || got != test.starts {
			t.Errorf("%q: the shim was started %d times, want %d (%v)", test.set, got, test.starts, err)
		}
	}
}

func TestVariables(t *testing.T) {
	for name, want := range map[string]string{"web": "web", "b-1": "b_1", "1a": "_a", "a1": "a1"} {
		if got := variable(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	_, err := variables("a.py", []attest.MachineConfig{{Name: "b-1"}, {Name: "b_1"}})
	if err == nil || !strings.Contains(err.Error(), "the machines b-1 and b_1 are both the variable b_1") {
		t.Errorf("got %v", err)
	}
	if _, err := load(t.Context(), os.DevNull, script.Options{}); err == nil || !strings.Contains(err.Error(), "--machine-config") {
		t.Errorf("got %v", err)
	}
}

// A script of the NixOS driver finds what its configuration says.
func TestOptionsOfDriver(t *testing.T) {
	f := &file{machines: []attest.MachineConfig{{Name: "a", StartCommand: "/run-a-vm"}, {Name: "b"}}, driver: &script.Driver{Timeout: 90 * time.Second}}
	want := options{Networks: []int{1}, Driver: true, Seconds: 90, Starts: map[string]string{"a": "/run-a-vm"}}
	got := f.options(main)
	got.Memory = 0
	if !reflect.DeepEqual(want, got) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A person gets to where the script is, or has failed, with Python's debugger.
func TestBreakpoint(t *testing.T) {
	for name, tt := range map[string]struct{ source, typed, want, failed string }{
		"of the script":   {"value = 42\ndebug.breakpoint(port=0)\nassert web.succeed('true') == ''\n", "p value\nc\n", "script.py(3)<module>()", ""},
		"after a failure": {"debug.port = 0\ndef f(value):\n    web.succeed('false')\nf(42)\n", "p value\nup\nq\n", "script.py(4)<module>()", "command `false` failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := debugged(t, tt.source, tt.typed)
			if (err == nil) != (tt.failed == "") || err != nil && !strings.Contains(err.Error(), tt.failed) {
				t.Error(err)
			}
			if tt.failed != "" && !strings.Contains(out, "script.py:3: "+tt.failed) {
				t.Errorf("the log does not say why: %s", out)
			}
			if !strings.Contains(out, tt.want) || !strings.Contains(out, "42") || strings.Contains(out, "test_driver") {
				t.Errorf("got %s", out)
			}
		})
	}
}

// debugged runs a script with a debug hook. It returns what is in the log, what the debugger says to what is typed, and the script's error.
func debugged(t *testing.T, source, typed string) (string, error) {
	f := &file{path: filepath.Join(t.TempDir(), "script.py"), python: program(), machines: machines(""), stdout: io.Discard, driver: &script.Driver{Attach: "/bin/attach"}}
	if err := os.WriteFile(f.path, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 100)
	var bus event.Bus
	before := ""
	bus.Subscribe(func(rec event.Record) {
		e, ok := rec.Event.(event.Log)
		if ok && strings.Contains(e.Text, "Breakpoint reached") {
			said <- before + e.Text
		} else if ok {
			before += e.Text + "\n"
		}
	})
	ctx := event.WithBus(t.Context(), &bus)
	lab, err := host.NewLab(ctx, attest.LabConfig{Machines: f.machines, OutDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	ended := make(chan error, 1)
	go func() { ended <- f.Call(ctx, operation.Of(lab), main) }()
	var text string
	select {
	case text = <-said:
	case err := <-ended:
		t.Fatalf("it has ended: %v", err)
	}
	port := regexp.MustCompile(`'sudo /bin/attach \d+', then 'telnet 127.0.0.1 (\d+)'`).FindStringSubmatch(text)
	if port == nil {
		t.Fatalf("got %s", text)
	}
	conn, err := net.Dial("tcp", "127.0.0.1:"+port[1])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, typed); err != nil {
		t.Fatal(err)
	}
	failed := <-ended
	out, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return text + string(out), failed
}
