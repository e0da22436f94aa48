package python

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// The hints that nixpkgs has in front of a test script, in three eras: what it imports, and
// what it declares for machines and networks.
var hints = map[string]string{
	"24.05": `from test_driver.driver import Driver
from test_driver.vlan import VLan
from test_driver.machine import Machine
from test_driver.logger import Logger
from typing import Callable, ContextManager, List
start_all: Callable[[], None]
subtest: Callable[[str], ContextManager[None]]
machines: List[Machine]
driver: Driver
log: Logger
server: Machine;
vlan1: VLan;
`,
	"25.05": `from test_driver.driver import Driver
from test_driver.vlan import VLan
from test_driver.machine import Machine
from test_driver.logger import AbstractLogger
from typing import Callable, ContextManager, List
from unittest import TestCase
start_all: Callable[[], None]
subtest: Callable[[str], ContextManager[None]]
machines: List[Machine]
driver: Driver
log: AbstractLogger
t: TestCase
server: Machine;
vlan1: VLan;
`,
	"26.05": `from test_driver.debug import DebugAbstract
from test_driver.driver import Driver
from test_driver.vlan import VLan
from test_driver.machine import BaseMachine, NspawnMachine, QemuMachine
from test_driver.logger import AbstractLogger
from typing import Callable, ContextManager, List
from unittest import TestCase
start_all: Callable[[], None]
subtest: Callable[[str], ContextManager[None]]
machines: List[BaseMachine]
driver: Driver
log: AbstractLogger
debug: DebugAbstract
t: TestCase
server: QemuMachine;
vlan1: VLan;
`,
}

const typed = `
import datetime as dt
from test_driver.errors import RequestedAssertionFailed

start_all()
server.wait_for_unit("nginx.service")
server.wait_for_open_port(80, timeout=dt.timedelta(seconds=5))
with subtest("it serves"):
    status, out = server.execute("curl http://localhost/", timeout=None)
    assert "x" in out, status + 1
    words: list[str] = server.succeed("a", "b", timeout=5).split()
try:
    server.fail("true")
except RequestedAssertionFailed:
    log.info("as it should")
server.copy_from_host("a", "/b")
server.wait_until_succeeds("true", 10)
info: dict[str, str] = server.get_unit_info("x")
for m in machines:
    m.systemctl("list-jobs")
`

// typeChecker is a mypy of this host.
func typeChecker(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("mypy")
	if err != nil {
		t.Skip("this host has no mypy; scripts/setup test installs it")
	}
	return path
}

