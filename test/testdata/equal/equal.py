"""Every method that a guest answers, with results that do not depend on the way to it."""
import json
import os
import pathlib
import resource
import tempfile
import threading
from datetime import timedelta

# What each case gives is a line of JSON; an exception is its class and, of commands, its message.
def case(name, fn):
    try:
        result = fn()
    except Exception as e:
        text = str(e).splitlines()[0] if type(e).__name__ == "RequestedAssertionFailed" and "command" in str(e) else ""
        result = ["raised", type(e).__name__, text]
    print(json.dumps([name, result]), flush=True)

def full(r):
    return [r.exit_code, r.stdout, r.stderr, isinstance(r.duration, float)]

box.wait_for_unit("multi-user.target")
scratch = tempfile.TemporaryDirectory()
tmp = pathlib.Path(scratch.name)
case("execute", lambda: list(box.execute("echo out; echo err >&2; exit 3")))
case("execute in full", lambda: full(box.execute("printf out; printf err >&2; exit 3")))
case("execute unchecked", lambda: list(box.execute("exit 3", check_return=False)))
case("execute detached", lambda: list(box.execute("touch /tmp/detached; sleep 100", check_output=False)))
case("after that", lambda: list(box.execute("until [ -e /tmp/detached ]; do sleep 0.1; done; echo mine")))
case("execute timeout", lambda: list(box.execute("echo early; sleep 1000", timeout=2)))
case("not UTF-8", lambda: list(box.execute(r"printf 'a\377b\303\244'")))
case("not UTF-8, succeed", lambda: box.succeed(r"printf 'a\377\376b\342\202'"))
case("bytes", lambda: box.execute(r"printf '\0\1\377'").stdout_bytes.hex())
case("succeed", lambda: box.succeed("echo one", "echo two", timeout=timedelta(seconds=60)))
case("succeed fails", lambda: box.succeed("echo x; exit 4"))
case("fail", lambda: box.fail("echo x; false"))
case("fail succeeds", lambda: box.fail("true"))
case("options", lambda: box.succeed('cat; echo "$A"; pwd; id -un', stdin="typed\n", env={"A": "b 'c'"}, cwd="/usr", user="nobody"))
case("surroundings", lambda: box.succeed("echo $USER $HOME $DISPLAY $SHLVL $0 [$PAGER] $-; pwd; umask; ls /proc/self/fd | wc -l; cat /proc/self/cgroup; env | cut -d= -f1 | grep -v '^_$' | sort; grep SigIgn /proc/self/status; cat /proc/self/stat | cut -d' ' -f7"))
case("pipefail", lambda: list(box.execute("false | true")))
case("nounset", lambda: list(box.execute("echo $NOTHING")))
case("SIGPIPE", lambda: full(box.execute("yes | head -n 1")))
case("signal", lambda: list(box.execute("kill -INT $$; echo no")))
case("long script", lambda: box.succeed(": " + "x" * 200_000 + "; echo long"))
case("large output", lambda: len(box.succeed("seq 200000")))
case("wait_until_succeeds", lambda: box.wait_until_succeeds("echo x >> /tmp/tries; test $(wc -l < /tmp/tries) = 3; echo ok", timeout=60))
case("wait_until_fails", lambda: box.wait_until_fails("rm /tmp/tries", timeout=60))
case("wait in vain", lambda: box.wait_until_succeeds("false", timeout=1))
case("systemctl", lambda: list(box.systemctl("is-active multi-user.target")))
case("units", lambda: [box.get_unit_property("multi-user.target", "ActiveState"), box.get_unit_info("multi-user.target")["Id"]])
case("no property", lambda: box.get_unit_property("multi-user.target", "Nothing"))
case("require_unit_state", lambda: box.require_unit_state("multi-user.target"))
case("require another", lambda: box.require_unit_state("multi-user.target", "failed"))
box.succeed("systemctl reset-failed", r"printf '[Service]\nExecStart=/bin/sleep 1000\n' > /run/systemd/system/slow.service; printf '[Service]\nExecStart=/bin/false\n' > /run/systemd/system/bad.service; systemctl daemon-reload")
case("start_job", lambda: list(box.start_job("slow.service")))
case("wait_for_unit", lambda: box.wait_for_unit("slow", timeout=60))
case("stop_job", lambda: list(box.stop_job("slow.service")))
case("inactive", lambda: box.wait_for_unit("slow", timeout=60))
box.execute("systemctl start bad")
case("failed", lambda: box.wait_for_unit("bad", timeout=60))
case("no unit", lambda: box.wait_for_unit("nothing-at-all", timeout=60))
case("journal", lambda: "Main process exited" in box.journal("bad.service"))
case("wait_for_file", lambda: box.wait_for_file("/etc/passwd", timeout=60))
case("no file", lambda: box.wait_for_file("/etc/nothing", timeout=1))
box.succeed("systemd-run --unit=echo -p StandardOutput=null systemd-socket-activate --accept --inetd -l 7777 echo hello")
case("wait_for_open_port", lambda: box.wait_for_open_port(7777, timeout=60))
case("its address", lambda: box.wait_for_open_port(7777, addr="127.0.0.1", timeout=60))
box.succeed("systemctl stop echo")
case("wait_for_closed_port", lambda: box.wait_for_closed_port(7777, timeout=60))
case("no port", lambda: box.wait_for_open_port(7778, timeout=1))
case("wait_for_open_unix_socket", lambda: box.wait_for_open_unix_socket("/run/systemd/private", timeout=60))
case("a datagram socket", lambda: box.wait_for_open_unix_socket("/run/systemd/journal/socket", is_datagram=True, timeout=60))
case("no socket", lambda: box.wait_for_open_unix_socket("/run/nothing", timeout=1))
(tmp / "tree" / "sub").mkdir(parents=True)
(tmp / "tree" / "sub" / "a file").write_bytes(bytes(range(256)) * 100)
os.symlink("sub/a file", tmp / "tree" / "link")
case("copy_from_host", lambda: [box.copy_from_host(str(tmp / "tree"), "/srv/tree"), box.succeed("cd /srv/tree; md5sum 'sub/a file' link; readlink link; stat -c '%a %U' sub")])
case("copy_from_host_via_shell", lambda: [box.copy_from_host_via_shell(str(tmp / "tree" / "sub" / "a file"), "/srv/one"), box.succeed("md5sum < /srv/one")])
case("copy_from_machine", lambda: box.copy_from_machine("/srv/tree", "back"))
case("copied", lambda: sorted(str(p.relative_to(driver.out_dir)).split("/back/")[1] for p in pathlib.Path(driver.out_dir).rglob("back/**/*")))
case("copy of nothing", lambda: box.copy_from_machine("/no/such", "back"))
case("tty", lambda: [box.succeed("echo on the screen > /dev/tty5"), box.wait_until_tty_matches("5", "on the screen", timeout=60), "on the screen" in box.get_tty_text("5")])
case("dump_tty_contents", lambda: box.dump_tty_contents("5"))
def typed():
    box.succeed("systemctl stop getty@tty1")
    j = box.spawn("exec < /dev/tty1; echo it reads; read -r a; read -r b; echo \"$a, $b\"")
    j.wait_for_output("it reads", timeout=60)
    box.send_chars("A line: ~/x_1\n")
    for key in ["a", "shift-b", "ret"]:
        box.send_key(key)
    return list(j.wait(timeout=60))
