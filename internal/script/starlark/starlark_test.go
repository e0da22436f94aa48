package starlark

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sl "go.starlark.net/starlark"
	"go.uber.org/goleak"

	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLab is a lab without machines: it answers every operation with answer,
// and remembers what it was asked.
type fakeLab struct {
	answer func(ctx context.Context, machine, op string, args operation.Args) (any, error)

	mu    sync.Mutex
	calls []string
	at    []event.Position
}

func (l *fakeLab) Invoke(ctx context.Context, object any, o *operation.Operation, args operation.Args) (any, error) {
	machine := ""
	switch object := object.(type) {
	case operation.MachineName:
		machine = string(object)
	case operation.Handle:
		machine = object.Name
	}
	l.mu.Lock()
	l.calls = append(l.calls, strings.TrimPrefix(machine+"."+o.Name, "."))
	l.at = append(l.at, event.PositionOf(ctx))
	l.mu.Unlock()
	if l.answer != nil {
		return l.answer(ctx, machine, o.Name, args)
	}
	switch o.Result {
	case operation.String:
		return "", nil
	case operation.Bool:
		return true, nil
	case operation.Pair:
		return operation.Result{}, nil
	}
	return nil, nil
}

func (l *fakeLab) Close() error { return nil }

// write makes files in a directory of the test's own and returns it.
func write(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// load loads a file that must make sense; positions have its base name.
func load(t *testing.T, text string) *File {
	t.Helper()
	t.Chdir(write(t, "x.star", text))
	f, err := Load(t.Context(), "x.star", script.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const two = "web = machine(image = debian())\ndb = machine(image = debian(), name = \"store\")\n"

func TestFile(t *testing.T) {
	f := load(t, two+`
def setup(): pass

def test_b():
    """the second letter

    and more"""
    web.succeed("true")

def helper(): pass

def test_a(): pass
`)
	if f.Setup() == nil {
		t.Error("no setup")
	}
	var got []string
	for _, test := range f.Tests() {
		got = append(got, fmt.Sprintf("%s:%d:%s", test.Name, test.Position.Line, test.Title))
	}
	if want := "test_b:6:the second letter test_a:14:"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if m := f.Machines(); len(m) != 2 || m[0].Name != "web" || m[1].Name != "store" {
		t.Errorf("machines are %+v", m)
	}
	lab := &fakeLab{}
	if err := f.Call(t.Context(), lab, "test_b"); err != nil {
		t.Error(err)
	}
	if len(lab.calls) != 1 || lab.calls[0] != "web.succeed" || lab.at[0] != (event.Position{File: "x.star", Line: 10, Column: 16, Func: "test_b"}) {
		t.Errorf("calls %v at %v", lab.calls, lab.at)
	}
}

func TestMachineArguments(t *testing.T) {
	f := load(t, `
web = machine(image = debian(suite = "trixie", packages = ["nginx"], run = ["true"],
    files = {"/etc/a": "text", "/etc/b": {"content": "b", "mode": 0o600}, "/etc/c": struct(source = "x.star", mode = "0755")}),
    backend = "auto", memory = 512, cpus = 2, networks = [1, 2], type = "microvm", cmdline = "quiet", allow_reboot = True, boot_timeout = "90s")
alone = machine(name = "al-one", image = debian(), networks = [])
def main(): pass
`)
	web := f.Machines()[0]
	d := web.Image.(attest.Debian)
	if web.Memory != 512 || web.CPUs != 2 || len(web.Networks) != 2 || web.Type != "microvm" || web.Cmdline != "quiet" || !web.AllowReboot || web.BootTimeout != 90*time.Second {
		t.Errorf("got %+v", web)
	}
	if d.Suite != "trixie" || d.Packages[0] != "nginx" || d.Run[0] != "true" || d.Files["/etc/a"].Content != "text" ||
		d.Files["/etc/b"].Mode != 0o600 || filepath.Base(d.Files["/etc/c"].Path) != "x.star" || d.Files["/etc/c"].Mode != 0o755 {
		t.Errorf("got %+v", d)
	}
	if n := f.Machines()[1].Networks; n == nil || len(n) != 0 {
		t.Errorf("networks = [] gives %v", n)
	}
	if f.Tests()[0].Name != "main" {
		t.Errorf("got %v", f.Tests())
	}
}

// Paths are relative to the file in which they are written.
func TestImagesOfFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"lib/images.star": `base = rootfs(path = "root.tar", kernel = "vmlinux", modules = "mods")`,
		"lib/root.tar":    "",
		"whole.qcow2":     "",
		"x.star": `load("lib/images.star", "base")
a = machine(image = base)
b = machine(image = disk("whole.qcow2"))
def main():
    assert_eq(base.path, "root.tar")
    assert_eq(type(base), "image")
    assert_eq({base: 1}[base], 1)
`,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Load(t.Context(), filepath.Join(dir, "x.star"), script.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := attest.Rootfs{Path: filepath.Join(dir, "lib/root.tar"), Kernel: filepath.Join(dir, "lib/vmlinux"), Modules: filepath.Join(dir, "lib/mods")}
	if got := f.Machines()[0].Image; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := f.Machines()[1].Image; got != (attest.Disk{Path: filepath.Join(dir, "whole.qcow2")}) {
		t.Errorf("got %+v", got)
	}
	if err := f.Call(t.Context(), &fakeLab{}, "main"); err != nil {
		t.Error(err)
	}
}

// Functions that make machines, loops and libraries: each machine gets a name.
func TestNamesOfMachines(t *testing.T) {
	t.Chdir(write(t, "lib.star", `
def server(**kwargs): return machine(image = debian(), **kwargs)
shared = server()
`, "x.star", `
load("lib.star", "server", "shared")
web = server()
again = web
nodes = [server(name = "node%d" % i) for i in range(2)]
_hidden = server(name = "h")
def main(): pass
`))
	f, err := Load(t.Context(), "x.star", script.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range f.Machines() {
		got = append(got, m.Name)
	}
	if want := "shared web node0 node1 h"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestMachinesOfTheConfiguration(t *testing.T) {
	path := filepath.Join(write(t, "x.star", "def main(): b_1.succeed('true')"), "x.star")
	config := attest.MachineConfig{Name: "b-1", Image: attest.Debian{}}
	f, err := Load(t.Context(), path, script.Options{Machines: []attest.MachineConfig{config}})
	if err != nil {
		t.Fatal(err)
	}
	lab := &fakeLab{}
	if err := f.Call(t.Context(), lab, "main"); err != nil || lab.calls[0] != "b-1.succeed" || f.Machines()[0].Name != "b-1" {
		t.Errorf("got %v, %v", lab.calls, err)
	}
}

// Every reason not to run a file, found without a machine.
func TestLoadErrors(t *testing.T) {
	const m = "m = machine(image = debian())\n"
	const main = "def main(): pass\n"
	tests := []struct{ name, text, want string }{
		{"syntax", "def main(:\n  pass\n", `x.star:1:11: got ':', want ')'`},
		{"syntax at the end of a line", "x = 1\ndef main()\n  pass\n", `x.star:2:11: got newline, want ':'`},
		{"syntax at the end of the file", "x =", `x.star:1:4: got end of file, want primary expression`},
		{"f-string", "def main():\n    print(f\"a\")\n", `x.star:2:15: got string literal, want ',' (Starlark has no f-strings; write "…%s…" % value)`},
		{"assert", "def main():\n    assert 1 == 2\n", `x.star:2:13: got int literal, want newline (write assert_eq(got, want), assert_contains or assert_matches, or if …: fail(text))`},
		{"with", "def main():\n    with subtest('x'):\n        pass\n", `x.star:2:5: got with, want primary expression (write subtest(name, fn), with a function for the block)`},
		{"undefined, several", m + "def main():\n    m.succeed(cmd)\n    asert_eq(1, 2)\n", "x.star:3:15: undefined: cmd\n\tm.succeed(cmd)\nx.star:4:5: undefined: asert_eq; did you mean assert_eq?"},
		{"misspelt fault", "def main():\n    network.partitoin([], [])\n", "x.star:2:13: network has no operation partitoin; did you mean partition?"},
		{"a fault's machine", m + "def main():\n    network.isolate('m')\n", `x.star:3:13: isolate(m, *, match="", network=None, during=None): m must be a machine or list of machines, not the string "m"`},
		{"a fault's protocol", m + "def main():\n    network.down(m, match = 'tpc:80')\n", `x.star:3:13: down(m, *, peer=None, direction="both", match="", network=None, during=None): match: unknown protocol "tpc"; want one of arp, icmp, ip, ip4, ip6, nd, sctp, tcp, udp, some with a port as in tcp:5432`},
		{"a fault's direction", m + "def main():\n    network.down(m, direction = 'up')\n", `x.star:3:13: down(m, *, peer=None, direction="both", match="", network=None, during=None): direction must be both, in or out, not "up"`},
		{"a fault's rate", m + "def main():\n    network.corrupt(m, 50)\n", `x.star:3:13: corrupt(m, rate, *, peer=None, direction="both", match="", network=None, during=None): rate must be a share between 0 and 1 (one half is 0.5), not 50`},
		{"misspelt operation", m + "def main():\n    m.suceed('true')\n", "x.star:3:7: machine has no operation suceed; did you mean succeed?"},
		{"misspelt operations, all of them", m + "def setup():\n    m.strat()\ndef main():\n    m.suceed('true')\n", "x.star:3:7: machine has no operation strat; did you mean start?\n\tm.strat()\nx.star:5:7: machine has no operation suceed; did you mean succeed?"},
		{"misspelt operation of a job", m + "def main():\n    job = m.spawn('x')\n    job.kil()\n", "x.star:4:9: job has no operation kil; did you mean kill?"},
		{"misspelt operation of a job in another function", m + "def main():\n    job = m.spawn('x')\n    [lambda: job.kill(sig = 'KILL')]\n", `x.star:4:18: kill(signal="SIGTERM"): there is no argument "sig"`},
		{"operation of a job that has no name", m + "def main():\n    m.spawn('x').wiat()\n", "x.star:3:18: job has no operation wiat; did you mean wait?"},
		{"an attribute that is called", m + "def main():\n    m.spawn('x').running()\n", "x.star:3:18: running is an attribute, not a function: write .running"},
		{"a dict with a number", m + "def main():\n    m.succeed('x', env = {'A': 1})\n", `x.star:3:7: succeed(*commands, timeout=None, stdin=None, user=None, env=None, cwd=None): env: the value of "A" must be a string, not the number 1`},
		{"misspelt argument", m + "def main():\n    m.wait_for_unit('a', timeuot = 5)\n", `x.star:3:7: wait_for_unit(unit, user=None, timeout=900): there is no argument "timeuot"; did you mean timeout?`},
		{"missing argument", m + "def main():\n    m.wait_for_unit()\n", "x.star:3:7: wait_for_unit(unit, user=None, timeout=900): argument unit is missing"},
		{"wrong type", m + "def main():\n    m.wait_for_open_port('80')\n", `x.star:3:7: wait_for_open_port(port, addr="localhost", timeout=900, *, unit=None): port must be an integer, not the string "80"`},
		{"bool for a duration", m + "def main():\n    m.sleep(True)\n", `x.star:3:7: sleep(secs): secs must be a duration (a number of seconds, or a string such as "200ms"), not True`},
		{"negative duration", m + "def main():\n    m.sleep(-1)\n", `x.star:3:7: sleep(secs): secs: a duration of -1s is negative`},
		{"operation at the top level", m + "m.succeed('true')\n" + main, "x.star:2:10: machine.succeed: machines exist only while setup(), a test or main() runs; this is the top level of the file"},
		{"start_all at the top level", m + "start_all()\n" + main, "x.star:2:10: start_all: machines exist only while setup(), a test or main() runs; this is the top level of the file"},
		{"nothing to run", m, "x.star: the file has nothing to run: no function test_* and no main()"},
		{"main and tests", "def test_a(): pass\n" + main, "x.star:2:1: the file has both main() and tests such as test_a(); main() is for files without test_* functions, so call it test_main or remove it"},
		{"a test that is none", "test_a = 5\n", "x.star:1:1: test_a must be a function, not the number 5"},
		{"no limit", "timeout = 'soon'\n" + main, `x.star:1:1: timeout is the limit of a test, a number of seconds or a duration such as "2m", greater than 0; not the string "soon"`},
		{"no limit of a test", "def test_a(timeout = 0): pass\n", `x.star:1:1: timeout is the limit of a test, a number of seconds or a duration such as "2m", greater than 0; not the number 0`},
		{"not a setting", "keep_on_failure = 'yes'\n" + main, `x.star:1:1: keep_on_failure must be True or False, not the string "yes"`},
		{"a test with parameters", "def test_a(x): pass\n", "x.star:1:5: test_a is called without arguments, but has the parameter x"},
		{"two of one name", m + "n = machine(name = 'M', image = debian())\n" + main, `x.star:2:12: two machines have the name "M": this one and the one at x.star:1:12`},
		{"no name", "l = [machine(image = debian())]\n" + main, "x.star:1:13: this machine has no name: give it name=, or assign it to a variable of its own"},
		{"bad name", "_m = machine(image = debian())\n" + main, `x.star:1:13: machine "_m": not a machine name: want letters, digits, - and _, at most 63, beginning with a letter or a digit (it is the host name too)`},
		{"no image", "m = machine()\n" + main, `x.star:1:12: machine "m": it has no image; give it one, such as debian()`},
		{"bad image", "m = machine(image = 'debian')\n" + main, `x.star:1:12: machine(…): image must be an image: debian(…), rootfs(…) or disk(…), not the string "debian"`},
		{"unknown backend", "m = machine(image = debian(), backend = 'vmware')\n" + main, `x.star:1:12: machine "m": unknown backend "vmware"; this attest has ` + backends()},
		{"too little memory", "m = machine(image = debian(), memory = 1)\n" + main, `x.star:1:12: machine "m": a memory of 1 MiB is out of range; want 64 to 1048576`},
		{"unknown argument of machine", "m = machine(image = debian(), memroy = 1)\n" + main, `x.star:1:12: machine(…): there is no argument "memroy"; did you mean memory?`},
		{"a network twice", m + "network(1, dhcp = False)\nnetwork(1)\n" + main, "x.star:3:8: network 1 is declared twice: here and at x.star:2:8"},
		{"no such network", m + "network(0)\n" + main, "x.star:2:8: network 0 is out of range; want 1 to 255"},
		{"no such service", m + "network(1, ntp = False)\n" + main, `x.star:2:8: network: unexpected keyword argument "ntp"`},
		{"image by position", "m = machine(debian())\n" + main, "x.star:1:12: machine: arguments are given by name, as in machine(image = debian())"},
		{"bad networks", "m = machine(image = debian(), networks = ['a'])\n" + main, `x.star:1:12: machine(…): networks: the string "a" in the list is not an integer`},
		{"bad package", "debian(packages = ['--yes'])\n" + main, `x.star:1:7: debian: image: package "--yes": not a package name`},
		{"packages as a string", "debian(packages = 'nginx')\n" + main, `x.star:1:7: debian(…): packages must be a list of strings, not the string "nginx"`},
		{"a file's field", "debian(files = {'/a': {'contnet': ''}})\n" + main, `x.star:1:7: debian(…): files: ["/a"]: there is no field "contnet"; the fields are content, mode and path; did you mean content?`},
		{"a file's mode", "debian(files = {'/a': {'content': '', 'mode': '999'}})\n" + main, `x.star:1:7: debian(…): files: ["/a"]: mode must be permission bits such as 0o755 or "0755", not the string "999"`},
		{"a file's source", "debian(files = {'/a': {'source': 'none'}})\n" + main, `x.star:1:7: debian: files["/a"]: PWD/none: no such file or directory`},
		{"a disk that is not there", "disk('none.qcow2')\n" + main, `x.star:1:5: disk: none.qcow2: no such file or directory`},
		{"error at the top level", "a = [][1]\n" + main, "x.star:1:7: index 1 out of range: empty list"},
		{"load of nothing", "load('none.star', 'x')\n" + main, "x.star:1:1: cannot load none.star: open none.star: no such file or directory"},
		{"load of itself", "load('x.star', 'x')\n" + main, "x.star:1:1: cannot load x.star: x.star and a file that it loads would load each other"},
		{"load with a mistake", "load('lib.star', 'x')\n" + main, "lib.star:1:5: undefined: y"},
		{"recursion without end", "def f(n): return f(n + 1)\nf(0)\n" + main, "x.star:1:20: calls are nested too deeply (the limit is 1000); is a recursion endless?"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(write(t, "x.star", tt.text, "lib.star", "x = y\n"))
			_, err := Load(t.Context(), "x.star", script.Options{})
			var load *script.LoadError
			if !errors.As(err, &load) {
				t.Fatalf("got %v (%T)", err, err)
			}
			got := err.Error()
			if source := strings.TrimSpace(load.Errors[len(load.Errors)-1].Source); source != "" {
				got = strings.TrimSuffix(got, "\n\t"+source)
			}
			wd, _ := os.Getwd()
			if want := strings.ReplaceAll(tt.want, "PWD", wd); got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
			if s := attest.StatusOf(err); s != attest.Invalid {
				t.Errorf("status %s", s)
			}
		})
	}
}

func backends() string {
	err := access.Check(attest.LabConfig{Machines: []attest.MachineConfig{{Name: "m", Image: attest.Debian{}, Backend: "vmware"}}})
	_, list, _ := strings.Cut(err.Error(), "has ")
	return list
}

// What goes wrong in a test: the message, and the kind.
func TestRunErrors(t *testing.T) {
	down := &attest.DownError{Machine: "m", Operation: "succeed", Reason: "powered off"}
	command := &attest.CommandError{Machine: "m", Operation: "succeed", Command: "false", Result: attest.Result{ExitCode: 1}}
	boot := &attest.BootError{Machine: "m", Reason: "kernel panic"}
	tests := []struct {
		name, body string
		err        error // of every operation
		want       string
		status     attest.Status
	}{
		{"command", "m.succeed('false')", command, "x.star:3:14: m: command `false` failed (exit code 1)", attest.Failed},
		{"boot", "m.succeed('false')", boot, "x.star:3:14: m: guest did not boot: kernel panic (after 0s); the console stayed silent", attest.BootFailed},
		{"down", "m.succeed('false')", down, "x.star:3:14: m: succeed: the machine is down: powered off", attest.Failed},
		{"misspelt, unseen until now", "[x.suceed('true') for x in [m]]", nil, "x.star:3:7: machine has no operation suceed; did you mean succeed?", attest.Invalid},
		{"argument, unseen until now", "[x.sleep(None) for x in [m]]", nil, `x.star:3:13: sleep(secs): secs must be a duration (a number of seconds, or a string such as "200ms"), not None`, attest.Invalid},
		{"type error", "len(1)", nil, "x.star:3:8: len: value of type int has no len", attest.Failed},
		{"index", "[1][4]", nil, "x.star:3:8: list index 4 out of range [-1:0]", attest.Failed},
		{"frozen global", "state.append(1)", nil, "x.star:3:17: append: cannot append to frozen list", attest.Failed},
		{"recursion", "deep()", nil, "x.star:2:13: calls are nested too deeply (the limit is 1000); is a recursion endless?", attest.Failed},
		{"fail", "fail('no luck')", nil, "x.star:3:9: no luck", attest.Failed},
		{"assert_eq", "assert_eq(1 + 1, 3)", nil, "x.star:3:14: assert_eq: got 2, want 3", attest.Failed},
		{"assert_eq of strings", `assert_eq("a\n", "a")`, nil, "x.star:3:14: assert_eq: got \"a\\n\", want \"a\"", attest.Failed},
		{"assert_eq of types", `assert_eq("1", 1)`, nil, "x.star:3:14: assert_eq: got \"1\" (string), want 1 (int)", attest.Failed},
		{"assert_eq of texts", `assert_eq("a\nb\nc\n", "a\nB\nc\n")`, nil, "x.star:3:14: assert_eq: got \"a\\nb\\nc\\n\", want \"a\\nB\\nc\\n\"\ndiff want got\n--- want\n+++ got\n@@ -1,3 +1,3 @@\n a\n-B\n+b\n c", attest.Failed},
		{"assert_eq of lists", `assert_eq([1, 2], [1, 3])`, nil, "x.star:3:14: assert_eq: got [1, 2], want [1, 3]", attest.Failed},
		{"assert_contains", `assert_contains("abc", "x")`, nil, `x.star:3:20: assert_contains: "x" is not in "abc"`, attest.Failed},
		{"assert_contains of lines", `assert_contains("a\nb\n", "x")`, nil, "x.star:3:20: assert_contains: \"x\" is not in this text:\n\ta\n\tb", attest.Failed},
		{"assert_contains of nothing", `assert_contains(None, "x")`, nil, `x.star:3:20: assert_contains: cannot look for a string in a NoneType`, attest.Invalid},
		{"assert_matches", `assert_matches("abc", "^b")`, nil, `x.star:3:19: assert_matches: "^b" does not match "abc"`, attest.Failed},
		{"assert_matches of a bad pattern", `assert_matches("abc", "(")`, nil, "x.star:3:19: assert_matches: error parsing regexp: missing closing ): `(`", attest.Invalid},
		{"a machine made too late", "machine(image = debian())", nil, "x.star:3:12: machine: machines are declared at the top level of the file, before a test runs; in a running lab it is create_machine(name=…, image=…)", attest.Invalid},
		{"wait_all", "wait_all([1, m], lambda x: x == 1 or x.succeed('false'))", command, "x.star:3:51: wait_all: m: m: command `false` failed (exit code 1)", attest.Failed},
		{"retry", "retry(lambda: m.succeed('x'), timeout = 0.01, interval = '1ms')", boot, "x.star:3:28: m: guest did not boot: kernel panic (after 0s); the console stayed silent", attest.BootFailed},
		{"retry on a machine that is down", "retry(lambda: m.succeed('x'))", down, "x.star:3:28: m: succeed: the machine is down: powered off", attest.Failed},
		{"retry of a call that makes no sense", "retry(lambda: m.sleep(str(1)))", nil, `x.star:3:26: sleep(secs): secs: "1" is not a duration such as "200ms" or "1m30s"; for seconds write the number without quotes, or "1s"`, attest.Invalid},
		{"retry with a bad timeout", "retry(m.start, timeout = True)", nil, `x.star:3:10: retry: for parameter "timeout": must be a duration (a number of seconds, or a string such as "200ms"), not True`, attest.Invalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := load(t, "m = machine(image = debian()); state = []\ndef deep(): deep()\ndef main(): "+tt.body+"\n")
			lab := &fakeLab{answer: func(context.Context, string, string, operation.Args) (any, error) { return "", tt.err }}
			err := f.Call(t.Context(), lab, "main")
			if err == nil {
				t.Fatal("it passes")
			}
			if want := shiftColumn(tt.want); err.Error() != want {
				t.Errorf("\n got %s\nwant %s", err, want)
			}
			if s := attest.StatusOf(err); s != tt.status {
				t.Errorf("status %s, want %s", s, tt.status)
			}
			var e *script.Error
			if !errors.As(err, &e) || e.Source == "" || len(e.Stack) == 0 || len(e.Stack) > 2*shownFrames || e.Stack[0].Func != "main" {
				t.Errorf("no source or stack: %+v", e)
			}
		})
	}
}

// shiftColumn moves a column of a test's body to where "def main(): " puts it.
func shiftColumn(s string) string {
	var column int
	if _, err := fmt.Sscanf(s, "x.star:3:%d", &column); err != nil {
		return s
	}
	_, rest, _ := strings.Cut(strings.TrimPrefix(s, "x.star:3:"), ":")
	return fmt.Sprintf("x.star:3:%d:%s", column+8, rest)
}

func TestStack(t *testing.T) {
	t.Chdir(write(t, "lib.star", "def check(m):\n    wait_all([m], check_one)\n\ndef check_one(m):\n    subtest(\"inner\", lambda: m.succeed(\"false\"))\n",
		"x.star", "load(\"lib.star\", \"check\")\nm = machine(image = debian())\n\ndef test_a():\n    check(m)\n"))
	f, err := Load(t.Context(), "x.star", script.Options{})
	if err != nil {
		t.Fatal(err)
	}
	command := &attest.CommandError{Machine: "m", Command: "false", Result: attest.Result{ExitCode: 1}}
	err = f.Call(t.Context(), &fakeLab{answer: func(context.Context, string, string, operation.Args) (any, error) { return nil, command }}, "test_a")
	var e *script.Error
	var got *attest.CommandError
	var op *operation.Error
	if !errors.As(err, &e) || !errors.As(err, &got) || got != command || !errors.As(err, &op) || op.Machine != "m" || op.Operation != "succeed" {
		t.Fatalf("got %v", err)
	}
	var stack []string
	for _, p := range e.Stack {
		stack = append(stack, fmt.Sprintf("%s %s:%d", p.Func, p.File, p.Line))
	}
	want := "test_a x.star:5, check lib.star:2, check_one lib.star:5, lambda lib.star:5"
	if strings.Join(stack, ", ") != want {
		t.Errorf("\n got %s\nwant %s", strings.Join(stack, ", "), want)
	}
	if e.Source != `    subtest("inner", lambda: m.succeed("false"))` {
		t.Errorf("source %q", e.Source)
	}
}

func TestResult(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def main():
    status, out = m.execute("x")
    assert_eq(status, 3)
    assert_eq(out, "out")
    r = m.execute("x")
    assert_eq(r, (3, "out"))
    assert_eq(r[0], r.exit_code)
    assert_eq([r.stdout, r.stderr, r.duration], ["out", "e\uFFFD", 1.5])
    assert_eq([r.stdout_bytes, r.stderr_bytes], [b"out", b"e\xe9"])
    assert_eq(len(r), 2)
    assert_eq(r, m.execute("x"))
    assert_eq(m.is_up(), True)
    assert_eq(m.start(), None)
    assert_eq(m.name, "m")
    assert_eq(hasattr(m, "suceed"), False)
    assert_eq(hasattr(m, "copy_from_vm"), True)
`)
	lab := &fakeLab{answer: func(_ context.Context, _, op string, _ operation.Args) (any, error) {
		switch op {
		case "execute":
			r := attest.Result{ExitCode: 3, Stdout: "out", Stderr: "e\xe9", Duration: 1500 * time.Millisecond}
			return operation.Result{Status: 3, Output: "out", Result: r}, nil
		case "is_up":
			return true, nil
		}
		return nil, nil
	}}
	var warnings int
	var bus event.Bus
	bus.Subscribe(func(r event.Record) {
		if e, ok := r.Event.(event.Log); ok && e.Level == "warning" {
			warnings++
		}
	})
	if err := f.Call(event.WithBus(t.Context(), &bus), lab, "main"); err != nil {
		t.Error(err)
	}
	if warnings != 1 { // stderr was read as text
		t.Errorf("%d warnings", warnings)
	}
}

// Only who reads text of what is none is warned, and once of each stream.
func TestResultThatIsNoText(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def test_bytes():
    r = m.execute("x")
    assert_eq([r.stdout_bytes, r.exit_code], [b"\xe9", 0])
def test_text():
    r = m.execute("x")
    assert_eq([r[1], r.stdout], ["\uFFFD", "\uFFFD"])
`)
	lab := &fakeLab{answer: func(context.Context, string, string, operation.Args) (any, error) {
		return operation.Result{Output: "\xe9", Result: attest.Result{Stdout: "\xe9"}}, nil
	}}
	for test, want := range map[string]int{"test_bytes": 0, "test_text": 1} {
		var said []string
		var bus event.Bus
		bus.Subscribe(func(r event.Record) {
			if e, ok := r.Event.(event.Log); ok {
				said = append(said, e.Machine+" "+e.Level+" "+e.Text)
			}
		})
		if err := f.Call(event.WithBus(t.Context(), &bus), lab, test); err != nil {
			t.Error(err)
		}
		if len(said) != want || want > 0 && !strings.HasPrefix(said[0], "m warning execute: the output is not UTF-8 text") {
			t.Errorf("%s: %q", test, said)
		}
	}
}

// What spawn returns has operations and attributes of its own.
func TestJob(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def finish(job, spare = None):
    return job.wait(timeout = "1m")
def main():
    job = m.spawn("server", env = {"PORT": "80"}, stdin = b"\xff", cwd = "/srv", user = "www")
    assert_eq(job.running, True)
    assert_eq(job.wait_for_output("listening on (\\d+)"), "listening on 80")
    job.kill("SIGINT")
    job = finish(job)
    assert_eq(job, (130, "out"))
    assert_eq(type(m.spawn("x")), "job")
    assert_eq(str(m.spawn("x")), "<job m: x>")
    assert_eq(hasattr(m.spawn("x"), "restart"), False)
`)
	lab := &fakeLab{answer: func(_ context.Context, object, op string, args operation.Args) (any, error) {
		switch op {
		case "spawn":
			if args.String("command") == "server" && (args.Dict("env")["PORT"] != "80" || string(args.Bytes("stdin")) != "\xff" || args.String("cwd") != "/srv" || args.String("user") != "www") {
				return nil, fmt.Errorf("spawn gets %+v", args)
			}
			return operation.Handle{On: operation.Job, Name: object + ": " + args.String("command")}, nil
		case "running":
			return true, nil
		case "wait_for_output":
			return "listening on 80", nil
		case "wait":
			return operation.Result{Status: 130, Output: "out"}, nil
		}
		return nil, nil
	}}
	if err := f.Call(t.Context(), lab, "main"); err != nil {
		t.Error(err)
	}
	want := "m.spawn m: server.running m: server.wait_for_output m: server.kill m: server.wait"
	if got := strings.Join(lab.calls[:5], " "); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// A condition that goes bad ends the operation under way, whose limit is far
// away.
func TestPollingCondition(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def alive():
    """the server is alive

    as its process says"""
    m.succeed("alive")
cond = polling_condition(alive, interval = "1ms")
def test_good():
    assert_eq(cond.during(lambda: m.succeed("short")), "done")
def test_bad():
    cond.during(lambda: m.succeed("long"))
def test_bad_from_the_start():
    polling_condition(lambda: False, description = "never").during(lambda: m.succeed("not reached"))
def test_body_fails():
    cond.during(lambda: fail("by itself"))
def test_wait():
    tries = []
    def third():
        tries.append(1)
        return len(tries) == 3
    polling_condition(third).wait()
    assert_eq(len(tries), 3)
def test_wait_in_vain():
    polling_condition(lambda: False, description = "never").wait(timeout = 0)
`)
	for _, tt := range []struct{ test, want string }{
		{"test_good", ""},
		{"test_bad", "x.star:6:14: polling condition failed: the server is alive (check 3): no pulse"},
		{"test_bad_from_the_start", "x.star:13:67: polling condition failed: never (check 1): it returned False"},
		{"test_body_fails", "x.star:15:29: by itself"},
		{"test_wait", ""},
		{"test_wait_in_vain", "x.star:24:65: polling_condition.wait(never) timed out after 0s (limit 0s, 1 try); last seen: it returned False"},
	} {
		checks := 0
		lab := &fakeLab{answer: func(ctx context.Context, _, _ string, args operation.Args) (any, error) {
			switch args.Strings("commands")[0] {
			case "alive":
				if checks++; checks >= 3 && tt.test == "test_bad" {
					return nil, errors.New("no pulse")
				}
				return "", nil
			case "short":
				return "done", nil
			case "long":
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			return nil, fmt.Errorf("unexpected %v", args.Strings("commands"))
		}}
		err := f.Call(t.Context(), lab, tt.test)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%s: got %v\nwant %s", tt.test, err, tt.want)
		}
		if err != nil && attest.StatusOf(err) != attest.Failed {
			t.Errorf("%s: status %s", tt.test, attest.StatusOf(err))
		}
	}
}

// A function of the test file that an operation calls: it can operate machines,
// its failure has its place, and it ends with the operation's context.
func TestCallback(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def main():
    m.succeed("outer")
def called(a, b):
    return [m.succeed("inner"), a["k"], b]
def fails():
    m.succeed("no")
`)
	lab := &fakeLab{}
	lab.answer = func(ctx context.Context, _, _ string, args operation.Args) (any, error) {
		switch args.Strings("commands")[0] {
		case "no":
			return nil, errors.New("no luck")
		case "inner":
			return "out", ctx.Err()
		}
		th := &thread{sources: f.sources, lab: lab, print: f.print, interpreter: newInterpreter(), ctx: ctx}
		st, stop := th.start()
		defer stop()
		v, err := th.callback(st, f.globals["called"].(sl.Callable))(ctx, map[string]any{"k": int64(1)}, []string{"x"})
		if got := fmt.Sprint(v); err != nil || got != "[out 1 [x]]" {
			t.Errorf("got %s, %v", got, err)
		}
		over, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := th.callback(st, f.globals["called"].(sl.Callable))(over, map[string]any{"k": int64(1)}, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end of its context: %v", err)
		}
		_, err = th.callback(st, f.globals["fails"].(sl.Callable))(ctx)
		return nil, err
	}
	err := f.Call(t.Context(), lab, "main")
	var e *script.Error
	if !errors.As(err, &e) || e.Error() != "x.star:7:14: no luck" || len(e.Stack) != 2 || e.Stack[0].Line != 3 {
		t.Errorf("got %v, %+v", err, e)
	}
}

func TestDialect(t *testing.T) {
	f := load(t, `
total = 0
for i in range(3):
    total += i
if total == 3:
    word = "three"
else:
    word = "other"

def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

def main():
    n = 0
    while n < 10:
        n += 1
    assert_eq([n, fib(10), total, word], [10, 55, 3, "three"])
    assert_eq(set([1, 1, 2]), set([1, 2]))
    assert_eq(json.decode('{"a": [1]}'), {"a": [1]})
    assert_eq(math.floor(1.5), 1)
    assert_eq(struct(a = 1).a, 1)
    assert_eq(time.parse_duration("2s").seconds, 2.0)
    assert_contains([1, 2], 2)
    assert_matches("nginx/1.22.1", r"nginx/\d+")
`)
	if err := f.Call(t.Context(), &fakeLab{}, "main"); err != nil {
		t.Error(err)
	}
}

func TestRetry(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def test_until_it_works():
    assert_eq(retry(lambda: m.succeed("x"), interval = "1ms"), "third")
def test_false():
    tries = []
    def fn():
        tries.append(1)
        return len(tries) == 4
    retry(fn, interval = 0)
    assert_eq(len(tries), 4)
def test_never():
    retry(lambda: m.succeed("y"), timeout = "20ms", interval = "1ms")
def test_hangs():
    retry(lambda: m.succeed("hang"), timeout = "20ms")
def test_spins():
    def fn():
        while True: pass
    retry(fn, timeout = "20ms")
`)
	n := 0
	lab := &fakeLab{answer: func(ctx context.Context, _, _ string, args operation.Args) (any, error) {
		n++
		switch cmd := args.Strings("commands")[0]; {
		case cmd == "x" && n == 3:
			return "third", nil
		case cmd == "hang":
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		return nil, &attest.CommandError{Machine: "m", Command: "x", Result: attest.Result{ExitCode: n}}
	}}
	for _, name := range []string{"test_until_it_works", "test_false"} {
		if err := f.Call(t.Context(), lab, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := f.Call(t.Context(), lab, "test_never")
	var over *RetryError
	var command *attest.CommandError
	if !errors.As(err, &over) || over.Tries == 0 || over.Limit != 20*time.Millisecond || !errors.As(err, &command) {
		t.Errorf("got %v", err)
	}
	if attest.StatusOf(err) != attest.Failed || !strings.Contains(err.Error(), "x.star:12:28: m: command `x` failed") {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"test_hangs", "test_spins"} {
		err = f.Call(t.Context(), lab, name)
		if !errors.As(err, &over) || !strings.HasSuffix(err.Error(), "the first try had not ended") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// Calls of wait_all overlap where they wait for machines, and share variables.
func TestWaitAll(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def main():
    seen = {}
    def one(i):
        for _ in range(100):
            seen[i] = seen.get(i, 0) + 1
        m.succeed("meet")
        seen["all"] = seen.get("all", 0) + 1
        return i * i
    assert_eq(wait_all(range(5), one), [0, 1, 4, 9, 16])
    assert_eq(seen["all"], 5)
    seen["after"] = True
    assert_eq(wait_all([], one), [])
`)
	var inside sync.WaitGroup
	inside.Add(5)
	lab := &fakeLab{answer: func(context.Context, string, string, operation.Args) (any, error) {
		inside.Done()
		inside.Wait() // hangs unless all five are here at once
		return "", nil
	}}
	if err := f.Call(t.Context(), lab, "main"); err != nil {
		t.Error(err)
	}
	for _, p := range lab.at {
		if p.Line != 7 || p.Func != "one" {
			t.Errorf("position %v", p)
		}
	}
}

// An operation itself can be the function; its position is that of wait_all.
func TestWaitAllOfOperations(t *testing.T) {
	f := load(t, "m = machine(image = debian())\ndef main(): wait_all([\"a\", \"b\"], m.succeed)\n")
	lab := &fakeLab{}
	if err := f.Call(t.Context(), lab, "main"); err != nil || len(lab.at) != 2 || lab.at[0].Line != 2 {
		t.Errorf("got %v at %v", err, lab.at)
	}
}

// The first failure ends the others.
func TestWaitAllFails(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def one(cmd):
    m.succeed(cmd)
def main():
    wait_all(["hang", "false", "hang"], one)
`)
	lab := &fakeLab{answer: func(ctx context.Context, _, _ string, args operation.Args) (any, error) {
		if args.Strings("commands")[0] == "hang" {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		return nil, &attest.CommandError{Machine: "m", Command: "false", Result: attest.Result{ExitCode: 1}}
	}}
	err := f.Call(t.Context(), lab, "main")
	if want := "x.star:3:14: wait_all: \"false\": m: command `false` failed (exit code 1)"; err == nil || err.Error() != want {
		t.Errorf("\n got %v\nwant %s", err, want)
	}
}

func TestSubtestAndLog(t *testing.T) {
	f := load(t, `def main():
    def inner():
        log("deep")
    subtest("outer", lambda: subtest("inner", inner))
    assert_eq(subtest("value", lambda: 7), 7)
    subtest("bad", lambda: fail("oh"))
`)
	var bus event.Bus
	var got []string
	bus.Subscribe(func(r event.Record) {
		switch e := r.Event.(type) {
		case event.SubtestStarted:
			got = append(got, "+"+r.Scope.Subtest)
		case event.SubtestFinished:
			got = append(got, strings.TrimSpace("-"+r.Scope.Subtest+" "+string(e.Status)+" "+e.Message))
		case event.Log:
			got = append(got, r.Scope.Test+" "+r.Scope.Subtest+": "+e.Text)
		}
	})
	ctx := event.WithScope(event.WithBus(t.Context(), &bus), event.Scope{Test: "main"})
	err := f.Call(ctx, &fakeLab{}, "main")
	var assertion *AssertError
	if !errors.As(err, &assertion) || assertion.Message != "oh" {
		t.Errorf("got %v", err)
	}
	want := []string{"+outer", "+outer/inner", "main outer/inner: deep", "-outer/inner passed", "-outer passed", "+value", "-value passed", "+bad", "-bad failed oh"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q", got)
	}
}

func TestPrint(t *testing.T) {
	path := filepath.Join(write(t, "x.star", "print('top')\ndef main(): wait_all(range(20), lambda i: print('line', i))\n"), "x.star")
	var out bytes.Buffer
	f, err := Load(t.Context(), path, script.Options{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Call(t.Context(), &fakeLab{}, "main"); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 22 || lines[0] != "top" || !strings.HasPrefix(lines[20], "line ") {
		t.Errorf("got %q", lines)
	}
}

// The end of the context ends whatever a script does, and is what the error says.
func TestCancel(t *testing.T) {
	f := load(t, `m = machine(image = debian())
def test_spin():
    m.log("spinning")
    while True: pass
def test_operation(): m.succeed("hang")
def test_retry(): retry(lambda: m.succeed("hang"))
def test_wait_all(): wait_all([1, 2], lambda x: m.succeed("hang"))
`)
	stop := errors.New("somebody said stop")
	for _, test := range f.Tests() {
		ctx, cancel := context.WithCancelCause(t.Context())
		lab := &fakeLab{answer: func(ctx context.Context, _, op string, _ operation.Args) (any, error) {
			cancel(stop)
			if op == "log" {
				return nil, nil
			}
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}}
		err := f.Call(ctx, lab, test.Name)
		var e *script.Error
		if !errors.Is(err, stop) || !errors.As(err, &e) || e.Position.Line == 0 {
			t.Errorf("%s: got %v", test.Name, err)
		}
		cancel(nil)
	}
}

func TestCancelWhileLoading(t *testing.T) {
	path := filepath.Join(write(t, "x.star", "while True: pass\n"), "x.star")
	stop := errors.New("somebody said stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	var e *script.Error
	if _, err := Load(ctx, path, script.Options{}); !errors.Is(err, stop) || !errors.As(err, &e) || e.Position.Line != 1 {
		t.Errorf("got %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("m = machine(image = debian())\ndef test_a():\n    m.succeed('true')\n")
	f.Add("load('x.star', 'y')")
	f.Add("def main(): pass\nx = [machine(name='a', image=disk('/'), networks=[1.5])]")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "x.star")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		file, err := Load(ctx, path, script.Options{})
		if err == nil && len(file.Tests()) == 0 {
			t.Error("a file without anything to run is accepted")
		}
	})
}

// One file runs on many labs at once: nothing of one call is seen in another.
// The race detector watches.
func TestCallsAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.star")
	if err := os.WriteFile(path, []byte(`m = machine(image = debian())
load("lib.star", "shout")
base = [1, 2]
def double(x): return 2 * x
def test_a():
    own = list(base)
    tries = []
    def part():
        own.append(len(own))
        print(shout(m.succeed("who")))
    subtest("part", part)
    def again():
        tries.append(1)
        if len(tries) < 3: fail("not yet")
        return m.succeed("who")
    who = retry(again, interval = 0)
    assert_eq(wait_all(own, lambda x: double(x) if m.succeed("who") == who else fail("another")), [2, 4, 4])
    log(who)
    fail(who)
`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "lib.star"), []byte("def shout(s): return s.upper()\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	f, err := Load(t.Context(), path, script.Options{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		who := fmt.Sprintf("lab %d", i)
		lab := &fakeLab{answer: func(context.Context, string, string, operation.Args) (any, error) { return who, nil }}
		wg.Go(func() {
			err := f.Call(t.Context(), lab, "test_a")
			var e *script.Error
			if !errors.As(err, &e) || e.Err.Error() != who || e.Position.Line != 19 || len(e.Stack) != 1 {
				t.Errorf("%s: %v", who, err)
			}
			if len(lab.calls) != 5 {
				t.Errorf("%s: %d calls", who, len(lab.calls))
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		if n := strings.Count(out.String(), fmt.Sprintf("LAB %d\n", i)); n != 1 {
			t.Errorf("lab %d printed %d lines of\n%s", i, n, &out)
		}
	}
}

// A property of a machine is asked of the lab of the test that runs, and of nobody where
// there is none. Attributes of that name of other values stay theirs.
func TestPropertiesOfMachines(t *testing.T) {
	f := load(t, `m = machine(image = debian())
other = struct(addresses = [7])
def named(x): return x.addresses
def main():
    assert_eq(m.addresses, ["m of the test"])
    assert_eq(named(m) + named(other), ["m of the test", 7])
    assert_eq([x.addresses[0] for x in machines], ["m of the test"])
    assert_eq(m.addresses == other.addresses, False)
    m.succeed(m.addresses[0])
`)
	lab := &fakeLab{answer: func(_ context.Context, machine, name string, _ operation.Args) (any, error) {
		if name != "addresses" {
			return "", nil
		}
		return []string{machine + " of the test"}, nil
	}}
	if err := f.Call(t.Context(), lab, "main"); err != nil || lab.calls[len(lab.calls)-1] != "m.succeed" {
		t.Errorf("%q, %v", lab.calls, err)
	}
	for text, want := range map[string]string{
		"m = machine(image = debian())\nm.addresses\ndef main(): pass\n":                           "machine.addresses: machines exist only while",
		"m = machine(image = debian())\ndef main():\n    print(getattr(m, 'addresses'))\n":         "",
		"m = machine(image = debian())\ndef main():\n    m.adresses\n":                             "machine has no operation adresses; did you mean addresses?",
		"m = machine(image = debian())\ndef main():\n    m.addresses()\n":                          "addresses is an attribute, not a function: write .addresses",
		"m = machine(image = debian())\ndef main():\n    m.succeed(m.addresses[0], tineout = 3)\n": `there is no argument "tineout"; did you mean timeout?`,
	} {
		t.Chdir(write(t, "x.star", text))
		_, err := Load(t.Context(), "x.star", script.Options{})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// What network(…) declares goes to the lab, and network is the lab's networks still.
func TestNetworks(t *testing.T) {
	f := load(t, "m = machine(image = debian())\nnetwork(1, dhcp = False)\nnetwork(2, dns = False, ra = False)\ndef main():\n    network.heal()\n")
	want := map[int]attest.NetworkConfig{1: {NoDHCP: true}, 2: {NoDNS: true, NoRA: true}}
	if got := f.Networks(); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	lab := &fakeLab{}
	if err := f.Call(t.Context(), lab, "main"); err != nil || len(lab.calls) != 1 {
		t.Errorf("%q, %v", lab.calls, err)
	}
}

// What a file says about builds, variables and the machines' files, and what it depends on.
func TestBuildsAndVars(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "b_test.star")
	load := func(text string, opts script.Options) (*File, error) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return Load(t.Context(), path, opts)
	}
	const text = `
build = [
    "make",
    {"command": "go build -o out/" + var("NAME", default = "app"), "inputs": ["cmd", "*.mod"], "outputs": "out"},
]
m = machine(backend = "mock", files = {"/etc/a": "text", "/etc/b": struct(path = "b")}, mount = {"/opt": "out"})
def setup(): helper()
def helper(): m.succeed("true")
def test_a():
    helper()
def test_b(): pass
`
	t.Setenv(script.VarEnv+"NAME", "environment")
	f, err := load(text, script.Options{Vars: map[string]string{"NAME": "given"}})
	if err != nil {
		t.Fatal(err)
	}
	builds := f.Builds()
	for i := range builds {
		if builds[i].Place.Position.Line != 2 || builds[i].Dir != dir {
			t.Errorf("%+v", builds[i])
		}
		builds[i].Place, builds[i].Dir = nil, ""
	}
	want := []script.Build{{Command: "make"}, {Command: "go build -o out/given", Inputs: []string{"cmd", "*.mod"}, Outputs: []string{"out"}}}
	if diff := cmp.Diff(want, builds); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	m := f.Machines()[0]
	if m.Files["/etc/b"].Path != filepath.Join(dir, "b") || m.Files["/etc/a"].Content != "text" || m.Mount["/opt"] != filepath.Join(dir, "out") {
		t.Errorf("%+v", m)
	}
	if at := f.Declared("m"); at == nil || at.Position.Line != 6 || f.Declared("x") != nil {
		t.Errorf("declared at %+v", at)
	}
	if !f.Asks("NAME") || f.Asks("NAMES") {
		t.Error("it asks for NAME and nothing else")
	}
	key := f.SetupKey()
	for _, tt := range []struct {
		name, old, new string
		vars           map[string]string
		same           bool
	}{
		{"a test", "    helper()", "    pass", nil, true},
		{"a test more", "def test_b(): pass", "def test_b(): pass\ndef test_c():\n    pass", nil, true},
		{"a helper", `m.succeed("true")`, `m.succeed("false")`, nil, false},
		{"a machine", `"text"`, `"other"`, nil, false},
		{"a variable", "", "", map[string]string{"NAME": "other"}, false},
		{"a test that setup calls", "def setup(): helper()", "def setup(): test_a()", nil, false},
	} {
		if tt.vars == nil {
			tt.vars = map[string]string{"NAME": "given"}
		}
		f, err := load(strings.Replace(text, tt.old, tt.new, 1), script.Options{Vars: tt.vars})
		if err != nil {
			t.Fatal(err)
		}
		if same := f.SetupKey() == key; same != tt.same {
			t.Errorf("%s: the same setup: %v", tt.name, same)
		}
	}
	if f, err = load(strings.Replace(text, "out/", "", 1), script.Options{}); err != nil || f.Builds()[1].Command != "go build -o environment" {
		t.Errorf("by the environment: %+v, %v", f.Builds(), err)
	}
	for in, want := range map[string]string{
		"build = 1":                                    "1:1: build must be a command, a dict with command, inputs and outputs, or a list of those; not the number 1",
		"build = {'comand': 'x'}":                      `1:1: build: there is no field "comand"; the fields are command, inputs and outputs; did you mean command?`,
		"build = {'inputs': ['x']}":                    "1:1: build: command is missing",
		"build = {'command': 'x', 'outputs': ['x']}":   "1:1: build: outputs without inputs: name the files and directories that the command reads, too",
		"build = {'command': 'x', 'inputs': [1]}":      "1:1: build: inputs must be a list of paths; it has the number 1",
		"build = {'command': 'x', 'inputs': ['[']}":    `1:1: build: inputs: "[" is not a valid pattern`,
		"x = var('NONE')":                              `1:8: var("NONE"): it has no value: give it one by --var NONE=…, by ATTEST_VAR_NONE in the environment, or by default=`,
		"x = var('a b')":                               `1:8: var: "a b" is not a name: want letters, digits and _, not beginning with a digit`,
		"m = machine(backend='mock', mount={'/o': 1})": "1:12: machine(…): mount: the value of \"/o\" must be a string, not the number 1",
	} {
		_, err := load(in+"\ndef main(): pass\n", script.Options{})
		if err == nil || !strings.HasPrefix(err.Error(), path+":"+want) {
			t.Errorf("%s: got\n%v\nwant %s", in, err, want)
		}
	}
	if f, err := load("def build(): pass\ndef main(): build()\n", script.Options{}); err != nil || len(f.Builds()) > 0 {
		t.Errorf("a function build: %v", err)
	}
}
