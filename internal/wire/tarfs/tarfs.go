// Package tarfs moves a file or a tree as a tar stream, from host to guest and
// back, as cp -r does: contents with their holes, permissions, symbolic links, and
// files that have several names; not owners and times.
//
// The stream's entries are all below one name, that of what was copied. What is
// read is not trusted: nothing is written outside of the directory that Extract
// is given, and of that below one name, whatever the stream says.
package tarfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Stats is what was copied.
type Stats struct {
	Files   int      // without directories
	Bytes   int64    // of content
	Skipped []string // what was left out and why, a hundred at most
}

func (s *Stats) skip(name, why string) {
	if len(s.Skipped) < 100 {
		s.Skipped = append(s.Skipped, fmt.Sprintf("%q: %s", name, why))
	}
}

// small is the size up to which a file is read before its header is written, so
// that files whose size is not known before, such as those in /proc, are whole.
const small = 1 << 20

// Write writes src, a file or a directory, to w as a tar stream whose entries
// are below name. If src itself is a symbolic link it is followed. Devices,
// sockets and pipes are skipped.
func Write(w io.Writer, src, name string) (Stats, error) {
	src, err := filepath.EvalSymlinks(src)
	if err != nil {
		return Stats{}, err
	}
	x := &writer{tw: tar.NewWriter(w), buf: make([]byte, 64<<10), linked: map[inode]string{}}
	err = filepath.WalkDir(src, func(file string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(src, file)
		if err := errors.Join(err, relErr); err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) && rel != "." {
			x.skip(rel, "removed while it was read")
			return nil
		}
		if err != nil {
			return err
		}
		return x.entry(file, path.Join(name, filepath.ToSlash(rel)), info)
	})
	if err != nil {
		return x.Stats, err
	}
	return x.Stats, x.tw.Close()
}

// WriteOnly is Write of some of the entries, by their paths in src, "." for src itself,
// with directories before what is in them. An entry that is gone is skipped. mode is
// what src gets for permissions if it is a file; 0: its own.
func WriteOnly(w io.Writer, src, name string, paths []string, mode fs.FileMode) (Stats, error) {
	src, err := filepath.EvalSymlinks(src)
	if err != nil {
		return Stats{}, err
	}
	x := &writer{tw: tar.NewWriter(w), buf: make([]byte, 64<<10), linked: map[inode]string{}, mode: mode}
	for _, rel := range paths {
		file := filepath.Join(src, filepath.FromSlash(rel))
		info, err := os.Lstat(file)
		if err == nil {
			err = x.entry(file, path.Join(name, rel), info)
		}
		if errors.Is(err, fs.ErrNotExist) && rel != "." {
			x.skip(rel, "removed while it was read")
			continue
		}
		if err != nil {
			return x.Stats, err
		}
	}
	return x.Stats, x.tw.Close()
}

// WriteContent writes a stream of one file.
func WriteContent(w io.Writer, name, content string, mode fs.FileMode) (Stats, error) {
	tw := tar.NewWriter(w)
	err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode.Perm()), Size: int64(len(content)), Format: tar.FormatPAX})
	if err == nil {
		_, err = io.WriteString(tw, content)
	}
	return Stats{Files: 1, Bytes: int64(len(content))}, errors.Join(err, tw.Close())
}

type writer struct {
	Stats
	mode   fs.FileMode // of files, in place of their own; 0: their own
	tw     *tar.Writer
	buf    []byte
	linked map[inode]string // files with several names: the first that was written
}

type inode struct{ dev, ino uint64 }

func (x *writer) entry(file, name string, info fs.FileInfo) error {
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Format: tar.FormatPAX}
	switch info.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return x.tw.WriteHeader(h)
	case fs.ModeSymlink:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		x.Files++
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return x.tw.WriteHeader(h)
	case 0:
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			key := inode{uint64(st.Dev), st.Ino}
			if first, ok := x.linked[key]; ok {
				x.Files++
				h.Typeflag, h.Linkname = tar.TypeLink, first
				return x.tw.WriteHeader(h)
			}
			x.linked[key] = name
		}
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
		if x.mode != 0 {
			h.Mode = int64(x.mode.Perm())
		}
		return x.file(file, h)
	}
	x.skip(name, kind(info.Mode()))
	return nil
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "not a file"
}

