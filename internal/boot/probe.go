package boot

import (
	"errors"
	"fmt"
	"io"
)

// A superblock is told by a magic value at a fixed place. What is not mountable
// is here too, so that an error can say what was found instead of a root.
var superblocks = []struct {
	name   string
	offset int64
	magic  string
}{
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
	{"squashfs", 0, "hsqs"},
	{"xfs", 0, "XFSB"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"ext4", 1024 + 0x38, "\x53\xef"}, // ext2 and ext3 too: the ext4 driver mounts all three
	{"iso9660", 0x8001, "CD001"},
	{"crypto_LUKS", 0, "LUKS\xba\xbe"},
	{"LVM2_member", 512 + 0x18, "LVM2 001"},
	{"swap", 4096 - 10, "SWAPSPACE2"},
	{"vfat", 82, "FAT32   "},
	{"vfat", 54, "FAT1"}, // FAT12 and FAT16
}

// ProbeFilesystem tells what is on r from its first bytes, by the names that
// mount(8) has for file systems, and "crypto_LUKS", "LVM2_member" and "swap".
// Empty: nothing that attest knows.
func ProbeFilesystem(r io.ReaderAt) (string, error) {
	for _, s := range superblocks {
		buf := make([]byte, len(s.magic))
		switch _, err := r.ReadAt(buf, s.offset); {
		case errors.Is(err, io.EOF):
			continue // too short for this one
		case err != nil:
			return "", fmt.Errorf("probe file system: %w", err)
		case string(buf) == s.magic:
			return s.name, nil
		}
	}
	return "", nil
}

// rootFilesystems are those that can hold a root.
var rootFilesystems = map[string]bool{
	"erofs": true, "squashfs": true, "xfs": true, "btrfs": true, "f2fs": true, "ext4": true, "iso9660": true,
}

// readOnlyOptions mount a file system on a disk that cannot be written to, also
// if it was not unmounted: a journal cannot be replayed there.
var readOnlyOptions = map[string]string{
	"ext4":  "noload",
	"xfs":   "norecovery,nouuid",
	"btrfs": "rescue=nologreplay",
	"f2fs":  "norecovery",
}
