// Package tarfs moves a file or a tree as a tar stream, from host to guest and
// back, as cp -r does: contents, permissions and symbolic links; not owners,
// times and hard links.
//
// The stream's entries are all below one name, that of what was copied. What is
// read is not trusted: nothing is written outside of the directory that Extract
// is given, whatever the stream says.
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
	"strings"
	"syscall"
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
	var st Stats
	src, err := filepath.EvalSymlinks(src)
	if err != nil {
		return st, err
	}
	tw := tar.NewWriter(w)
	buf := make([]byte, 64<<10)
	err = filepath.WalkDir(src, func(file string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(src, file)
		if err := errors.Join(err, relErr); err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) && rel != "." {
			st.skip(rel, "removed while it was read")
			return nil
		}
		if err != nil {
			return err
		}
		return writeEntry(tw, file, path.Join(name, filepath.ToSlash(rel)), info, buf, &st)
	})
	if err != nil {
		return st, err
	}
	return st, tw.Close()
}

func writeEntry(tw *tar.Writer, file, name string, info fs.FileInfo, buf []byte, st *Stats) error {
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Format: tar.FormatPAX}
	switch info.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return tw.WriteHeader(h)
	case fs.ModeSymlink:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		st.Files++
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return tw.WriteHeader(h)
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
		return writeFile(tw, file, h, buf, st)
	}
	st.skip(name, kind(info.Mode()))
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

func writeFile(tw *tar.Writer, file string, h *tar.Header, buf []byte, st *Stats) error {
	// O_NONBLOCK: what was a file a moment ago may be a pipe now.
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var content io.Reader = f
	if h.Size <= small {
		b, err := io.ReadAll(io.LimitReader(f, 2*small))
		if err != nil {
			return err
		}
		content, h.Size = bytes.NewReader(b), int64(len(b))
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{tw}, io.LimitReader(content, h.Size), buf)
	if err != nil {
		return err
	}
	if n < h.Size {
		st.skip(h.Name, "became shorter while it was read, the rest is zeros")
		if _, err := io.CopyN(tw, zeros{}, h.Size-n); err != nil {
			return err
		}
	}
	st.Files++
	st.Bytes += h.Size
	return nil
}

// onlyWriter hides tar.Writer's ReadFrom, which reads in small pieces.
type onlyWriter struct{ io.Writer }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Extract reads a stream that Write made and creates what it says in root. If
// name is not empty it replaces the first component of the entries' names. A
// stream that would lead out of root, or has other kinds of entries, is an
// error at that entry; devices, sockets and pipes are skipped.
func Extract(r io.Reader, root *os.Root, name string) (Stats, error) {
	x := &extractor{root: root, name: name, buf: make([]byte, 64<<10)}
	err := x.run(tar.NewReader(r))
	// Directories get their permissions last: they may be read-only.
	for i := len(x.dirs) - 1; i >= 0; i-- {
		err = errors.Join(err, root.Chmod(x.dirs[i].name, x.dirs[i].mode))
	}
	return x.Stats, err
}

type extractor struct {
	Stats
	root *os.Root
	name string
	buf  []byte
	dirs []dir
}

type dir struct {
	name string
	mode fs.FileMode
}

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
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	switch h.Typeflag {
	case tar.TypeDir:
		err := x.root.Mkdir(name, 0o700|mode)
		if err == nil {
			x.dirs = append(x.dirs, dir{name, mode})
		} else if fi, statErr := x.root.Stat(name); statErr == nil && fi.IsDir() {
			return nil
		}
		return err
	case tar.TypeReg:
		x.Files++
		return x.file(tr, name, mode)
	case tar.TypeSymlink:
		x.Files++
		if err := x.clear(name); err != nil {
			return err
		}
		return x.root.Symlink(h.Linkname, name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		x.skip(h.Name, "not a file")
		return nil
	}
	return fmt.Errorf("the copied stream has an entry %q of type %q", h.Name, h.Typeflag)
}

// localName is the place of an entry in root.
func (x *extractor) localName(name string) (string, error) {
	clean := strings.TrimSuffix(name, "/")
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

// clear removes what is in the way of a new file; a directory stays, and is
// what the creation then fails with.
func (x *extractor) clear(name string) error {
	fi, err := x.root.Lstat(name)
	if err != nil || fi.IsDir() {
		return nil
	}
	return x.root.Remove(name)
}

func (x *extractor) file(r io.Reader, name string, mode fs.FileMode) error {
	// A file that exists is written in place, as cp does; anything else, links
	// above all, makes room.
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if fi, err := x.root.Lstat(name); err == nil && fi.Mode().IsRegular() {
		flags = os.O_WRONLY | os.O_TRUNC
	} else if err := x.clear(name); err != nil {
		return err
	}
	f, err := x.root.OpenFile(name, flags|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, syscall.ETXTBSY) || errors.Is(err, fs.ErrPermission) {
		if err = x.root.Remove(name); err == nil {
			f, err = x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		}
	}
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{f}, r, x.buf)
	x.Bytes += n
	return errors.Join(err, f.Chmod(mode), f.Close())
}
