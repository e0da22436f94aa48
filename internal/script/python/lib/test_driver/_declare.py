"""Test files: what they declare at their top level, as test files in Starlark do.

Nothing is checked here. The engine reads what is declared, and gives machines their names."""

import os

from . import _images, _memory, _protocol, errors
from .machine import QemuMachine


class Image:
    """What debian(…), rootfs(…) and disk(…) return."""

    def __init__(self, kind, fields):
        self._attest_image = {kind: {k: v for k, v in fields.items() if v is not None}}

    def __repr__(self):
        return f"<image {self._attest_image}>"


class Declarations:
    """The functions that declare, for one file, and what they were called with."""

    def __init__(self, script, make):
        self.directory = os.path.dirname(os.path.abspath(script))
        self.make = make  # makes the machine of a number
        self.machines, self.networks = [], []

    def path(self, p):
        return p if not isinstance(p, (str, os.PathLike)) or not os.fspath(p) else os.path.join(self.directory, os.fspath(p))

    def kernel(self, p):
        return p if isinstance(p, str) and p.startswith("debian:") else self.path(p)

    def file(self, f):
        return {k: self.path(v) if k in ("path", "source") else v for k, v in f.items()} if isinstance(f, dict) else f

    def files(self, files):
        return {k: self.file(f) for k, f in files.items()} if isinstance(files, dict) else files

    def image(self, kind):
        """The function that makes images of a kind."""
        arguments = _images.ARGUMENTS[kind]
        at = {"": lambda v: v, "path": self.path, "kernel": self.kernel, "files": self.files}

        def make(*args, **named):
            if len(args) > len(arguments):
                raise errors.ArgumentError(f"{kind}: takes at most {len(arguments)} arguments, not {len(args)}")
            for name, v in zip(arguments, args):
                if name in named:
                    raise errors.ArgumentError(f"{kind}: argument {name} is given twice")
                named[name] = v
            return Image(kind, {name: at[arguments.get(name, "")](v) for name, v in named.items()})

        make.__name__ = make.__qualname__ = kind
        make.__doc__ = "An image, by its arguments (docs/machines.md of attest)."
        return make

    def machine(self, *args, **settings):
        """Declares a machine, by its settings (docs/machines.md of attest)."""
        if args:
            raise errors.ArgumentError("machine: arguments are given by name, as in machine(image=debian())")
        m = self.make(len(self.machines))
        self.machines.append((m, settings, _protocol.here()))
        return m

    def network(self, number, dhcp=True, dns=True, ra=True):
        """Declares which services a network has."""
        self.networks.append({"number": number, "dhcp": dhcp, "dns": dns, "ra": ra, "at": _protocol.here()})

    def symbols(self):
        return {"machine": self.machine, **{kind: self.image(kind) for kind in _images.ARGUMENTS}}


def names(script, machines, driver):
    """The names for a file that runs: its machines are those of the lab."""
    d = Declarations(script, lambda i: driver._machine(machines[i]))
    driver.declare_network = d.network
    return d.symbols()


def early(name):
    """What stands for an operation before there is a lab."""
    if name.startswith("_"):
        raise AttributeError(name)

    def refuse(*args, **named):
        raise errors.ArgumentError(
            f"{name}: there is no lab at the top level of a test file; use machines in setup() and in test_*()"
        )

    return refuse


class Early:
    """An object of a lab, before there is one."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return early(f"{self._name}.{name}")


class _Undeclared(QemuMachine):
    """A machine that no lab has yet."""

    def __init__(self, number):
        super().__init__(f"machine {number + 1}")

    def __getattribute__(self, name):
        if name.startswith("_") or name in ("name", "out_dir"):
            return super().__getattribute__(name)
        return early(name)


class _Network:
    """network(…) declares; the operations of the network are for tests."""

    def __init__(self, declare):
        self._declare = declare

    def __call__(self, *args, **named):
        return self._declare(*args, **named)

    def __getattr__(self, name):
        return early("network." + name)


def load(script, symbols):
    """Runs the top level of a file, and returns what it has declared, as JSON has it."""
    d = Declarations(script, _Undeclared)
    symbols.update(d.symbols(), network=_Network(d.network), __name__="__main__", __file__=script)
    out = {}
    try:
        with open(script, "rb") as f:
            exec(compile(f.read(), script, "exec", dont_inherit=True), symbols)
    except BaseException as e:
        _memory.lift()
        out["error"] = _protocol.thrown(e)
    variables = {}
    for name, v in symbols.items():
        if isinstance(v, _Undeclared):
            variables.setdefault(id(v), name)
    out["machines"] = [
        {"settings": {k: _protocol.encode(v) for k, v in s.items()}, "at": at, "variable": variables.get(id(m), "")}
        for m, s, at in d.machines
    ]
    out["networks"] = d.networks
    out["functions"] = [k for k, v in symbols.items() if callable(v) and getattr(v, "__code__", None)]
    out["keep_on_failure"] = symbols.get("keep_on_failure") is True
    return out
