package boot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// plainOptions are mount options of a file system that the host has made on a
// sparse disk. noinit_itable: what ext4 has not used of its tables reads as zeroes
// anyway, and writing them in the background would fill the disk.
var plainOptions = map[string]string{"ext4": "noinit_itable"}

// mountPlain mounts the one file system on a disk to be written to.
func mountPlain(device, dir string, flags uintptr) error {
	fstype, err := probeDevice(device)
	if err != nil {
		return fmt.Errorf("disk %s: %w", SerialDisk, err)
	}
	if err := loadModules(fstype); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, dir, fstype, flags, plainOptions[fstype]); err != nil {
		return fmt.Errorf("mount disk %s (%s): %w%s", SerialDisk, fstype, err, mountHint(fstype, err))
	}
	return nil
}

// fill copies the guest's root into the file system on SerialDisk. It returns only
// if that failed.
func (b *booting) fill() error {
	from, err := b.mountLayers()
	if err != nil {
		return err
	}
	source := from[0]
	if len(from) > 1 {
		source = newRoot
		// Without an upper directory it is read-only.
		if err := unix.Mount("overlay", source, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(from, ":")); err != nil {
			return fmt.Errorf("mount overlay on %s: %w%s", source, err, mountHint("overlay", err))
		}
	}
	if err := mountPlain(b.disks[SerialDisk], writableDir, unix.MS_NOATIME); err != nil {
		return err
	}
	c := copier{links: map[inode]string{}, buf: make([]byte, copyBuffer)}
	if err := c.directory(source, writableDir); err != nil {
		return fmt.Errorf("fill the root: %w", err)
	}
	if err := unix.Unmount(writableDir, 0); err != nil { // writes all that is left
		return fmt.Errorf("unmount the filled root: %w", err)
	}
	fmt.Fprintf(console, "\n%s%s %d files\n", FilledPrefix, b.guest.Fill, c.count)
	drain(console)
	powerOff()
	return nil
}

// A copier copies a tree with all that its files are: owners, modes, times,
// extended attributes, holes, and which names are of one file.
type copier struct {
	links map[inode]string // files with several names, and the first of them
	buf   []byte
	count int
}

type inode struct{ device, number uint64 }

const copyBuffer = 1 << 20

// directory copies what is in a directory, and then what the directory itself is.
func (c *copier) directory(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := c.entry(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	return copyAttributes(from, to, &st)
}

func (c *copier) entry(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	c.count++
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		if err := unix.Mkdir(to, 0o700); err != nil && err != unix.EEXIST { // lost+found
			return &os.PathError{Op: "mkdir", Path: to, Err: err}
		}
		return c.directory(from, to)
	}
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			return os.Link(first, to)
		}
		c.links[id] = to
	}
	var err error
	switch kind {
	case unix.S_IFREG:
		err = c.contents(from, to, st.Size)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	default:
		if err = unix.Mknod(to, kind|0o600, int(st.Rdev)); err != nil {
			err = &os.PathError{Op: "mknod", Path: to, Err: err}
		}
	}
	if err != nil {
		return err
	}
	return copyAttributes(from, to, &st)
}

// contents copies a regular file. A buffer of zeroes becomes a hole. These are bare
// system calls: package os has several more for each file, which is half of the time
// in a guest that is emulated.
func (c *copier) contents(from, to string, size int64) error {
	in, err := unix.Open(from, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: from, Err: err}
	}
	defer unix.Close(in)
	out, err := unix.Open(to, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: to, Err: err}
	}
	defer unix.Close(out)
	hole := false
	for at := int64(0); at < size; {
		b := c.buf[:min(int64(len(c.buf)), size-at)]
		n, err := unix.Pread(in, b, at)
		if err != nil || n == 0 {
			return &os.PathError{Op: "read", Path: from, Err: cmp.Or[error](err, io.ErrUnexpectedEOF)}
		}
		b = b[:n]
		if hole = len(b) == len(c.buf) && zero(b); !hole {
			if n, err = unix.Pwrite(out, b, at); err != nil {
				return &os.PathError{Op: "write", Path: to, Err: err}
			}
		}
		at += int64(n)
	}
	if hole {
		return unix.Ftruncate(out, size)
	}
	return nil
}

func zero(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

// copyAttributes comes last: a change of the owner takes away set-user-ID bits and
// capabilities, and every change takes the times.
func copyAttributes(from, to string, st *unix.Stat_t) error {
	failed := func(op string, err error) error { return &os.PathError{Op: op, Path: to, Err: err} }
	if st.Uid != 0 || st.Gid != 0 { // this process's, which made it
		if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return failed("lchown", err)
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return failed("chmod", err)
		}
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed("utimensat", err)
	}
	return nil
}

// copyXattrs copies extended attributes but for those that overlayfs keeps in layers.
func copyXattrs(from, to string) error {
	size, err := unix.Llistxattr(from, nil)
	if err != nil || size == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return err
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(from, names); err != nil {
		return &os.PathError{Op: "listxattr", Path: from, Err: err}
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			return &os.PathError{Op: "getxattr " + name, Path: from, Err: err}
		}
		if err := unix.Lsetxattr(to, name, value[:n], 0); err != nil {
			return &os.PathError{Op: "setxattr " + name, Path: to, Err: err}
		}
	}
	return nil
}