func (x *writer) file(file string, h *tar.Header) error {
	// O_NONBLOCK: what was a file a moment ago may be a pipe now.
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if parts := dataOf(f, h.Size); parts != nil {
		return x.sparse(f, h, parts)
	}
	var content io.Reader = f
	if h.Size <= small {
		b, err := io.ReadAll(io.LimitReader(f, 2*small))
		if err != nil {
			return err
		}
		content, h.Size = bytes.NewReader(b), int64(len(b))
	}
	if err := x.tw.WriteHeader(h); err != nil {
		return err
	}
	x.Files++
	return x.content(content, h.Name, h.Size)
}

// content writes n bytes.
func (x *writer) content(r io.Reader, name string, n int64) error {
	done, err := io.CopyBuffer(onlyWriter{x.tw}, io.LimitReader(r, n), x.buf)
	x.Bytes += done
	if err == nil && done < n {
		x.skip(name, "became shorter while it was read, the rest is zeros")
		_, err = io.CopyN(x.tw, zeros{}, n-done)
	}
	return err
}

// onlyWriter hides tar.Writer's ReadFrom, which reads in small pieces.
type onlyWriter struct{ io.Writer }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Extract reads a stream that Write made and creates what it says in root. If
// name is not empty it replaces the first component of the entries' names. A
// stream that would lead elsewhere, through a link or by its names, or has other
// kinds of entries, is an error at that entry; devices, sockets and pipes are
// skipped. It is also an error when the stream has more than maxEntries entries, or
// when the file system has less than reserve bytes left, or hardly any inodes: a
// stream may have no end. 0 is for no such reserve. root is best made by OpenDir.
func Extract(r io.Reader, root *os.Root, name string, reserve int64) (Stats, error) {
	return newExtractor(root, name, reserve).extract(r)
}

// Lay is Extract for a stream that is trusted: a file or a link that is there already
// makes room, so that a program which has it open keeps what it has. made is called for
// each file when it is complete, and for each directory when it is made.
func Lay(r io.Reader, root *os.Root, name string, made func(in *os.Root, base string, mode fs.FileMode) error) (Stats, error) {
	x := newExtractor(root, name, 0)
	x.made = made
	return x.extract(r)
}

func newExtractor(root *os.Root, name string, reserve int64) *extractor {
	return &extractor{name: name, reserve: reserve, buf: make([]byte, 64<<10), chain: chain{root: root}, statfs: syscall.Fstatfs}
}

func (x *extractor) extract(r io.Reader) (Stats, error) {
	defer x.chain.close()
	err := x.run(tar.NewReader(r))
	// Directories that may not be written to get their permissions last.
	for _, d := range slices.Backward(x.dirs) {
		err = errors.Join(err, x.chmod(d))
	}
	return x.Stats, quoted(err)
}

// quoted is an error whose paths, which are the stream's, do nothing to a terminal.
func quoted(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return fmt.Errorf("%s %q: %w", path.Op, path.Path, path.Err)
	case errors.As(err, &link):
		return fmt.Errorf("%s %q: %w", link.Op, link.New, link.Err)
	}
	return err
}

type extractor struct {
	Stats
	name    string
	buf     []byte
	chain   chain
	entries int
	dirs    []dir // that get their permissions at the end
	names   int   // bytes of their names

	made func(in *os.Root, base string, mode fs.FileMode) error // see Lay; nil: files are written in place

	reserve int64
	unknown int64 // bytes written since the free space was looked at
	statfs  func(fd int, st *syscall.Statfs_t) error
}

type dir struct {
	name string
	mode fs.FileMode
}

