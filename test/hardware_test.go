package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestHardware has a machine whose root is an ext4 on a disk of its own, and disks
// beside it, do what other machines cannot, over a fork, the loss of power and a boot.
func TestHardware(t *testing.T) {
	t.Parallel()
	seed := filepath.Join(t.TempDir(), "seed.raw")
	if err := os.WriteFile(seed, append([]byte("seed\n"), make([]byte, 1<<20-5)...), 0o600); err != nil {
		t.Fatal(err)
	}
	lab := attest.New(t, attest.MachineConfig{
		Name: "m", Image: attest.Debian{Root: "ext4", RootSize: 2 << 30}, Memory: 256, Networks: []int{},
		Disks: []attest.Disk{{Size: 8 << 20, Serial: "empty"}, {Size: 8 << 20, Serial: "lun", Bus: "scsi"}, {Path: seed, Serial: "seed"}, {Path: seed, Serial: "ro", ReadOnly: true}},
	})
	m := lab.Machine("m")
	m.WaitForUnit("multi-user.target")
	checkPlainRoot(t, m)
	useDisks(t, m)
	m.Succeed("echo before > /root/kept; sync")
	fork := lab.Fork(t)
	m.Succeed("echo here > /root/kept; sync")

	// All of that is in the fork, and what happens there is not here.
	other := fork.Machine("m")
	if got := other.Succeed("cat /root/kept; grep -c /swapfile /proc/swaps"); got != "before\n1\n" {
		t.Errorf("in the fork: %q", got)
	}
	other.Fail(writeDirect + "/dev/sda")
	other.HealDisk("lun")
	other.Succeed(writeDirect + "/dev/sda")
	other.Unplug("hot")
	other.Fail("test -e " + byID + "hot")
	other.Crash()
	if serial := other.Plug(attest.Disk{Serial: "empty"}); serial != "empty" { // while it is off
		t.Errorf("plugged %q", serial)
	}
	other.Start()
	other.WaitForUnit("multi-user.target") // udev has named the disks
	for script, want := range map[string]string{
		"cat /root/kept":             "before",
		"findmnt -no FSTYPE /":       "ext4",
		"head -c4 " + byID + "empty": "mine",
		"head -c4 " + byID + "seed":  "ours",
		"head -c4 " + byID + "ro":    "seed",
	} {
		if got := strings.TrimSpace(other.Succeed(script)); got != want {
			t.Errorf("after the loss of power: %s: %q, want %q", script, got, want)
		}
	}
	other.Fail("test -e " + byID + "hot")
	if got := m.Succeed("cat /root/kept; head -c3 " + byID + "hot"); got != "here\nhot" {
		t.Errorf("in the lab: %q", got)
	}
}

func checkPlainRoot(t *testing.T, m *attest.TestMachine) {
	t.Helper()
	for script, want := range map[string]string{
		"findmnt -no FSTYPE /":                            "ext4",
		"lsblk -bdno SIZE $(findmnt -no SOURCE /)":        "2147483648",
		"systemctl is-system-running --wait":              "running",
		"getcap /usr/bin/ping":                            "/usr/bin/ping cap_net_raw=ep",
		"stat -c '%a %U %G' /usr/bin/su /etc/shadow /tmp": "4755 root root\n640 root shadow\n1777 root root",
	} {
		if got := strings.TrimSpace(m.Succeed(script)); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
	m.SucceedAll([]string{
		"fallocate -l 16M /swapfile; chmod 600 /swapfile; mkswap /swapfile; swapon /swapfile; grep /swapfile /proc/swaps",
		"fsfreeze -f /; fsfreeze -u /",
		"fstrim -v /",
		"mkdir /lower /upper /work /merged; mount -t overlay overlay -o lowerdir=/lower,upperdir=/upper,workdir=/work /merged; touch /merged/file; test -e /upper/file",
	})
}

const (
	byID        = "/dev/disk/by-id/virtio-"
	writeDirect = "dd if=/dev/zero bs=4k count=1 oflag=direct of="
	readDirect  = "dd of=/dev/null bs=4k count=1 iflag=direct if="
)

// useDisks writes to disks, plugs one in, pulls one out and leaves one broken.
func useDisks(t *testing.T, m *attest.TestMachine) {
	t.Helper()
	m.Succeed("grep -q ^seed " + byID + "seed; printf ours | dd conv=notrunc,fsync of=" + byID + "seed; printf mine | dd conv=fsync of=" + byID + "empty")
	m.Fail(writeDirect + byID + "ro")
	m.BreakDisk("lun", attest.DiskFault{Read: "EIO"})
	m.Fail(readDirect + "/dev/sda")
	m.BreakDisk("lun", attest.DiskFault{Write: "ENOSPC"})
	m.Succeed(readDirect + "/dev/sda")
	m.Fail(writeDirect + "/dev/sda")

	m.Plug(attest.Disk{Size: 4 << 20, Serial: "hot"})
	m.WaitForFile(byID + "hot")
	m.Succeed("printf hot | dd conv=fsync of=" + byID + "hot")
	m.BreakDisk("hot", attest.DiskFault{RequestsPerSecond: 4})
	began := time.Now()
	m.Succeed("dd of=/dev/null bs=4k count=12 iflag=direct if=" + byID + "hot")
	if took := time.Since(began); took < time.Second {
		t.Errorf("12 requests at 4 a second took %v", took)
	}
	m.HealDisk("hot")
	m.Unplug("empty")
	m.Fail("test -e " + byID + "empty")
}
