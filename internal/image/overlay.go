package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OverlaySize is how much a machine can write, in bytes. The file is sparse:
// it grows with what is written.
const OverlaySize = 16 << 30

const templateFile = "overlay.ext4"

// templateArgs make a file system that costs nothing until it is used: inode
// tables and journal are left as the zeros that they are (the guest's kernel
// must not write them either: mount with noinit_itable), no blocks are kept for
// root, and there are inodes for 256 Ki files, as more would only be tables.
var templateArgs = []string{
	"-q", "-F", "-t", "ext4", "-L", "attest-rw", "-m", "0", "-b", "4096", "-N", "262144",
	"-J", "size=16", "-O", "^resize_inode,^metadata_csum_seed",
	"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1",
}

// OverlayDisk makes the writable disk of a machine: an empty ext4 in a sparse
// raw file of OverlaySize, copied from a template that is made once. path must
// not exist.
func (s *Store) OverlayDisk(ctx context.Context, path string) error {
	var meta struct{}
	l, err := s.object(ctx, makeRef(kindTemplate, digest(kindTemplate, []any{OverlaySize, templateArgs})), &meta, s.makeTemplate)
	if err != nil {
		return err
	}
	defer l.release()
	if err := copySparse(path, filepath.Join(l.dir, templateFile)); err != nil {
		return s.explain(fmt.Errorf("writable disk: %w", err))
	}
	return nil
}

func (s *Store) makeTemplate(ctx context.Context, dir string) error {
	name := filepath.Join(dir, templateFile)
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(OverlaySize), f.Close()); err != nil {
		return err
	}
	if err := s.runTool(ctx, "mkfs.ext4", append(templateArgs, name)...); err != nil {
		return fmt.Errorf("template of writable disks: %w", err)
	}
	return checkExt4(name)
}

// checkExt4 looks whether a file system is one of OverlaySize that was closed
// (Linux, Documentation/filesystems/ext4/super.rst).
func checkExt4(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	super := make([]byte, 64)
	if _, err := f.ReadAt(super, 1024); err != nil {
		return err
	}
	le := binary.LittleEndian
	blocks, size, clean := int64(le.Uint32(super[4:])), int64(1024)<<le.Uint32(super[24:]), le.Uint16(super[58:]) == 1
	if le.Uint16(super[56:]) != 0xef53 || blocks*size != OverlaySize || !clean {
		return &BuildError{Image: "template of writable disks", Phase: "mkfs.ext4", Reason: "it exited with 0 but made no file system"}
	}
	return nil
}

// copySparse copies a file, by reference where the file system can
// (FICLONE), otherwise only what is not a hole.
func copySparse(to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := dst.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(to)
		}
	}()
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	for pos := int64(0); ; {
		start, err := src.Seek(pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return nil
		}
		if err != nil {
			return err
		}
		end, err := src.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(dst, src, end-start); err != nil { // copy_file_range(2)
			return err
		}
		pos = end
	}
}
