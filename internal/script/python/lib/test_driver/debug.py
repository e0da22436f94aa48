"""Breakpoints: Python's debugger over a connection to this host."""

import sys


class DebugAbstract:
    """For annotations."""

    def breakpoint(self, host="127.0.0.1", port=4444):
        """Stops the script, for a person to look at it."""


class DebugNop(DebugAbstract):
    """Nobody is there to look."""

    def breakpoint(self, host="127.0.0.1", port=4444):
        """Does nothing."""

    def after(self, failure):
        """Does nothing."""


class Debug(DebugAbstract):
    """Waits for a person who connects with telnet or nc."""

    port = 4444  # of after

    def __init__(self, logger, attach):
        self._logger, self._attach = logger, attach

    def breakpoint(self, host="127.0.0.1", port=4444):
        """Waits until somebody connects to the port, and gives them Python's debugger there."""
        self._debugger(host, port).set_trace(sys._getframe(1))

    def after(self, failure):
        """Gives a person the debugger where the script has failed."""
        from . import _protocol

        told, stack = _protocol.thrown(failure), _protocol.own_traceback(failure.__traceback__)
        if stack is None:
            return
        at = told["stack"][-1]
        what = ": ".join(x for x in (told["class"], told["message"]) if x)
        self._logger.log_test_error(f"{at['file']}:{at['line']}: {what}")
        try:
            debugger = self._debugger("127.0.0.1", self.port)
        except OSError as e:
            self._logger.warning(f"no breakpoint: {e}")
            return
        debugger.reset()
        debugger.interaction(None, stack)

    def _debugger(self, host, port):
        import pdb
        import random
        import socket
        import subprocess

        with socket.create_server((host, port)) as server:
            number = str(random.randrange(1 << 20, 1 << 30))
            # The attach program finds where this process runs by that one.
            marker = subprocess.Popen(["sleep", number], stdin=subprocess.DEVNULL)
            try:
                attach = f"'sudo {self._attach} {number}', then " if self._attach else ""
                self._logger.log_test_error(f"Breakpoint reached, run {attach}'telnet {host} {server.getsockname()[1]}'")
                connection, _ = server.accept()
            finally:
                marker.kill()
                marker.wait()
        # Two streams: one that reads and writes drops at each write what it has read ahead.
        return pdb.Pdb(stdin=connection.makefile("r"), stdout=connection.makefile("w"), nosigint=True)
