package boot

import (
	"bytes"
	"testing"
)

// superblock is a disk with a magic value at an offset.
func superblock(offset int, magic string) []byte {
	disk := make([]byte, 128<<10)
	copy(disk[offset:], magic)
	return disk
}

func TestProbeFilesystem(t *testing.T) {
	for _, c := range []struct {
		want string
		disk []byte
	}{
		{"erofs", superblock(1024, "\xe2\xe1\xf5\xe0")},
		{"squashfs", superblock(0, "hsqs")},
		{"ext4", superblock(1080, "\x53\xef")},
		{"xfs", superblock(0, "XFSB")},
		{"btrfs", superblock(65600, "_BHRfS_M")},
		{"iso9660", superblock(32769, "CD001")},
		{"crypto_LUKS", superblock(0, "LUKS\xba\xbe\x00\x02")},
		{"LVM2_member", superblock(536, "LVM2 001")},
		{"swap", superblock(4086, "SWAPSPACE2")},
		{"vfat", superblock(82, "FAT32   ")},
		{"", make([]byte, 128<<10)},
		{"", []byte("short")},
		{"", nil},
	} {
		got, err := ProbeFilesystem(bytes.NewReader(c.disk))
		if err != nil || got != c.want {
			t.Errorf("got %q, %v; want %q", got, err, c.want)
		}
	}
}
