package python

import (
	"fmt"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/operation"
)

// upstream are the methods of the NixOS driver's machines with their parameters and defaults, as scripts
// call them. D is 15 minutes; ... is any default.
const upstream = `
log(msg)
log_serial(msg)
nested(msg, attrs={})
is_up()
start(allow_reboot=False)
shutdown()
wait_for_shutdown(timeout=None)
systemctl(q, user=None)
wait_for_unit(unit, user=None, timeout=D)
get_unit_info(unit, user=None)
get_unit_property(unit, property, user=None)
require_unit_state(unit, require_state='active')
succeed(*commands, timeout=None)
fail(*commands, timeout=None)
wait_until_succeeds(command, timeout=D)
wait_until_fails(command, timeout=D)
sleep(secs=None, duration=None)
wait_for_file(filename, timeout=D)
get_window_names()
wait_for_window(regexp, timeout=D)
send_key(key, delay=0.01, log=True)
send_chars(chars, delay=0.01)
screenshot(filename)
get_screen_text_variants()
get_screen_text()
wait_for_text(regex, timeout=D)
wait_for_open_port(port, addr='localhost', timeout=D)
wait_for_closed_port(port, addr='localhost', timeout=D)
wait_for_open_unix_socket(addr, is_datagram=False, timeout=D)
start_job(jobname, user=None)
stop_job(jobname, user=None)
execute(command, check_return=True, check_output=True, timeout=D)
run_callbacks()
cleanup_statedir()
copy_from_machine(source, target_dir='')
copy_from_vm(source, target_dir='')
copy_from_host(source, target)
copy_from_host_via_shell(source, target)
connect()
crash()
reboot()
release()
switch_root()
send_monitor_command(command)
wait_for_monitor_prompt()
wait_for_qmp_event(event_filter, timeout=600)
forward_port(host_port=8080, guest_port=80)
block()
unblock()
get_tty_text(tty)
wait_until_tty_matches(tty, regexp, timeout=D)
dump_tty_contents(tty)
wait_for_console_text(regex, timeout=None)
get_console_log()
send_console(chars)
wait_for_x(timeout=D)
shell_interact(address=None)
console_interact()
ssh_backdoor_command()
dump_efi_vars()
read_efi_vars()
create_efi_vars()
write_efi_vars(add)
`

// attributes are those of its machines that are no methods.
var attributes = []string{"name", "callbacks", "tmp_dir", "keep_machine_state", "out_dir", "logger", "state_dir", "shared_dir",
	"qmp_client", "booted", "connected", "full_console_log", "efi_vars_path", "vsock_guest", "vsock_host"}

// refused are attributes of its machines that cannot be had here. Each says what to use.
var refused = []string{"process", "pid", "monitor", "shell", "serial_thread", "monitor_path", "qmp_path", "shell_path", "last_lines"}

// Every method of the NixOS driver's machines is there, with its parameters in their order and with
// their defaults; what attest has beyond that comes after them. The types of the stubs say the same.
func TestMethodsOfUpstream(t *testing.T) {
	var script strings.Builder
	script.WriteString(`
import inspect
D = 900
def upstream(*parameters): pass
def plain(v): return getattr(v, "total_seconds", lambda: v)()
def compare(name, theirs):
    wanted = inspect.signature(theirs).parameters
    found = inspect.signature(getattr(web, name), follow_wrapped=False).parameters
    problems = []
    for n, p in wanted.items():
        mine = found.get(n)
        if mine is None:
            problems.append(f"{name} has no parameter {n}: {found}")
        elif (p.default is inspect.Parameter.empty) != (mine.default is inspect.Parameter.empty) or p.default != p.empty and plain(mine.default) != p.default:
            problems.append(f"{name}: {n} is {mine.default!r} unless given, not {p.default!r}")
    positional = [n for n, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if [n for n, p in wanted.items() if p.kind != p.KEYWORD_ONLY] != positional[:len([p for p in wanted.values() if p.kind != p.KEYWORD_ONLY])]:
        problems.append(f"{name} has its parameters in another order: {found}")
    for n, p in found.items():
        if n not in wanted and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            problems.append(f"{name} demands {n}")
    return problems
problems = []
`)
	for line := range strings.Lines(strings.TrimSpace(upstream)) {
		name, parameters, _ := strings.Cut(strings.TrimSpace(line), "(")
		fmt.Fprintf(&script, "problems += compare(%q, lambda %s: None)\n", name, strings.TrimSuffix(parameters, ")"))
	}
	for _, name := range refused {
		fmt.Fprintf(&script, "with t.assertRaisesRegex(Exception, '^web: %[1]s is not supported: .'): web.%[1]s\n", name)
	}
	script.WriteString("web.start()\n")
	for _, name := range attributes {
		fmt.Fprintf(&script, "web.%s\n", name)
	}
	script.WriteString("assert not problems, '; '.join(problems)\n")
	if r := run(t, t.Context(), script.String()); r.err != nil {
		t.Errorf("%v\n%s", r.err, r.stdout)
	}
	files, err := Stubs()
	if err != nil {
		t.Fatal(err)
	}
	types := strings.ReplaceAll(files["machine.pyi"], "self, ", "self,")
	for line := range strings.Lines(strings.TrimSpace(upstream)) {
		name, parameters, _ := strings.Cut(strings.TrimSpace(line), "(")
		_, def, found := strings.Cut(types, "    def "+name+"(self")
		if !found {
			t.Errorf("%s has no type", name)
			continue
		}
		def, _, _ = strings.Cut(def, ") -> ")
		at := 0
		for p := range strings.SplitSeq(strings.TrimSuffix(parameters, ")"), ", ") {
			word, _, _ := strings.Cut(p, "=")
			i := strings.Index(def[at:], strings.TrimSuffix(word, ")"))
			if i < 0 {
				t.Errorf("the type of %s has no %s after what precedes it: %s", name, word, def)
				break
			}
			at += i
		}
	}
	for _, name := range attributes {
		if !strings.Contains(types, "    "+name+": ") && !strings.Contains(types, "    def "+name+"(self)") {
			t.Errorf("%s has no type", name)
		}
	}
}

