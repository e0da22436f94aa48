"""Machines. Their methods are the operations that the engine has."""

import contextlib
import datetime
import inspect
import pathlib
import re
import sys
import time

from . import _protocol, errors, qmp


class _Remote:
    """What has operations of the engine."""

    _engine = None  # the Connection
    _logger = None

    def _on(self):
        raise NotImplementedError


def _retry_limit(timeout_seconds, timeout, default=900):
    if timeout_seconds is not None and timeout is not None:
        raise TypeError("both timeout_seconds and timeout are given")
    limit = timeout if timeout is not None else timeout_seconds
    if limit is None:
        limit = default
    return seconds(limit)


def seconds(d):
    """A duration as a number of seconds."""
    if isinstance(d, datetime.timedelta):
        return d.total_seconds()
    if isinstance(d, bool):
        raise TypeError("expected a duration, got bool: " + repr(d))
    if not isinstance(d, (int, float)):
        raise TypeError(f"expected a timedelta, int, or float duration, got {type(d).__name__}")
    return float(d)


def retry(fn, timeout_seconds=None, timeout=None):
    """Calls fn(False) until it returns a true value, and fn(True) when the time is over."""
    limit = _retry_limit(timeout_seconds, timeout)
    start = time.monotonic()
    while time.monotonic() - start < limit:
        if fn(False):
            return
        time.sleep(max(0, min(0.25, limit - (time.monotonic() - start))))
    elapsed = time.monotonic() - start
    if not fn(True):
        raise errors.RequestedAssertionFailed(
            f"action timed out after {elapsed:.2f} seconds (timeout={limit})"
        )


class BaseMachine(_Remote):
    keep_machine_state = False
    callbacks = ()

    def __init__(self, name, out_dir=".", start_command=None):
        self.name = name
        self.start_command = start_command  # None: attest starts it itself
        self.out_dir = pathlib.Path(out_dir)
        self._attest_machine = name

    @property
    def logger(self):
        return self._logger

    @property
    def state_dir(self):
        """The machine's directory on this host, which its start command has as TMPDIR."""
        return pathlib.Path(self._engine.ask("directories", machine=self.name)["state"])

    tmp_dir = state_dir

    @property
    def shared_dir(self):
        """The directory of this host that all start commands have as SHARED_DIR."""
        return pathlib.Path(self._engine.ask("directories", machine=self.name)["shared"])

    def _on(self):
        return {"machine": self.name}

    def __repr__(self):
        return f"<{type(self).__name__} {self.name!r}>"

    def __eq__(self, other):
        return isinstance(other, BaseMachine) and other.name == self.name

    def __hash__(self):
        return hash(self.name)


