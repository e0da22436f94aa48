"""The names that a test script sees."""

import contextlib
import datetime
import os
import pathlib
import re
import types

from . import _protocol
from .debug import Debug, DebugNop
from .errors import MachineError
from .logger import CompositeLogger
from .machine import Assertions, BaseMachine, Machine, NspawnMachine, QemuMachine, _Remote, fill, retry
from .polling_condition import PollingCondition, polling_condition
from .vlan import VLan


def pythonize_name(name):
    return re.sub(r"^[^A-Za-z_]|[^A-Za-z0-9_]", "_", name)


class _Kind(_Remote):
    """The lab, or the one object of a kind."""

    def __init__(self, kind):
        self._kind = kind

    def _on(self):
        return {"kind": self._kind}


class Driver:
    def __init__(self, engine, options, script):
        _Remote._engine = PollingCondition._engine = self._engine = engine
        hello = engine.request("hello", {"protocol": _protocol._VERSION, "client": "Python"})
        self.out_dir = pathlib.Path(hello["out_dir"])
        self.logger = _Remote._logger = CompositeLogger(engine)
        self.debug = Debug(self.logger, options["attach"]) if options.get("attach") else DebugNop()
        self.polling_conditions = []
        self.declare_network = None
        self._classes = {}
        for kind, k in hello["kinds"].items():
            if kind == "machine":
                fill(QemuMachine, k["operations"])
                continue
            base = (_Kind,) if kind == "lab" or k.get("global") else (_protocol.Object, _Remote)
            self._classes[kind] = cls = type(kind, base, {})
            if base[0] is _protocol.Object:
                cls._on = lambda self: {"object": self._id}
            fill(cls, k["operations"])
        self._globals = {k["global"]: self._classes[kind](kind) for kind, k in hello["kinds"].items() if k.get("global")}
        if "network" in self._classes:
            self._classes["network"].__call__ = self._network
        self._classes["lab"].fork = self._fork
        self.lab = self._classes["lab"]("lab")
        starts = options["starts"]
        self._machines = {n: QemuMachine(n, self.out_dir, starts.get(n)) for n in hello["machines"]}
        self.vlans = [VLan(n) for n in options["networks"]]
        self.config = types.SimpleNamespace(
            vms={n: types.SimpleNamespace(name=n, start_script=s) for n, s in starts.items()}, containers={}, display_viewers={},
            vlans=options["networks"], global_timeout=datetime.timedelta(seconds=options.get("seconds", 0)),
            enable_ssh_backdoor=False, test_script=pathlib.Path(script),
        )
        engine.machine = self._machine
        engine.object = lambda kind, id, name: self._classes[kind](kind, id, name)

    def _machine(self, name):
        m = self._machines.get(name)
        return m if m is not None else QemuMachine(name, self.out_dir)

    def _network(self, *args, **named):
        if self.declare_network is None:
            raise TypeError("networks are declared at the top level of a test file that declares machines")
        return self.declare_network(*args, **named)

    @contextlib.contextmanager
    def _fork(self):
        """In a with block, operations go to a copy of the lab, which is gone after it."""
        engine = self._engine
        scope = engine.ask("fork", scope=engine.scopes[-1], at=_protocol.here())["scope"]
        engine.scopes.append(scope)
        try:
            yield self.lab
        finally:
            engine.scopes.pop()
            engine.ask("finish", scope=scope)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    @property
    def machines(self):
        return sorted(self._machines.values(), key=lambda m: m.name)

    machines_qemu = machines

    @property
    def machines_nspawn(self):
        return []

    def start_all(self):
        self.lab.start_all()

    def join_all(self):
        self.lab.join_all()

    def subtest(self, name):
        return self.logger.subtest(name)

    def retry(self, *args, **named):
        return retry(*args, **named)

    def serial_stdout_on(self):
        self.logger.print_serial_logs(True)

    def serial_stdout_off(self):
        self.logger.print_serial_logs(False)

    def dump_machine_ssh(self):
        """Says how to get to each machine: there is no SSH backdoor."""
        for m in self.machines:
            self.logger.log(f"{m.name}: no SSH backdoor; {m.name}.shell_interact() at a prompt is a shell there")

    def create_machine(self, start_command=None, *, name=None, keep_machine_state=False, keep_vm_state=False, **more):
        if isinstance(start_command, dict):  # before NixOS 24.11
            given = dict(start_command)
            start_command, name = given.pop("startCommand", None), given.pop("name", name)
            if given or start_command is None:
                raise TypeError(f"create_machine: the dictionary has {', '.join(map(str, given)) or 'no startCommand'}; want startCommand and name")
        if keep_machine_state or keep_vm_state:
            self.logger.warning("create_machine: keep_machine_state has no effect; -K (--keep-machine-state) keeps the state of all machines")
        if start_command is not None:
            more["start_command"] = start_command
        if name is not None:
            more["name"] = name
        m = self.lab.create_machine(**more)
        m.start_command = start_command
        return m

    def polling_condition(self, *args, **named):
        return polling_condition(*args, **named)

    def test_symbols(self):
        lab = self.lab
        symbols = {
            o: getattr(lab, o) for o in dir(type(lab)) if not o.startswith("_") and o != "fork"
        }
        symbols.update(self._globals)
        symbols.update(
            start_all=self.start_all, join_all=self.join_all, machines=self.machines, machines_qemu=self.machines_qemu,
            machines_nspawn=[], vlans=self.vlans, driver=self, log=self.logger, os=os, lab=lab,
            create_machine=self.create_machine, subtest=self.subtest, retry=retry, polling_condition=polling_condition,
            serial_stdout_on=self.serial_stdout_on, serial_stdout_off=self.serial_stdout_off,
            dump_machine_ssh=self.dump_machine_ssh, t=Assertions(), debug=self.debug, BaseMachine=BaseMachine, QemuMachine=QemuMachine,
            NspawnMachine=NspawnMachine, Machine=Machine,
        )
        for v in self.vlans:
            symbols[f"vlan{v.nr}"] = v
        machines = self.machines
        for m in machines:
            symbols[pythonize_name(m.name)] = m
        if len(machines) == 1:
            symbols.setdefault("machine", machines[0])
        return symbols


def early_symbols(machines):
    """What the top level of a test file sees before there is a lab; machines are names."""
    from ._declare import Early, early

    symbols = {
        name: early(name)
        for name in (
            "start_all", "join_all", "create_machine", "subtest", "checkpoint", "restore", "serial_stdout_off", "serial_stdout_on",
            "dump_machine_ssh", "test_script", "run_tests",
        )
    }
    symbols.update(
        retry=retry, polling_condition=polling_condition, t=Assertions(), debug=DebugNop(), os=os, machines=[], machines_qemu=[],
        machines_nspawn=[], vlans=[], driver=Early("driver"), log=Early("log"), lab=Early("lab"),
        BaseMachine=BaseMachine, QemuMachine=QemuMachine, NspawnMachine=NspawnMachine, Machine=Machine,
    )
    symbols.update((pythonize_name(name), Early(name)) for name in machines)
    return symbols
