package boot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/supervise"
)

// These tests boot real guests: Debian's kernel from the image cache, QEMU with
// TCG, and testdata/guest as everything that runs in them.

// bootPatience is for an emulated guest on a host that is busy.
const bootPatience = 5 * time.Minute

// testKernel is the kernel that guests have by default.
func testKernel(t *testing.T) *image.Kernel {
	t.Helper()
	sup, err := supervise.Start(t.Context(), supervise.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sup.Close(); err != nil {
			t.Error(err)
		}
	})
	store, err := image.OpenStore(sup)
	if err != nil {
		t.Fatal(err)
	}
	// Any root will do: it is its kernel that is wanted.
	img, err := store.Build(t.Context(), image.Rootfs{Path: writeTree(t, map[string][]byte{"etc/os-release": nil})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(img.Release)
	return img.Kernel
}

// bench is what all guests of the tests share.
type bench struct {
	kernel  *image.Kernel
	program string // testdata/guest
	initrd  string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{kernel: testKernel(t), program: buildProgram(t, "./testdata/guest", "-ldflags", "-s -w")}
	var err error
	b.initrd, err = Initramfs{Binary: b.program, Modules: b.kernel.Modules.Path}.build(t.Context(), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A machine is a kind of machine that QEMU has.
type machine struct {
	option string
	bus    string // of its virtio devices: how their names end
}

var (
	q35     = machine{"q35", "-pci"}
	microvm = machine{"microvm,acpi=on,pcie=off,rtc=on", "-device"}
)

// boot boots a guest and returns its console when the VMM has ended by itself.
func (b *bench) boot(t *testing.T, m machine, guest Guest, disks map[string]string) string {
	t.Helper()
	guest.Args = append(guest.Args, accel.ClockParameters()...)
	line, err := guest.Cmdline()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootPatience)
	defer cancel()
	args := []string{
		"-M", m.option, "-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio", "-kernel", b.kernel.Path, "-initrd", b.initrd, "-append", "console=ttyS0 " + line,
		"-device", "virtio-rng" + m.bus,
	}
	for serial, path := range disks {
		readOnly := "on"
		if serial == SerialWritable || serial == SerialDisk {
			readOnly = "off"
		}
		args = append(args,
			"-drive", "if=none,format=raw,id="+serial+",readonly="+readOnly+",file="+path,
			"-device", "virtio-blk"+m.bus+",drive="+serial+",serial="+serial)
	}
	var console bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = &console, &console
	err = cmd.Run()
	text := strings.ReplaceAll(console.String(), "\r", "")
	if err != nil {
		t.Fatalf("QEMU: %v\n%s", err, text)
	}
	return text
}

// wantLines fails the test unless these lines are on the console in this order.
func wantLines(t *testing.T, console string, want ...string) {
	t.Helper()
	s := bufio.NewScanner(strings.NewReader(console))
	for s.Scan() && len(want) > 0 {
		if strings.Contains(s.Text(), want[0]) {
			want = want[1:]
		}
	}
	if len(want) > 0 {
		t.Errorf("no line %q on the console:\n%s", want[0], console)
	}
}

// layer makes an erofs image of a directory.
func layer(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	w := erofs.Create(f)
	if err := errors.Join(w.CopyFrom(os.DirFS(dir)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// ext4 makes an ext4 image of a directory.
func ext4(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.ext4")
	cmd := exec.Command("mkfs.ext4", "-q", "-d", dir, path, "64M")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return path
}

// rootTree is a root whose only program is testdata/guest.
func (b *bench) rootTree(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile(b.program)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeTree(t, map[string][]byte{
		"usr/sbin/init": program, "etc/lower": []byte("the lower layer"), "etc/both": []byte("the lower layer"),
		"etc/lower-dir/x": nil, "usr/lib/os-release": nil,
	})
	for link, target := range map[string]string{"sbin": "usr/sbin", "lib": "/usr/lib"} { // the latter absolute, as some have it
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "usr/sbin/init"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // mkfs.ext4 is not on every user's PATH
	b := newBench(t)
	t.Run("layers", b.testLayers)
	t.Run("partitioned disk", b.testDisk)
	t.Run("no init", b.testNoInit)
	t.Run("fatal", b.testFatal)
}

// Layers are stacked in order, the guest's init takes over from /init with the
// agent beside it, and what it wrote is there after a reset.
func (b *bench) testLayers(t *testing.T) {
	console := b.boot(t, q35, Guest{Root: RootLayers, Layers: 2, Modules: true}, map[string]string{
		SerialLayer(0): layer(t, b.rootTree(t)),
		SerialLayer(1): layer(t, writeTree(t, map[string][]byte{"etc/both": []byte("the upper layer")})),
		SerialModules:  b.kernel.Modules.Path,
		SerialWritable: ext4(t, t.TempDir()),
	})
	wantLines(t, console,
		"guest: agent is called @attest-agent",
		"guest: init is process 1, called as /sbin/init",
		"guest: /etc/lower is of the lower layer",
		"guest: /etc/both is of the upper layer",
		"guest: 1 processes are the agent",
		"guest: more than 100 modules: true",
		"guest: files and directories are on one device: true",
		"guest: written",
		"guest: init is process 1, called as /sbin/init",
		"guest: after the reset: it survived",
	)
}

// The root of somebody's disk is found among its partitions and written to.
func (b *bench) testDisk(t *testing.T) {
	root := ext4(t, b.rootTree(t))
	st, err := os.Stat(root)
	if err != nil {
		t.Fatal(err)
	}
	const linuxData = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	parts := map[int]Partition{
		1: {Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", Start: 1 << 20, Size: 1 << 20, Name: "EFI"},
		2: {Type: linuxData, Start: 2 << 20, Size: 1 << 20, Name: "encrypted"},
		3: {Type: linuxData, Start: 4 << 20, Size: st.Size(), Name: "root"},
	}
	size := 8<<20 + st.Size()
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := disk.Truncate(size); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	for offset, data := range map[int64][]byte{
		0: gptDisk(size, parts), parts[1].Start + 82: []byte("FAT32   "), parts[2].Start: []byte("LUKS\xba\xbe"), parts[3].Start: content,
	} {
		if _, err := disk.WriteAt(data, offset); err != nil {
			t.Fatal(err)
		}
	}
	console := b.boot(t, q35, Guest{Root: RootDisk, Modules: true}, map[string]string{
		SerialDisk: disk.Name(), SerialModules: b.kernel.Modules.Path,
	})
	wantLines(t, console,
		"guest: init is process 1",
		"guest: /etc/both is of the lower layer",
		"guest: more than 100 modules: true",
		"guest: written",
		"guest: after the reset: it survived",
	)
}

// A guest without an init is kept by /init, which reaps orphans and powers off
// when it is told to. Its root is a file system image, nothing is kept, and its
// devices are memory-mapped.
func (b *bench) testNoInit(t *testing.T) {
	console := b.boot(t, microvm, Guest{Root: RootImage, Volatile: true, Args: []string{"test.agent=poweroff"}}, map[string]string{
		SerialImage: ext4(t, writeTree(t, map[string][]byte{"etc/os-release": nil})),
	})
	wantLines(t, console, "guest: the orphan was reaped", "guest: service got terminated")
	if strings.Contains(console, FatalPrefix) {
		t.Errorf("a fatal error:\n%s", console)
	}
}

var each = flag.Bool("each", false, "boot a guest for every fatal error")

// fatalKinds are the fatal errors for which guests boot without -each: one of the agent, of
// init, of a disk, and of what is on it.
var fatalKinds = []string{"agent dies", "init is not there", "disk is missing", "layer is nothing"}

// What cannot go on says why in one line and powers off.
func (b *bench) testFatal(t *testing.T) {
	root := layer(t, b.rootTree(t))
	blank := filepath.Join(t.TempDir(), "blank")
	if err := os.WriteFile(blank, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		guest Guest
		disks map[string]string
		want  string
	}{
		"agent dies": {
			Guest{Root: RootLayers, Layers: 1, Volatile: true, Args: []string{"test.agent=die"}},
			map[string]string{SerialLayer(0): root},
			"the agent ended before the host had given this guest its identity (exit code 3)",
		},
		"agent of another version": {
			Guest{Root: RootLayers, Layers: 1, Volatile: true, Args: []string{"test.agent=babble"}},
			map[string]string{SerialLayer(0): root},
			`the agent said "yes" instead of ok`,
		},
		"agent leaves a guest without init": {
			Guest{Root: RootLayers, Layers: 1, Volatile: true, Init: "none", Args: []string{"test.agent=leave"}},
			map[string]string{SerialLayer(0): root},
			"the agent ended (exit code 4): this guest can no longer be reached",
		},
		"init is not there": {
			Guest{Root: RootLayers, Layers: 1, Volatile: true, Init: "/sbin/nowhere"},
			map[string]string{SerialLayer(0): root},
			"/sbin/nowhere: no such file",
		},
		"disk is missing": {
			Guest{Root: RootLayers, Layers: 2, Volatile: true},
			map[string]string{SerialLayer(0): root},
			"no disk with the serial attest-l1 appeared within 10s (found: attest-l0)",
		},
		"writable disk is not formatted": {
			Guest{Root: RootLayers, Layers: 1},
			map[string]string{SerialLayer(0): root, SerialWritable: blank},
			"disk attest-rw (/dev/vd", // …b) holds nothing known instead of ext4
		},
		"layer is nothing": {
			Guest{Root: RootLayers, Layers: 1, Volatile: true},
			map[string]string{SerialLayer(0): blank},
			"holds nothing known, which cannot be a root file system",
		},
		"root to fill has no file system": {
			Guest{Root: RootLayers, Layers: 1, Fill: "W"},
			map[string]string{SerialLayer(0): root, SerialDisk: blank},
			"mount disk attest-disk ()",
		},
		"disk has no root": {
			Guest{Root: RootDisk},
			map[string]string{SerialDisk: blank},
			"disk attest-disk: no root file system on it; found: /dev/vda unknown",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if !*each && !slices.Contains(fatalKinds, name) {
				t.Skip("-args -each boots a guest for every fatal error, as make stress does")
			}
			console := b.boot(t, q35, c.guest, c.disks)
			lines := strings.Split(console, "\n")
			i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, FatalPrefix) })
			if i < 0 || !strings.Contains(lines[i], c.want) {
				t.Errorf("no line %q with %q:\n%s", FatalPrefix, c.want, console)
			}
		})
	}
}
