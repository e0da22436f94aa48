"""Runs a test script: python main.py SCRIPT. Descriptor 3 is the connection, and from 4 come the
options, once it is certain that the script runs.

They are JSON: networks (numbers), starts (the start commands of machines that have one), seconds (the limit of the run), call (a function of a test file; none: the file is a
script), machines (the names of those that the file declares, in their order), memory (bytes that it may have), driver (as the
NixOS test driver runs it), attach (its debug hook), prompt (the path of a history: somebody types), after (the script runs before that)."""

import json
import os
import socket
import sys


def main():
    here = sys.path[0]
    os.set_inheritable(3, False)
    sock = socket.socket(fileno=3)
    script = sys.argv[1]
    sys.argv = [script]

    from test_driver import _memory, _protocol
    from test_driver.driver import Driver

    with open(4) as f:
        text = f.read()
    if not text:
        os._exit(0)
    options = json.loads(text)
    engine = _protocol.Connection(sock)
    driver = Driver(engine, options, script)
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    sys.path.append(here)
    pid = os.getpid()
    _memory.limit(options["memory"])

    failed = None
    try:
        run(driver, script, options)
        if os.getpid() == pid:
            join_threads()
    except BaseException as e:
        _memory.lift()
        failed = e
    if os.getpid() != pid:
        print(f"{script}: a process that the script has forked has come to the end of the script; it has to end by os._exit", file=sys.stderr)
        sys.stderr.flush()
        os._exit(70)
    end = {} if failed is None else {"error": _protocol.thrown(failed, options.get("driver"))}
    if failed is not None and options.get("attach") and not isinstance(failed, (SystemExit, KeyboardInterrupt)):
        driver.debug.after(failed)
    flush()
    try:
        engine.request("end", end)
    except BaseException:  # such as a second Ctrl-C
        os._exit(1)
    if failed is not None:
        os._exit(0)


def run(driver, script, options):
    symbols = driver.test_symbols()
    symbols.update(__name__="__main__", __file__=script, __builtins__=__builtins__)
    prompt = "prompt" in options
    code = None
    if not prompt or script:
        with open(script, "rb") as f:
            code = compile(f.read(), script, "exec", dont_inherit=True)
    driver.tests = code

    def test_script():
        __tracebackhide__ = True
        driver.logger.log("run the VM test script")
        exec(code, symbols)

    def run_tests():
        test_script()
        for m in driver.machines:
            if m.is_up():
                m.execute("sync")

    driver.test_script, driver.run_tests = test_script, run_tests
    symbols["test_script"], symbols["run_tests"] = test_script, run_tests
    if prompt:
        from test_driver import _prompt

        return _prompt.talk(driver, symbols, options)
    if "call" not in options:
        return exec(code, symbols)
    from test_driver import _declare

    symbols.update(_declare.names(script, options.get("machines", ()), driver))
    exec(code, symbols)
    return symbols[options["call"]]()


def join_threads():
    import threading

    for t in threading.enumerate():
        if t is not threading.current_thread() and not t.daemon:
            t.join()


def flush():
    for f in (sys.stdout, sys.stderr):
        try:
            f.flush()
        except Exception:
            pass


main()
