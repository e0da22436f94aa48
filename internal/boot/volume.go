package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// A Volume is a partition of a disk, or a disk without any, and what is on it.
type Volume struct {
	Partition        // Number is 0 for a whole disk
	Kind      string // see ProbeFilesystem
	boot      bool   // it holds a kernel, and no root
}

func (v Volume) String() string {
	where, what := "the disk", v.Kind
	if v.Number > 0 {
		where = fmt.Sprintf("partition %d", v.Number)
	}
	if what == "" {
		what = "unknown"
	}
	return where + " " + what
}

// CanBeRoot reports whether Init can look for a root on the volume.
func (v Volume) CanBeRoot() bool { return rootFilesystems[v.Kind] && !v.boot }

// Types of partitions that hold no root: the EFI system partition, and the extended boot
// loader partition (uapi-group.org).
const (
	typeESP      = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	typeXBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
)

// ReadVolumes reads what is on a disk of so many bytes: its partition table, and of each
// partition the beginning. It reads a bounded amount, whatever is there.
func ReadVolumes(r io.ReaderAt, size int64) ([]Volume, error) {
	parts, err := ReadPartitions(r)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		parts = []Partition{{Size: size}}
	}
	var out []Volume
	for _, p := range parts {
		if p.Start < 0 || p.Size < 0 {
			return nil, fmt.Errorf("partition %d begins at %d and has %d bytes", p.Number, p.Start, p.Size)
		}
		section := io.NewSectionReader(r, p.Start, p.Size)
		kind, err := ProbeFilesystem(section)
		if err != nil {
			return nil, err
		}
		v := Volume{Partition: p, Kind: kind, boot: p.Type == typeESP || p.Type == typeXBOOTLDR}
		if kind == "ext4" && !v.boot {
			if v.boot, err = mountedAt(section, "/boot"); err != nil {
				return nil, err
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// mountedAt reports whether an ext4 was last mounted at a directory (Linux,
// Documentation/filesystems/ext4/super.rst, s_last_mounted).
func mountedAt(r io.ReaderAt, dir string) (bool, error) {
	last := make([]byte, 64)
	if _, err := r.ReadAt(last, 1024+0x88); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	path, _, _ := bytes.Cut(last, []byte{0})
	return string(path) == dir, nil
}
