package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm"
)

// rootfs takes an existing root file system: an image file as it is, a
// directory or a tar as an erofs made of it.
func (b *build) rootfs(ctx context.Context, r *Rootfs) error {
	st, err := os.Stat(r.Path)
	if err != nil {
		return &SpecError{Field: "rootfs.path", Err: err}
	}
	switch {
	case st.IsDir():
		err = b.rootfsFrom(ctx, r.Path, "directory", directoryStamp, addDirectory)
	case !st.Mode().IsRegular():
		err = specErrorf("rootfs.path", "%s is neither a file nor a directory", r.Path)
	default:
		err = b.rootfsFile(ctx, r.Path, st)
	}
	if err != nil {
		return err
	}
	modules := r.Modules
	if modules == "" && r.Kernel != "" && !strings.HasPrefix(r.Kernel, kernelPackagePrefix) && st.IsDir() {
		if modules, err = ownModules(r); err != nil {
			return err
		}
	}
	return b.addKernel(ctx, r.Kernel, modules, DefaultSuite)
}

// ownModules finds the modules of a kernel in the directory that is its root.
// Without modules.dep nothing can be loaded by name, in the guest neither.
func ownModules(r *Rootfs) (string, error) {
	image, err := os.ReadFile(r.Kernel)
	if err != nil {
		return "", &SpecError{Field: "kernel", Err: err}
	}
	release, err := kernelRelease(image, image)
	if err != nil {
		return "", nil // its ELF says it when it is unpacked; the guest has the modules in any case
	}
	dir, err := os.OpenRoot(r.Path)
	if err != nil {
		return "", &SpecError{Field: "rootfs.path", Err: err}
	}
	defer dir.Close()
	for _, lib := range []string{"lib", "usr/lib"} {
		if _, err := dir.Stat(lib + "/modules/" + release + "/modules.dep"); err == nil {
			return filepath.Join(r.Path, lib, "modules", release), nil
		}
	}
	return "", nil
}

// rootfsFile takes a file: a file system by its magic number, otherwise a tar.
func (b *build) rootfsFile(ctx context.Context, path string, st fs.FileInfo) error {
	f, err := os.Open(path)
	if err != nil {
		return &SpecError{Field: "rootfs.path", Err: err}
	}
	head := make([]byte, 2048)
	n, _ := io.ReadFull(f, head)
	f.Close()
	format := filesystem(head[:n])
	if format == "" {
		return b.rootfsFrom(ctx, path, "tar", fileStamp, addTar)
	}
	b.layers = append(b.layers, Layer{ID: statStamp(path, st), Path: path, Format: format, Size: st.Size()})
	b.meta.External = &b.layers[0]
	return nil
}

// filesystem recognises an image of a file system by its superblock.
func filesystem(head []byte) string {
	at := func(offset int, magic string) bool {
		return len(head) >= offset+len(magic) && string(head[offset:offset+len(magic)]) == magic
	}
	switch {
	case at(1024, "\xe2\xe1\xf5\xe0"):
		return "erofs"
	case at(0, "hsqs"):
		return "squashfs"
	case at(1024+56, "\x53\xef"):
		return "ext4"
	}
	return ""
}

// statStamp identifies a file without reading it: a change of the file changes
// one of these.
func statStamp(path string, st fs.FileInfo) string {
	sys := st.Sys().(*syscall.Stat_t)
	return digest("file", []any{path, st.Size(), st.ModTime().UnixNano(), sys.Ctim.Nano(), sys.Dev, sys.Ino})
}

// rootfsFrom makes an erofs of a directory or tar.
func (b *build) rootfsFrom(ctx context.Context, path, what string, stamp func(string) (string, error), add func(context.Context, *tree, string) error) error {
	s := b.store
	id, err := stamp(path)
	if err != nil {
		return &SpecError{Field: "rootfs.path", Err: err}
	}
	var meta layerMeta
	l, err := s.object(ctx, makeRef(kindRootfs, digest(kindRootfs, []string{what, id})), &meta, func(ctx context.Context, dir string) error {
		say(ctx, "reading the %s", what)
		meta = layerMeta{Title: b.title}
		out, err := os.Create(filepath.Join(dir, "rootfs.erofs"))
		if err != nil {
			return err
		}
		defer out.Close()
		t, err := newTree(out)
		if err != nil {
			return err
		}
		if err := add(ctx, t, path); err != nil {
			if errors.Is(err, unix.ENOSPC) || ctx.Err() != nil {
				return err
			}
			return &SpecError{Field: "rootfs.path", Err: fmt.Errorf("%s: %w", path, err)}
		}
		if len(t.index) == 0 {
			return specErrorf("rootfs.path", "%s is empty", path)
		}
		if err := t.w.Close(); err != nil {
			return err
		}
		meta.Layer, err = describeLayer(dir, "rootfs.erofs")
		return err
	})
	if err != nil {
		return err
	}
	b.addLayer(l, meta)
	return nil
}