class QemuMachine(BaseMachine):
    # Where upstream's shape is not that of the operation:

    def nested(self, msg, attrs={}):
        """Steps in a with block are below one step in the log of the run."""
        return block(self, "nested", msg)

    def sleep(self, secs=None, duration=None):
        """Waits on the guest's clock."""
        if (secs is None) == (duration is None):
            raise TypeError("either secs or duration is given")
        self._operate("sleep", secs if duration is None else duration)

    def wait_for_shutdown(self, timeout=None):
        """Waits until the guest has powered itself off."""
        named = {} if timeout is None else {"timeout": timeout}
        try:
            self._operate("wait_for_shutdown", **named)
        except errors.RequestedAssertionFailed as e:
            if e.kind != "wait":
                raise
            import subprocess

            expired = subprocess.TimeoutExpired(self.name, timeout if timeout is None else seconds(timeout))
            expired._attest = e._attest
            raise expired from None

    def connect(self):
        """Waits until the guest answers."""
        self._operate("execute", "true")

    def log_serial(self, msg):
        """Writes a line to the log of the run."""
        self._operate("log", msg)

    def shell_interact(self, address=None, user=None):
        """Opens a shell of the guest on your terminal."""
        if address is not None:
            raise errors.ArgumentError("shell_interact: address is not supported; the shell opens on the terminal of the prompt")
        self._operate("shell_interact", user)

    def console_interact(self):
        """Sends what is typed to the serial console, until Ctrl-D (which is for a prompt)."""
        print("Terminal is ready (there is no prompt); Ctrl-D ends it", flush=True)
        while True:
            line = sys.stdin.readline()
            if not line:
                return
            self._operate("send_console", line)

    @property
    def qmp_client(self):
        """QEMU's monitor for programs."""
        return qmp.QMPSession(self)

    # The variables of a UEFI firmware, in a file that start scripts have as NIX_EFI_VARS.

    @property
    def efi_vars_path(self):
        return self.state_dir / (self.name + "-efi-vars.fd")

    def _firmware(self):
        if self._runs():
            raise Exception("System is currently running and concurrent reads / writes to the OVMF variables is unsupported")
        return self.efi_vars_path

    def read_efi_vars(self):
        """The variables of the firmware of a machine that does not run."""
        from . import efi

        return efi.read(self._firmware().read_bytes())

    efi_vars = property(read_efi_vars)

    def dump_efi_vars(self):
        """Writes the variables to the log."""
        for v in self.read_efi_vars():
            self.log(f"{v.vendor_uuid} {v.name} = {v.data.hex()}")

    def create_efi_vars(self):
        """Makes the file, without variables."""
        from . import efi

        path = self._firmware()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with open(path, "xb") as f:
                f.write(efi.create())
        except FileExistsError:
            raise Exception("OVMF variables store exists") from None

    def write_efi_vars(self, add):
        """Adds variables, or changes those of the same name."""
        from . import efi

        path = self._firmware()
        path.write_bytes(efi.write(path.read_bytes(), add))

    # Patterns are Python's. The engine matches those that it understands, as they come.

    def wait_for_console_text(self, regex, timeout=None):
        """Waits until the output of the serial console matches."""
        pattern = _pattern(regex)
        if pattern is not None:
            return self._operate("wait_for_console_text", pattern, timeout)
        if not self._runs() and not self.get_console_log():
            self.start()  # as the engine's wait does with a machine that has not been on
        self._search(regex, self.get_console_log, timeout, "the console", "", lambda: not self._runs())

    def wait_until_tty_matches(self, tty, regexp, timeout=900):
        """Waits until the text of a virtual terminal matches."""
        pattern = _pattern(regexp)
        if pattern is not None:
            return self._operate("wait_until_tty_matches", tty, pattern, timeout)
        self._search(regexp, lambda: self.get_tty_text(tty), timeout, "TTY" + tty, "")

    def wait_for_window(self, regexp, timeout=900, display=":0"):
        """Waits until a window has a title that matches."""
        pattern = _pattern(regexp)
        if pattern is not None:
            return self._operate("wait_for_window", pattern, timeout, display=display)
        self._search(regexp, lambda: self.get_window_names(display=display), timeout, "the window list", [])

    def wait_for_text(self, regex, timeout=900, region=None):
        """Waits until the screen shows a text that matches."""
        pattern = _pattern(regex)
        if pattern is not None:
            return self._operate("wait_for_text", pattern, timeout, region)
        self._search(regex, lambda: self.get_screen_text_variants(region=region), timeout, "the screen", [])

    def _search(self, regex, read, timeout, where, text, complete=lambda: False):
        """Reads a text until it matches, in vain as soon as it is complete."""
        compiled = re.compile(regex)
        limit = 900 if timeout is None else seconds(timeout)
        last = text

        def found(_):
            nonlocal last
            over = complete()
            last = read()
            if any(compiled.search(x) for x in ([last] if isinstance(last, str) else last)):
                return True
            if over:
                raise errors.MachineError(f"{self.name}: {compiled.pattern!r} cannot match {where} any more: the machine is down; last seen: {last[-1000:]!r}")
            return False

        try:
            retry(found, timeout=limit)
        except errors.RequestedAssertionFailed as e:
            raise errors.RequestedAssertionFailed(f"{e}: {self.name}: {compiled.pattern!r} did not match {where}; last seen: {last!r:.1000}") from None

    def _runs(self):
        return self._engine.ask("directories", machine=self.name)["running"]

    # What belongs to the other driver's own processes:

    def run_callbacks(self):
        """Does nothing: conditions are looked at while operations run."""

    def cleanup_statedir(self):
        """Does nothing: the state of a machine ends with its lab, unless it is kept (-K)."""

    def ssh_backdoor_command(self):
        raise errors.UnsupportedError(f"{self.name}: ssh_backdoor_command is not supported: there is no SSH backdoor; shell_interact() at a prompt is a shell of the guest")

    def release(self):
        """Ends the machine."""
        self._operate("crash")

    @property
    def booted(self):
        return self._operate("is_up")

    connected = booted
    vsock_guest = vsock_host = None  # as without an SSH backdoor

    @property
    def full_console_log(self):
        return self.get_console_log().splitlines()

    def _operate(self, operation, *args, **named):
        __tracebackhide__ = True
        return self._engine.invoke(self._on(), operation, args, named)


def _unsupported(name, instead):
    def refused(self, *args, **named):
        raise errors.UnsupportedError(f"{self.name}: {name} is not supported: {instead}")

    refused._refused = True
    return refused