// nixpkgs' build step, with our package in the place of upstream's.
func TestTypesOfNixpkgs(t *testing.T) {
	mypy := typeChecker(t)
	dir := t.TempDir()
	if err := WriteStubs(dir); err != nil {
		t.Fatal(err)
	}
	check := func(texts map[string]string) (string, error) {
		args := []string{"--no-implicit-optional", "--no-color-output", "--cache-dir", filepath.Join(dir, "cache")}
		for name, text := range texts {
			path := filepath.Join(dir, name+".py")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, path)
		}
		cmd := exec.Command(mypy, args...)
		cmd.Env = append(os.Environ(), "MYPYPATH="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	right, wrong := map[string]string{}, map[string]string{}
	for era, prelude := range hints {
		right["right"+strings.ReplaceAll(era, ".", "")] = prelude + typed
	}
	if out, err := check(right); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	mistakes := [][2]string{
		{"server.wait_for_uni('x')", `has no attribute "wait_for_uni"`},
		{"server.succeed('x') + 1", "Unsupported operand types"},
		{"server.wait_for_open_port('http')", `has incompatible type "str"; expected "int"`},
		{"server.succeed('x', limit=3)", `Unexpected keyword argument "limit"`},
		{"server.wait_for_unit()", "Missing positional argument"},
	}
	for i, m := range mistakes {
		wrong[fmt.Sprint("wrong", i)] = hints["26.05"] + m[0] + "\n"
	}
	out, err := check(wrong)
	for i, m := range mistakes {
		if err == nil || !regexp.MustCompile(fmt.Sprintf(`wrong%d\.py:\d+: error: .*%s`, i, regexp.QuoteMeta(m[1]))).MatchString(out) {
			t.Errorf("%s: want %s, got\n%s", m[0], m[1], out)
		}
	}
	// The types themselves have no errors.
	cmd := exec.Command(mypy, "--strict", "--cache-dir", filepath.Join(dir, "cache"), "-p", "test_driver")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// attest check has the host's type checker look at scripts, at their own places.
func TestCheckTypes(t *testing.T) {
	typeChecker(t)
	dir := t.TempDir()
	machines := []attest.MachineConfig{{Name: "b-1", Networks: []int{1, 7}}}
	write := func(text string) string {
		path := filepath.Join(dir, "script.py")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := write("start_all()\nb_1.succeed('x').strip()\nmachine.execute('x')[0] + 1\nprint(vlan7.nr, vlans, driver.out_dir, b_1.spawn('x').running, network)\n" +
		"with subtest('x'):\n    retry(lambda last: True, timeout_seconds=3)\n@polling_condition\ndef up(): return True\nwith up:\n    pass\nt.assertEqual(1, 1)\nfor m in machines: m.wait_for_unit('x')\n" +
		"network.drop(b_1, rate=0.5).heal()\nx = create_machine('run-x-vm')\nx.crash()\nlog.info('x')\ndebug.breakpoint()\nos.environ\ndef f(m: Machine) -> None: m.shutdown()\n")
	if checker, err := CheckTypes(t.Context(), path, machines); checker != "mypy" || err != nil {
		t.Errorf("%s: %v", checker, err)
	}
	// The one machine of a test may have the name itself that one machine has.
	path = write("machine.succeed('x').strip()\n")
	if _, err := CheckTypes(t.Context(), path, []attest.MachineConfig{{Name: "machine"}}); err != nil {
		t.Errorf("a machine of the name machine: %v", err)
	}
	path = write("web = machine(image=debian(packages=['nginx']))\nnetwork(2, dhcp=False)\ndef setup():\n    web.wait_for_unit('nginx')\ndef test_x():\n    web.succeed('x').strip()\n")
	if _, err := CheckTypes(t.Context(), path, machines); err != nil {
		t.Errorf("a file that declares its machines: %v", err)
	}
	path = write("def f():\n    pass\n\nb_1.succeed('x') + 1\nvlan1.foo\n")
	_, err := CheckTypes(t.Context(), path, machines)
	var wrong *script.LoadError
	if !errors.As(err, &wrong) || len(wrong.Errors) != 2 || wrong.Errors[0].Position.Line != 4 || wrong.Errors[0].Source != "b_1.succeed('x') + 1" || wrong.Errors[1].Position.Line != 5 {
		t.Errorf("got %v", err)
	}
}

// Pyflakes, with the names that generate-driver-symbols gives it.
func TestSymbolsOfNixpkgs(t *testing.T) {
	pyflakes := ""
	for _, name := range []string{"pyflakes3", "pyflakes"} {
		if path, err := exec.LookPath(name); err == nil {
			pyflakes = path
		}
	}
	if pyflakes == "" {
		t.Skip("this host has no pyflakes; scripts/setup test installs it")
	}
	check := func(text string) (string, error) {
		cmd := exec.Command(pyflakes)
		cmd.Stdin = strings.NewReader(text)
		cmd.Env = append(os.Environ(), "PYFLAKES_BUILTINS=server,vlan1,"+strings.Join(Symbols(), ","))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := check(typed + "\nprint(machines, driver.out_dir, retry, t, vlans, network, os, words, info, vlan1)\n"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := check("serve.succeed('x')\n"); err == nil || !strings.Contains(out, "undefined name 'serve'") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Every operation has a type, and the names of Python's own classes are those of the library.
func TestStubs(t *testing.T) {
	files, err := Stubs()
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprint(files)
	for _, on := range operation.Kinds() {
		for _, name := range operation.Names(on) {
			if !strings.Contains(all, "def "+name+"(") {
				t.Errorf("%v: %s has no type", on, name)
			}
		}
	}
	for _, line := range []string{
		"    def succeed(self, *commands: str, timeout: Duration | None = None, stdin: str | bytes | None = None,",
		"    def execute(self, command: str, check_return: bool = True, check_output: bool = True, timeout: Duration | None = 900, *, stdin:",
		"    def wait_for_open_port(self, port: int, addr: str = \"localhost\", timeout: Duration = 900, *, unit: str | None = None) -> None: ...",
		"    def spawn(self, command: str, timeout: Duration | None = None, *,",
		"    def running(self) -> bool: ...",
	} {
		if !strings.Contains(all, line) {
			t.Errorf("there is no\n%s", line)
		}
	}
	for _, module := range []string{"assertions", "errors", "debug", "driver", "logger", "machine", "polling_condition", "vlan"} {
		source, err := library.ReadFile("lib/test_driver/" + module + ".py")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(files[module+".pyi"]) {
			name, ok := strings.CutPrefix(line, "class ")
			name, _, _ = strings.Cut(strings.TrimRight(name, "\n"), "(")
			name, _, _ = strings.Cut(name, ":")
			if ok && name != "Lab" && name != "Debug" && name != "Result" && !isKind(name) && !strings.Contains(string(source), "class "+name) {
				t.Errorf("%s: the library has no class %s", module, name)
			}
		}
	}
}

func isKind(class string) bool {
	for _, on := range operation.Kinds() {
		if className(on) == class {
			return true
		}
	}
	return false
}