// fileStamp is the digest of a file's contents.
func fileStamp(path string) (string, error) {
	id, _, err := fileDigest(path)
	return id, err
}

// directoryStamp identifies a directory by names and attributes; reading all
// contents for each machine would take too long.
func directoryStamp(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		sys := st.Sys().(*syscall.Stat_t)
		fmt.Fprintf(h, "%q %o %d:%d %d %d %d\n", rel, sys.Mode, sys.Uid, sys.Gid, sys.Size, sys.Mtim.Nano(), sys.Ino)
		return nil
	})
	return hexDigest(h), err
}

// addDirectory puts a directory of the host into a tree, as tar would.
func addDirectory(ctx context.Context, t *tree, dir string) error {
	type inode struct{ dev, ino uint64 }
	first := map[inode]string{}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		sys := st.Sys().(*syscall.Stat_t)
		h, err := headerOf(path, rel, st, sys)
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeDir && sys.Nlink > 1 {
			id := inode{sys.Dev, sys.Ino}
			if target, ok := first[id]; ok {
				h.Typeflag, h.Linkname = tar.TypeLink, target
				return t.add(h, nil)
			}
			first[id] = rel
		}
		if h.Typeflag != tar.TypeReg {
			return t.add(h, nil)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return t.add(h, f)
	})
}

// headerOf describes a file of the host. A socket is left as a FIFO would be:
// nobody listens in an image.
func headerOf(path, rel string, st fs.FileInfo, sys *syscall.Stat_t) (*tar.Header, error) {
	h := &tar.Header{
		Name: rel, Mode: int64(sys.Mode & 0o7777), Uid: int(sys.Uid), Gid: int(sys.Gid),
		ModTime: st.ModTime(), PAXRecords: map[string]string{},
	}
	var err error
	switch sys.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size()
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		h.Linkname, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if sys.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(sys.Rdev)), int64(unix.Minor(sys.Rdev))
	default:
		h.Typeflag = tar.TypeFifo
	}
	if err != nil {
		return nil, err
	}
	return h, readXattrs(path, h.PAXRecords)
}

// readXattrs reads the extended attributes of a file as tar records. A file
// system without them has none.
func readXattrs(path string, records map[string]string) error {
	size, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(path, names); err != nil {
		return &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:size]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		records[xattrRecord+name] = string(value[:n])
	}
	return nil
}

// addTar puts a tar into a tree, unpacked by its first bytes.
func addTar(ctx context.Context, t *tree, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 6)
	n, _ := io.ReadFull(f, head)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	var r io.Reader = f
	switch {
	case bytes.HasPrefix(head[:n], []byte("\x1f\x8b")):
		r, err = gzip.NewReader(f)
	case bytes.HasPrefix(head[:n], []byte("\x28\xb5\x2f\xfd")):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
			r = d
		}
	case bytes.HasPrefix(head[:n], []byte("\xfd7zXZ\x00")):
		r, err = xz.NewReader(f, maxXZDict)
	}
	if err != nil {
		return err
	}
	return eachEntry(r, func(h *tar.Header, r io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return t.add(h, r)
	})
}

// disk takes an existing whole disk as it is. The kernel that attest's initramfs needs is
// not part of it, unless the disk has one of its own.
func (b *build) disk(ctx context.Context, d *Disk) (err error) {
	if b.meta.Disk, b.diskID, err = OpenDisk(*d); err != nil || d.Kernel == "" {
		return err
	}
	return b.addKernel(ctx, d.Kernel, d.Modules, DefaultSuite)
}

// addInitrd takes an initrd of the user's as it is.
func (b *build) addInitrd(path string) error {
	if path == "" {
		return nil
	}
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return &SpecError{Field: "initrd", Err: err}
	case !st.Mode().IsRegular():
		return specErrorf("initrd", "%s is not a regular file", path)
	}
	b.initrd, b.initrdID = path, statStamp(path, st)
	return nil
}

// OpenDisk looks at a file with a disk that somebody else made, and returns what
// identifies it as it is now. Errors are *SpecError and *vmm.DiskError.
func OpenDisk(d Disk) (*BaseDisk, string, error) {
	st, err := os.Stat(d.Path)
	if err != nil {
		return nil, "", &SpecError{Field: "disk.path", Err: err}
	}
	if !st.Mode().IsRegular() {
		return nil, "", specErrorf("disk.path", "%s is not a regular file", d.Path)
	}
	format := d.Format
	if format == "" {
		if format, _, err = probeDisk(d.Path); err != nil {
			return nil, "", &SpecError{Field: "disk.path", Err: err}
		}
	}
	size, err := diskSize(d.Path, format)
	if err != nil {
		return nil, "", &SpecError{Field: "disk", Err: err}
	}
	if err := vmm.CheckDisk(d.Path, format, false); err != nil {
		return nil, "", &SpecError{Field: "disk.path", Err: err}
	}
	return &BaseDisk{Path: d.Path, Format: format, Size: size}, statStamp(d.Path, st), nil
}
