package tarfs

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Plain copies a stream of Write's to w so that every tar can read it: files with holes become
// ones with zeros. Unless name is empty, the entries are below name, as with Extract.
func Plain(w io.Writer, r io.Reader, name string) (Stats, error) {
	var s Stats
	from, to := tar.NewReader(r), tar.NewWriter(w)
	rename := func(text string) string {
		if name == "" {
			return text
		}
		_, rest, below := strings.Cut(text, "/")
		if below {
			return name + "/" + rest
		}
		return name
	}
	for {
		h, err := from.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return s, err
		}
		h.Name = rename(h.Name)
		if h.Typeflag == tar.TypeLink {
			h.Linkname = rename(h.Linkname)
		}
		if h.Typeflag != tar.TypeDir {
			s.Files++
		}
		n, err := plainEntry(to, from, h)
		if s.Bytes += n; err != nil {
			return s, err
		}
	}
	if err := to.Close(); err != nil {
		return s, err
	}
	_, err := io.Copy(io.Discard, r) // the padding behind the last entry
	return s, err
}

// plainEntry copies an entry, and returns how many bytes of content it has.
func plainEntry(to *tar.Writer, from *tar.Reader, h *tar.Header) (int64, error) {
	record, sparse := h.PAXRecords[sparseSize]
	if !sparse {
		if err := to.WriteHeader(h); err != nil {
			return 0, err
		}
		return io.Copy(to, from)
	}
	size, err := strconv.ParseInt(record, 10, 64)
	if err != nil {
		return 0, err
	}
	h.Size, h.PAXRecords = size, nil
	if err := to.WriteHeader(h); err != nil {
		return 0, err
	}
	at := int64(0)
	for {
		var head [partHeader]byte
		if _, err := io.ReadFull(from, head[:]); err == io.EOF {
			_, err := io.CopyN(to, zeros{}, size-at)
			return size, err
		} else if err != nil {
			return at, err
		}
		start, length := int64(binary.BigEndian.Uint64(head[:])), int64(binary.BigEndian.Uint64(head[8:]))
		if start < at || length < 0 || start > size || length > size-start {
			return at, fmt.Errorf("%s: its parts do not fit into %d bytes", h.Name, size)
		}
		if _, err := io.CopyN(to, zeros{}, start-at); err != nil {
			return at, err
		}
		if _, err := io.CopyN(to, from, length); err != nil {
			return at, err
		}
		at = start + length
	}
}
