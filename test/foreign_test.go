package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/supervise"
)

// foreignImage is a system that was made for tests of another driver: it offers a
// root shell on its first virtio console, and configures its networks itself, by
// the convention of their addresses.
var foreignImage = attest.Debian{
	Packages: []string{"iputils-ping"},
	Files: map[string]attest.File{
		"/usr/local/lib/backdoor": {Mode: 0o755, Content: `#!/bin/bash
export USER=root HOME=/root DISPLAY=:0.0
source /etc/profile
export PAGER=
cd /tmp
if grep -q foreign.noexec /proc/cmdline; then # for a test of a guest in which nothing can be put
	for d in /run /dev/shm /tmp /var/tmp; do mount --bind $d $d; mount -o remount,bind,noexec $d; done
fi
exec < /dev/hvc0 > /dev/hvc0
while ! exec 2> /dev/ttyS0; do sleep 0.1; done
echo "connecting to host..." >&2
stty -F /dev/hvc0 raw -echo
echo "Spawning backdoor root shell..."
PS1="" exec bash --norc /dev/hvc0
`},
		"/etc/systemd/system/backdoor.service": {Content: `[Unit]
Requires=dev-hvc0.device dev-ttyS0.device
After=dev-hvc0.device dev-ttyS0.device
[Service]
ExecStart=/usr/local/lib/backdoor
KillSignal=SIGHUP
[Install]
WantedBy=multi-user.target
`},
		"/usr/local/lib/addresses": {Mode: 0o755, Content: `#!/bin/bash
for card in /sys/class/net/eth*; do
	IFS=: read -r _ _ _ _ network number < $card/address
	n=$((16#$network)) m=$((16#$number)) dev=${card##*/}
	ip address add 192.168.$n.$m/24 dev $dev
	ip address add 2001:db8:$n::$m/64 dev $dev nodad
	ip link set $dev up
done
`},
		"/etc/systemd/system/addresses.service": {Content: `[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/addresses
[Install]
WantedBy=multi-user.target
`},
		"/etc/hostname": {Content: "itself\n"},
	},
	// An initrd that its test leaves when it wants to.
	Run: []string{"systemctl enable backdoor.service addresses.service", "systemctl mask initrd-parse-etc.service initrd-cleanup.service",
		"systemctl add-wants initrd.target backdoor.service", "mkdir /sysroot"},
}

// A foreignGuest is what start scripts start.
type foreignGuest struct {
	kernel, initrd string
	disks          []string // read-only: layers and modules
}

// newForeignGuest makes one with an /init that is not attest's.
func newForeignGuest(t *testing.T) foreignGuest {
	t.Helper()
	return newForeignGuestOf(t, foreignImage)
}

