"""Exceptions that test scripts see."""


class MachineError(Exception):
    """A machine or this host is not as it has to be: not the script's claim."""


class UnsupportedError(MachineError):
    """Something that this version of attest does not do."""


class RequestedAssertionFailed(AssertionError):
    """A claim of the script does not hold."""


class PollingConditionError(Exception):
    """A polling condition does not hold."""


class ArgumentError(TypeError):
    """A call that makes no sense, whatever the machines do."""
