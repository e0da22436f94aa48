"""The log of the run."""

import contextlib
import enum

from . import _protocol


class LogLevel(enum.IntEnum):
    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


class AbstractLogger:
    """For annotations."""


class TerminalLogger(AbstractLogger):
    """For annotations."""


class XMLLogger(AbstractLogger):
    """For annotations."""


class JunitXMLLogger(AbstractLogger):
    """For annotations."""


class CompositeLogger(AbstractLogger):
    def __init__(self, engine):
        self._engine = engine

    def _log(self, level, text, machine=""):
        e = self._engine
        e.ask("log", level=level, text=str(text), machine=machine, scope=e.scopes[-1], at=_protocol.here())

    def log(self, msg, attrs={}):
        self._log("info", msg)

    info = log

    def debug(self, msg, attrs={}):
        self._log("debug", msg)

    def warning(self, msg, attrs={}):
        self._log("warning", msg)

    def log_test_error(self, msg, attrs={}):
        self._log("error", msg)

    def error(self, msg, attrs={}):
        """Writes the line, and ends the test with it."""
        from .errors import RequestedAssertionFailed

        raise RequestedAssertionFailed(str(msg))

    def log_serial(self, message, machine):
        self._log("info", message, machine)

    def print_serial_logs(self, enable):
        e = self._engine
        e.invoke({"kind": "lab"}, "serial_stdout_on" if enable else "serial_stdout_off", (), {})

    def set_log_level(self, level):
        """Does nothing: what is shown is for the command line to say."""

    def add_logger(self, logger):
        """Does nothing: the run has one log."""

    def nested(self, message, attrs={}):
        return self.subtest(message)

    @contextlib.contextmanager
    def subtest(self, name, attrs={}):
        e = self._engine
        scope = e.ask("begin", name=name, scope=e.scopes[-1])["scope"]
        e.scopes.append(scope)
        try:
            yield
        except BaseException as x:
            e.scopes.pop()
            e.ask("finish", scope=scope, error=_protocol.thrown(x))
            raise
        e.scopes.pop()
        e.ask("finish", scope=scope)