// Where a method has a form of Python's own, it still takes all that the operation takes, and so does its type.
func TestMethodsTakeWhatOperationsTake(t *testing.T) {
	files, err := Stubs()
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("import inspect\nproblems = []\n")
	for _, o := range operation.All(operation.Machine) {
		if o.Property {
			continue
		}
		_, def, _ := strings.Cut(files["machine.pyi"], "    def "+o.Name+"(")
		def, _, _ = strings.Cut(def, ") -> ")
		for _, p := range o.Params {
			if o.Name == "nested" && p.Name == "fn" {
				continue // a with block
			}
			fmt.Fprintf(&script, "if %q not in inspect.signature(web.%s).parameters: problems.append('%s has no parameter %s')\n", p.Name, o.Name, o.Name, p.Name)
			if !strings.Contains(def, p.Name+": ") {
				t.Errorf("the type of %s has no %s: %s", o.Name, p.Name, def)
			}
		}
	}
	script.WriteString("assert not problems, '; '.join(problems)\n")
	if r := run(t, t.Context(), script.String()); r.err != nil {
		t.Errorf("%v\n%s", r.err, r.stdout)
	}
}

// A file that OVMF keeps its variables in is read, changed and made as edk2 does.
func TestFirmwareVariables(t *testing.T) {
	r := run(t, t.Context(), `
import hashlib, uuid
from test_driver.efi import EfiGuid, EfiVariable, EfiError, create
b_1.start()
try:
    b_1.create_efi_vars()
    raise ValueError("it passed")
except Exception as e:
    assert str(e).startswith("System is currently running"), e
b_1.crash()
b_1.create_efi_vars()
# The OVMF_VARS_4M.fd of edk2 2022.11.
assert hashlib.sha256(b_1.efi_vars_path.read_bytes()).hexdigest() == "5d2ac383371b408398accee7ec27c8c09ea5b74a0de0ceea6513388b15be5d1e"
assert b_1.read_efi_vars() == [] == b_1.efi_vars
try:
    b_1.create_efi_vars()
    raise ValueError("it passed")
except Exception as e:
    assert str(e) == "OVMF variables store exists", e
other = uuid.UUID("12345678-1234-5678-1234-567812345678")
first = EfiVariable(EfiGuid.EFI_GLOBAL_VARIABLE, "BootNext", b"\x01\x00")
b_1.write_efi_vars([first, EfiVariable(other, "Ünï", b"x" * 1001, flags=3)])
assert b_1.read_efi_vars() == [first, EfiVariable(other, "Ünï", b"x" * 1001, flags=3)]
second = EfiVariable(EfiGuid.EFI_GLOBAL_VARIABLE, "BootNext", b"\x02\x00")
b_1.write_efi_vars([second])
assert b_1.read_efi_vars() == [EfiVariable(other, "Ünï", b"x" * 1001, flags=3), second]
b_1.dump_efi_vars()
whole = b_1.efi_vars_path.read_bytes()
assert len(whole) == len(create())
try:
    b_1.write_efi_vars([EfiVariable(other, "large", bytes(1 << 20))])
    raise ValueError("it passed")
except EfiError as e:
    assert "no room for large" in str(e), e
for broken in (b"", b"x" * 100_000, whole[:200], create()[:72] + b"x" * 28 + whole[100:]):
    b_1.efi_vars_path.write_bytes(broken)
    try:
        b_1.read_efi_vars()
        raise ValueError("it passed")
    except EfiError:
        pass
`)
	if r.err != nil {
		t.Errorf("%v\n%s", r.err, r.stdout)
	}
}

// The monitor for programs answers as QEMU does, and its errors are RuntimeErrors.
func TestQMPClient(t *testing.T) {
	r := run(t, t.Context(), `
web.start()
assert web.qmp_client.send("query-status") == {"return": {"status": "running", "n": 5}}
assert web.qmp_command("query-status", {"x": 1})["return"]["n"] == 5
try:
    web.qmp_client.send("nothing", {"a": [1]})
    raise ValueError("it passed")
except RuntimeError as e:
    assert "nothing" in str(e) and type(e).__name__ == "QMPAPIError", e
from test_driver.qmp import QMPSession
assert isinstance(web.qmp_client, QMPSession)
try:
    web.qmp_client.wait_for_event(timeout=0.1)
    raise ValueError("it passed")
except TimeoutError:
    pass
assert list(web.qmp_client.events(timeout=0.1)) == []
`)
	if r.err != nil {
		t.Errorf("%v\n%s", r.err, r.stdout)
	}
}
