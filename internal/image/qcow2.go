package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/attest-vm/attest/internal/vmm"
)

// What CreateOverlay writes; vmm.ReadQcow2 reads it.
const (
	qcow2HeaderSize = 104 // of version 3 without extra fields
	clusterBits     = 16
	clusterSize     = 1 << clusterBits
	backingFormat   = 0xe2792aca // header extension: the format of the backing file
	maxBackingName  = 1023
	sectorSize      = 512
)

// CreateOverlay makes a qcow2 image at path that reads as backing until it is
// written to, and takes no space. format is the backing image's, "raw" or
// "qcow2". The overlay refers to backing by its absolute path: the owner of the
// overlay keeps backing where it is. path must not exist.
func CreateOverlay(path, backing, format string) (err error) {
	if backing, err = filepath.Abs(backing); err != nil {
		return err
	}
	size, err := diskSize(backing, format)
	if err != nil {
		return fmt.Errorf("overlay on %s: %w", backing, err)
	}
	head, err := encodeOverlay(backing, format, size)
	if err != nil {
		return fmt.Errorf("overlay on %s: %w", backing, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	for _, piece := range head.pieces {
		if _, err := f.WriteAt(piece.data, piece.offset); err != nil {
			return err
		}
	}
	return f.Truncate(head.size)
}

type qcow2Piece struct {
	offset int64
	data   []byte
}

type qcow2Image struct {
	pieces []qcow2Piece
	size   int64
}

// encodeOverlay lays out an image without any data: the header, a table of one
// reference count block, that block, and an empty L1 table. The disk's size is
// rounded up to whole sectors, as QEMU does with a raw backing file.
func encodeOverlay(backing, format string, size int64) (qcow2Image, error) {
	be := binary.BigEndian
	size = (size + sectorSize - 1) / sectorSize * sectorSize
	if len(backing) > maxBackingName {
		return qcow2Image{}, fmt.Errorf("a path of %d bytes, the limit is %d", len(backing), maxBackingName)
	}
	const (
		refTable = 1 * clusterSize
		refBlock = 2 * clusterSize
		l1Table  = 3 * clusterSize
		l2Covers = clusterSize / 8 * clusterSize // bytes of the disk per L1 entry
	)
	l1Entries := (size + l2Covers - 1) / l2Covers
	clusters := 3 + (l1Entries*8+clusterSize-1)/clusterSize
	if clusters > clusterSize/2 {
		return qcow2Image{}, fmt.Errorf("a disk of %d bytes is too large", size)
	}

	b := make([]byte, qcow2HeaderSize, 2048)
	copy(b, vmm.Qcow2Magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(size))
	be.PutUint32(b[36:], uint32(l1Entries))
	be.PutUint64(b[40:], l1Table)
	be.PutUint64(b[48:], refTable)
	be.PutUint32(b[56:], 1) // clusters of the reference count table
	be.PutUint32(b[96:], 4) // reference counts of 1<<4 bits
	be.PutUint32(b[100:], qcow2HeaderSize)
	b = be.AppendUint32(b, backingFormat)
	b = be.AppendUint32(b, uint32(len(format)))
	b = append(b, format...)
	b = append(b, make([]byte, (8-len(format)%8)%8)...)
	b = append(b, make([]byte, 8)...) // the end of the extensions
	be.PutUint64(b[8:], uint64(len(b)))
	be.PutUint32(b[16:], uint32(len(backing)))
	b = append(b, backing...)

	counts := make([]byte, 0, 2*clusters)
	for range clusters {
		counts = be.AppendUint16(counts, 1)
	}
	return qcow2Image{
		pieces: []qcow2Piece{
			{0, b},
			{refTable, be.AppendUint64(nil, refBlock)},
			{refBlock, counts},
		},
		size: clusters * clusterSize,
	}, nil
}

// diskSize is the size of the disk in an image of this format, in bytes. A raw disk
// may begin with anything, another format's magic included.
func diskSize(path, format string) (int64, error) {
	if format == "raw" {
		st, err := os.Stat(path)
		if err == nil && st.Size() == 0 {
			err = fmt.Errorf("%s is empty", path)
		}
		if err != nil {
			return 0, err
		}
		return st.Size(), nil
	}
	found, size, err := probeDisk(path)
	if err == nil && format != found {
		err = fmt.Errorf("%s is %s, not %s", path, found, format)
	}
	return size, err
}

// probeDisk finds the format of a disk image and the size of the disk in it.
func probeDisk(path string) (format string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if n == 0 {
		return "", 0, fmt.Errorf("%s is empty", path)
	}
	if !bytes.HasPrefix(head[:n], []byte(vmm.Qcow2Magic)) {
		return "raw", st.Size(), otherFormat(path, head[:n])
	}
	q, err := vmm.ReadQcow2(f)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", path, err)
	}
	return "qcow2", q.Size, nil
}

// otherFormats are images that would be no disk at all if they were taken as raw
// (QEMU, block/*.c; "conectix" is a dynamic VHD).
var otherFormats = []struct {
	at          int
	magic, name string
}{
	{0, "KDMV", "vmdk"}, {0, "COWD", "vmdk"}, {0, "# Disk DescriptorFile", "vmdk"}, {0, "vhdxfile", "vhdx"}, {0, "conectix", "vpc"},
	{0x40, "\x7f\x10\xda\xbe", "vdi"}, {0, "QED\x00", "qed"}, {0, "WithoutFreeSpace", "parallels"}, {0, "WithouFreSpacExt", "parallels"},
}

func otherFormat(path string, head []byte) error {
	for _, f := range otherFormats {
		if len(head) > f.at && bytes.HasPrefix(head[f.at:], []byte(f.magic)) {
			return fmt.Errorf("%s is a %s image, and attest takes raw and qcow2: qemu-img convert -f %s -O qcow2 %[1]s NEW; if it really is a raw disk, set format raw", path, f.name, f.name)
		}
	}
	return nil
}
