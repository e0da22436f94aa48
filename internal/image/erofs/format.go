package erofs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
)

const (
	blockSize = 4096
	blockBits = 12

	magic            = 0xE0F5E1E2
	superblockOffset = 1024
	compatChecksum   = 1
	compatMtime      = 2

	inodeSize   = 64 // the extended inode: 32-bit owners, nanosecond times
	slotSize    = 32 // inode numbers count these
	direntSize  = 12
	xattrHeader = 12

	layoutPlain  = 0
	layoutInline = 2

	// Contents below this size are stored behind their inode. Inline data must
	// not cross a block, and room for the inode and some attributes is needed.
	inlineMax = blockSize - 512
)

var le = binary.LittleEndian

// Close writes names, attributes and superblock. The file stays open and is not synced.
func (w *Writer) Close() error {
	order := w.number()
	for _, n := range order {
		if err := n.encodeXattrs(); err != nil {
			return err
		}
		if n.kind == Directory {
			// The size of a directory does not depend on inode numbers, so
			// the layout can be planned before they are known.
			n.size = direntsSize(n.sortedNames())
		}
	}
	metaSize := w.plan(order)
	parents := map[*inode]*inode{w.root: w.root}
	for _, n := range order {
		if n.kind != Directory {
			continue
		}
		for _, c := range n.children {
			if c.kind == Directory {
				parents[c] = n
			}
		}
	}
	for _, n := range order {
		if n.kind == Directory {
			n.encodeDirents(parents[n])
		}
		if err := w.place(n); err != nil {
			return err
		}
	}
	metaBlock := w.off / blockSize
	if err := w.writeMeta(order, metaSize); err != nil {
		return err
	}
	if err := w.buf.Flush(); err != nil {
		return err
	}
	// Undo can have left more than is used.
	if err := w.out.Truncate(w.off); err != nil {
		return err
	}
	if w.off>>blockBits > 1<<32-1 {
		return fmt.Errorf("erofs: image of %d bytes is too large", w.off)
	}
	_, err := w.out.WriteAt(superblock(w.root.nid, len(order), w.off/blockSize, metaBlock), superblockOffset)
	return err
}

// number lists every inode once, the root first, parents before children, and counts links.
func (w *Writer) number() []*inode {
	var order []*inode
	var walk func(n *inode)
	walk = func(n *inode) {
		if n.links++; n.links > 1 {
			return // another name of the same file
		}
		order = append(order, n)
		n.number = uint32(len(order))
		for _, name := range n.sortedNames() {
			if c := n.children[name]; c != nil {
				walk(c)
			}
		}
	}
	walk(w.root)
	for _, n := range order {
		if n.kind == Directory {
			n.links = 2
			for _, c := range n.children {
				if c.kind == Directory {
					n.links++
				}
			}
		}
	}
	return order
}

// inlineSize is how much of n's contents is stored behind the inode.
func (n *inode) inlineSize() int64 {
	small := inodeSize+int64(len(n.xattrs))+n.size <= blockSize
	switch {
	case n.kind == Directory && small, n.kind == Symlink && small, n.kind == Regular && n.inline != nil && small:
		return n.size
	}
	return 0
}

// plan gives every inode its number: its place in the metadata area, in slots
// of 32 bytes. It returns the size of the area.
func (w *Writer) plan(order []*inode) int64 {
	var off int64
	for _, n := range order {
		head := inodeSize + int64(len(n.xattrs))
		if in := n.inlineSize(); in > 0 && off/blockSize != (off+head+in-1)/blockSize {
			off = alignUp(off, blockSize)
		}
		n.nid = uint64(off / slotSize)
		off = alignUp(off+head+n.inlineSize(), slotSize)
	}
	return off
}

// place puts contents that do not fit behind the inode into the data area.
func (w *Writer) place(n *inode) error {
	if n.inline == nil {
		return nil
	}
	if n.inlineSize() > 0 || n.size == 0 {
		n.tail = n.inline
		return nil
	}
	n.data = w.off
	if err := w.writeData(n.inline); err != nil {
		return err
	}
	return w.pad()
}

func alignUp(x, to int64) int64 { return (x + to - 1) / to * to }

func (w *Writer) writeMeta(order []*inode, size int64) error {
	start := w.off
	for _, n := range order {
		if gap := start + int64(n.nid)*slotSize - w.off; gap > 0 {
			if err := w.writeData(make([]byte, gap)); err != nil {
				return err
			}
		}
		for _, b := range [][]byte{n.encode(), n.xattrs, n.tail} {
			if err := w.writeData(b); err != nil {
				return err
			}
		}
	}
	if err := w.writeData(make([]byte, start+size-w.off)); err != nil {
		return err
	}
	return w.pad()
}

