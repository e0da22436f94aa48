package test

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

var guests = flag.Bool("guests", false, "run the tests of machines that boot by themselves, and of their disks")

// bootDisk is a disk that examples/guests/boot-disks makes.
func bootDisk(t *testing.T, name string) string {
	t.Helper()
	if !*guests {
		t.Skip("make test-guests boots real disks; it takes minutes")
	}
	t.Parallel()
	path, err := filepath.Abs(filepath.Join("../out/boot", name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v (make test-guests makes it)", err)
	}
	return path
}

// TestGuestsEncryptedRoot has a root refused before anything boots, with advice that
// examples/guests/luks_root_test.star follows.
func TestGuestsEncryptedRoot(t *testing.T) {
	image := bootDisk(t, "luks.img")
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "luks_test.star"), `
m = machine(image = disk("`+image+`"), networks = [])

def test_it():
    m.succeed("true")
`)
	p := start(t, newStateDir(t), nil, "attest", "run", "--json", filepath.Join(dir, "events.jsonl"), file)
	if code := p.exitCode(t); code != 2 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{`machine "m": the root on ` + image + " is encrypted", "crypto_LUKS", `disk("luks.img", boot="uefi") or boot="bios"`, "initrd=", "send_console"} {
		if !strings.Contains(p.said(), want) {
			t.Errorf("not said: %s", want)
		}
	}
	events, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
	if err != nil || strings.Contains(string(events), `"state":"starting"`) {
		t.Errorf("a machine was started, or nobody knows: %v", err)
	}
}

// TestGuestsLoginRefused ends the boot of a guest that does not let attest in long before
// its limit, and says why.
func TestGuestsLoginRefused(t *testing.T) {
	image := bootDisk(t, "grub.img")
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	machine := func(name, user, password string) attest.MachineConfig {
		return attest.MachineConfig{Name: name, Image: attest.Disk{Path: image, Boot: "bios", User: user, Password: password}, Memory: 384, Networks: []int{}, BootTimeout: 4 * patience}
	}
	lab := openLab(ctx, t, attest.HostConfig{}, attest.LabConfig{Machines: []attest.MachineConfig{machine("wrong", "root", "wrong"), machine("nobody", "", "")}})
	for name, want := range map[string][]string{
		"wrong":  {"attest cannot log in as root on the serial console: the password is refused"},
		"nobody": {"there is a login prompt on its serial console (ttyS0): give the machine user= and password= to have attest log in there;", "it has said nothing for "},
	} {
		_, err := lab.Machine(name).Succeed(ctx, "true")
		boot := errorAs[*attest.BootError](t, err)
		for _, w := range want {
			if attest.StatusOf(err) != attest.BootFailed || !strings.Contains(boot.Error(), w) {
				t.Errorf("%s: %v\nlacks %s", name, err, w)
			}
		}
	}
}

// TestGuestsNVMeIsNotSaved refuses by name what QEMU cannot save, and saves the machine when that
// is pulled out.
func TestGuestsNVMeIsNotSaved(t *testing.T) {
	bootDisk(t, "grub.img")
	lab := attest.New(t, attest.MachineConfig{Name: "m", Image: attest.Debian{}, Memory: 256, Networks: []int{}})
	m := lab.Machine("m")
	m.WaitForUnit("multi-user.target")
	m.Plug(attest.Disk{Size: 4 << 20, Serial: "fast", Bus: "nvme"})
	m.WaitForFile("/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_fast")
	err := m.Machine.SnapshotCreate(t.Context(), "here")
	if e := errorAs[*attest.UnsupportedError](t, err); !strings.Contains(e.Error(), "the disk fast") || !strings.Contains(e.Error(), "NVMe") {
		t.Errorf("got %v", err)
	}
	if _, err := lab.Lab.Snapshot(t.Context()); !errors.As(err, new(*attest.UnsupportedError)) {
		t.Errorf("got %v", err)
	}
	m.Succeed("test -b /dev/nvme0n1") // it goes on
	m.Unplug("fast")
	m.SnapshotCreate("here")
	m.Succeed("touch /root/later")
	m.SnapshotRestore("here")
	m.Fail("test -e /root/later")
}
