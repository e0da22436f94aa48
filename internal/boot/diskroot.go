package boot

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// btrfsRoots are the subvolumes in which installers put a root, besides the
// file system's default one: Fedora's, and openSUSE's and Ubuntu's.
var btrfsRoots = []string{"", "subvol=root", "subvol=@"}

// mountDiskRoot finds the root on a disk that was partitioned elsewhere and
// mounts it at newRoot to be written to.
func mountDiskRoot(disk string) error {
	candidates, err := rootCandidates(disk)
	if err != nil {
		return fmt.Errorf("disk %s: %w", SerialDisk, err)
	}
	if err := os.MkdirAll(probeDir, 0o755); err != nil {
		return err
	}
	var seen []string // what was there instead, for the error
	for _, device := range candidates {
		fstype, err := probeDevice(device)
		if err != nil {
			return fmt.Errorf("disk %s: %w", SerialDisk, err)
		}
		if !rootFilesystems[fstype] {
			seen = append(seen, device+" "+cmp.Or(fstype, "unknown"))
			continue
		}
		if err := loadModules(fstype); err != nil {
			return err
		}
		variants := []string{""}
		if fstype == "btrfs" {
			variants = btrfsRoots
		}
		for _, options := range variants {
			found, err := looksLikeRoot(device, fstype, options)
			if err != nil {
				seen = append(seen, fmt.Sprintf("%s %s (%v)", device, fstype, err))
				continue
			}
			if !found {
				seen = append(seen, fmt.Sprintf("%s %s without an init or /etc/os-release", device, fstype))
				continue
			}
			if err := unix.Mount(device, newRoot, fstype, 0, options); err != nil {
				return fmt.Errorf("mount the root %s (%s) read-write: %w", device, fstype, err)
			}
			return nil
		}
	}
	return fmt.Errorf("disk %s: no root file system on it; found: %s; a root that is encrypted or in LVM needs the disk's own loader: disk(…, boot=\"uefi\") or boot=\"bios\"",
		SerialDisk, cmp.Or(strings.Join(seen, ", "), "nothing"))
}

// rootCandidates are the devices to look at: partitions that are marked as a
// root first, then by size, the largest first; or the disk if it has none.
func rootCandidates(disk string) ([]string, error) {
	f, err := os.Open(disk)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	parts, err := ReadPartitions(f)
	if err != nil && len(parts) == 0 {
		return nil, err
	}
	if len(parts) == 0 {
		return []string{disk}, nil
	}
	slices.SortStableFunc(parts, func(a, b Partition) int {
		if rootTypes[a.Type] != rootTypes[b.Type] {
			if rootTypes[a.Type] {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.Size, a.Size)
	})
	var devices []string
	for _, p := range parts {
		devices = append(devices, partitionDevice(disk, p.Number))
	}
	return devices, nil
}

// partitionDevice is the kernel's name of a partition: vda1, but nvme0n1p1.
func partitionDevice(disk string, number int) string {
	if last := disk[len(disk)-1]; '0' <= last && last <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(number)
}

// looksLikeRoot mounts a file system read-only and looks for what a root has.
func looksLikeRoot(device, fstype, options string) (bool, error) {
	if err := unix.Mount(device, probeDir, fstype, unix.MS_RDONLY, options); err != nil {
		return false, fmt.Errorf("mount: %w%s", err, mountHint(fstype, err))
	}
	defer unix.Unmount(probeDir, 0)
	return hasRoot(probeDir), nil
}

// hasRoot reports whether dir is a root. Lstat, because links in it may be absolute.
func hasRoot(dir string) bool {
	for _, path := range append([]string{"/etc/os-release"}, usualInits...) {
		if _, err := os.Lstat(dir + path); err == nil {
			return true
		}
	}
	return false
}
