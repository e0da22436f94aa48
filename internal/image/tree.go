package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	goerofs "github.com/erofs/go-erofs"

	"github.com/attest-vm/attest/internal/image/erofs"
)

// node is what the index of a tree keeps of a file: enough to say whether
// another one is the same.
type node struct {
	Type    byte              `json:"t"` // as in a tar header; of a hard link, its target's
	Mode    int64             `json:"m"`
	UID     int               `json:"u,omitempty"`
	GID     int               `json:"g,omitempty"`
	Size    int64             `json:"s,omitempty"`
	ModTime time.Time         `json:"c,omitzero"` // of regular files only
	Target  string            `json:"l,omitempty"`
	Major   int64             `json:"a,omitempty"`
	Minor   int64             `json:"i,omitempty"`
	Xattrs  map[string]string `json:"x,omitempty"` // values in hexadecimal
	Sum     string            `json:"h,omitempty"`
}

// same reports whether b needs no copy of a. The time of a file counts, because
// compilers' and interpreters' caches compare it; that of a directory or link
// changes whenever something is unpacked, and nobody reads it.
func (a node) same(b node) bool {
	return a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Size == b.Size &&
		a.ModTime.Equal(b.ModTime) && a.Target == b.Target && a.Major == b.Major && a.Minor == b.Minor &&
		a.Sum == b.Sum && maps.Equal(a.Xattrs, b.Xattrs)
}

// index is a tree: paths without a leading slash to files; "." is the root.
type index map[string]node

// treePath is a tar entry's name as index and erofs have it. A name cannot
// lead out of the tree: "../x" is "x".
func treePath(name string) string {
	if p := strings.TrimPrefix(path.Clean("/"+name), "/"); p != "" {
		return p
	}
	return "."
}

const xattrRecord = "SCHILY.xattr." // GNU tar, star and archive/tar all write these

func attrOf(h *tar.Header) erofs.Attr {
	a := erofs.Attr{Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid), ModTime: h.ModTime}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrRecord); ok {
			if a.Xattrs == nil {
				a.Xattrs = map[string]string{}
			}
			a.Xattrs[name] = v
		}
	}
	return a
}

func nodeOf(h *tar.Header) node {
	n := node{Type: h.Typeflag, Mode: h.Mode & 0o7777, UID: h.Uid, GID: h.Gid}
	switch h.Typeflag {
	case tar.TypeReg:
		n.Size, n.ModTime = h.Size, h.ModTime
	case tar.TypeSymlink:
		n.Target = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		n.Major, n.Minor = h.Devmajor, h.Devminor
	}
	for name, v := range attrOf(h).Xattrs {
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = hex.EncodeToString([]byte(v))
	}
	return n
}

// writeNode adds a tar entry that is neither a directory's nor a file's.
func writeNode(w *erofs.Writer, h *tar.Header) error {
	name, a := treePath(h.Name), attrOf(h)
	switch h.Typeflag {
	case tar.TypeSymlink:
		return w.Symlink(name, a, h.Linkname)
	case tar.TypeChar:
		return w.Node(name, a, erofs.CharDev, uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeBlock:
		return w.Node(name, a, erofs.BlockDev, uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeFifo:
		return w.Node(name, a, erofs.FIFO, 0, 0)
	}
	return fmt.Errorf("%q: type %q is not supported", h.Name, h.Typeflag)
}

// tree writes a tar stream into an erofs image and makes its index.
type tree struct {
	w     *erofs.Writer
	index index
	hash  hash.Hash
}

func newTree(out *os.File) (*tree, error) {
	w, err := erofs.NewWriter(out)
	return &tree{w: w, index: index{}, hash: sha256.New()}, err
}

// add puts one tar entry into the tree; r gives its contents.
func (t *tree) add(h *tar.Header, r io.Reader) error {
	name := treePath(h.Name)
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeLink:
		target := treePath(h.Linkname)
		t.index[name] = t.index[target]
		return t.w.Link(name, target)
	case tar.TypeDir:
		t.index[name] = nodeOf(h)
		return t.w.Directory(name, attrOf(h))
	case tar.TypeReg:
		n := nodeOf(h)
		t.hash.Reset()
		if err := t.w.File(name, attrOf(h), h.Size, io.TeeReader(r, t.hash)); err != nil {
			return err
		}
		n.Sum = hex.EncodeToString(t.hash.Sum(nil))
		t.index[name] = n
		return nil
	}
	t.index[name] = nodeOf(h)
	return writeNode(t.w, h)
}

// eachEntry calls f for every entry of a tar stream, and reads the stream to
// its end, so that whoever writes it is not cut off. A stream that ends before its
// archive does is errCutOff.
func eachEntry(r io.Reader, f func(h *tar.Header, r io.Reader) error) error {
	stream := &endReader{r: r}
	in := tar.NewReader(stream)
	for {
		h, err := in.Next()
		switch {
		case stream.ended && (err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)):
			return errCutOff
		case err == io.EOF:
			_, err = io.Copy(io.Discard, r)
			return err
		case err != nil:
			return err
		}
		if err := f(h, in); err != nil {
			if stream.ended && errors.Is(err, io.ErrUnexpectedEOF) {
				return errCutOff
			}
			return err
		}
	}
}

