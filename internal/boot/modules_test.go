package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// fakeModule is an ELF object with nothing but a .modinfo section.
func fakeModule(depends string) []byte {
	info := "license=GPL\x00depends=" + depends + "\x00name=x\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	const header, section = 64, 64
	le := binary.LittleEndian
	b := make([]byte, header)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)  // ET_REL
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], uint64(header+len(info)+len(names)))
	le.PutUint16(b[52:], header)
	le.PutUint16(b[58:], section)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	b = append(append(b, info...), names...)
	for _, s := range []struct{ name, kind, offset, size int }{
		{}, {1, 1, header, len(info)}, {10, 3, header + len(info), len(names)},
	} {
		h := make([]byte, section)
		le.PutUint32(h, uint32(s.name))
		le.PutUint32(h[4:], uint32(s.kind))
		le.PutUint64(h[24:], uint64(s.offset))
		le.PutUint64(h[32:], uint64(s.size))
		b = append(b, h...)
	}
	return b
}

// writeTree makes a directory with these files.
func writeTree(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(modules []module) []string {
	var s []string
	for _, m := range modules {
		s = append(s, m.name)
	}
	return s
}

func TestClosure(t *testing.T) {
	tree, err := openModules(writeTree(t, map[string][]byte{
		"kernel/virtio_ring.ko":     fakeModule(""),
		"kernel/virtio.ko":          fakeModule("virtio_ring"),
		"kernel/virtio_pci.ko":      fakeModule("virtio,virtio_ring,built-in"),
		"kernel/net/virtio_net.ko":  fakeModule("virtio,failover"),
		"kernel/net/fail-over.ko":   fakeModule(""),
		"kernel/net/failover.ko":    fakeModule("fail_over"),
		"kernel/char/virtio-rng.ko": fakeModule("virtio"),
		"modules.builtin":           []byte("kernel/fs/built-in.ko\nkernel/fs/ext4/ext4.ko\n"),
		"modules.dep":               []byte("not read"),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	got, err := tree.closure([]string{"virtio_pci", "ext4", "nowhere", "virtio_net", "virtio_rng"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"virtio_ring", "virtio", "virtio_pci", "fail_over", "failover", "virtio_net", "virtio_rng"}
	if diff := cmp.Diff(want, names(got)); diff != "" {
		t.Error(diff)
	}
}

func TestClosureErrors(t *testing.T) {
	tree, err := openModules(writeTree(t, map[string][]byte{
		"chicken.ko": fakeModule("egg"),
		"egg.ko":     fakeModule("chicken"),
		"lonely.ko":  fakeModule("nobody"),
		"text.ko":    []byte("text"),
		"cut.ko.gz":  []byte("\x1f\x8b"),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	for name, want := range map[string]string{
		"egg":    "depend on each other",
		"lonely": "lonely depends on nobody, which does not exist",
		"text":   "not a module",
		"cut":    "cut.ko.gz",
	} {
		if _, err := tree.closure([]string{name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
}

func TestCompressedModules(t *testing.T) {
	var gz, x, zst bytes.Buffer
	gw := gzip.NewWriter(&gz)
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	zw, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{gw, xw, zw} {
		w.Write(fakeModule(""))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := openModules(writeTree(t, map[string][]byte{
		"a.ko.gz": gz.Bytes(), "b.ko.xz": x.Bytes(), "c.ko.zst": zst.Bytes(), "d.ko": fakeModule(""),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	got, err := tree.closure([]string{"a", "b", "c", "d"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "d"}, names(got)); diff != "" {
		t.Fatal(diff)
	}
	for _, m := range got {
		if !bytes.Equal(m.data, fakeModule("")) {
			t.Errorf("%s: other content", m.name)
		}
	}
}
