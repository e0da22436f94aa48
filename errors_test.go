package attest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/backdoor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
)

func TestErrorTexts(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{&CommandError{Machine: "a", Operation: "succeed", Command: "false", Result: Result{ExitCode: 1}},
			"a: command `false` failed (exit code 1)"},
		{&CommandError{Machine: "a", Operation: "succeed", Command: "x", Result: Result{ExitCode: 137, Signal: "SIGKILL"}},
			"a: command `x` failed (exit code 137, SIGKILL)"},
		{&CommandError{Machine: "a", Operation: "succeed", Command: "sleep 9", Result: Result{ExitCode: 124, TimedOut: true, Duration: time.Second}},
			"a: command `sleep 9` failed (timed out after 1s, exit code 124)"},
		{&CommandError{Machine: "a", Operation: "fail", Command: "true"},
			"a: command `true` unexpectedly succeeded"},
		{&WaitError{Machine: "a", Operation: "wait_for_file", Args: `"/x"`, Elapsed: 2 * time.Second, Limit: 2 * time.Second, LastSeen: "no such file"},
			`a: wait_for_file("/x") timed out after 2s (limit 2s); last seen: no such file`},
		{&WaitError{Machine: "a", Operation: "wait_until_succeeds", Args: `"false"`, Elapsed: 50 * time.Millisecond, Limit: 50 * time.Millisecond, Tries: 1},
			`a: wait_until_succeeds("false") timed out after 50ms (limit 50ms, 1 try)`},
		{&WaitError{Machine: "a", Operation: "wait_for_unit", Args: `"u"`, Elapsed: time.Second, Reason: `reached state "failed"`},
			`a: wait_for_unit("u") can no longer succeed: reached state "failed" (after 1s)`},
		{&BootError{Machine: "a", Reason: "kernel panic", After: 1500 * time.Millisecond, Console: []string{"x"}},
			"a: guest did not boot: kernel panic (after 1.5s)"},
		{&BootError{Machine: "a", Reason: "no answer", After: time.Second},
			"a: guest did not boot: no answer (after 1s); the console stayed silent"},
		{&DownError{Machine: "a", Operation: "execute", Reason: "powered off"},
			"a: execute: the machine is down: powered off"},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

func TestStatusOf(t *testing.T) {
	for _, test := range []struct {
		err  error
		want Status
	}{
		{nil, Passed},
		{errors.New("anything"), Failed},
		{&CommandError{}, Failed},
		{&WaitError{}, Failed},
		{&BootError{}, BootFailed},
		{&BootError{Err: errors.New("timed out")}, BootFailed},
		{&BootError{Err: context.Canceled}, Interrupted},
		{&DownError{}, Failed},
		{&DownError{Broken: true}, Infra},
		{&InfraError{Err: errors.New("no space")}, Infra},
		{&MissingError{}, Infra},
		{&UnsupportedError{}, Unsupported},
		{&ConfigError{}, Invalid},
		{context.Canceled, Interrupted},
		{&os.PathError{Op: "open", Path: "x", Err: syscall.EMFILE}, Infra}, // what a host has run out of
		{os.NewSyscallError("pipe2", syscall.ENFILE), Infra},
		{&os.PathError{Op: "fork/exec", Path: "x", Err: syscall.ENOMEM}, Infra},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, Infra},
		{&os.PathError{Op: "open", Path: "x", Err: syscall.ENOENT}, Failed},
	} {
		if got := StatusOf(test.err); got != test.want {
			t.Errorf("%T: %s, want %s", test.err, got, test.want)
		}
		if test.err != nil {
			if got := StatusOf(fmt.Errorf("outer: %w", test.err)); got != test.want {
				t.Errorf("wrapped %T: %s, want %s", test.err, got, test.want)
			}
		}
	}
}

