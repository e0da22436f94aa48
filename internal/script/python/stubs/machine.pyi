import datetime
import unittest
from contextlib import AbstractContextManager
from typing import Any, Callable, Mapping, Sequence

Duration = datetime.timedelta | int | float | str

class Result(tuple[int, str]):
    exit_code: int
    stdout: str
    stderr: str
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration: float

def retry(fn: Callable[..., Any], timeout_seconds: float | None = None, timeout: datetime.timedelta | None = None) -> None: ...

class BaseMachine:
    name: str
    out_dir: str
    def nested(self, msg: str, attrs: dict[str, str] = {}) -> AbstractContextManager[None]: ...
    def sleep(self, secs: float | None = None, duration: datetime.timedelta | None = None) -> None: ...
    def wait_for_shutdown(self, timeout: Duration | None = None) -> None: ...
    def connect(self) -> None: ...
    def release(self) -> None: ...
    def log_serial(self, msg: str) -> None: ...
    @property
    def booted(self) -> bool: ...
    @property
    def connected(self) -> bool: ...
# machine operations

class QemuMachine(BaseMachine): ...

class NspawnMachine(BaseMachine): ...

Machine = QemuMachine

class AssertionTester(unittest.TestCase): ...

# other kinds