// difference writes what a tree has changed in a base, as an overlayfs layer
// above it: changed and new files with all their parents, and whiteouts.
type difference struct {
	base   index
	lower  fs.FS // the base, for hard links to files that did not change
	w      *erofs.Writer
	dirs   map[string]*tar.Header
	seen   map[string]bool
	placed map[string]bool // what is in the layer
	index  index           // of the files seen
	buf    bytes.Buffer
}

func newDifference(base index, lower fs.FS, out *os.File) (*difference, error) {
	w, err := erofs.NewWriter(out)
	return &difference{base: base, lower: lower, w: w, dirs: map[string]*tar.Header{}, seen: map[string]bool{}, placed: map[string]bool{}, index: index{}}, err
}

// Contents up to this size are compared in memory before they are written.
const compareInMemory = 8 << 20

func (d *difference) add(h *tar.Header, r io.Reader) error {
	name := treePath(h.Name)
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	d.seen[name] = true
	base, inBase := d.base[name]
	switch h.Typeflag {
	case tar.TypeDir:
		d.dirs[name] = h
		if n := nodeOf(h); inBase && n.same(base) {
			return nil
		}
		d.placed[name] = true
		return d.w.Directory(name, attrOf(h))
	case tar.TypeLink:
		return d.link(name, treePath(h.Linkname), base)
	case tar.TypeReg:
		return d.file(name, h, r, base)
	}
	n := nodeOf(h)
	d.index[name] = n
	if inBase && n.same(base) {
		return nil
	}
	d.placed[name] = true
	return writeNode(d.w, h)
}

func (d *difference) file(name string, h *tar.Header, r io.Reader, base node) error {
	n := nodeOf(h)
	sum := sha256.New()
	in := io.TeeReader(r, sum)
	if h.Size <= compareInMemory {
		d.buf.Reset()
		if _, err := io.CopyN(&d.buf, in, h.Size); err != nil {
			return err
		}
		in = &d.buf
	} else if err := d.w.File(name, attrOf(h), h.Size, in); err != nil {
		return err
	}
	n.Sum = hex.EncodeToString(sum.Sum(nil))
	d.index[name] = n
	same := n.same(base)
	switch {
	case h.Size > compareInMemory && same:
		return d.w.Undo(name)
	case same:
		return nil
	}
	d.placed[name] = true
	if h.Size > compareInMemory {
		return nil
	}
	return d.w.File(name, attrOf(h), h.Size, in)
}

// link adds a further name of a file that was added before.
func (d *difference) link(name, target string, base node) error {
	n := d.index[target]
	d.index[name] = n
	if d.placed[target] {
		d.placed[name] = true
		return d.w.Link(name, target)
	}
	if n.same(base) {
		return nil
	}
	// A new name of an unchanged file: overlayfs cannot link across layers.
	f, err := d.lower.Open(target)
	if err != nil {
		return err
	}
	defer f.Close()
	a := erofs.Attr{Mode: uint32(n.Mode), UID: uint32(n.UID), GID: uint32(n.GID), ModTime: n.ModTime, Xattrs: map[string]string{}}
	for k, v := range n.Xattrs {
		b, _ := hex.DecodeString(v)
		a.Xattrs[k] = string(b)
	}
	if n.Type != tar.TypeReg {
		return fmt.Errorf("%q: hard link to %q, which is not a regular file", name, target)
	}
	d.placed[name] = true
	return d.w.File(name, a, n.Size, f)
}

// finish adds whiteouts and the attributes of parent directories.
func (d *difference) finish() error {
	for name := range d.base {
		parent := path.Dir(name)
		// Below what is gone or no directory any more nothing has to be deleted.
		if d.seen[name] || d.dirs[parent] == nil {
			continue
		}
		d.placed[name] = true
		if err := d.w.Node(name, erofs.Attr{}, erofs.CharDev, 0, 0); err != nil {
			return err
		}
	}
	parents := map[string]bool{".": true}
	for name := range d.placed {
		for p := path.Dir(name); p != "." && !parents[p]; p = path.Dir(p) {
			parents[p] = true
		}
	}
	for _, p := range slices.Sorted(maps.Keys(parents)) {
		h := d.dirs[p]
		if h == nil {
			if p == "." {
				continue
			}
			return fmt.Errorf("%q: a file without its directory", p)
		}
		if err := d.w.Directory(p, attrOf(h)); err != nil {
			return err
		}
	}
	return d.w.Close()
}

// openErofs opens an uncompressed erofs image for reading.
func openErofs(name string) (fs.FS, io.Closer, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	fsys, err := goerofs.Open(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return fsys, f, nil
}

// fileDigest is the identity of a finished layer.
func fileDigest(name string) (id string, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hexDigest(h), size, err
}

// hexDigest is how a digest is written here.
func hexDigest(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)[:20]) }

func (x index) encode(w io.Writer) error { return json.NewEncoder(w).Encode(x) }

func decodeIndex(r io.Reader) (x index, err error) {
	err = json.NewDecoder(r).Decode(&x)
	return x, err
}
