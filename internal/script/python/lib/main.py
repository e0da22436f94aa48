"""Runs a test script: python main.py SCRIPT. Descriptor 3 is the connection."""

import json
import os
import socket
import sys


def main():
    here = sys.path[0]
    os.set_inheritable(3, False)
    sock = socket.socket(fileno=3)
    script, networks = sys.argv[1], json.loads(sys.argv[2])
    sys.argv = [script]

    from test_driver import _protocol
    from test_driver.driver import Driver

    engine = _protocol.Connection(sock)
    driver = Driver(engine, networks)
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    sys.path.append(here)
    pid = os.getpid()

    failed = None
    try:
        with open(script, "rb") as f:
            code = compile(f.read(), script, "exec", dont_inherit=True)
        symbols = driver.test_symbols()
        symbols.update(__name__="__main__", __file__=script, __builtins__=__builtins__)
        driver.tests = code
        symbols["test_script"] = lambda: exec(code, symbols)
        symbols["run_tests"] = symbols["test_script"]
        exec(code, symbols)
        if os.getpid() == pid:
            join_threads()
    except BaseException as e:
        failed = e
    if os.getpid() != pid:
        print(f"{script}: a process that the script has forked has come to the end of the script; it has to end by os._exit", file=sys.stderr)
        sys.stderr.flush()
        os._exit(70)
    end = {} if failed is None else {"error": _protocol.thrown(failed)}
    flush()
    try:
        engine.request("end", end)
    except BaseException:  # such as a second Ctrl-C
        os._exit(1)
    if failed is not None:
        os._exit(0)


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