case("send_chars and send_key", typed)
def entered():
    box.succeed("systemctl stop serial-getty@ttyS0; stty -F /dev/ttyS0 sane")
    j = box.spawn("exec < /dev/ttyS0; echo it reads; read -r a; echo \"$a\"")
    j.wait_for_output("it reads", timeout=60)
    box.send_console("a line\n")
    return list(j.wait(timeout=60))
case("send_console", entered)
case("no X", lambda: box.wait_for_x(timeout=1))
case("no windows", lambda: box.get_window_names())
case("no window", lambda: box.wait_for_window("x", timeout=1))
case("console", lambda: [box.succeed("echo said to the console > /dev/console"), box.wait_for_console_text("said to the console", timeout=60), "said to the console" in box.get_console_log()])
def job():
    j = box.spawn("echo begun; read line; echo got $line >&2; exit 7", stdin="input\n")
    match = j.wait_for_output("beg(u)n", timeout=60)
    return [match, list(j.wait(timeout=60)), j.stdout, j.stderr, j.running]
case("spawn", job)
def killed():
    j = box.spawn("trap 'echo asked; exit 9' USR1; echo begun; while :; do sleep 0.1; done")
    j.wait_for_output("begun", timeout=60)
    j.kill("SIGUSR1")
    return list(j.wait(timeout=60))
case("kill", killed)
def threads():
    out = {}
    def run(i):
        out[i] = box.succeed(f"touch /tmp/at{i}; until [ -e /tmp/at0 ] && [ -e /tmp/at1 ] && [ -e /tmp/at2 ]; do sleep 0.1; done; echo {i}")
    all = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for t in all: t.start()
    for t in all: t.join()
    return [out[i] for i in range(3)]
case("threads", threads)
# A result has a limit, and a command without end costs this process and attest no more than it.
case("1 GiB of output", lambda: box.succeed("head -c 1G /dev/zero | tr '\\0' x"))
def memory():
    mib, pid = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10], os.getppid()
    while True: # the processes of attest
        status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
        if status["Name"].strip() not in ("attest", "exe"):
            break
        mib.append(int(status["VmHWM"].split()[0]) >> 10)
        pid = int(status["PPid"])
    print(f"MiB of memory: {mib}", flush=True)
    return len(mib) > 1 and max(mib) < 600
case("its memory", memory)
case("more in a file", lambda: [box.succeed("head -c 80M /dev/zero | tr '\\0' x > /root/large"), box.copy_from_machine("/root/large"),
    [p.stat().st_size for p in pathlib.Path(driver.out_dir).rglob("large")], box.succeed("rm /root/large")])
