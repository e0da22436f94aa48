"""QEMU's monitor for programs, as the engine has it."""

from . import errors


class QMPAPIError(RuntimeError):
    """An error that QEMU has answered with."""


class QMPSession:
    """The monitor of a machine."""

    def __init__(self, machine):
        self._machine = machine

    def send(self, cmd, args={}):
        """Runs a command, and returns QEMU's reply: a dict whose "return" is the result."""
        try:
            return self._machine.qmp_command(cmd, dict(args))
        except (errors.RequestedAssertionFailed, errors.MachineError) as e:
            failed = QMPAPIError(str(e))
            failed._attest = getattr(e, "_attest", None)
            raise failed from None

    def wait_for_event(self, timeout=10):
        """Returns the next event, as QEMU sends it."""
        try:
            return self._machine.wait_for_qmp_event(_any, timeout)
        except errors.RequestedAssertionFailed as e:
            if e.kind != "wait":
                raise
            expired = TimeoutError(str(e))
            expired._attest = e._attest
            raise expired from None

    def events(self, timeout=10):
        """The events to come, until none comes for this long."""
        while True:
            try:
                yield self.wait_for_event(timeout)
            except TimeoutError:
                return


def _any(event):
    return True
