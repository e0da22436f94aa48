package erofs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Attr is what an inode carries beside its contents.
type Attr struct {
	Mode     uint32 // permission bits, setuid, setgid and sticky: 07777
	UID, GID uint32
	ModTime  time.Time         // zero: the start of 1970
	Xattrs   map[string]string // full names, values as getxattr(2) returns them
}

// Kind is a file's type, as in the S_IFMT bits of stat(2).
type Kind uint16

const (
	Regular   Kind = 0o100000
	Directory Kind = 0o040000
	Symlink   Kind = 0o120000
	CharDev   Kind = 0o020000
	BlockDev  Kind = 0o060000
	FIFO      Kind = 0o010000
	Socket    Kind = 0o140000
)

// A Writer writes one image. Paths are slash-separated and relative to the
// image's root, "." is the root itself. Missing parent directories are made
// with mode 0755. What is added a second time replaces the first, except that
// a directory that is added again keeps its entries. Methods must not be called
// concurrently.
type Writer struct {
	out  *os.File
	buf  *bufio.Writer
	off  int64 // where the next byte of data goes
	root *inode
}

// inode is one file; the names that lead to it are in its parents' children.
type inode struct {
	attr     Attr
	kind     Kind
	links    uint32
	size     int64
	data     int64             // offset of the contents in the image, a multiple of the block size
	inline   []byte            // contents that are shorter than a block, or of a directory or symlink
	rdev     uint32            // as the kernel's new_encode_dev writes it
	children map[string]*inode // of a directory

	nid    uint64
	number uint32
	xattrs []byte
	tail   []byte // what is stored right behind the inode
}

// NewWriter starts an image at the beginning of out, which must be empty.
func NewWriter(out *os.File) (*Writer, error) {
	w := &Writer{
		out:  out,
		buf:  bufio.NewWriterSize(out, 1<<20),
		root: newDirectory(Attr{Mode: 0o755, ModTime: time.Unix(0, 0)}),
	}
	// The first block belongs to the superblock, which comes last.
	return w, w.writeData(make([]byte, blockSize))
}

func newDirectory(a Attr) *inode {
	return &inode{attr: a, kind: Directory, children: map[string]*inode{}}
}

// Directory adds a directory, or sets the attributes of one that exists.
func (w *Writer) Directory(name string, a Attr) error {
	parts, err := split(name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		w.root.attr = a
		return nil
	}
	if old, err := w.find(parts); err == nil && old.kind == Directory {
		old.attr = a
		return nil
	}
	return w.add(name, newDirectory(a))
}

// File adds a regular file of exactly size bytes read from r.
func (w *Writer) File(name string, a Attr, size int64, r io.Reader) error {
	n := &inode{attr: a, kind: Regular, size: size}
	if size < 0 {
		return fmt.Errorf("erofs: %q: negative size", name)
	}
	if size < inlineMax {
		n.inline = make([]byte, size)
		if _, err := io.ReadFull(r, n.inline); err != nil {
			return fmt.Errorf("erofs: %q: %w", name, unexpected(err))
		}
		return w.add(name, n)
	}
	n.data = w.off
	copied, err := io.CopyN(w.buf, r, size)
	w.off += copied
	if err == nil {
		err = w.pad()
	}
	if err != nil {
		return fmt.Errorf("erofs: %q: %w", name, unexpected(err))
	}
	return w.add(name, n)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Symlink adds a symbolic link to target.
func (w *Writer) Symlink(name string, a Attr, target string) error {
	if target == "" || len(target) >= blockSize {
		return fmt.Errorf("erofs: %q: target of %d bytes", name, len(target))
	}
	a.Mode = 0o777
	return w.add(name, &inode{attr: a, kind: Symlink, size: int64(len(target)), inline: []byte(target)})
}

// Node adds a device node, FIFO or socket. A character device 0:0 is a
// whiteout of overlayfs.
func (w *Writer) Node(name string, a Attr, kind Kind, major, minor uint32) error {
	switch kind {
	case CharDev, BlockDev, FIFO, Socket:
	default:
		return fmt.Errorf("erofs: %q: kind %#o is not a node", name, kind)
	}
	rdev := minor&0xff | major<<8 | (minor&^0xff)<<12
	return w.add(name, &inode{attr: a, kind: kind, rdev: rdev})
}

// Link adds name as a further name of the file target.
func (w *Writer) Link(name, target string) error {
	parts, err := split(target)
	if err != nil {
		return err
	}
	n, err := w.find(parts)
	if err != nil {
		return fmt.Errorf("erofs: %q: hard link to %q: %w", name, target, err)
	}
	if n.kind == Directory {
		return fmt.Errorf("erofs: %q: hard link to directory %q", name, target)
	}
	return w.add(name, n)
}

// split checks a path and returns its elements; none for the root.
func split(name string) ([]string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return nil, nil
	}
	parts := strings.Split(clean, "/")
	for _, p := range parts {
		if len(p) > 255 || strings.ContainsRune(p, 0) {
			return nil, fmt.Errorf("erofs: invalid name %q", name)
		}
	}
	return parts, nil
}

func (w *Writer) find(parts []string) (*inode, error) {
	n := w.root
	for _, p := range parts {
		child := n.children[p]
		if child == nil {
			return nil, os.ErrNotExist
		}
		n = child
	}
	return n, nil
}

func (w *Writer) add(name string, n *inode) error {
	parts, err := split(name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return fmt.Errorf("erofs: the root must be a directory")
	}
	dir := w.root
	for _, p := range parts[:len(parts)-1] {
		child := dir.children[p]
		if child == nil {
			child = newDirectory(Attr{Mode: 0o755, ModTime: n.attr.ModTime})
			dir.children[p] = child
		}
		if child.kind != Directory {
			return fmt.Errorf("erofs: %q: a parent is not a directory", name)
		}
		dir = child
	}
	dir.children[parts[len(parts)-1]] = n
	return nil
}

// pad fills the current block with zeros.
func (w *Writer) pad() error {
	if rest := w.off % blockSize; rest != 0 {
		return w.writeData(make([]byte, blockSize-rest))
	}
	return nil
}

func (w *Writer) writeData(b []byte) error {
	n, err := w.buf.Write(b)
	w.off += int64(n)
	return err
}

// sortedNames returns the entries of a directory as readdir finds them,
// including "." and "..": EROFS searches them by bisection in byte order.
func (n *inode) sortedNames() []string {
	names := slices.AppendSeq([]string{".", ".."}, maps.Keys(n.children))
	slices.Sort(names)
	return names
}

// Undo takes the file out again that was added last. Its contents are
// overwritten by what comes next.
func (w *Writer) Undo(name string) error {
	parts, err := split(name)
	if err != nil || len(parts) == 0 {
		return fmt.Errorf("erofs: undo of %q", name)
	}
	dir, err := w.find(parts[:len(parts)-1])
	if err != nil {
		return fmt.Errorf("erofs: undo of %q: %w", name, err)
	}
	last := parts[len(parts)-1]
	n := dir.children[last]
	if n == nil || n.kind != Regular {
		return fmt.Errorf("erofs: undo of %q: not a file", name)
	}
	delete(dir.children, last)
	if n.inline != nil {
		return nil
	}
	if alignUp(n.data+n.size, blockSize) != w.off {
		return fmt.Errorf("erofs: undo of %q: not the last file", name)
	}
	if err := w.buf.Flush(); err != nil {
		return err
	}
	w.off = n.data
	_, err = w.out.Seek(n.data, io.SeekStart)
	return err
}
