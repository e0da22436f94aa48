package python

import "testing"

// Scripts in the manner of those that people have for the NixOS test driver.
func TestScriptsOfPeople(t *testing.T) {
	for name, source := range map[string]string{
		"subtests and f-strings": `
user = "alice"
with subtest(f"{user} logs in"):
    for n in range(2):
        with subtest(f"try {n + 1}"):
            assert web.succeed(f"echo {user!r}") == "hello\n"
`,
		"helpers with defaults": `
def curl(machine, path="/", *, ok=True):
    return (machine.succeed if ok else machine.fail)(f"echo {path}" if ok else "false")
assert curl(web) == "hello\n" and curl(web, "/x", ok=False) == "no\n"
`,
		"a class": `
class Service:
    def __init__(self, machine, unit): self.machine, self.unit = machine, unit
    @property
    def state(self): return self.machine.succeed(f"echo {self.unit}").strip()
    def wait(self):
        self.machine.wait_for_unit(self.unit)
        return self
assert Service(web, "web.service").wait().state == "hello"
`,
		"a generator": `
def users():
    for name in ["a", "b"]:
        yield name, web.succeed("echo " + name)
assert dict(users()) == {"a": "hello\n", "b": "hello\n"}
`,
		"a context manager": `
import contextlib
steps = []
@contextlib.contextmanager
def stopped(machine, unit):
    machine.succeed(f"systemctl stop {unit}")
    try: yield machine
    finally: steps.append(machine.succeed("echo started"))
with stopped(web, "x") as m:
    m.fail("false")
assert steps == ["hello\n"]
`,
		"try and finally": `
cleaned = []
try:
    try:
        web.succeed("false")
    finally:
        cleaned.append(web.succeed("echo x"))
except Exception as e:
    cleaned.append(type(e).__name__)
assert cleaned == ["hello\n", "RequestedAssertionFailed"]
`,
		"a decorator": `
import functools
def logged(fn):
    @functools.wraps(fn)
    def inner(*args, **named):
        with log.nested(fn.__name__): return fn(*args, **named)
    return inner
@logged
def check(m): return m.succeed("echo x")
assert check(machine=web) == "hello\n" if False else check(web) == "hello\n"
`,
		"annotations": `
from __future__ import annotations
from typing import Callable, Optional
def each(ms: list[Machine], fn: Callable[[Machine], str], limit: Optional[int] = None) -> dict[str, str]:
    return {m.name: fn(m) for m in ms[:limit]}
server: QemuMachine = web
assert each(machines, lambda m: m.succeed("echo x")) == {"b-1": "hello\n", "web": "hello\n"}
`,
		"json and re": `
import json, re
value = json.loads(json.dumps({"out": web.succeed("echo x")}))
assert re.fullmatch(r"(?P<word>\w+)\n", value["out"])["word"] == "hello"
`,
		"files of the host": `
import pathlib, tempfile, os.path
with tempfile.TemporaryDirectory() as d:
    path = pathlib.Path(d) / "file"
    path.write_text("content")
    web.copy_from_host(str(path), "/tmp/file")
    web.copy_from_host(path, "/tmp/again")
assert web.succeed("cat /tmp/file") == ""
`,
		"programs of the host": `
import subprocess, shlex
out = subprocess.run(shlex.split("sh -c 'echo $((1 + 1))'"), check=True, capture_output=True, text=True).stdout
assert out == "2\n" and subprocess.call(["true"]) == 0
`,
		"threads of all machines": `
import threading
out = {}
threads = [threading.Thread(target=lambda m=m: out.__setitem__(m.name, m.succeed("echo x"))) for m in machines]
[x.start() for x in threads]; [x.join() for x in threads]
assert out == {"b-1": "hello\n", "web": "hello\n"}
`,
		"futures": `
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor() as pool:
    futures = {pool.submit(web.execute, c): c for c in ["echo x", "false"]}
    assert {futures[f]: f.result()[0] for f in concurrent.futures.as_completed(futures)} == {"echo x": 0, "false": 1}
`,
		"asyncio": `
import asyncio
async def main():
    return await asyncio.gather(*(asyncio.to_thread(m.succeed, "echo x") for m in machines))
assert asyncio.run(main()) == ["hello\n"] * 2
`,
		"a closure for retry": `
tries = 0
def there(last: bool) -> bool:
    global tries
    tries += 1
    return tries >= 2 and web.execute("echo x")[0] == 0
retry(there, timeout_seconds=60)
assert tries == 2
`,
		"assertions of t": `
import unittest
from test_driver.errors import RequestedAssertionFailed
from test_driver.machine import AssertionTester
assert isinstance(t, AssertionTester) and isinstance(t, unittest.TestCase) and "assertEqual" in dir(t)
t.maxDiff = 7
assert t.maxDiff == 7 != AssertionTester.maxDiff and not vars(t)
t.assertEqual(1, 1); t.assertIn("hell", web.succeed("echo x")); t.assertRegex("abc", "b"); t.assertTrue(web.is_up())
with t.assertRaises(RequestedAssertionFailed):
    web.succeed("false")
with t.assertRaisesRegex(AssertionError, r"exit code 1"):
    web.succeed("false")
`,
		"functions of its own named test_": `
done = []
def test_one(): done.append(web.succeed("echo x"))
def test_two(): done.append("two")
for fn in (test_one, test_two): fn()
assert done == ["hello\n", "two"]
`,
		"a dict of checks": `
checks = {"echo x": lambda out: out == "hello\n", "bytes": lambda out: out.startswith("h")}
assert all(fn(web.succeed(cmd)) for cmd, fn in checks.items())
`,
		"texts over several lines": `
import textwrap
web.succeed(textwrap.dedent("""
    set -x
    echo "one" |
      cat
"""))
web.succeed(
    "true",
    "echo " + " ".join(["a", "b"]),
)
`,
		"the log": `
log.log("a"); log.info("b"); log.debug("c"); log.warning("d"); web.log("e"); web.log_serial("f")
serial_stdout_off(); serial_stdout_on()
with web.nested("part"): web.succeed("true")
import sys
print("on stderr", file=sys.stderr)
`,
		"patterns of Python": `
import re
b_1.succeed("true")
b_1.wait_for_console_text(r"boots(?!x)", timeout=60)
web.start()
web.wait_for_console_text(re.compile("WEB BOOTS", re.I), timeout=60)
try:
    web.wait_for_console_text(r"(never)\1", timeout=0.1)
    raise Exception("it passed")
except AssertionError as e:
    assert "action timed out after 0." in str(e) and "never" in str(e), e
from test_driver.errors import MachineError
late = create_machine(name="late", backend="mock")
late.wait_for_console_text(r"boots(?!x)")  # starts it
late.crash()
late.wait_for_console_text(r"boots(?!x)")
try:
    late.wait_for_console_text(r"(never)\1")
    raise ValueError("it passed")
except MachineError as e:
    assert "late: '(never)\\\\1' cannot match the console any more: the machine is down; last seen: " in str(e) and "boots" in str(e), e
`,
		"a machine that is created": `
late = create_machine(name="late", backend="mock")
assert late.name == "late" and late not in machines
late.start()
late.crash()
# As scripts before NixOS 24.11 have it.
try:
    create_machine({"name": "old", "memorySize": 1})
    raise ValueError("it passed")
except TypeError as e:
    assert str(e) == "create_machine: the dictionary has memorySize; want startCommand and name", e
old = create_machine({"name": "old", "startCommand": "exec false"}, keep_vm_state=True)
assert old.name == "old" and old not in machines and old.start_command == "exec false" and web.start_command is None
`,
		"conditions": `
@polling_condition(seconds_interval=0.05, description="the server is there")
def there():
    return web.execute("echo x")[0] == 0
with there:
    with b_1.nested("longer"):
        b_1.succeed("true")
assert there.check() and there.description == "the server is there"
import datetime
polling_condition(lambda: None, interval=datetime.timedelta(seconds=1), description="x").wait(timeout=datetime.timedelta(seconds=60))
`,
		"signals of its own": `
import signal
hit = []
signal.signal(signal.SIGUSR1, lambda *a: hit.append(web.succeed("echo x")))
os.kill(os.getpid(), signal.SIGUSR1)
web.succeed("true")
assert hit == ["hello\n"]
signal.signal(signal.SIGALRM, lambda *a: (_ for _ in ()).throw(TimeoutError("too long")))
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    web.succeed("hang")
    raise Exception("it passed")
except TimeoutError:
    pass
web.succeed("true")
`,
		"a child of its own": `
pid = os.fork()
if pid == 0: os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
import multiprocessing.dummy
assert multiprocessing.dummy.Pool(2).map(lambda m: m.succeed("echo x"), machines) == ["hello\n"] * 2
`,
		"what a driver has": `
assert driver.machines == machines and driver.vlans == vlans and driver.logger is log
assert driver.out_dir.is_dir() and web.out_dir == driver.out_dir and web.state_dir.is_dir()
assert web.booted is web.is_up() and [m for m in machines_qemu if m.connected] == []
with driver.subtest("x"): driver.start_all()
run_tests, test_script, join_all, dump_machine_ssh
c = driver.config
assert (c.vms, c.containers, c.vlans, c.test_script.name) == ({}, {}, [1], "script.py") and not c.global_timeout
`,
		"the state of units": `
web.wait_for_unit("web.service", timeout=60)
for unit, said in {"bad": 'unit "bad" reached state "failed"', "off.service": 'unit "off.service" is inactive and there are no pending jobs', "none": "not-found"}.items():
    with t.assertRaisesRegex(AssertionError, said):
        web.wait_for_unit(unit)
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
