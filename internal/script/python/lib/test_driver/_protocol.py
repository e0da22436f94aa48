"""The connection to the engine: docs/protocol.md of attest."""

import base64
import datetime
import functools
import json
import os
import sys
import threading

from . import _memory, errors

_VERSION = 1
_INLINE = 1 << 20  # longer parameters go as data
_PIECE = 512 << 10  # of data, so that a piece is not too long itself
_TEXT = 64 << 10

_HERE = os.path.dirname(os.path.abspath(__file__))
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


@functools.lru_cache(maxsize=None)  # it is asked for each operation
def own(filename):
    """Whether a frame is the script's: neither this package's nor Python's."""
    if filename.startswith("<"):
        return False
    path = os.path.abspath(filename)
    if path.startswith(os.path.dirname(_HERE) + os.sep):
        return False
    return not path.startswith(_LIBRARY) or "site-packages" in path


def here():
    """Where the script is."""
    frame = sys._getframe(1)
    while frame is not None:
        if own(frame.f_code.co_filename):
            return _position(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return None


def _position(code, line):
    return {"file": code.co_filename, "line": line, "function": code.co_name}


class Object:
    """An object with operations that an operation has returned."""

    def __init__(self, kind, id, name):
        self._kind, self._id, self._name = kind, id, name

    def __repr__(self):
        return f"<{self._kind} {self._name}>"


class Result(tuple):
    """The pair of status and output, with everything about the command."""

    def __new__(cls, status, output):
        return super().__new__(cls, (status, output))


class Failure(Exception):
    """An error reply of the engine."""

    def __init__(self, error):
        super().__init__(error.get("message", ""))
        self.code = error.get("code")
        self.data = error.get("data") or {}


class _Slot:
    __slots__ = ("lock", "reply")

    def __init__(self):
        self.lock = threading.Lock()
        self.lock.acquire()
        self.reply = None


def encode(v, register=None):
    """A value as the protocol has it; register gives a function its number."""
    if v is None or isinstance(v, (bool, int, float)):
        return v
    if isinstance(v, str):
        try:
            text = v.encode()
        except UnicodeEncodeError as e:
            raise errors.ArgumentError(f"a text that is not Unicode ({e}); give bytes where they are taken") from None
        return {"$text": base64.b64encode(text).decode()} if len(text) > _TEXT else v
    if isinstance(v, datetime.timedelta):
        return v.total_seconds()
    if isinstance(v, (bytes, bytearray)):
        return {"$bytes": base64.b64encode(v).decode()}
    if isinstance(v, os.PathLike):
        return os.fspath(v)
    for attribute, key in (("_attest_machine", "$machine"), ("_attest_image", "$image")):
        x = getattr(v, attribute, None)
        if x is not None:
            return {key: encode(x)}
    if isinstance(v, Object):
        return {"$object": {"id": v._id}}
    if isinstance(v, (list, tuple)):
        return [encode(x, register) for x in v]
    if isinstance(v, dict) and all(isinstance(k, str) for k in v):
        d = {k: encode(x, register) for k, x in v.items()}
        return {"$dict": d} if len(d) == 1 and next(iter(d)).startswith("$") else d
    if callable(v) and register is not None:
        return {"$function": register(v)}
    return {"$other": type(v).__name__}


class Connection:
    def __init__(self, sock):
        self._sock = sock
        self._reader = sock.makefile("rb", 64 << 10)
        self._write = threading.Lock()
        self._mutex = threading.Lock()
        self._last = 0
        self._slots = {}
        self._functions = {}
        self._local = threading.local()
        self._main = [0]  # the scopes of the main thread
        self._local.scopes = self._main
        self._pid = os.getpid()
        self.machine = None  # makes a machine of a name
        self.object = None  # makes an object of a kind, a number and a name
        os.register_at_fork(after_in_child=self._forked)
        threading.Thread(target=self._read, name="attest", daemon=True).start()

    def _forked(self):
        self._sock.close()

    # Messages

    def _send(self, message):
        if os.getpid() != self._pid:
            raise errors.MachineError(
                "machines cannot be used in a process that the script has forked; use threads (threading, concurrent.futures)"
            )
        message["jsonrpc"] = "2.0"
        line = json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._write:
            self._sock.sendall(line)

    def _read(self):
        for line in self._reader:
            message = json.loads(line)
            id = message.get("id")
            if "method" not in message:
                slot = self._slots.pop(id, None)
                if slot is not None:
                    slot.reply = message
                    slot.lock.release()
            elif message["method"] == "call":
                threading.Thread(
                    target=self._called, args=(id, message["params"]), daemon=True
                ).start()
        # Without the engine there is nothing to do any more.
        os._exit(75)

    def request(self, method, params):
        """A request, and its result as the engine has sent it."""
        return self.wait(self.start(method, params))

    def start(self, method, params):
        try:
            text = json.dumps(params, allow_nan=False, separators=(",", ":"))
        except ValueError as e:
            raise errors.ArgumentError(str(e)) from None
        if len(text) > _INLINE:
            params = {"$data": self._put(text.encode())}
        slot = _Slot()
        with self._mutex:
            self._last += 1
            id = self._last
            self._slots[id] = slot
        self._send({"id": id, "method": method, "params": params})
        return id, slot

    def wait(self, started):
        id, slot = started
        try:
            slot.lock.acquire()
        except BaseException:
            self._send({"method": "cancel", "params": {"id": id}})
            raise
        error = slot.reply.get("error")
        if error is not None:
            raise Failure(error)
        result = slot.reply.get("result")
        if isinstance(result, dict) and "$data" in result:
            return self._get(**result["$data"])
        return result

    def _put(self, data):
        id = 0
        for i in range(0, len(data), _PIECE):
            piece = base64.b64encode(data[i : i + _PIECE]).decode()
            id = self.request("write", {"data": id, "bytes": piece})["data"]
        return id

    def _get(self, id, size):
        pieces = []
        for offset in range(0, size, _PIECE):
            piece = self.request("read", {"data": id, "offset": offset, "length": _PIECE})
            pieces.append(base64.b64decode(piece["$bytes"]))
        self.request("release", {"data": id})
        return json.loads(b"".join(pieces))

    # Scopes

    @property
    def scopes(self):
        try:
            return self._local.scopes
        except AttributeError:
            # A thread of the script is where its main thread was.
            self._local.scopes = [self._main[-1]]
            return self._local.scopes

    # Values

    def encode(self, v, functions):
        def register(fn):
            functions.append(self.register(fn))
            return functions[-1]

        return encode(v, register)

    def decode(self, v):
        if isinstance(v, list):
            return [self.decode(x) for x in v]
        if not isinstance(v, dict):
            return v
        if len(v) == 1:
            (key, x), = v.items()
            if key == "$text":
                return base64.b64decode(x).decode()
            if key == "$bytes":
                return base64.b64decode(x)
            if key == "$machine":
                return self.machine(x)
            if key == "$object":
                return self.object(x["kind"], x["id"], x.get("name", ""))
            if key == "$result":
                return self._result(x)
            if key == "$dict":
                v = x
        return {k: self.decode(x) for k, x in v.items()}

    def _result(self, v):
        streams = {}
        for name in ("stdout", "stderr"):
            x = self.decode(v[name])
            if isinstance(x, bytes):
                streams[name], streams[name + "_bytes"] = x.decode(errors="replace"), x
            else:
                streams[name], streams[name + "_bytes"] = x, x.encode()
        r = Result(v["status"], "" if v.get("detached") else streams["stdout"])
        r.exit_code, r.duration, r.timed_out = v["exit_code"], v["duration"], v.get("timed_out", False)
        r.__dict__.update(streams)
        return r

    # Operations

    def begin(self, on, operation, args, named):
        """Begins an operation; complete gives its result."""
        functions = []
        params = {"on": on, "operation": operation, "scope": self.scopes[-1], "at": here()}
        if args:
            params["args"] = [self.encode(x, functions) for x in args]
        if named:
            params["named"] = {k: self.encode(x, functions) for k, x in named.items()}
        return self.start("invoke", params), functions

    def complete(self, begun, operation="", args=()):
        __tracebackhide__ = True  # as IPython and others understand it
        started, functions = begun
        try:
            return self.decode(self.wait(started))
        except Failure as e:
            failed = exception(e, operation, args)
            for id in reversed(functions):
                failed = self._functions[id][1] or failed
        finally:
            for id in functions:
                self._functions.pop(id, None)
        raise failed  # out here, so that it has no context, which prompts show

    def invoke(self, on, operation, args, named):
        __tracebackhide__ = True
        return self.complete(self.begin(on, operation, args, named), operation, args or list(named.values()))

    def ask(self, method, **params):
        """A request that is not an operation."""
        try:
            return self.request(method, params)
        except Failure as e:
            raise exception(e) from None

    def register(self, fn):
        with self._mutex:
            self._last += 1
            self._functions[self._last] = [fn, None]
            return self._last

    def unregister(self, id):
        self._functions.pop(id, None)

    def _called(self, id, params):
        entry = self._functions.get(params["function"])
        self._local.scopes = [params["scope"]]
        try:
            if entry is None:
                raise errors.MachineError("the function is not there any more")
            value = entry[0](*[self.decode(x) for x in params.get("args", [])])
            reply = {"id": id, "result": encode(value)}
        except BaseException as e:
            if entry is not None:
                entry[1] = e
            reply = {"id": id, "error": {"code": 1, "message": str(e), "data": {"thrown": thrown(e)}}}
        try:
            self._send(reply)
        except OSError:
            pass


def exception(failure, operation="", args=()):
    """The exception that stands for an error reply. Its text begins as that of the NixOS test driver."""
    data = failure.data
    kind, status = data.get("kind"), data.get("status")
    details = data.get("failure") or {}
    message = str(failure)
    if status == "interrupted":
        e = KeyboardInterrupt(message)
    elif kind == "condition":
        e = errors.PollingConditionError(message)
    elif kind in ("argument", "unknown_object") or failure.code == -32602:
        e = errors.ArgumentError(message)
    elif kind == "command":
        e = errors.RequestedAssertionFailed(_command_text(message, details))
    elif kind in ("wait", "unit"):
        e = errors.RequestedAssertionFailed(_wait_text(message, details, operation, args))
    elif status == "failed" and kind not in ("down", "paused", "agent"):
        e = errors.RequestedAssertionFailed(message)
    elif status == "unsupported":
        e = errors.UnsupportedError(message)
    else:
        e = errors.MachineError(message)
    e._attest = data.get("error", 0)
    e.kind, e.status, e.failure = kind, status, data.get("failure")
    return e


def _command_text(message, details):
    command, code = details.get("command", ""), details.get("exit_code")
    if details.get("operation") == "fail" or message.endswith("unexpectedly succeeded"):
        return f"command `{command}` unexpectedly succeeded"
    return f"command `{command}` failed (exit code {code})"


def _wait_text(message, details, operation, args):
    import re

    over = re.search(r" timed out after \S+ \(limit ([^,)]+)", message)
    ended = re.search(r" can no longer succeed: (reached state \"\w+\")?", message)
    state = re.search(r"is in state \"?(\w+)", message)
    unit = args[0] if args else ""
    if over:
        elapsed = details.get("duration", 0) / 1e9
        return f"action timed out after {elapsed:.2f} seconds (timeout={over[1]}): {message}"
    if ended and operation == "wait_for_unit" and (ended[1] or "last seen: inactive" in message):
        return f'unit "{unit}" {ended[1] or "is inactive and there are no pending jobs"} ({message})'
    if operation == "require_unit_state" and state:
        wanted = args[1] if len(args) > 1 else "active"
        return f"Expected unit '{unit}' to to be in state '{wanted}' but it is in state '{state[1]}' ({message})"
    return message


def own_traceback(tb):
    """A traceback without the calls that are not the script's at its ends; None if it has none."""
    last = None
    t = tb
    while t is not None:
        if own(t.tb_frame.f_code.co_filename):
            last = t
        t = t.tb_next
    if last is None:
        return None
    while not own(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    last.tb_next = None
    return tb


def thrown(e, driver=False):
    """An exception as the engine is told. driver: sys.exit says how the test has ended."""
    import linecache
    import traceback

    stack, tb = [], e.__traceback__
    while tb is not None:
        if own(tb.tb_frame.f_code.co_filename):
            stack.append(_position(tb.tb_frame.f_code, tb.tb_lineno))
        tb = tb.tb_next
    if isinstance(e, SyntaxError) and e.filename and own(e.filename):
        stack.append({"file": e.filename, "line": e.lineno or 0, "function": ""})
    source = linecache.getline(stack[-1]["file"], stack[-1]["line"]).rstrip("\n") if stack else ""
    out = {"class": type(e).__name__, "message": str(e), "stack": [_frame(x) for x in stack[-100:]], "source": source}
    if getattr(e, "_attest", 0):
        out["error"] = e._attest
    if isinstance(e, errors.ArgumentError):
        out["status"] = "invalid"
    elif isinstance(e, errors.UnsupportedError):
        out["status"] = "unsupported"
    if isinstance(e, AssertionError) and not isinstance(e, errors.RequestedAssertionFailed):
        if not e.args:
            out["class"], out["message"] = "", "the assertion does not hold: " + source.strip()
    elif isinstance(e, (errors.RequestedAssertionFailed, errors.MachineError, errors.ArgumentError)):
        out["class"] = "" if out["message"] else out["class"]
    elif isinstance(e, SystemExit) and driver:
        out["class"], out["message"], out["exit"] = "", f"the script called sys.exit({'' if e.code is None else repr(e.code)})", _exit_code(e.code)
    elif isinstance(e, SystemExit):
        out["class"], out["message"] = "", f"the script called sys.exit({'' if e.code is None else repr(e.code)}), which does not say whether the test has passed; a test passes by reaching its end, and fails by an exception"
    elif isinstance(e, MemoryError) and not out["message"]:
        out["class"], out["message"] = ("", _memory.exceeded()) if _memory.exceeded() else ("MemoryError", "")
    elif isinstance(e, KeyboardInterrupt) and not out["message"]:
        out["message"] = "interrupted"
    if len(out["message"]) > 64 << 10:
        out["message"] = out["message"][: 64 << 10] + "…"
    return out


def _exit_code(code):
    """What Python makes of the argument of sys.exit."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _frame(p):
    f = {"file": p["file"], "line": p["line"]}
    if p["function"]:
        f["func"] = p["function"]
    return f