const (
	maxName    = 4096     // PATH_MAX, and so a bound of the depth: a longer one nobody else could open
	maxEntries = 1 << 23  // of a stream
	maxNames   = 16 << 20 // bytes of the names of directories whose permissions have to wait
)

func (x *extractor) run(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the copied stream is broken: %w", err)
		}
		if err := x.entry(tr, h); err != nil {
			return err
		}
	}
}

func (x *extractor) entry(tr *tar.Reader, h *tar.Header) error {
	name, err := x.localName(h.Name)
	if err != nil {
		return err
	}
	if x.entries++; x.entries > maxEntries {
		return fmt.Errorf("the copied stream has more than %d entries", maxEntries)
	}
	if err := x.spend(entryCost); err != nil {
		return err
	}
	in, base, err := x.chain.enter(name)
	if err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	switch h.Typeflag {
	case tar.TypeDir:
		return x.dir(in, name, base, mode)
	case tar.TypeReg:
		x.Files++
		return x.file(tr, h, in, base, mode)
	case tar.TypeSymlink:
		x.Files++
		if err := makeRoom(in, base); err != nil {
			return err
		}
		return in.Symlink(h.Linkname, base)
	case tar.TypeLink:
		x.Files++
		return x.link(h.Linkname, name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		x.skip(h.Name, "not a file")
		return nil
	}
	return fmt.Errorf("the copied stream has an entry %q of type %q", h.Name, h.Typeflag)
}

// localName is the place of an entry in root.
func (x *extractor) localName(name string) (string, error) {
	clean := strings.TrimSuffix(name, "/")
	if len(name) > maxName {
		return "", fmt.Errorf("the copied stream has an entry whose name has %d bytes: %.40q…", len(name), name)
	}
	if clean == "" || clean == "." || !filepath.IsLocal(clean) || path.Clean(clean) != clean || strings.Contains(clean, "\x00") {
		return "", fmt.Errorf("the copied stream has an entry named %q", name)
	}
	if x.name != "" {
		_, rest, below := strings.Cut(clean, "/")
		if clean = x.name; below {
			clean += "/" + rest
		}
	}
	return clean, nil
}

// makeRoom removes what is in the way of a new file; a directory stays, and is
// what the creation then fails with.
func makeRoom(in *os.Root, name string) error {
	fi, err := in.Lstat(name)
	if err != nil || fi.IsDir() {
		return nil
	}
	return in.Remove(name)
}

func (x *extractor) dir(in *os.Root, name, base string, mode fs.FileMode) error {
	err := in.Mkdir(base, 0o700|mode)
	if errors.Is(err, fs.ErrExist) {
		if fi, statErr := in.Lstat(base); statErr == nil && fi.IsDir() {
			return nil
		}
	}
	if err != nil {
		return err
	}
	if x.made != nil {
		if err := x.made(in, base, fs.ModeDir|mode); err != nil {
			return err
		}
	}
	if mode&0o300 == 0o300 {
		return in.Chmod(base, mode) // whatever the umask
	}
	if x.names += len(name); x.names > maxNames {
		return fmt.Errorf("the copied stream has too many directories that may not be written to: %d", len(x.dirs))
	}
	x.dirs = append(x.dirs, dir{name, mode})
	return nil
}

func (x *extractor) chmod(d dir) error {
	in, base, err := x.chain.enter(d.name)
	if err != nil {
		return err
	}
	return in.Chmod(base, d.mode)
}

// link gives a file of the copy another name.
func (x *extractor) link(of, name string) error {
	first, err := x.localName(of)
	if err != nil {
		return err
	}
	// By way of the directories, which are real ones; Root.Link would follow links.
	in, base, err := x.chain.enter(first)
	if err != nil {
		return err
	}
	if fi, err := in.Lstat(base); err != nil || !fi.Mode().IsRegular() {
		return fmt.Errorf("the copied stream has an entry %q that is a link to %q, which is not a file", name, of)
	}
	if first == name {
		return nil
	}
	from, err := in.Open(".")
	if err != nil {
		return err
	}
	defer from.Close()
	in, newBase, err := x.chain.enter(name)
	if err != nil {
		return err
	}
	if err := makeRoom(in, newBase); err != nil {
		return err
	}
	to, err := in.Open(".")
	if err != nil {
		return err
	}
	defer to.Close()
	if err := unix.Linkat(int(from.Fd()), base, int(to.Fd()), newBase, 0); err != nil {
		return &os.LinkError{Op: "link", Old: first, New: name, Err: err}
	}
	return nil
}

func (x *extractor) file(r io.Reader, h *tar.Header, in *os.Root, name string, mode fs.FileMode) error {
	// GNU tar's way to write holes, which tar.Reader reads as zeros: a stream of a
	// kilobyte would fill a disk.
	for record := range h.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return fmt.Errorf("the copied stream has an entry %q with a record %q", h.Name, record)
		}
	}
	if x.made != nil {
		if err := makeRoom(in, name); err != nil {
			return err
		}
	}
	f, err := create(in, name, 0o600)
	if err != nil {
		return err
	}
	if size, ok := h.PAXRecords[sparseSize]; ok {
		err = x.sparse(r, f, size)
	} else {
		_, err = x.content(f, r)
	}
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil && x.made != nil {
		err = x.made(in, name, mode)
	}
	return err
}