// Errors of the packages below are found as the types of this package, wherever in
// an error they are, and read the same.
func TestErrorsGoOutwardAsOwnTypes(t *testing.T) {
	for _, below := range []error{
		fmt.Errorf("outer: %w", &vmm.UnsupportedError{Machine: "m", Operation: "pause", Can: []string{"qemu"}}),
		errors.Join(errors.New("other"), &vmm.UnsupportedError{Machine: "m", Operation: "pause", Can: []string{"qemu"}}),
	} {
		err := outward(below)
		var ours *UnsupportedError
		if !errors.As(err, &ours) || ours.Machine != "m" || ours.Can[0] != "qemu" || err.Error() != below.Error() || StatusOf(err) != StatusOf(below) {
			t.Errorf("%v (%s) went out as %v (%s): %+v", below, StatusOf(below), err, StatusOf(err), ours)
		}
		if !errors.Is(err, below) || errors.As(err, new(*MissingError)) || outward(err) != err {
			t.Errorf("%v: lost, changed twice, or taken for something else", err)
		}
	}
	boot := &BootError{Err: &backdoor.InstallError{Machine: "m", Reason: "no room"}}
	if ours := (*InstallError)(nil); !errors.As(outward(boot), &ours) || ours.Reason != "no room" || !errors.As(outward(boot), new(*BootError)) {
		t.Errorf("%v: %+v", outward(boot), ours)
	}
	for _, err := range []error{nil, context.Canceled, &UnsupportedError{}, &CommandError{}} {
		if outward(err) != err {
			t.Errorf("%T was changed", err)
		}
	}
}

