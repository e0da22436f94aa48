"""Breakpoints."""


class DebugAbstract:
    """For annotations."""


class DebugNop(DebugAbstract):
    def breakpoint(self, host="127.0.0.1", port=4444):
        """Does nothing: nobody is there to look."""
