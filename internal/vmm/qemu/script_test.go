package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
)

// startCommand writes a script and returns it as a start command.
func startCommand(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run-web-vm")
	if err := os.WriteFile(path, []byte("#!/bin/bash\n"+strings.Join(lines, "\n")+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// tinyQEMU is the command line of a machine of which little is to be saved.
func tinyQEMU(t *testing.T, more string) string {
	t.Helper()
	return "exec qemu-system-x86_64 -nodefaults -M q35 -m 16 -accel tcg -kernel " +
		kernel().print("ready\n").count().write(t) + " " + more + ` "$@"`
}

// begin starts a scripted machine by a backend that may know it.
func begin(t *testing.T, b *backend, command string, restore *vmm.State, env ...string) (*scripted, *guest, error) {
	t.Helper()
	host := newHost(t)
	config := vmm.Config{Name: "web", Dir: filepath.Join(host.Supervisor.Dir(), "web"), Boot: &vmm.Command{Line: command, Env: env}, Restore: restore, Paused: restore != nil}
	if err := os.Mkdir(config.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	vm, err := b.Start(t.Context(), host, config)
	if err != nil {
		return nil, nil, err
	}
	t.Cleanup(func() {
		vm.Kill()
		vm.Console().Close()
	})
	m := vm.(*scripted)
	return m, &guest{m.machine, t, bufio.NewScanner(vm.Console())}, nil
}

func mustBegin(t *testing.T, b *backend, command string, restore *vmm.State, env ...string) (*scripted, *guest) {
	t.Helper()
	m, g, err := begin(t, b, command, restore, env...)
	if err != nil {
		t.Fatal(err)
	}
	return m, g
}

// save pauses a scripted machine and saves it.
func (m *scripted) save(g *guest) (s vmm.State, counter string) {
	g.t.Helper()
	g.must(m.CanSave(g.t.Context()))
	g.must(m.Pause(g.t.Context()))
	memory, err := vmm.MemoryFile("test")
	g.must(err)
	g.t.Cleanup(func() { memory.Close() })
	device, err := m.Save(g.t.Context(), memory)
	g.must(err)
	return vmm.State{Memory: memory, Device: device}, g.counter()
}

// A start command's machine is saved and goes on like any other: one that shares
// its memory, and one with a screen.
func TestScript(t *testing.T) {
	for name, device := range map[string]string{"blind": "", "with a screen": "-device VGA"} {
		t.Run(name, func(t *testing.T) {
			b := &backend{}
			command := startCommand(t, "exec 3>lock 9>&3", `echo "$NIX_DISK_IMAGE in $PWD" >> said`, tinyQEMU(t, device))
			m, g := mustBegin(t, b, command, nil, "NIX_DISK_IMAGE=/somewhere")
			g.expect("ready")
			if err := m.WillSave(); err != nil {
				t.Fatal(err)
			}
			if m.seen.Shared != (device == "") || m.seen.Memory != 16<<20 {
				t.Errorf("it was found to be %+v", m.seen)
			}
			said, _ := os.ReadFile(filepath.Join(m.config.Dir, "said"))
			if want := strings.Repeat("/somewhere in "+m.config.Dir+"\n", 2); string(said) != want { // examined, and started
				t.Errorf("the start command said %q, want %q", said, want)
			}
			first, at := m.save(g)
			clone, cg := mustBegin(t, b, command, &first)
			if got := cg.counter(); got != at {
				t.Errorf("the clone begins at %s, want %s", got, at)
			}
			cg.must(clone.Resume(t.Context()))
			cg.poll("the clone goes on", func() bool { return cg.counter() != at })
			second, later := clone.save(cg)
			if _, g := mustBegin(t, b, command, &second); g.counter() != later {
				t.Errorf("the clone of a clone begins elsewhere than at %s", later)
			}
			// It is known now, and is started once.
			again, ag := mustBegin(t, b, command, nil)
			ag.expect("ready")
			if said, _ := os.ReadFile(filepath.Join(again.config.Dir, "said")); bytes.Count(said, []byte("\n")) != 1 {
				t.Errorf("it was started several times: %q", said)
			}
		})
	}
}

// What is started now has to be what was saved.
func TestScriptThatChanges(t *testing.T) {
	command := startCommand(t, tinyQEMU(t, ""))
	m, g := mustBegin(t, &backend{}, command, nil)
	g.expect("ready")
	s, _ := m.save(g)
	text, err := os.ReadFile(command)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(command, bytes.Replace(text, []byte("-m 16"), []byte("-m 16 -device virtio-balloon"), 1), 0o700); err != nil {
		t.Fatal(err)
	}
	_, _, err = begin(t, &backend{}, command, &s)
	var start *vmm.StartError
	if !errors.As(err, &start) || !strings.Contains(err.Error(), "has changed since the machine was saved") {
		t.Errorf("got %v", err)
	}
}

// A start command whose machine cannot be saved starts it nevertheless, and the
// reason is known.
func TestScriptsOfUnsavableMachines(t *testing.T) {
	outside := writeFile(t, "outside", make([]byte, 1<<20))
	for name, tt := range map[string]struct {
		lines []string
		want  string
	}{
		"no exec":           {[]string{strings.TrimPrefix(tinyQEMU(t, ""), "exec "), "exit"}, "does not end in exec"},
		"-snapshot":         {[]string{tinyQEMU(t, "-snapshot -drive if=virtio,format=raw,file="+outside)}, "-snapshot"},
		"a disk elsewhere":  {[]string{tinyQEMU(t, "-drive if=virtio,format=raw,file="+outside)}, "is writable and not in the state directory"},
		"another each time": {[]string{tinyQEMU(t, "-uuid $(cat /proc/sys/kernel/random/uuid)")}, "starts something else each time"},
		"a device":          {[]string{"truncate -s 1M disk", tinyQEMU(t, "-drive if=none,id=d,format=raw,file=disk -device nvme,drive=d,serial=x")}, "QEMU cannot save it"},
		"memory of its own": {[]string{tinyQEMU(t, "-object memory-backend-ram,id=own,size=16M -numa node,memdev=own")}, "rejects a file as its memory"},
		"a clock":           {[]string{tinyQEMU(t, "-rtc base=2020-01-01")}, "its clock is not the host's"},
		"an absolute path": {[]string{`[ -e disk ] || { truncate -s 1M base; qemu-img create -q -f qcow2 -F raw -b $PWD/base disk; }`, tinyQEMU(t, "-drive if=virtio,file=disk")},
			"refers to a file in the state directory by its absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			b := &backend{}
			command := startCommand(t, tt.lines...)
			for range 2 { // what is known, and what is found out
				m, g := mustBegin(t, b, command, nil)
				g.expect("ready")
				for _, err := range []error{m.WillSave(), m.CanSave(t.Context())} {
					var unsupported *vmm.UnsupportedError
					if !errors.As(err, &unsupported) || !strings.Contains(unsupported.Reason, tt.want) {
						t.Errorf("got %v, want %q", err, tt.want)
					}
				}
				g.must(m.Kill())
			}
		})
	}
}

// What a start command does wrong is said in one paragraph, at once.
func TestScriptsThatFail(t *testing.T) {
	for name, tt := range map[string]struct {
		lines []string
		want  []string
	}{
		"it ends":          {[]string{"echo no such disk >&2", "exit 3"}, []string{"it ended (exit status 3) before", "no such disk"}},
		"it does nothing":  {[]string{"true"}, []string{"it ended (exit status 0) before"}},
		"no arguments":     {[]string{strings.TrimSuffix(tinyQEMU(t, ""), `"$@"`)}, []string{`must end in exec qemu… "$@"`}},
		"QEMU refuses":     {[]string{tinyQEMU(t, "-device no-such-device")}, []string{"it ended (exit status 1) before", "no-such-device"}},
		"something behind": {[]string{"sleep 1000000 &", "exit 1"}, []string{"it ended (exit status 1) before"}},
		"a daemon":         {[]string{"setsid sleep 1000000 &", "exit 1"}, []string{"it ended (exit status 1) before"}},
		"closed":           {[]string{"for fd in 10 11 12 13 14; do eval \"exec $fd>&-\"; done", "exec sleep 1000000"}, []string{"close_fds"}},
	} {
		t.Run(name, func(t *testing.T) {
			command := startCommand(t, tt.lines...)
			_, _, err := begin(t, &backend{}, command, nil)
			var start *vmm.StartError
			if !errors.As(err, &start) {
				t.Fatalf("got %v (%T)", err, err)
			}
			for _, want := range append(tt.want, command) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
		})
	}
}

// The guest's side of the backdoor: what is written to the shell's console is not
// lost before there is one, and its end is the VMM's.
func TestScriptEnds(t *testing.T) {
	m, g := mustBegin(t, &backend{}, startCommand(t, tinyQEMU(t, "")), nil)
	g.expect("ready")
	shell, upload := m.Backdoor()
	if _, err := shell.Write([]byte("for later\n")); err != nil {
		t.Error(err)
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	for _, c := range []io.Reader{shell, upload} {
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes came out of a VMM that is gone", n)
		}
	}
	if got := m.Exit().Reason; got != vmm.Killed {
		t.Errorf("it was %s", got)
	}
	if err := syscall.Kill(-m.process.Pid(), 0); err == nil {
		t.Error("something of the start command is left")
	}
}

// A saved machine is another when what its start script makes its disks of has changed: QEMU's
// command line, which is compared later, does not name that.
func TestFingerprintOfScript(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	script := startCommand(t,
		". "+file("common.sh"),
		"[ -e $NIX_DISK_IMAGE ] || cp --reflink=auto '"+file("base.qcow2")+"' \"$NIX_DISK_IMAGE\"",
		"mkfs --from="+file("root.tar")+";echo made >>"+file("log")+" 2> \""+file("errors")+"\"",
		"cat "+filepath.Join(state, "own")+" /proc/uptime",
		`exec qemu-system-x86_64 "$@"`)
	names := []string{"common.sh", "base.qcow2", "root.tar", "log", "errors", "elsewhere"}
	for _, name := range append(names, "../"+filepath.Base(state)+"/own") {
		if err := os.WriteFile(file(name), []byte("one"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	print := func() string {
		t.Helper()
		text, err := (&backend{}).Fingerprint(vmm.Host{}, vmm.Config{Dir: state, Boot: &vmm.Command{Line: script + " --verbose"}})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	was := print()
	if again := print(); again != was {
		t.Errorf("of the same script:\n%s\n%s", was, again)
	}
	for name, matters := range map[string]bool{
		"common.sh": true, "base.qcow2": true, "root.tar": true,
		"log": false, "errors": false, "elsewhere": false, "../" + filepath.Base(state) + "/own": false,
	} {
		if err := os.WriteFile(file(name), []byte("two"), 0o600); err != nil {
			t.Fatal(err)
		}
		is := print()
		if (is != was) != matters {
			t.Errorf("%s has changed, and another machine is %v", name, is != was)
		}
		was = is
	}
}

func TestWithout(t *testing.T) {
	ours := []string{"-mon", "x", "-S"}
	for _, tt := range []struct {
		argv, want string
		found      bool
	}{
		{"qemu -m 1 -mon x -S", "qemu -m 1", true},
		{"qemu -mon x -S -m 1", "qemu -m 1", true},
		{"qemu -mon x -m 1 -S", "qemu -mon x -m 1 -S", false},
		{"qemu -mon x", "qemu -mon x", false},
		{"", "", false},
	} {
		got, found := without(strings.Fields(tt.argv), ours)
		if strings.Join(got, " ") != tt.want || found != tt.found {
			t.Errorf("%q: got %q, %v", tt.argv, got, found)
		}
	}
}

func TestNormalise(t *testing.T) {
	got := normalise([]string{"-drive", "file=/run/l1/web/d.qcow2,x=/run/l1", "-netdev", "vde,sock=/run/l1/vde1.2"},
		map[string]string{"/run/l1/web": "$STATE", "/run/l1/vde1.2": "$QEMU_VDE_SOCKET_1"})
	if want := "[-drive file=$STATE/d.qcow2,x=/run/l1 -netdev vde,sock=$QEMU_VDE_SOCKET_1]"; fmt.Sprint(got) != want {
		t.Errorf("got %v", got)
	}
}

func TestUnsavable(t *testing.T) {
	for line, want := range map[string]string{
		"-m 16 -drive file=x":                                     "",
		"-drive file=snapshot -name vhost":                        "",
		"-snapshot":                                               "-snapshot",
		"--snapshot":                                              "-snapshot",
		"-device vhost-user-fs-pci,tag=x":                         "vhost-user",
		"-device vhost-vsock-pci,guest-cid=3":                     "vhost-vsock",
		"-device vfio-pci,host=01:00.0":                           "device of the host",
		"-tpmdev emulator,id=t":                                   "TPM",
		"-rtc base=2020-01-01T00:00:00":                           "clock",
		"-rtc base=utc,clock=host":                                "",
		"-incoming defer":                                         "state of its own",
		"-virtfs local,path=/nix/store,mount_tag=nix-store":       "9p",
		"-device virtio-9p-pci,fsdev=x,mount_tag=y -m 1":          "9p",
		"-fsdev local,id=x,path=/y -device virtio-9p-pci,fsdev=x": "9p",
	} {
		got, doubt := unsavable(append([]string{"qemu-snapshot-vfio"}, strings.Fields(line)...))
		if want == "" && got != "" || !strings.Contains(got, want) || doubt != (want == "9p") {
			t.Errorf("%s: got %q, %v", line, got, doubt)
		}
	}
}

func TestStateDisks(t *testing.T) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "disk")
	outside := writeFile(t, "disk", nil)
	if err := os.WriteFile(inside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	node := func(driver, file string, readOnly bool, backing string) blockNode {
		n := blockNode{Driver: driver, File: file, ReadOnly: readOnly}
		n.Image.Backing = backing
		return n
	}
	for name, tt := range map[string]struct {
		node    blockNode
		outside string
		want    string
	}{
		"in it":              {node("file", inside, false, ""), "", ""},
		"by a relative path": {node("file", "disk", false, ""), "", ""},
		"outside, read":      {node("file", outside, true, ""), outside, ""},
		"outside, written":   {node("file", outside, false, ""), "", "is writable"},
		"by a link":          {node("file", "link", false, ""), "", "is writable"},
		"gone":               {node("file", filepath.Join(dir, "vl.x"), false, ""), "", "without a name"},
		"a device":           {node("host_device", "/dev/sda", false, ""), "", "is not a regular file"},
		"a cdrom":            {node("host_cdrom", "/dev/sr0", true, ""), "", ""},
		"a directory":        {node("vvfat", "fat:x", true, ""), "", "is not a regular file"},
		"an image":           {node("qcow2", inside, false, ""), "", ""},
		"a relative backing": {node("qcow2", inside, false, "base"), "", ""},
		"a backing in it":    {node("qcow2", inside, false, filepath.Join(dir, "base")), "", "absolute path"},
		"a backing outside":  {node("qcow2", inside, false, outside), "", ""},
	} {
		got, reason := stateDisks([]blockNode{tt.node}, dir)
		if strings.Join(got, " ") != tt.outside || tt.want == "" && reason != "" || !strings.Contains(reason, tt.want) {
			t.Errorf("%s: got %q, %q", name, got, reason)
		}
	}
}

func TestSharesMemory(t *testing.T) {
	const head = "              Block Name    PSize\r\n"
	for blocks, want := range map[string]bool{
		head + "  attest-ram    4 KiB\r\n  pc.bios 4 KiB\r\n/rom@etc/acpi/rsdp 4 KiB\r\n0000:00:02.0/virtio-net-pci.rom 4 KiB\r\n": true,
		head + "  attest-ram    4 KiB\r\n  0000:00:01.0/vga.vram 4 KiB\r\n":                                                        false,
		head + "  system.flash1 4 KiB\r\n": false,
		head:                               false,
		"":                                 false,
	} {
		if got := sharesMemory(blocks); got != want {
			t.Errorf("%q: %v", blocks, got)
		}
	}
}

// A start command that takes long is ended when nobody waits for it any more.
func TestScriptIsInterrupted(t *testing.T) {
	host := newHost(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	begun := filepath.Join(t.TempDir(), "begun")
	go func() {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(begun); err == nil {
				break
			}
		}
		cancel(errors.New("the test is over"))
	}()
	config := vmm.Config{Name: "web", Dir: host.Supervisor.Dir(), Boot: &vmm.Command{Line: startCommand(t, "touch "+begun, "exec sleep 1000000")}}
	if _, err := (&backend{}).Start(ctx, host, config); err == nil || !strings.Contains(err.Error(), "the test is over") {
		t.Errorf("got %v", err)
	}
}

func TestShellLine(t *testing.T) {
	for command, want := range map[string]string{
		"/nix/store/x/bin/run-a-vm": `exec /nix/store/x/bin/run-a-vm "$@"`,
		" ./run 'a b' $HOME\n":      `exec ./run 'a b' $HOME "$@"`,
		"exec run":                  `exec run "$@"`,
		"A=b run":                   `A=b run "$@"`,
		"cd x && exec run":          `cd x && exec run "$@"`,
		"run; true":                 `run; true "$@"`,
		"run > log":                 `run > log "$@"`,
		"if true; then exec run":    `if true; then exec run "$@"`,
	} {
		if got := shellLine(command); got != want {
			t.Errorf("%q: got %q, want %q", command, got, want)
		}
	}
}
