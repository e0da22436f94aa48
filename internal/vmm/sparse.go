package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// MemoryFile is a file in memory that nothing can be left of: it has no path.
func MemoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Seal keeps everybody from changing a MemoryFile, for good. It can be mapped privately, and
// opened for writing, but nothing is written to it.
func Seal(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	if err != nil {
		return fmt.Errorf("seal %s: %w", f.Name(), err)
	}
	return nil
}

// ReadOnly opens a file again, for reading alone. A process with a supervise.View that
// inherits it cannot open it for more.
func ReadOnly(f *os.File) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

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
	return EachData(from, func(b []byte, at int64) error {
		_, err := to.WriteAt(b, at)
		return err
	})
}

const pageSize = 4096

// EachData calls fn with all pages of a file that are not zero, neighbours
// together, in order.
func EachData(f *os.File, fn func(b []byte, at int64) error) error {
	buf := make([]byte, 128<<10) // stays in the processor's cache
	for pos := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return nil
		}
		if err != nil {
			return err
		}
		if pos, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		for ; start < pos; start += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), pos-start)]
			if _, err := io.ReadFull(io.NewSectionReader(f, start, int64(len(b))), b); err != nil {
				return err
			}
			if err := eachPages(b, start, fn); err != nil {
				return err
			}
		}
	}
}

func eachPages(b []byte, at int64, fn func([]byte, int64) error) error {
	for len(b) > 0 {
		zero := pages(b, true)
		b, at = b[zero:], at+int64(zero)
		n := pages(b, false)
		if n > 0 {
			if err := fn(b[:n], at); err != nil {
				return err
			}
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