def forked():
    box.succeed("echo 1 > /root/n; sync")
    with lab.fork():
        inside = box.succeed("cat /root/n; echo 2 > /root/n; cat /root/n")
    return [inside, box.succeed("cat /root/n")]
case("fork", forked)
case("checkpoint", lambda: [checkpoint("here"), box.succeed("rm /root/n"), restore("here"), box.succeed("cat /root/n")])
# Another machine, by VDE.
peer.wait_for_unit("multi-user.target")
ping = "ping -c 1 -w 60 192.168.1.%d > /dev/null"
case("two machines", lambda: [box.succeed(ping % 2), peer.succeed(ping % 1), [m.name for m in machines]])
case("partition", lambda: network.partition(box, peer, during=lambda: box.fail("ping -c 1 -w 3 192.168.1.2 > /dev/null")).frames > 0)
def unplugged():
    box.block()
    out = box.fail("ping -c 1 -w 3 192.168.1.2 > /dev/null")
    box.unblock()
    return out + box.succeed(ping % 2)
case("block", unplugged)
case("healed", lambda: box.succeed(ping % 2))
def at_once():
    out = {}
    def meet(m, other, n):
        out[m.name] = m.succeed(f"for i in $(seq 5); do ping -c 1 -w 60 192.168.1.{n} > /dev/null; done; echo {other.name} is there")
    all = [threading.Thread(target=meet, args=(box, peer, 2)), threading.Thread(target=meet, args=(peer, box, 1))]
    for t in all: t.start()
    for t in all: t.join()
    return [out["box"], out["peer"]]
case("both at once", at_once)
# A screen.
def screen():
    peer.succeed("systemctl stop getty@tty1; printf '\\033cThe screen says 42.\\n' > /dev/tty1")
    peer.wait_for_text("^The screen says 42", timeout=300)
    return ["says 42." in peer.get_screen_text(), any("says 42." in text for text in peer.get_screen_text_variants())]
case("screen", screen)
case("screenshot", lambda: [peer.screenshot("of-peer"), [p.read_bytes()[:4].hex() for p in pathlib.Path(driver.out_dir).rglob("of-peer.png")]])
# Directories of the host in the guest, as start scripts of NixOS have them.
peer.succeed("modprobe 9pnet_virtio; modprobe 9p; mkdir -p /tmp/shared /tmp/xchg; for d in shared xchg; do mount -t 9p -o trans=virtio,version=9p2000.L $d /tmp/$d; done")
def shared():
    (peer.shared_dir / "hello").write_text("from the host\n")
    (peer.state_dir / "xchg" / "hello").write_text("for peer\n")
    seen = peer.succeed("cat /tmp/shared/hello /tmp/xchg/hello; echo from peer | tee /tmp/shared/back /tmp/xchg/back")
    return [seen, (box.shared_dir / "back").read_text(), (peer.state_dir / "xchg" / "back").read_text(), box.shared_dir == peer.shared_dir]
case("shared directories", shared)
case("copies of them", lambda: [peer.copy_from_vm("/tmp/shared", "of-peer"), sorted(p.name for p in pathlib.Path(driver.out_dir).rglob("of-peer/shared/*")),
    peer.copy_from_host(str(tmp / "tree"), "/tmp/shared/tree"), (box.shared_dir / "tree" / "sub" / "a file").stat().st_size])
case("sleep", lambda: box.sleep(0.1))
case("is_up", lambda: box.is_up())
case("connect", lambda: box.connect())
case("log", lambda: [box.log("a line"), box.log_serial("another")])
def nested():
    with box.nested("a part"):
        return box.succeed("echo inside")
case("nested", nested)
case("nothing to do", lambda: [box.run_callbacks(), box.cleanup_statedir()])
case("no terminal", lambda: box.shell_interact())
case("an empty terminal", lambda: box.console_interact())
case("no prompt", lambda: box.wait_for_monitor_prompt())
case("no SSH", lambda: box.ssh_backdoor_command())
case("send_monitor_command", lambda: "VM status: running" in box.send_monitor_command("info status"))
case("reboot", lambda: [box.succeed("touch /run/before"), box.reboot(), box.fail("test -e /run/before")])
case("shutdown", lambda: [box.shutdown(), box.is_up()])
case("firmware", lambda: [box.create_efi_vars(), box.write_efi_vars([]), box.read_efi_vars(), box.dump_efi_vars()])
case("crash", lambda: [box.start(), box.succeed("echo it is on"), box.crash(), box.is_up()])
def powered_off():
    threading.Timer(1, lambda: peer.send_monitor_command("system_powerdown")).start()
    event = peer.wait_for_qmp_event(lambda e: e["event"] == "POWERDOWN", timeout=60)
    return [event["event"], peer.wait_for_shutdown(timeout=600), peer.is_up(), peer.release()]
case("power button", powered_off)
scratch.cleanup()