// The engine says settings in the language that the test is written in.
func TestSettingsAreInTheFrontEndsLanguage(t *testing.T) {
	m := MachineConfig{Name: "m", Type: "microvm"}
	python := event.WithLiteral(t.Context(), func(v any) string { return strings.ToUpper(event.Neutral(v)) })
	for want, ctx := range map[string]context.Context{
		`give it one with type="q35" and display=true`: t.Context(),
		`give it one with type="Q35" and display=TRUE`: python,
	} {
		if err := m.supports(ctx, "screenshot", vmm.CanShow); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	args := []argument{{"", "a b"}, {"rate", 0.0}, unless("gap", 1, 1), unless("jitter", time.Second, 0), unless("oneway", true, false), machinesGiven("peer", []string{"x", "y"}), {}}
	if got, want := written(t.Context(), args...), `"a b", rate=0, jitter="1s", oneway=true, peer=[x, y]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestImagesAreDataBothWays(t *testing.T) {
	for _, img := range []Image{
		Debian{}, Rootfs{Path: "r", Kernel: "k", Modules: "m", Root: "xfs", RootSize: 1}, Debian{Root: "ext4", RootSize: 2}, Disk{Path: "d", Format: "raw"},
		Rootfs{Path: "r", Kernel: "k", Initrd: "i", Cmdline: "c"}, Disk{Path: "d", Boot: "uefi"}, Disk{Path: "d", Kernel: "k", Modules: "m", Cmdline: "c"}, Debian{Kernel: "k", Initrd: "i"},
		Debian{Suite: "s", Packages: []string{"p"}, Run: []string{"l"}, Kernel: "k", Modules: "m", Cmdline: "c", Files: map[string]File{"/f": {Content: "c", Mode: 0o600}}},
	} {
		if got := imageOf(img.spec()); !reflect.DeepEqual(got, img) {
			t.Errorf("%#v came back as %#v", img, got)
		}
	}
}

func TestLabConfigErrors(t *testing.T) {
	machine := func(change func(*MachineConfig)) []MachineConfig {
		m := MachineConfig{Name: "a", Image: Debian{}}
		change(&m)
		return []MachineConfig{m}
	}
	for name, test := range map[string]struct {
		machines []MachineConfig
		want     string
	}{
		"two of a name":            {[]MachineConfig{{Name: "a", Image: Debian{}}, {Name: "A", Image: Debian{}}}, `machine "A": there are two machines of this name; give one of them another name`},
		"bad name":                 {machine(func(m *MachineConfig) { m.Name = "a b" }), `machine "a b": not a machine name: want letters, digits, - and _, at most 63, beginning with a letter or a digit (it is the host name too)`},
		"no image":                 {machine(func(m *MachineConfig) { m.Image = nil }), `machine "a": it has neither an image nor a start command; give it one of the two`},
		"little memory":            {machine(func(m *MachineConfig) { m.Memory = 1 }), `machine "a": a memory of 1 MiB is out of range; want 64 to 1048576`},
		"negative CPUs":            {machine(func(m *MachineConfig) { m.CPUs = -1 }), `machine "a": -1 CPUs: out of range; want 1 to 255`},
		"unknown root":             {machine(func(m *MachineConfig) { m.Root = "fat" }), `machine "a": root="fat" is not a file system that a root can have; want one of overlay, ext4, xfs, btrfs`},
		"more nodes than CPUs":     {machine(func(m *MachineConfig) { m.NUMA = 2 }), `machine "a": numa: 2 nodes need a CPU each, and the machine has 1; give it more`},
		"negative nodes":           {machine(func(m *MachineConfig) { m.NUMA = -1 }), `machine "a": numa: -1 nodes: out of range; want 1 to 255`},
		"CPUs and nodes":           {machine(func(m *MachineConfig) { m.CPUs, m.NUMA = 3, 2 }), `machine "a": numa: 3 CPUs are not the same number on each of 2 nodes; give it a multiple of that`},
		"little memory of a node":  {machine(func(m *MachineConfig) { m.Memory, m.CPUs, m.NUMA = 100, 2, 2 }), `machine "a": numa: 100 MiB are less than 64 MiB on each of 2 nodes; give it more memory`},
		"tiny root":                {machine(func(m *MachineConfig) { m.Root, m.RootSize = "xfs", 1 }), `machine "a": root_size=1 bytes is out of range; want 64 MiB to 16 TiB`},
		"size of nothing":          {machine(func(m *MachineConfig) { m.RootSize = 1 << 30 }), `machine "a": root_size goes with a root of its own: root="ext4", for example`},
		"root of a disk":           {machine(func(m *MachineConfig) { m.Image, m.Root = Disk{Path: "d"}, "ext4" }), `machine "a": the root of a disk(…) is the one on the disk; leave out root and root_size`},
		"overlay and an initrd":    {machine(func(m *MachineConfig) { m.Image, m.Root = Debian{Kernel: "k", Initrd: "i"}, "overlay" }), `machine "a": an initrd of your own cannot mount an overlay of the image's layers; give the machine a root of its own: root="ext4"`},
		"a loader's command line":  {machine(func(m *MachineConfig) { m.Image, m.Cmdline = Disk{Path: "d", Boot: "bios"}, "quiet" }), `machine "a": cmdline: the loader on the disk gives its kernel a command line of its own; leave out cmdline, or boot`},
		"a loader beside the root": {machine(func(m *MachineConfig) { m.Disks = []Disk{{Size: 512, Boot: "bios"}} }), `machine "a": disks[0]: boot, kernel, modules, initrd, cmdline, user and password are for a disk that is a machine's image`},
		"a login at attest's own":  {machine(func(m *MachineConfig) { m.User = "root" }), `machine "a": user and password are for a guest that does not boot with attest's initramfs: disk(…, boot="bios"), boot="uefi", initrd=…, or a start command; leave them out, or say how it boots`},
		"a password of nobody":     {machine(func(m *MachineConfig) { m.Image, m.Password = Disk{Path: "d", Boot: "bios"}, "x" }), `machine "a": it has a password and no user; give both`},
		"a password of two lines":  {machine(func(m *MachineConfig) { m.Image = Disk{Path: "d", Boot: "bios", User: "root", Password: "a\nb"} }), `machine "a": user and password are typed on the serial console, and cannot have control characters`},
		"disk of nothing":          {machine(func(m *MachineConfig) { m.Disks = []Disk{{}} }), `machine "a": disks[0]: it has neither a path nor a size; give it a file, or the size of an empty disk`},
		"disk of both":             {machine(func(m *MachineConfig) { m.Disks = []Disk{{Path: "d", Size: 512}} }), `machine "a": disks[0]: it has both a path and a size; the file has a size of its own`},
		"half a sector":            {machine(func(m *MachineConfig) { m.Disks = []Disk{{Size: 513}} }), `machine "a": disks[0]: size=513 is not a whole number of sectors of 512 bytes`},
		"unknown bus":              {machine(func(m *MachineConfig) { m.Disks = []Disk{{Size: 512, Bus: "ide"}} }), `machine "a": disks[0]: bus "ide" is not one that a disk can be on; want one of [virtio scsi nvme usb]`},
		"serial twice":             {machine(func(m *MachineConfig) { m.Disks = []Disk{{Size: 512, Serial: "disk2"}, {Size: 512}} }), `machine "a": disks[1]: another disk has the serial "disk2"`},
		"serial of attest":         {machine(func(m *MachineConfig) { m.Disks = []Disk{{Size: 512, Serial: "attest-rw"}} }), `machine "a": disks[0]: serial "attest-rw": want letters, digits, ., - and _, at most 20, and not attest- at the beginning`},
		"read-only nothing":        {machine(func(m *MachineConfig) { m.Disks = []Disk{{Size: 512, ReadOnly: true}} }), `machine "a": disks[0]: an empty disk that is read-only is of no use; give it a path, or leave out read_only`},
		"shared qcow2":             {machine(func(m *MachineConfig) { m.Disks = []Disk{{Path: "d", Format: "qcow2", Shared: "s"}} }), `machine "a": disks[0]: two machines cannot write to one qcow2 image; convert it: qemu-img convert -O raw`},
		"image of a serial":        {machine(func(m *MachineConfig) { m.Image = Disk{Path: "d", Serial: "s"} }), `machine "a": image: serial is for a disk in disks=[…]; an image has none`},
		"network 0":                {machine(func(m *MachineConfig) { m.Networks = []int{0} }), `machine "a": network 0 is out of range; want 1 to 255`},
		"two cards of a script":    {[]MachineConfig{{StartCommand: "run-a-vm", Networks: []int{1, 1}}}, `machine "a": a network is listed twice; which cards a start command gives its machine is its own affair`},
		"foreign MAC":              {machine(func(m *MachineConfig) { m.MACs = []string{"03:00:00:00:00:00"} }), `machine "a": mac: "03:00:00:00:00:00" is not an address of one network card, such as 52:54:00:00:00:01`},
		"MAC of nothing":           {machine(func(m *MachineConfig) { m.MACs = []string{"", ""} }), `machine "a": mac has 2 addresses, and the machine has 1 network cards`},
		"unknown backend":          {machine(func(m *MachineConfig) { m.Backend = "vmware" }), `machine "a": unknown backend "vmware"; this attest has cloud-hypervisor, firecracker, mock, qemu`},
	} {
		t.Run(name, func(t *testing.T) {
			err := LabConfig{Machines: test.machines}.check()
			if err == nil || err.Error() != test.want || StatusOf(err) != Invalid {
				t.Errorf("got  %v (%s)\nwant %s", err, StatusOf(err), test.want)
			}
		})
	}
	if err := (LabConfig{Machines: machine(func(*MachineConfig) {})}).check(); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

// A machine has the root of its image, unless it says another.
func TestRootOfMachine(t *testing.T) {
	for _, test := range []struct {
		config MachineConfig
		root   string
		size   int64
	}{
		{MachineConfig{Image: Debian{}}, "", 0},
		{MachineConfig{Image: Debian{}, Root: "ext4"}, "ext4", 16 << 30},
		{MachineConfig{Image: Debian{Root: "xfs", RootSize: 1 << 30}}, "xfs", 1 << 30},
		{MachineConfig{Image: Rootfs{Path: "r", Root: "btrfs"}, RootSize: 2 << 30}, "btrfs", 2 << 30},
		{MachineConfig{Image: Debian{Root: "xfs", RootSize: 1 << 30}, Root: "overlay"}, "overlay", 0},
		{MachineConfig{Image: Debian{Root: "xfs", RootSize: 1 << 30}, Root: "ext4"}, "ext4", 16 << 30},
	} {
		m := test.config
		m.Name = "a"
		if err := m.normalize(); err != nil || m.Root != test.root || m.RootSize != test.size {
			t.Errorf("%+v: root %q of %d bytes (%v)", test.config, m.Root, m.RootSize, err)
		}
	}
}

func TestNetworksWithoutServices(t *testing.T) {
	config := LabConfig{Networks: map[int]NetworkConfig{1: {NoDHCP: true}, 2: {NoDNS: true, NoRA: true}}}
	if err := config.check(); err != nil {
		t.Fatal(err)
	}
	l := &Lab{config: config}
	for n, want := range map[int]NetworkConfig{1: config.Networks[1], 2: config.Networks[2], 3: {}} {
		if c := l.services(n); (NetworkConfig{c.NoDHCP, c.NoDNS, c.NoRA}) != want {
			t.Errorf("network %d serves %+v, want %+v", n, c, want)
		}
	}
	for _, n := range []int{0, 256} {
		if err := (LabConfig{Networks: map[int]NetworkConfig{n: {}}}).check(); err == nil || !strings.Contains(err.Error(), "out of range") {
			t.Errorf("network %d: %v", n, err)
		}
	}
}
