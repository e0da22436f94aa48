"""The names that a test script sees."""

import re

import os

from . import _protocol
from .debug import DebugNop
from .errors import MachineError
from .logger import CompositeLogger
from .machine import AssertionTester, BaseMachine, Machine, NspawnMachine, QemuMachine, _Remote, fill, retry
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
    def __init__(self, engine, networks):
        _Remote._engine = PollingCondition._engine = self._engine = engine
        hello = engine.request("hello", {"protocol": _protocol._VERSION, "client": "Python"})
        self.out_dir = hello["out_dir"]
        self.logger = CompositeLogger(engine)
        self.debug = DebugNop()
        self.polling_conditions = []
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
        self.lab = self._classes["lab"]("lab")
        self._machines = {n: QemuMachine(n, self.out_dir) for n in hello["machines"]}
        self.vlans = [VLan(n) for n in networks]
        engine.machine = self._machine
        engine.object = lambda kind, id, name: self._classes[kind](kind, id, name)

    def _machine(self, name):
        m = self._machines.get(name)
        return m if m is not None else QemuMachine(name, self.out_dir)

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

    def create_machine(self, start_command=None, *, name=None, keep_machine_state=False, **more):
        if start_command is not None:
            more["start_command"] = start_command
        if name is not None:
            more["name"] = name
        return self.lab.create_machine(**more)

    def polling_condition(self, *args, **named):
        return polling_condition(*args, **named)

    def test_symbols(self):
        lab = self.lab
        symbols = {
            o: getattr(lab, o) for o in dir(type(lab)) if not o.startswith("_")
        }
        symbols.update(self._globals)
        symbols.update(
            start_all=self.start_all, join_all=self.join_all, machines=self.machines, machines_qemu=self.machines_qemu,
            machines_nspawn=[], vlans=self.vlans, driver=self, log=self.logger, os=os, lab=lab,
            create_machine=self.create_machine, subtest=self.subtest, retry=retry, polling_condition=polling_condition,
            t=AssertionTester(), debug=self.debug, BaseMachine=BaseMachine, QemuMachine=QemuMachine,
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
