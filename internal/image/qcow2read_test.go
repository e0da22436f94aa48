package image

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// testDisk writes a disk of 4 MiB with an MBR of two partitions, of which the n-th begins with
// the n-th text; or a disk without partitions, for one text.
func testDisk(t *testing.T, begin ...string) string {
	t.Helper()
	disk := make([]byte, 4<<20)
	for i, text := range begin {
		at := (i + 1) << 20
		if len(begin) == 1 {
			at = 0
		} else {
			e := disk[446+16*i:]
			e[4] = 0x83
			binary.LittleEndian.PutUint32(e[8:], uint32(at/512))
			binary.LittleEndian.PutUint32(e[12:], 1<<20/512)
			disk[510], disk[511] = 0x55, 0xaa
		}
		copy(disk[at:], text)
	}
	// Something that does not compress, beside what does.
	noise := disk[3<<20:][:1<<19]
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func convertDisk(t *testing.T, path string, args ...string) string {
	t.Helper()
	out := path + ".qcow2"
	args = append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), path, out)
	if said, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, said)
	}
	return out
}

// The reader of qcow2 images reads what QEMU wrote.
func TestQcow2Reader(t *testing.T) {
	raw := testDisk(t, "one", "two")
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{nil, {"-c"}, {"-c", "-o", "compression_type=zstd"}, {"-o", "cluster_size=512"}, {"-o", "cluster_size=2M"}, {"-o", "compat=0.10"}, {"-c", "-o", "cluster_size=2M"}} {
		f, err := os.Open(convertDisk(t, raw, args...))
		if err != nil {
			t.Fatal(err)
		}
		r, err := newQcow2Reader(f)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		got := make([]byte, len(want)+1)
		if n, err := r.ReadAt(got, 0); n != len(want) || err != io.EOF || !bytes.Equal(got[:n], want) {
			t.Errorf("%v: %d bytes, %v, equal: %v", args, n, err, bytes.Equal(got[:n], want))
		}
		part := make([]byte, 70000)
		if n, err := r.ReadAt(part, 1<<20-35000); n != len(part) || err != nil || !bytes.Equal(part, want[1<<20-35000:][:len(part)]) {
			t.Errorf("%v: a part: %d bytes, %v", args, n, err)
		}
		f.Close()
	}
}

// Whatever an image says, it is read in bounds.
func FuzzQcow2Reader(f *testing.F) {
	head, err := encodeOverlay("", "raw", 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	seed := make([]byte, head.size)
	for _, piece := range head.pieces {
		copy(seed[piece.offset:], piece.data)
	}
	clear(seed[8:20]) // nothing is below it
	f.Add(seed, int64(0))
	table := bytes.Clone(seed)
	binary.BigEndian.PutUint64(table[3*clusterSize:], 2*clusterSize)
	binary.BigEndian.PutUint64(table[2*clusterSize:], 1<<62|1<<58|7)
	f.Add(table, int64(512))
	f.Fuzz(func(t *testing.T, image []byte, at int64) {
		r, err := newQcow2Reader(bytes.NewReader(image))
		if err != nil {
			return
		}
		buf := make([]byte, 1<<12)
		if n, err := r.ReadAt(buf, at); n < len(buf) && err == nil || int64(n) > max(0, r.size-at) {
			t.Errorf("%d bytes, %v", n, err)
		}
		if len(r.cluster) > 2<<20 {
			t.Errorf("%d bytes are kept", len(r.cluster))
		}
	})
}
