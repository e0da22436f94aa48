import pathlib
from contextlib import AbstractContextManager
from typing import Any, Callable, Mapping, Sequence

from test_driver.debug import DebugAbstract
from test_driver.logger import CompositeLogger
from test_driver.machine import *
from test_driver.machine import Duration as Duration, Result as Result
from test_driver.vlan import VLan

class Lab:
    ...
# lab operations

class Driver:
    out_dir: pathlib.Path
    config: Any
    logger: CompositeLogger
    debug: DebugAbstract
    vlans: list[VLan]
    polling_conditions: list[Any]
    @property
    def machines(self) -> list[QemuMachine]: ...
    @property
    def machines_qemu(self) -> list[QemuMachine]: ...
    @property
    def machines_nspawn(self) -> list[NspawnMachine]: ...
    def start_all(self) -> None: ...
    def join_all(self) -> None: ...
    def subtest(self, name: str) -> AbstractContextManager[None]: ...
    def create_machine(self, start_command: str | None = None, *, name: str | None = None, keep_machine_state: bool = False, **more: Any) -> QemuMachine: ...
    def test_symbols(self) -> dict[str, Any]: ...
