"""A prompt with everything that a script sees."""

import code
import os
import sys
import traceback

from . import _protocol


def talk(driver, symbols, options):
    names = [k for k in symbols if not k.startswith("_")]
    machines = [m.name for m in driver.machines]
    print("machines: " + (", ".join(machines) or "none"))
    print("start_all() starts them, test_script() runs the script; also: " + ", ".join(sorted(set(names) - set(machines))))
    sys.stdout.flush()
    if options.get("after"):
        _run_first(symbols)
    for embed in (_ptpython, _ipython):
        if os.isatty(0) and embed(symbols, options["prompt"]):
            return
    _standard(symbols, options["prompt"])


def _run_first(symbols):
    try:
        symbols["test_script"]()
    except Exception:
        _Console(symbols, "<prompt>").showtraceback()


def _ptpython(symbols, history):
    try:
        from ptpython.repl import embed
    except ImportError:
        return False
    embed(symbols, symbols, history_filename=history or None)
    return True


def _ipython(symbols, history):
    try:
        from IPython.terminal.embed import InteractiveShellEmbed
    except ImportError:
        return False
    InteractiveShellEmbed(user_ns=symbols, banner1="", confirm_exit=False)()
    return True


def _standard(symbols, history):
    readline = _line_editing(symbols, history) if os.isatty(0) else None
    if not os.isatty(0):
        sys.ps1 = sys.ps2 = ""
    try:
        _Console(symbols, "<prompt>").interact(banner="", exitmsg="")
    except SystemExit:
        pass
    if readline is not None and history:
        try:
            os.makedirs(os.path.dirname(os.path.abspath(history)), exist_ok=True)
            readline.write_history_file(history)
        except OSError:
            pass


def _line_editing(symbols, history):
    try:
        import readline
        import rlcompleter
    except ImportError:
        return None
    readline.set_completer(rlcompleter.Completer(symbols).complete)
    readline.parse_and_bind("tab: complete")
    try:
        readline.read_history_file(history)
    except OSError:
        pass
    return readline


class _Console(code.InteractiveConsole):
    def showtraceback(self):
        """The calls of the script and of what was typed, and none of attest's own."""
        kind, e, tb = sys.exc_info()
        stack = [f for f in traceback.extract_tb(tb) if _protocol.own(f.filename) or f.filename == self.filename]
        head = ["Traceback (most recent call last):\n"] if stack else []
        self.write("".join(head + traceback.format_list(stack) + traceback.format_exception_only(kind, e)))
