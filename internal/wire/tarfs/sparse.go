package tarfs

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// sparseSize is the PAX record that a file with holes has: its real size. Its
// content is its parts, each after its offset and its length as 8 bytes,
// big-endian. (archive/tar writes none of the formats that GNU tar has for this.)
const sparseSize = "ATTEST.size"

const (
	// minHole is the shortest hole that is left out.
	minHole = 64 << 10
	// maxParts bounds the list; what is behind the last part is not looked at.
	maxParts = 1 << 16

	partHeader = 16
)

// A part is a piece of a file that has content.
type part struct{ Offset, Length int64 }

// dataOf are the parts of a file that has holes worth leaving out; nil if it has
// none, or if the file system does not say.
func dataOf(f *os.File, size int64) []part {
	var st unix.Stat_t
	if size < minHole || unix.Fstat(int(f.Fd()), &st) != nil || st.Blocks*512 >= size {
		return nil
	}
	parts := []part{}
	for end := int64(0); end < size; {
		start, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole
			break
		}
		if err != nil {
			return nil
		}
		if end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return nil
		}
		end = min(end, size)
		n := len(parts)
		switch {
		case start >= size:
		case n > 0 && start-(parts[n-1].Offset+parts[n-1].Length) < minHole:
			parts[n-1].Length = end - parts[n-1].Offset
		case n == maxParts:
			parts[n-1].Length = size - parts[n-1].Offset
			return parts
		default:
			parts = append(parts, part{start, end - start})
		}
	}
	if len(parts) == 1 && parts[0].Length == size {
		f.Seek(0, io.SeekStart)
		return nil
	}
	return parts
}

// sparse writes a file that has holes.
func (x *writer) sparse(f *os.File, h *tar.Header, parts []part) error {
	h.PAXRecords = map[string]string{sparseSize: strconv.FormatInt(h.Size, 10)}
	h.Size = 0
	for _, p := range parts {
		h.Size += partHeader + p.Length
	}
	if err := x.tw.WriteHeader(h); err != nil {
		return err
	}
	x.Files++
	for _, p := range parts {
		head := binary.BigEndian.AppendUint64(nil, uint64(p.Offset))
		head = binary.BigEndian.AppendUint64(head, uint64(p.Length))
		if _, err := x.tw.Write(head); err != nil {
			return err
		}
		if err := x.content(io.NewSectionReader(f, p.Offset, p.Length), h.Name, p.Length); err != nil {
			return err
		}
	}
	return nil
}

// sparse reads the parts of a file that has holes.
func (x *extractor) sparse(r io.Reader, f *os.File, record string) error {
	size, err := strconv.ParseInt(record, 10, 64)
	if err != nil || size < 0 {
		return fmt.Errorf("the copied stream has a file of %q bytes", record)
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); ; {
		var head [partHeader]byte
		switch _, err := io.ReadFull(r, head[:]); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("the copied stream is broken: %w", err)
		}
		p := part{int64(binary.BigEndian.Uint64(head[:])), int64(binary.BigEndian.Uint64(head[8:]))}
		if p.Offset < at || p.Length < 0 || p.Offset > size || p.Length > size-p.Offset {
			return fmt.Errorf("the copied stream has a file of %d bytes with a part of %d at %d", size, p.Length, p.Offset)
		}
		at = p.Offset + p.Length
		if _, err := f.Seek(p.Offset, io.SeekStart); err != nil {
			return err
		}
		n, err := x.content(f, io.LimitReader(r, p.Length))
		if err == nil && n < p.Length {
			err = fmt.Errorf("the copied stream is broken: a part of %d bytes contains %d", p.Length, n)
		}
		if err != nil {
			return err
		}
	}
}
