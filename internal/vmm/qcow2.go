package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/attest-vm/attest/internal/event"
)

// Qcow2Magic are the first bytes of a qcow2 image. The format is QEMU's
// docs/interop/qcow2.txt; all numbers are big-endian.
const Qcow2Magic = "QFI\xfb"

const (
	qcow2Header2    = 72 // bytes of a header of version 2
	qcow2Header3    = 104
	maxBacking      = 1023
	extensionData   = 0x44415441 // header extension: the name of the external data file
	externalData    = 1 << 2     // incompatible feature
	minClusterBits  = 9
	maxClusterBits  = 21
	maxQcow2Header  = 1 << maxClusterBits // it is in the first cluster
	qcow2Encrypted  = 32                  // where the method is
	qcow2Features   = 72
	qcow2HeaderSize = 100
)

// A Qcow2 is what the header of a qcow2 image says.
type Qcow2 struct {
	Size      int64  // of the disk as a guest sees it, in bytes
	Backing   string // the file that it names to read from where it has nothing; empty: none
	DataFile  string // the file that it names for its contents; may be empty if External
	External  bool   // its contents are in another file
	Encrypted bool
}

// ReadQcow2 reads the header of a qcow2 image.
func ReadQcow2(r io.ReaderAt) (q Qcow2, err error) {
	b := make([]byte, maxQcow2Header)
	n, err := r.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return q, err
	}
	if b = b[:n]; n < qcow2Header2 || string(b[:4]) != Qcow2Magic {
		return q, errors.New("not a qcow2 image")
	}
	be := binary.BigEndian
	version, bits := be.Uint32(b[4:]), be.Uint32(b[20:])
	if version != 2 && version != 3 {
		return q, fmt.Errorf("qcow2 version %d is not supported", version)
	}
	if bits < minClusterBits || bits > maxClusterBits {
		return q, fmt.Errorf("a qcow2 image with clusters of 2^%d bytes", bits)
	}
	b = b[:min(len(b), 1<<bits)]
	if q.Size = int64(be.Uint64(b[24:])); q.Size <= 0 {
		return q, fmt.Errorf("a qcow2 image of a disk of %d bytes", q.Size)
	}
	q.Encrypted = be.Uint32(b[qcow2Encrypted:]) != 0
	if at, size := be.Uint64(b[8:]), be.Uint32(b[16:]); at != 0 && size != 0 {
		if size > maxBacking || at > uint64(len(b)) || uint64(size) > uint64(len(b))-at {
			return q, errors.New("a qcow2 image with a damaged backing file name")
		}
		q.Backing = string(b[at : at+uint64(size)])
	}
	extensions := uint32(qcow2Header2)
	if version == 3 {
		if len(b) < qcow2Header3 {
			return q, errors.New("a qcow2 image with half a header")
		}
		q.External = be.Uint64(b[qcow2Features:])&externalData != 0
		extensions = be.Uint32(b[qcow2HeaderSize:])
	}
	q.DataFile = dataFile(b, extensions)
	return q, nil
}

// dataFile looks for the header extension at an offset or behind it.
func dataFile(b []byte, at uint32) string {
	be := binary.BigEndian
	for at := uint64(at); at+8 <= uint64(len(b)); {
		kind, size := be.Uint32(b[at:]), uint64(be.Uint32(b[at+4:]))
		at += 8
		if kind == 0 || size > uint64(len(b))-at {
			return ""
		}
		if kind == extensionData {
			return string(b[at : at+size])
		}
		at += (size + 7) &^ 7
	}
	return ""
}

// A DiskError is a disk image that no machine is given.
type DiskError struct{ Path, Reason string }

func (e *DiskError) Error() string { return "disk " + e.Path + ": " + e.Reason }

// Status says that the image is the user's to replace.
func (*DiskError) Status() event.Status { return event.Invalid }

// CheckDisk refuses a qcow2 image that names files of the host. Its contents are not
// to be trusted: whoever made it could have a guest read any file of the user's.
// own says that attest itself names what is below it, so that a backing file in its
// header means nothing. Of a raw disk there is nothing to look at.
func CheckDisk(path, format string, own bool) error {
	if format != "qcow2" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	q, err := ReadQcow2(f)
	if err != nil {
		return &DiskError{path, err.Error()}
	}
	const remedy = "; attest opens no file that a disk names. If you trust it, make one image of all: qemu-img convert -O qcow2 %s NEW"
	switch {
	case q.External || q.DataFile != "":
		return &DiskError{path, fmt.Sprintf("its contents are in another file of this host, %q (external data file)%s", q.DataFile, fmt.Sprintf(remedy, path))}
	case q.Backing != "" && !own:
		return &DiskError{path, fmt.Sprintf("it reads from another file of this host, %q (backing file)%s", q.Backing, fmt.Sprintf(remedy, path))}
	case q.Encrypted:
		return &DiskError{path, "it is encrypted; decrypt it first: qemu-img convert"}
	}
	return nil
}
