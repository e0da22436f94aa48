package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"github.com/attest-vm/attest/internal/wire"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

// unread is the time of the last access of a file that the host has brought: Linux
// replaces it at the first access, since it is before that of the last change
// (relatime). So it tells whether somebody has read the file.
var unread = time.Unix(315532800, 0) // 1980

// lay makes a file or a tree what the host says.
func lay(stream *wire.Stream, q wire.LayRequest) (any, error) {
	dir, name, err := layTarget(string(q.Path), q.Tree)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	l := &layer{root: root, name: name}
	if err := l.prepare(q); err != nil {
		return l.result, err
	}
	in := stream.Reader(wire.Stdin)
	st, err := tarfs.Lay(in, root, name, l.made)
	if err == nil {
		_, err = io.Copy(io.Discard, in) // the padding behind the last entry
	}
	if err == nil {
		err = l.setModes(q.Modes)
	}
	l.result.CopyResult = copyResult(st)
	return l.result, err
}

// layTarget is where a file or a tree belongs: a directory, which is made, and a name in
// it. Links on the way are followed; at its end only by a tree.
func layTarget(target string, tree bool) (dir, name string, err error) {
	if !filepath.IsAbs(target) {
		return "", "", errorf(wire.KindInvalid, "%q is not an absolute path", target)
	}
	target = filepath.Clean(target)
	if real, err := filepath.EvalSymlinks(target); err == nil {
		fi, err := os.Stat(real)
		switch {
		case err != nil:
			return "", "", err
		case fi.IsDir() && !tree:
			return "", "", errorf(wire.KindFailed, "%s is a directory in the guest, and a file is to take its place; name the file in it", target)
		case real == "/":
			return "", "", errorf(wire.KindInvalid, "%s is the root of the guest", target)
		case tree && fi.IsDir():
			return filepath.Dir(real), filepath.Base(real), nil
		}
	}
	dir, name = filepath.Dir(target), filepath.Base(target)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	dir, err = filepath.EvalSymlinks(dir)
	return dir, name, err
}

// A layer does one request.
type layer struct {
	root   *os.Root
	name   string // of the file or the tree in root
	probed bool
	result wire.LayResult
}

// at is where a path of a request is in root.
func (l *layer) at(rel []byte) (string, error) {
	p := path.Join(l.name, string(rel))
	if !filepath.IsLocal(p) {
		return "", errorf(wire.KindInvalid, "%q leads out of what is to be laid", rel)
	}
	return p, nil
}

// prepare looks at what was used, and removes what is to go.
func (l *layer) prepare(q wire.LayRequest) error {
	for _, rel := range q.Touched {
		p, err := l.at(rel)
		if err != nil {
			return err
		}
		if l.used(p) {
			l.result.Used = append(l.result.Used, rel)
		}
	}
	remove := func(paths [][]byte, remove func(string) error) error {
		for _, rel := range paths {
			p, err := l.at(rel)
			if err == nil {
				err = remove(p)
			}
			// What else is in a directory is the guest's own.
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.ENOTDIR) {
				return err
			}
		}
		return nil
	}
	if err := remove(q.Clear, l.root.RemoveAll); err != nil {
		return err
	}
	return remove(q.Remove, l.root.Remove)
}

// used reports whether a file is not as it was brought, or whether somebody has read it.
// Nobody can tell of a link.
func (l *layer) used(p string) bool {
	fi, err := l.root.Lstat(p)
	return err != nil || fi.Mode()&fs.ModeSymlink != 0 || !accessed(fi).Equal(unread)
}

func accessed(fi fs.FileInfo) time.Time {
	return time.Unix(fi.Sys().(*syscall.Stat_t).Atim.Unix())
}

// made marks what the stream has brought.
func (l *layer) made(in *os.Root, base string, mode fs.FileMode) error {
	if err := in.Chtimes(base, unread, time.Time{}); err != nil {
		return err
	}
	if l.probed || mode.IsDir() {
		return nil
	}
	l.probed = true
	f, err := in.Open(base)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 1)); err != nil && err != io.EOF {
		return err
	}
	fi, err := in.Lstat(base)
	if err != nil {
		return err
	}
	l.result.Blind = accessed(fi).Equal(unread)
	return in.Chtimes(base, unread, time.Time{})
}

func (l *layer) setModes(modes []wire.Mode) error {
	for _, m := range modes {
		p, err := l.at(m.Path)
		if err == nil {
			err = l.root.Chmod(p, fs.FileMode(m.Bits)&fs.ModePerm)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("permissions of %s: %w", m.Path, err)
		}
	}
	return nil
}