for _name, _instead in {
    "wait_for_monitor_prompt": "the monitor has no prompt; send_monitor_command returns the output of a command",
}.items():
    setattr(QemuMachine, _name, _unsupported(_name, _instead))
for _name, _instead in {
    "process": "the process is not this one's", "pid": "the process is not this one's",
    "monitor": "use send_monitor_command", "shell": "use execute, or shell_interact at a prompt",
    "monitor_path": "the monitor's socket has no name; use send_monitor_command", "qmp_path": "the monitor's socket has no name; use qmp_command",
    "shell_path": "the shell's socket has no name; use execute", "serial_thread": "attest reads the console",
    "last_lines": "use wait_for_console_text, or get_console_log",
}.items():
    setattr(QemuMachine, _name, property(_unsupported(_name, _instead)))

Machine = QemuMachine

# What Python's patterns have and the engine's have not.
_foreign = re.compile(r"\(\?(=|!|<=|<!|P=|\(|#|>)|\\[1-9Z]|[*+?}]\+")


def _pattern(regex):
    """A pattern as the engine takes it; None if it cannot."""
    flags = ""
    if isinstance(regex, re.Pattern):
        for letter, flag in (("i", re.I), ("m", re.M), ("s", re.S)):
            if regex.flags & flag:
                flags += letter
        if regex.flags & re.X or isinstance(regex.pattern, bytes):
            return None
        regex = regex.pattern
    if not isinstance(regex, str):
        return regex  # the engine's to refuse
    if _foreign.search(regex):
        return None
    return f"(?{flags}){regex}" if flags else regex


class NspawnMachine(BaseMachine):
    """A container. This version has none; the name is for annotations."""


@contextlib.contextmanager
def block(of, operation, *args):
    """An operation that takes a function, around a with block."""
    import threading

    engine = of._engine
    entered, left = threading.Event(), threading.Event()
    scope = []

    def body():
        scope.append(engine.scopes[-1])
        entered.set()
        left.wait()

    begun = engine.begin(of._on(), operation, args + (body,), {})

    def watch():
        begun[0][1].lock.acquire()
        begun[0][1].lock.release()
        entered.set()

    threading.Thread(target=watch, daemon=True).start()
    entered.wait()
    if not scope:
        engine.complete(begun)
        raise errors.MachineError(operation + ": the operation ended before its block began")
    engine.scopes.append(scope[0])
    try:
        yield
    except BaseException:
        engine.scopes.pop()
        left.set()
        with contextlib.suppress(Exception):
            engine.complete(begun)
        raise
    engine.scopes.pop()
    left.set()
    engine.complete(begun)


def _method(operation):
    name, variadic = operation["name"], False

    def method(self, *args, **named):
        __tracebackhide__ = True
        return self._engine.invoke(self._on(), name, args, named)

    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for p in operation["params"]:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if p.get("variadic"):
            kind, variadic = inspect.Parameter.VAR_POSITIONAL, True
        elif p.get("named") or variadic:
            kind = inspect.Parameter.KEYWORD_ONLY
        default = inspect.Parameter.empty
        if not p.get("required") and not p.get("variadic"):
            default = p.get("default")
        parameters.append(inspect.Parameter(p["name"], kind, default=default))
    method.__name__ = name
    method.__doc__ = operation["doc"]
    method.__signature__ = inspect.Signature(parameters)
    return method


def fill(cls, operations):
    """Gives a class the operations that it has no form of its own of."""
    for o in operations:
        method = _method(o)
        for name in [o["name"]] + o.get("aliases", []):
            if name in vars(cls) and not getattr(vars(cls)[name], "_refused", False):
                continue
            method.__qualname__ = f"{cls.__name__}.{name}"
            setattr(cls, name, property(method) if o.get("property") else method)
    names = [n for o in operations for n in [o["name"]] + o.get("aliases", [])]

    def missing(self, name):
        import difflib

        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise AttributeError(f"{cls.__name__} has no attribute {name!r}{hint}")

    cls.__getattr__ = missing


class Assertions:
    """All assertions of unittest: t. Its module takes longer to import than all others, and most scripts do without."""

    def __getattr__(self, name):
        return getattr(_tester(), name)

    def __setattr__(self, name, value):
        setattr(_tester(), name, value)

    def __dir__(self):
        return dir(_tester())

    @property
    def __class__(self):  # as isinstance sees it
        return type(_tester())


_assertions = None


def _tester():
    global _assertions
    if _assertions is None:
        from .assertions import AssertionTester

        _assertions = AssertionTester()
    return _assertions


def __getattr__(name):
    if name == "AssertionTester":
        from .assertions import AssertionTester

        return AssertionTester
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
