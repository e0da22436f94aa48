package image

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/attest-vm/attest/internal/vmm"
)

// A DiskReader reads what a guest would find on a disk, for a look at a few places.
type DiskReader struct {
	io.ReaderAt
	io.Closer
}

// Open opens the disk as it is now.
func (d *BaseDisk) Open() (*DiskReader, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, err
	}
	if d.Format != "qcow2" {
		return &DiskReader{f, f}, nil
	}
	r, err := newQcow2Reader(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", d.Path, err)
	}
	return &DiskReader{r, f}, nil
}

// A qcow2Reader reads the disk in a qcow2 image that has no other file below it. It is for
// a look at a few places: one cluster is kept, and the image may be anybody's.
type qcow2Reader struct {
	file    io.ReaderAt
	size    int64 // of the disk
	bits    uint  // of a cluster's size
	l1      int64
	entries int64 // of the L1 table
	zstd    bool

	last    int64 // the cluster that is kept; -1: none
	cluster []byte
}

// Bits of the incompatible features that have another layout (QEMU, docs/interop/qcow2.txt).
const (
	qcow2Compression = 1 << 3
	qcow2ExtendedL2  = 1 << 4
)

func newQcow2Reader(f io.ReaderAt) (*qcow2Reader, error) {
	q, err := vmm.ReadQcow2(f)
	if err != nil {
		return nil, err
	}
	head := make([]byte, 112)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	be := binary.BigEndian
	r := &qcow2Reader{file: f, size: q.Size, bits: uint(be.Uint32(head[20:])), entries: int64(be.Uint32(head[36:])), l1: int64(be.Uint64(head[40:])), last: -1}
	features := uint64(0)
	if be.Uint32(head[4:]) >= 3 {
		features = be.Uint64(head[72:])
	}
	switch {
	case q.Backing != "" || q.External || q.Encrypted || features&qcow2ExtendedL2 != 0:
		return nil, errors.New("a qcow2 image of a kind that is not looked into")
	case r.l1 < 0:
		return nil, fmt.Errorf("a qcow2 image whose table is at %d", r.l1)
	}
	r.zstd = features&qcow2Compression != 0 && head[104] == 1
	return r, nil
}

func (r *qcow2Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("a negative offset")
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if at >= r.size || at < 0 {
			return n, io.EOF
		}
		cluster, within := at>>r.bits, at&(1<<r.bits-1)
		if err := r.load(cluster); err != nil {
			return n, err
		}
		part := r.cluster[within:min(int64(len(r.cluster)), within+r.size-at)]
		n += copy(p[n:], part)
	}
	return n, nil
}

// Fields of an L2 entry.
const (
	l2Zero       = 1
	l2Compressed = 1 << 62
	l2Offset     = 1<<56 - 1<<9
)

// load keeps a cluster.
func (r *qcow2Reader) load(cluster int64) error {
	if cluster == r.last {
		return nil
	}
	size := int64(1) << r.bits
	if r.cluster == nil {
		r.cluster = make([]byte, size)
	}
	r.last = -1
	clear(r.cluster)
	perTable := size / 8
	if cluster/perTable >= r.entries {
		return fmt.Errorf("its table has no entry for cluster %d", cluster)
	}
	table, err := r.entry(r.l1 + cluster/perTable*8)
	if err != nil {
		return err
	}
	entry := uint64(0)
	if table &= l2Offset; table != 0 {
		if entry, err = r.entry(int64(table) + cluster%perTable*8); err != nil {
			return err
		}
	}
	switch offset := int64(entry & l2Offset); {
	case entry&l2Compressed != 0:
		err = r.decompress(entry)
	case entry&l2Zero != 0 || offset == 0:
	default:
		// The last cluster of a file may be short.
		if _, err = r.file.ReadAt(r.cluster, offset); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err == nil {
		r.last = cluster
	}
	return err
}

func (r *qcow2Reader) entry(at int64) (uint64, error) {
	var b [8]byte
	if _, err := r.file.ReadAt(b[:], at); err != nil {
		return 0, fmt.Errorf("its table at %d: %w", at, err)
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

// decompress reads a cluster that is compressed.
func (r *qcow2Reader) decompress(entry uint64) error {
	x := 62 - (r.bits - 8)
	at := int64(entry & (1<<x - 1))
	sectors := int64(entry&(1<<62-1)) >> x
	length := (sectors+1)*sectorSize - at%sectorSize
	if length > 2<<r.bits {
		return fmt.Errorf("a compressed cluster of %d bytes", length)
	}
	packed := make([]byte, length)
	n, err := r.file.ReadAt(packed, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var plain io.Reader = flate.NewReader(bytes.NewReader(packed[:n]))
	if r.zstd {
		d, err := zstd.NewReader(bytes.NewReader(packed[:n]), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return err
		}
		defer d.Close()
		plain = d
	}
	// What follows the cluster in its last sector is another's.
	if _, err := io.ReadFull(plain, r.cluster); err != nil {
		return fmt.Errorf("a compressed cluster at %d: %w", at, err)
	}
	return nil
}
