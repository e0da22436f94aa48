"""Machines. Their methods are the operations that the engine has."""

import contextlib
import datetime
import inspect
import subprocess
import time
import unittest

from . import _protocol, errors


class _Remote:
    """What has operations of the engine."""

    _engine = None  # the Connection

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
    def __init__(self, name, out_dir="."):
        self.name = name
        self.out_dir = out_dir
        self._attest_machine = name

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
            expired = subprocess.TimeoutExpired(self.name, timeout if timeout is None else seconds(timeout))
            expired._attest = e._attest
            raise expired from None

    def connect(self):
        """Waits until the guest answers."""
        self._operate("execute", "true")

    def log_serial(self, msg):
        """Writes a line to the log of the run."""
        self._operate("log", msg)

    def release(self):
        """Ends the machine."""
        self._operate("crash")

    @property
    def booted(self):
        return self._operate("is_up")

    connected = booted

    def _operate(self, operation, *args, **named):
        return self._engine.invoke(self._on(), operation, args, named)


Machine = QemuMachine


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
            if name in vars(cls):
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


class AssertionTester(unittest.TestCase):
    failureException = errors.RequestedAssertionFailed