func newForeignGuestOf(t *testing.T, source attest.Debian) foreignGuest {
	t.Helper()
	s, err := supervise.Start(t.Context(), supervise.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	store, err := image.OpenStore(s)
	if err != nil {
		t.Fatal(err)
	}
	img, err := store.Build(t.Context(), access.Spec(source))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(img.Release)
	g := foreignGuest{kernel: img.Kernel.Path, initrd: filepath.Join(t.TempDir(), "initrd")}
	for _, l := range append(img.Layers, img.Kernel.Modules) {
		g.disks = append(g.disks, l.Path)
	}
	ours, err := boot.Initramfs{Binary: agentBinary, Modules: img.Kernel.Modules.Path}.Build(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(ours)
	if err != nil {
		t.Fatal(err)
	}
	// Of two files of one name the kernel takes the later.
	if err := os.WriteFile(g.initrd, append(archive, initArchive(t)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// initArchive is a cpio archive with the /init of testdata/foreign.
func initArchive(t *testing.T) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./testdata/foreign")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	w := cpio.NewWriter(&b)
	if err := w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}

// script writes a start script as NixOS has them: it makes the disk if there is
// none, and becomes QEMU with what it was given.
func (g foreignGuest) script(t *testing.T, name string, args ...string) string {
	return g.scriptWith(t, name, "", args...)
}

// scriptWith has more for the kernel's command line.
func (g foreignGuest) scriptWith(t *testing.T, name, cmdline string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run-"+name+"-vm")
	if err := os.WriteFile(path, []byte(g.text(name, cmdline, args...)), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// text is that of a start script.
func (g foreignGuest) text(name, cmdline string, args ...string) string {
	var disks strings.Builder
	for _, d := range g.disks {
		fmt.Fprintf(&disks, " -drive file=%s,format=raw,if=virtio,read-only=on", d)
	}
	return fmt.Sprintf(`#!/bin/sh
set -eu
if [ -w "$(dirname "$0")" ]; then env > "$0.env"; fi
if [ ! -e "$NIX_DISK_IMAGE" ]; then
	echo "making the disk" >&2
	truncate -s 300M "$TMPDIR/raw"
	PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q "$TMPDIR/raw"
	qemu-img convert -O qcow2 "$TMPDIR/raw" "$NIX_DISK_IMAGE"
	rm "$TMPDIR/raw"
fi
exec qemu-system-x86_64 -name '%s' -M q35 -m 320 -accel tcg -cpu max,la57=off,erms=off,fsrm=off \
	-kernel '%s' -initrd '%s' -append 'console=ttyS0 loglevel=5 panic=-1 net.ifnames=0 tsc=unstable no_timer_check %s' \
	%s -drive "file=$NIX_DISK_IMAGE,if=virtio,cache=unsafe" %s "$@"
`, name, g.kernel, g.initrd, cmdline, disks.String(), strings.Join(args, " "))
}

// card is a network card on one of the lab's networks, as NixOS has them.
func card(network, number int) string {
	return fmt.Sprintf(`-netdev vde,id=vlan%[1]d,sock="$QEMU_VDE_SOCKET_%[1]d" -device virtio-net-pci,netdev=vlan%[1]d,mac=52:54:00:12:%02[1]X:%02[2]X,romfile=`, network, number)
}

// TestForeignMachine has a machine that a start script starts beside one of
// attest's own: box is machine 1, peer machine 2.
func TestForeignMachine(t *testing.T) {
	t.Parallel()
	g := newForeignGuest(t)
	script := g.script(t, "box", card(1, 1), card(2, 1))
	lab := attest.New(t,
		attest.MachineConfig{StartCommand: script, Boot: attest.BootCold, Networks: []int{1, 2}},
		attest.MachineConfig{Name: "peer", Image: netTools, Memory: 256},
	)
	box, peer := lab.Machine("box"), lab.Machine("peer")
	lab.StartAll()

	env, err := os.ReadFile(script + ".env")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`TMPDIR=(\S+)`, `USE_TMPDIR=1`, `SHARED_DIR=/\S+`, `NIX_DISK_IMAGE=/\S+/box\.qcow2`, `NIX_EFI_VARS=/\S+/box-efi-vars\.fd`,
		`QEMU_VDE_SOCKET_1=/\S+`, `QEMU_VDE_SOCKET_2=/\S+`, `PATH=.+`} {
		if !regexp.MustCompile("(?m)^" + want + "$").Match(env) {
			t.Errorf("the start command has not got %s:\n%s", want, env)
		}
	}

	// It is who it was made to be, and the agent is nobody's unit.
	for script, want := range map[string]string{
		"hostname; cat /etc/hostname":  "itself\nitself\n",
		"grep -c peer /etc/hosts || :": "0\n",
		"cat /proc/self/cgroup":        "0::/init.scope\n",
		"ls /sys/class/net":            "eth0\neth1\nlo\n",
		"pwd; echo $USER $HOME":        "/tmp\nroot /root\n",
		"systemctl is-active backdoor": "active\n",
	} {
		if got := box.Succeed(script); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
	box.WaitForUnit("multi-user.target")
	box.WaitForUnit("addresses.service")
	testCopies(t, tried{box.Machine, t})

	t.Run("network", func(t *testing.T) { testForeignNetwork(t, lab, box, peer) })

	// The disk is kept, and the agent comes back. TestNixOSDriver boots after a crash.
	box.Succeed("echo kept > /root/kept; sync")
	box.Reboot()
	if got := box.Succeed("cat /root/kept"); got != "kept\n" {
		t.Errorf("after a reboot: %q", got)
	}
	box.Succeed("systemctl restart backdoor.service; sleep 0") // the agent is none of its
	box.Shutdown()
}

// What comes by a machine's VDE sockets is that machine, for the others and for
// faults.
func testForeignNetwork(t *testing.T, lab *attest.TestLab, box, peer *attest.TestMachine) {
	peer.Succeed("until ping -c 1 -w 2 box; do :; done", attest.Timeout(2*time.Minute))
	box.Succeed("until ping -c 1 -w 2 192.168.1.2; do :; done", attest.Timeout(2*time.Minute))
	fault := lab.Network().Isolate(box)
	if reaches(t, peer.Machine, "box") {
		t.Error("a machine that is isolated is reached")
	}
	fault.Heal()
	if fault.Affected() == 0 {
		t.Error("the fault has met no frame")
	}
	peer.Succeed("until ping -c 1 -w 2 box; do :; done", attest.Timeout(2*time.Minute))
	box.Block(1)
	if got := box.Succeed("cat /sys/class/net/eth0/carrier /sys/class/net/eth1/carrier"); got != "0\n1\n" {
		t.Errorf("the carriers of a machine whose first cable is pulled: %q", got)
	}
	box.Unblock(1)
	peer.Succeed("until ping -c 1 -w 2 box; do :; done", attest.Timeout(2*time.Minute))
}

// TestForeignWarmStart starts one from a snapshot, forks it and takes it back.
func TestForeignWarmStart(t *testing.T) {
	t.Parallel()
	g := newForeignGuest(t)
	script := g.script(t, "box", "-vga none", card(1, 1))
	mounted := writeFile(t, filepath.Join(t.TempDir(), "mounted"), "one")
	config := attest.MachineConfig{StartCommand: script, Mount: map[string]string{"/opt/mounted/file": mounted}}
	const who = "cat /proc/sys/kernel/random/boot_id"
	has := func(m *attest.TestMachine, want string) {
		t.Helper()
		if got := m.Succeed("cat /opt/mounted/file"); got != want {
			t.Errorf("the mounted file has %q, want %q", got, want)
		}
	}
	first := attest.New(t, config)
	boot := first.Machine("box").Succeed(who)
	has(first.Machine("box"), "one")
	writeFile(t, mounted, "two") // which is not another machine
	if warm() {                  // one that boots has the time that its start command gives it
		checkClock(t, first.Machine("box").Machine)
	}

	t.Run("files", func(t *testing.T) { testForeignFiles(t, script) })
	t.Run("drivers", func(t *testing.T) { testDrivers(t, script) })
	t.Run("prompt", func(t *testing.T) { testPromptOfGuest(t, script) })

	lab := attest.New(t, config, small("peer"))
	box, peer := lab.Machine("box"), lab.Machine("peer")
	if got := box.Succeed(who); (got == boot) != warm() {
		t.Errorf("starts are warm: %v; two have the boots %s, %s", warm(), got, boot)
	}
	has(box, "two")
	const random = "cat /proc/sys/kernel/random/uuid"
	if a, b := box.Succeed(random), first.Machine("box").Succeed(random); a == b {
		t.Errorf("the random numbers of two machines are the same: %s", a)
	}
	box.Succeed("echo 1 > /root/file; sync")
	peer.Succeed("until ping -c 1 -w 2 192.168.1.1; do :; done", attest.Timeout(2*time.Minute))
	box.Succeed("nohup sleep 1000000 > /dev/null 2>&1 & echo $! > /tmp/pid")

	lab.Checkpoint("one")
	writeFile(t, mounted, "three")
	fork := lab.Fork(t)
	has(fork.Machine("box"), "three")
	has(box, "two")
	for _, l := range []*attest.TestLab{fork, fork.Fork(t)} {
		b := l.Machine("box")
		b.Succeed("grep -q 1 /root/file; kill -0 $(cat /tmp/pid); echo 2 > /root/file; sync")
		checkClock(t, b.Machine)
		l.Machine("peer").Succeed("until ping -c 1 -w 2 192.168.1.1; do :; done", attest.Timeout(2*time.Minute))
	}
	box.Succeed("grep -q 1 /root/file; kill $(cat /tmp/pid); echo 3 > /root/file; sync")
	lab.Restore("one")
	has(box, "three")
	box.Succeed("grep -q 1 /root/file; kill -0 $(cat /tmp/pid)")

	dir := filepath.Join(t.TempDir(), "saved")
	if err := lab.Lab.Save(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	opened, err := lab.Host().OpenLab(lab.Context(), dir, attest.LabConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if out, err := opened.Machine("box").Succeed(t.Context(), "cat /root/file"); err != nil || out != "1\n" {
		t.Errorf("in the lab that was saved: %q, %v", out, err)
	}
	again := attest.New(t, attest.MachineConfig{StartCommand: script, Snapshot: filepath.Join(dir, "box")})
	again.Machine("box").Succeed("grep -q 1 /root/file; kill -0 $(cat /tmp/pid)")

	// It boots from the disk that it has.
	b := &tried{fork.Machine("box").Machine, t}
	if err := b.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.succeed("cat /root/file; " + who); got == "2\n"+boot || !strings.HasPrefix(got, "2\n") {
		t.Errorf("a fork that was booted again: %q", got)
	}
}

// Tests on a machine that a test file declares, and one that a machine configuration
// has: each in a fork of what setup has left, which began with the snapshot that is
// there already.
func testForeignFiles(t *testing.T, script string) {
	dir, state := filepath.Dir(script), newStateDir(t)
	const tests = `
def setup():
    box.succeed("echo 1 > /root/file")

def change(n):
    assert_eq(box.succeed("cat /root/file"), "1\n")
    box.succeed("echo %s > /root/file" % n)

def test_one():
    change(1)
    extra = create_machine("true run-extra-vm")
    assert_eq(extra.name, "extra")
    assert_eq(create_machine("/bin/true").name, "machine")

def test_two():
    change(2)
`
	declared := writeFile(t, filepath.Join(dir, "declared.star"), fmt.Sprintf(`box = machine(start_command = "./%s")`, filepath.Base(script))+tests)
	configured := writeFile(t, filepath.Join(dir, "configured.star"), tests)
	config := writeFile(t, filepath.Join(dir, "lab.json"), fmt.Sprintf(`{"machines": [{"name": "box", "backend": "qemu", "start_command": %q, "vlans": [1]}]}`, script))
	for _, args := range [][]string{{declared}, {"--machine-config", config, configured}} {
		p := start(t, state, nil, attestBinary, append([]string{"run"}, args...)...)
		if code := p.exitCode(t); code != 0 || strings.Contains(p.said(), "booting") == warm() {
			t.Errorf("attest run %q: exit code %d\n%s", args, code, p.said())
		}
	}
}

// TestForeignSwitchRoot leaves an initrd that offers a shell, too. The agent is
// put into the root then.
func TestForeignSwitchRoot(t *testing.T) {
	t.Parallel()
	g := newForeignGuest(t)
	lab := attest.New(t, attest.MachineConfig{StartCommand: g.scriptWith(t, "box", "foreign.initrd rd.systemd.unit=initrd.target"), Networks: []int{}, Boot: attest.BootCold})
	box := lab.Machine("box")
	box.Succeed("test -e /etc/initrd-release; touch /in-initrd")
	box.SwitchRoot()
	box.Succeed("test ! -e /etc/initrd-release; test ! -e /in-initrd; echo root > /in-root")
	box.WaitForUnit("basic.target")
	box.Succeed("grep -q root /in-root")
}

// TestForeignMachineThatCannotBeSaved says why it boots, and says it to who asks for
// a snapshot.
func TestForeignMachineThatCannotBeSaved(t *testing.T) {
	t.Parallel()
	var warned []string
	var mu sync.Mutex
	bus := &event.Bus{}
	bus.Subscribe(func(r event.Record) {
		if l, ok := r.Event.(event.Log); ok && l.Level == "warning" {
			mu.Lock()
			warned = append(warned, l.Text)
			mu.Unlock()
		}
	})
	ctx := event.WithBus(t.Context(), bus)
	lab := openLab(ctx, t, attest.HostConfig{Boot: attest.BootWarm}, attest.LabConfig{Machines: []attest.MachineConfig{
		{StartCommand: muteScript(t, "box", "", "-snapshot"), Networks: []int{}},
	}})
	box := lab.Machine("box")
	if err := box.Start(ctx); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(warned) != 1 || !strings.Contains(warned[0], "boots, because") || !strings.Contains(warned[0], "-snapshot") {
		t.Errorf("the warnings are %q", warned)
	}
	_, err := lab.Fork(ctx)
	errorAs[*attest.UnsupportedError](t, err)
	if attest.StatusOf(err) != attest.Unsupported || !strings.Contains(err.Error(), "-snapshot") {
		t.Errorf("got %v", err)
	}
	if out, err := box.SendMonitorCommand(ctx, "info status"); err != nil || !strings.Contains(out, "running") {
		t.Errorf("the machine does not go on: %q, %v", out, err)
	}
}

// muteScript writes a start script of a machine with nothing to boot.
func muteScript(t *testing.T, name, before, args string) string {
	t.Helper()
	script := writeFile(t, filepath.Join(t.TempDir(), "run-"+name+"-vm"), "#!/bin/sh\n"+before+"\nexec qemu-system-x86_64 -nodefaults -m 16 "+args+" \"$@\"\n")
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	return script
}

// TestForeignGuestThatDoesNotAnswer is given up with what it was waited for.
func TestForeignGuestThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	script := muteScript(t, "mute", "", "")
	lab := openLab(t.Context(), t, attest.HostConfig{}, attest.LabConfig{Machines: []attest.MachineConfig{
		{StartCommand: script, Boot: attest.BootCold, BootTimeout: time.Second},
	}})
	_, err := lab.Machine("mute").Succeed(t.Context(), "true")
	boot := errorAs[*attest.BootError](t, err)
	for _, want := range []string{"did not answer within 1s", "Spawning backdoor root shell...", "backdoor.service", "nothing has come on the shell's console"} {
		if !strings.Contains(boot.Reason, want) {
			t.Errorf("%s\nlacks %q", boot.Reason, want)
		}
	}
}

// TestStartCommands are those with which nothing boots.
func TestStartCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := writeFile(t, filepath.Join(dir, "plain"), "")
	fails := writeFile(t, filepath.Join(dir, "run-it-vm"), "#!/bin/sh\necho there is no such disk >&2\nexit 7\n")
	if err := os.Chmod(fails, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		command string
		status  attest.Status
		want    string
	}{
		{"/no/such/script", attest.Invalid, `machine "machine": start_command: /no/such/script: no such file`},
		{dir, attest.Invalid, "not a regular file"},
		{plain, attest.Invalid, "it is not executable; chmod +x"},
		{fails, attest.Infra, "it ended (exit status 7) before a QEMU"},
		{"no-such-program-anywhere", attest.Infra, "it ended (exit status 127)"},
	} {
		lab := openLab(t.Context(), t, attest.HostConfig{}, attest.LabConfig{Machines: []attest.MachineConfig{{StartCommand: tt.command, Boot: attest.BootCold}}})
		err := lab.Machines()[0].Start(t.Context())
		if err == nil || attest.StatusOf(err) != tt.status || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v (%s)\nwant %s (%s)", tt.command, err, attest.StatusOf(err), tt.want, tt.status)
		}
	}
}

// startForeign has a machine of a start command, which has started a process of its
// own, for whoever ends the victim.
func startForeign(t *testing.T) {
	lab := attest.New(t, attest.MachineConfig{StartCommand: muteScript(t, "other", "sleep 1000000 &", ""), Boot: attest.BootCold})
	lab.Machine("other").Start()
}

// kill -9 leaves nothing of a start command.
func TestKillWithForeign(t *testing.T) {
	t.Parallel()
	killVictim(t, "foreign")
}
