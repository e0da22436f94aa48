"""Conditions that have to hold while something else goes on."""

from . import errors
from .machine import retry, seconds


class PollingCondition:
    _engine = None  # the Connection

    def __init__(self, condition, seconds_interval=2.0, description=None):
        self.condition = condition
        self.seconds_interval = seconds_interval
        self.description = description or (condition.__doc__ or "").strip() or condition.__name__
        self._open = []

    def check(self, force=False):
        """Whether it holds."""
        try:
            return self.condition() in (None, True)
        except Exception:
            return False

    def wait(self, timeout_seconds=None, timeout=None):
        """Waits until it holds."""
        retry(lambda last: self.check(), timeout_seconds, timeout)

    def _holds(self):
        return None if self.condition() in (None, True) else False

    def __enter__(self):
        engine = self._engine
        function = engine.register(self._holds)
        try:
            scope = engine.ask(
                "watch", function=function, description=self.description,
                interval=self.seconds_interval, scope=engine.scopes[-1],
            )["scope"]
        except BaseException:
            engine.unregister(function)
            raise
        engine.scopes.append(scope)
        self._open.append((function, scope))

    def __exit__(self, kind, value, traceback):
        engine = self._engine
        function, scope = self._open.pop()
        engine.scopes.pop()
        try:
            engine.ask("finish", scope=scope)
        except errors.PollingConditionError:
            if kind is None:
                raise
        finally:
            engine.unregister(function)


def polling_condition(fun_=None, *, seconds_interval=None, interval=None, description=None):
    if seconds_interval is not None and interval is not None:
        raise TypeError("both seconds_interval and interval are given")
    every = interval if interval is not None else seconds_interval
    every = 2.0 if every is None else seconds(every)

    def decorate(fn):
        return PollingCondition(fn, every, description)

    return decorate if fun_ is None else decorate(fun_)
