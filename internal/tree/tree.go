// Package tree says what is in a file or a tree of files of the host, and what has
// changed of it.
//
// A Tree is a list with the checksums of all contents. A file whose inode has not been
// written to since the list before was made is not read again.
package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Tree is all entries of a tree by their paths in it: "." is the tree itself, which
// may be a file. Devices, sockets and pipes are left out.
type Tree map[string]Entry

// An Entry is a file, a directory or a symbolic link.
type Entry struct {
	Mode fs.FileMode `json:"mode"`           // type and permission bits
	Sum  string      `json:"sum,omitempty"`  // of a file: the SHA-256 of its content, in hexadecimal
	Link string      `json:"link,omitempty"` // of a link: where it leads
	// Stamp is of the inode of a file, and another one when the file was written to.
	// Empty: it was written to a moment before the file was read, so that another write
	// need not show.
	Stamp string `json:"stamp,omitempty"`
}

// same reports whether two entries are the same to somebody who reads them.
func (e Entry) same(o Entry) bool {
	return e.Mode == o.Mode && e.Sum == o.Sum && e.Link == o.Link
}

// OfContent is the tree of a file with this content.
func OfContent(content string, mode fs.FileMode) Tree {
	sum := sha256.Sum256([]byte(content))
	return Tree{".": {Mode: mode, Sum: hex.EncodeToString(sum[:])}}
}

// Scan lists a file or a tree. A link at its beginning is followed, others are not.
// before, which may be nil, saves reading what it has already.
func Scan(root string, before Tree) (Tree, error) {
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	t := Tree{}
	err = filepath.WalkDir(real, func(file string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(real, file)
		if err := errors.Join(err, relErr); err != nil {
			if errors.Is(err, fs.ErrNotExist) && rel != "." {
				return nil // removed while it was looked at
			}
			return err
		}
		info, err := d.Info()
		if err == nil {
			err = t.add(file, filepath.ToSlash(rel), info, before)
		}
		if errors.Is(err, fs.ErrNotExist) && rel != "." {
			return nil
		}
		return err
	})
	return t, err
}

// settled is how long ago the last write to an inode must be for its change time to
// tell it from the next one: the kernel's clock for these times is coarse.
const settled = 50 * time.Millisecond

func (t Tree) add(file, rel string, info fs.FileInfo, before Tree) error {
	e := Entry{Mode: info.Mode() & (fs.ModeType | fs.ModePerm)}
	switch e.Mode.Type() {
	case fs.ModeDir:
	case fs.ModeSymlink:
		e.Mode = fs.ModeSymlink // its permissions mean nothing
		link, err := os.Readlink(file)
		if err != nil {
			return err
		}
		e.Link = link
	case 0:
		if st, ok := info.Sys().(*syscall.Stat_t); ok && time.Since(time.Unix(st.Ctim.Unix())) > settled {
			e.Stamp = fmt.Sprintf("%d %d %d %d.%09d", st.Dev, st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec)
		}
		if old, ok := before[rel]; ok && old.Stamp == e.Stamp && e.Stamp != "" {
			e.Sum = old.Sum
			break
		}
		var err error
		if e.Sum, err = sum(file); err != nil {
			return err
		}
	default:
		return nil
	}
	t[rel] = e
	return nil
}

func sum(file string) (string, error) {
	// O_NONBLOCK: what was a file a moment ago may be a pipe now.
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Without returns the tree without what is at a path, and below it. The path itself
// may be the beginning, which leaves nothing.
func (t Tree) Without(rel string) Tree {
	out := maps.Clone(t)
	maps.DeleteFunc(out, func(p string, _ Entry) bool { return within(p, rel) })
	return out
}

func within(p, dir string) bool {
	return dir == "." || p == dir || strings.HasPrefix(p, dir+"/")
}

// A Change is what makes a tree another one. All lists are in an order in which it can
// be done, Clear before Remove before Write.
type Change struct {
	Clear  []string               // to be removed with all that is in it: something of another type takes its place
	Remove []string               // to be removed; directories after what was in them
	Write  []string               // to be written, directories before what is in them
	Modes  map[string]fs.FileMode // of directories that stay
}

// Empty reports whether nothing has changed.
func (c Change) Empty() bool { return len(c.Remove)+len(c.Clear)+len(c.Write)+len(c.Modes) == 0 }

// Touches are the paths whose earlier use would have gone otherwise with the change: the
// entries that were there and are others now, and the directories whose lists have
// changed.
func (c Change) Touches(old Tree) []string {
	touched, removed := map[string]bool{}, map[string]bool{}
	for _, p := range c.Remove {
		removed[p] = true
	}
	for _, p := range slices.Concat(c.Clear, c.Remove, c.Write) {
		_, was := old[p]
		if was {
			touched[p] = true
		}
		if !was || removed[p] {
			if dir := path.Dir(p); p != "." && old[dir].Mode.IsDir() {
				touched[dir] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(touched))
}

// Since returns what has changed since the tree was old.
func (t Tree) Since(old Tree) Change {
	var c Change
	for p, e := range t {
		was, ok := old[p]
		switch {
		case !ok:
			c.Write = append(c.Write, p)
		case was.same(e):
		case was.Mode.IsDir() && e.Mode.IsDir():
			if c.Modes == nil {
				c.Modes = map[string]fs.FileMode{}
			}
			c.Modes[p] = e.Mode.Perm()
		default:
			if was.Mode.Type() != e.Mode.Type() {
				c.Clear = append(c.Clear, p)
			}
			c.Write = append(c.Write, p)
		}
	}
	for p := range old {
		if _, ok := t[p]; !ok && !slices.ContainsFunc(c.Clear, func(dir string) bool { return within(p, dir) }) {
			c.Remove = append(c.Remove, p)
		}
	}
	slices.Sort(c.Clear)
	slices.Sort(c.Write)
	slices.Sort(c.Remove)
	slices.Reverse(c.Remove)
	return c
}