// create opens a file for writing. One that exists is written in place, as cp
// does; anything else, links above all, makes room.
func create(in *os.Root, name string, mode fs.FileMode) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if fi, err := in.Lstat(name); err == nil && fi.Mode().IsRegular() {
		flags = os.O_WRONLY | os.O_TRUNC
	} else if err := makeRoom(in, name); err != nil {
		return nil, err
	}
	f, err := in.OpenFile(name, flags|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, mode)
	if errors.Is(err, syscall.ETXTBSY) || errors.Is(err, fs.ErrPermission) {
		if err = in.Remove(name); err == nil {
			f, err = in.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		}
	}
	return f, err
}

// content copies r to where f is.
func (x *extractor) content(f *os.File, r io.Reader) (int64, error) {
	return io.CopyBuffer(spender{x, f}, r, x.buf)
}

// A spender writes to a file as long as there is space.
type spender struct {
	x *extractor
	f *os.File
}

func (s spender) Write(p []byte) (int, error) {
	if err := s.x.spend(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := s.f.Write(p)
	s.x.Bytes += int64(n)
	return n, err
}

const (
	lookEvery = 16 << 20        // bytes between two looks at the free space
	entryCost = lookEvery / 256 // what an entry counts as: few files are many inodes on a small file system

	// How many inodes stay free: so many, or a twentieth of all if that is less.
	reserveInodes = 10_000
)

// spend counts what goes to the file system, and looks at times whether it has
// room.
func (x *extractor) spend(n int64) error {
	if x.unknown += n; x.unknown < lookEvery || x.reserve == 0 {
		return nil
	}
	x.unknown = 0
	d, err := x.chain.root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	var st syscall.Statfs_t
	if err := x.statfs(int(d.Fd()), &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < x.reserve {
		return &NoSpaceError{Free: free, Reserve: x.reserve}
	}
	// Some file systems, such as Btrfs, have no number of inodes.
	if reserve := min(st.Files/20, reserveInodes); st.Ffree < reserve {
		return &NoSpaceError{Free: int64(st.Ffree), Reserve: int64(reserve), Inodes: true}
	}
	return nil
}

// A NoSpaceError is a stream that was ended because the file system it goes to is
// nearly full.
type NoSpaceError struct {
	Free, Reserve int64 // bytes, or inodes
	Inodes        bool
}

func (e *NoSpaceError) Error() string {
	if e.Inodes {
		return fmt.Sprintf("the file system has room for %d more files; copies must leave %d", e.Free, e.Reserve)
	}
	return fmt.Sprintf("the file system has %d MiB left; copies must leave %d MiB", e.Free>>20, e.Reserve>>20)
}
