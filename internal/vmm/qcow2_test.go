package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/event"
)

// qcow2 is a header with these names in it.
func qcow2(version uint32, backing, dataFile string, features uint64) []byte {
	be := binary.BigEndian
	b := make([]byte, qcow2Header3)
	copy(b, Qcow2Magic)
	be.PutUint32(b[4:], version)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], 1<<20)
	be.PutUint64(b[72:], features)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], qcow2Header3)
	if version == 2 {
		b = b[:qcow2Header2]
	}
	extension := func(kind uint32, text string) {
		b = be.AppendUint32(b, kind)
		b = be.AppendUint32(b, uint32(len(text)))
		b = append(b, text...)
		b = append(b, make([]byte, (8-len(text)%8)%8)...)
	}
	extension(0xe2792aca, "raw")
	if dataFile != "" {
		extension(extensionData, dataFile)
	}
	extension(0, "")
	if backing != "" {
		be.PutUint64(b[8:], uint64(len(b)))
		be.PutUint32(b[16:], uint32(len(backing)))
		b = append(b, backing...)
	}
	return append(b, make([]byte, 1<<16)...)
}

func TestCheckDisk(t *testing.T) {
	encrypted := qcow2(3, "", "", 0)
	encrypted[qcow2Encrypted+3] = 1
	for _, test := range []struct {
		name, format string
		image        []byte
		own          bool
		want         string
	}{
		{"an image", "qcow2", qcow2(3, "", "", 0), false, ""},
		{"version 2", "qcow2", qcow2(2, "", "", 0), false, ""},
		{"a backing file", "qcow2", qcow2(3, "/victim/secret", "", 0), false, `"/victim/secret" (backing file)`},
		{"of version 2", "qcow2", qcow2(2, "nbd://192.0.2.1/x", "", 0), false, `"nbd://192.0.2.1/x" (backing file)`},
		{"an escape in its name", "qcow2", qcow2(3, "\x1b[31m", "", 0), false, `"\x1b[31m"`},
		{"attest names another", "qcow2", qcow2(3, "/victim/secret", "", 0), true, ""},
		{"a data file", "qcow2", qcow2(3, "", "/victim/secret", externalData), true, `"/victim/secret" (external data file)`},
		{"a data file without a name", "qcow2", qcow2(3, "", "", externalData), true, "external data file"},
		{"the name of one", "qcow2", qcow2(3, "", "/victim/secret", 0), true, "external data file"},
		{"encrypted", "qcow2", encrypted, false, "encrypted"},
		{"half a header", "qcow2", qcow2(3, "", "", 0)[:80], false, "half a header"},
		{"no image", "qcow2", []byte("x"), false, "not a qcow2 image"},
		{"a raw disk", "raw", qcow2(3, "/victim/secret", "", 0), false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, test.image, 0o600); err != nil {
				t.Fatal(err)
			}
			err := CheckDisk(path, test.format, test.own)
			var refused *DiskError
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (!errors.As(err, &refused) || refused.Status() != event.Invalid || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path)):
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

// What a header names is seen, or is nothing that QEMU would see either.
func FuzzReadQcow2(f *testing.F) {
	f.Add(qcow2(3, "/a", "/b", externalData)[:256])
	f.Add(qcow2(2, "/a", "", 0)[:256])
	f.Add(qcow2(3, "", "", 0)[:104])
	f.Add([]byte(Qcow2Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ReadQcow2(bytes.NewReader(b))
		if err != nil {
			return
		}
		if q.Size <= 0 || len(q.Backing) > maxBacking || !bytes.Contains(b, []byte(q.Backing)) || !bytes.Contains(b, []byte(q.DataFile)) {
			t.Errorf("%+v", q)
		}
	})
}