// encode is struct erofs_inode_extended.
func (n *inode) encode() []byte {
	b := make([]byte, inodeSize)
	layout := uint16(layoutPlain)
	if n.inlineSize() > 0 {
		layout = layoutInline
	}
	le.PutUint16(b[0:], 1|layout<<1)
	if len(n.xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(n.xattrs)-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], uint16(n.kind)|uint16(n.attr.Mode&0o7777))
	le.PutUint64(b[8:], uint64(n.size))
	switch n.kind {
	case CharDev, BlockDev:
		le.PutUint32(b[16:], n.rdev)
	case Regular, Directory, Symlink:
		le.PutUint32(b[16:], uint32(n.data/blockSize))
	}
	le.PutUint32(b[20:], n.number)
	le.PutUint32(b[24:], n.attr.UID)
	le.PutUint32(b[28:], n.attr.GID)
	if t := n.attr.ModTime; !t.IsZero() {
		le.PutUint64(b[32:], uint64(t.Unix()))
		le.PutUint32(b[40:], uint32(t.Nanosecond()))
	}
	le.PutUint32(b[44:], n.links)
	return b
}

// direntsSize is the size of a directory with these entries: whole blocks but for the last.
func direntsSize(names []string) int64 {
	var size, used int64
	for _, name := range names {
		need := int64(direntSize + len(name))
		if used+need > blockSize {
			size += blockSize
			used = 0
		}
		used += need
	}
	return size + used
}

// encodeDirents writes a directory: in each block first the fixed parts of its
// entries, then their names.
func (n *inode) encodeDirents(parent *inode) {
	out := make([]byte, 0, n.size)
	var block []string
	flush := func(last bool) {
		start := len(out)
		nameOff := len(block) * direntSize
		for _, name := range block {
			target := n.children[name]
			switch name {
			case ".":
				target = n
			case "..":
				target = parent
			}
			out = le.AppendUint64(out, target.nid)
			out = le.AppendUint16(out, uint16(nameOff))
			out = append(out, direntType(target.kind), 0)
			nameOff += len(name)
		}
		for _, name := range block {
			out = append(out, name...)
		}
		if !last {
			out = append(out, make([]byte, blockSize-(len(out)-start))...)
		}
		block = block[:0]
	}
	used := 0
	for _, name := range n.sortedNames() {
		if used+direntSize+len(name) > blockSize {
			flush(false)
			used = 0
		}
		block = append(block, name)
		used += direntSize + len(name)
	}
	flush(true)
	n.inline = out
}

// direntType is the kernel's FT_* number.
func direntType(k Kind) byte {
	switch k {
	case Regular:
		return 1
	case Directory:
		return 2
	case CharDev:
		return 3
	case BlockDev:
		return 4
	case FIFO:
		return 5
	case Socket:
		return 6
	case Symlink:
		return 7
	}
	return 0
}

// xattrPrefixes are the name spaces that EROFS abbreviates to one byte. The two
// ACLs have their whole name in it.
var xattrPrefixes = []struct {
	index  byte
	prefix string
}{
	{2, "system.posix_acl_access"},
	{3, "system.posix_acl_default"},
	{1, "user."},
	{4, "trusted."},
	{6, "security."},
}

// encodeXattrs writes the attributes as the inode's inline body. Attributes of
// other name spaces (system.nfs4_acl) are dropped, as no local file system takes them.
func (n *inode) encodeXattrs() error {
	if len(n.attr.Xattrs) == 0 {
		return nil
	}
	b := make([]byte, xattrHeader)
	for _, name := range slices.Sorted(maps.Keys(n.attr.Xattrs)) {
		value := n.attr.Xattrs[name]
		for _, p := range xattrPrefixes {
			suffix, ok := strings.CutPrefix(name, p.prefix)
			if !ok {
				continue
			}
			if len(suffix) > 255 || len(value) > 0xffff {
				return fmt.Errorf("erofs: extended attribute %s of %d bytes is too large", name, len(value))
			}
			b = append(b, byte(len(suffix)), p.index)
			b = le.AppendUint16(b, uint16(len(value)))
			b = append(b, suffix...)
			b = append(b, value...)
			b = append(b, make([]byte, alignUp(int64(len(b)), 4)-int64(len(b)))...)
			break
		}
	}
	if len(b) == xattrHeader {
		return nil
	}
	if (len(b)-xattrHeader)/4+1 > 0xffff {
		return fmt.Errorf("erofs: %d bytes of extended attributes on one file", len(b))
	}
	n.xattrs = b
	return nil
}

// superblock is struct erofs_super_block up to the end of its block.
func superblock(root uint64, inodes int, blocks, metaBlock int64) []byte {
	b := make([]byte, blockSize-superblockOffset)
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(root))
	le.PutUint64(b[16:], uint64(inodes))
	le.PutUint32(b[36:], uint32(blocks))
	le.PutUint32(b[40:], uint32(metaBlock))
	// The kernel's crc32c neither starts nor ends with an inversion of its own.
	le.PutUint32(b[4:], ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}
