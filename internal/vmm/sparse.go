package vmm

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// CopySparse makes an empty file a copy of another: by reference where the file
// system can (FICLONE), otherwise what is not a hole.
func CopySparse(to, from *os.File) error {
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(st.Size()); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for pos := int64(0); ; {
		start, err := unix.Seek(int(from.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return nil
		}
		if err != nil {
			return err
		}
		if pos, err = unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		for ; start < pos; start += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), pos-start)]
			if _, err := io.ReadFull(io.NewSectionReader(from, start, int64(len(b))), b); err != nil {
				return err
			}
			if err := writeSparse(to, b, start); err != nil {
				return err
			}
		}
	}
}

const pageSize = 4096

// writeSparse writes what is not a page of zeros, neighbours together.
func writeSparse(to *os.File, b []byte, at int64) error {
	for len(b) > 0 {
		zero, n := pages(b, true), 0
		b, at = b[zero:], at+int64(zero)
		if n = pages(b, false); n == 0 {
			return nil
		}
		if _, err := to.WriteAt(b[:n], at); err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

var zeros [pageSize]byte

// pages is the length of the pages at the beginning of b that are zero, or not.
func pages(b []byte, zero bool) int {
	n := 0
	for n < len(b) {
		page := b[n:min(n+pageSize, len(b))]
		if bytes.Equal(page, zeros[:len(page)]) != zero {
			return n
		}
		n += len(page)
	}
	return n
}
