package attest

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/image"
)

// testDisk writes a disk with an MBR of partitions of 1 MiB that begin with these texts, or
// one without partitions for a single text.
func testDisk(t *testing.T, begin ...string) string {
	t.Helper()
	disk := make([]byte, (len(begin)+1)<<20)
	for i, text := range begin {
		at := (i + 1) << 20
		if len(begin) == 1 {
			at = 0
		} else {
			e := disk[446+16*i:]
			e[4] = 0x83
			binary.LittleEndian.PutUint32(e[8:], uint32(at/512))
			binary.LittleEndian.PutUint32(e[12:], 1<<20/512)
			disk[510], disk[511] = 0x55, 0xaa
		}
		copy(disk[at:], text)
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A disk without a root that attest's kernel can start is refused with what to do, before
// anything boots.
func TestRootsThatNeedALoader(t *testing.T) {
	const luks = "LUKS\xba\xbe\x00\x02"
	lvm := strings.Repeat("\x00", 536) + "LVM2 001"
	ext4 := strings.Repeat("\x00", 1080) + "\x53\xef"
	boot := ext4 + strings.Repeat("\x00", 1024+0x88-1082) + "/boot\x00"
	for name, tt := range map[string]struct {
		begin []string
		want  string // of the error; empty: there is a root, or nobody can tell
	}{
		"encrypted":          {[]string{luks}, "is encrypted, and attest's kernel has no passphrase for it (the disk crypto_LUKS)"},
		"encrypted, /boot":   {[]string{boot, luks}, "is encrypted, and attest's kernel has no passphrase for it (partition 1 ext4, partition 2 crypto_LUKS)"},
		"LVM":                {[]string{boot, lvm}, "is in an LVM volume, which attest's kernel does not look into (partition 1 ext4, partition 2 LVM2_member)"},
		"nothing":            {[]string{"", ""}, "there is no root file system on "},
		"encrypted data":     {[]string{ext4, luks}, ""},
		"a root":             {[]string{boot, ext4}, ""},
		"a root on the disk": {[]string{ext4}, ""},
	} {
		base, _, err := image.OpenDisk(image.Disk{Path: testDisk(t, tt.begin...)})
		if err != nil {
			t.Fatal(err)
		}
		content := contentOf(base)
		err = content.checkRoot()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `disk("disk.raw", boot="uefi") or boot="bios"`)) {
			t.Errorf("%s: %v", name, err)
		}
		if got, want := content.encrypted(), strings.Contains(name, "encrypted"); got != want {
			t.Errorf("%s: encrypted %v", name, got)
		}
	}
}

// A kernel needs something to mount.
func TestKernelRoot(t *testing.T) {
	for begin, want := range map[string]string{"hsqs": "", "no file system": "disk.raw is not a file system, nor a disk with one"} {
		base, _, err := image.OpenDisk(image.Disk{Path: testDisk(t, begin), Format: "raw"})
		if err != nil {
			t.Fatal(err)
		}
		err = contentOf(base).checkKernelRoot()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", begin, err)
		}
	}
}

// The machine is refused as a whole, and nothing is built for it.
func TestEncryptedRootIsInvalid(t *testing.T) {
	h, err := OpenHost(t.Context(), HostConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.NewLab(t.Context(), LabConfig{Machines: []MachineConfig{{Name: "a", Image: Disk{Path: testDisk(t, "LUKS\xba\xbe\x00\x02")}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = l.Machines()[0].Start(t.Context())
	var refused *ConfigError
	if !errors.As(err, &refused) || refused.Subject != `machine "a"` {
		t.Errorf("%T: %v", err, err)
	}
}
