package erofs_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"

	"github.com/attest-vm/attest/internal/image/erofs"
)

var noon = time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC)

// write makes an image and returns it as another implementation reads it.
func write(t *testing.T, fill func(w *erofs.Writer)) fs.FS {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := erofs.NewWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	fill(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// erofs-utils is in the project's set-up; a third opinion where it is there.
	if fsck, err := exec.LookPath("fsck.erofs"); err == nil {
		if out, err := exec.Command(fsck, "--extract", f.Name()).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v\n%s", err, out)
		}
	}
	fsys, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, fsys fs.FS, name string) *goerofs.Stat {
	t.Helper()
	info, err := fs.Lstat(fsys, name)
	must(t, err)
	return info.Sys().(*goerofs.Stat)
}

func TestAttributes(t *testing.T) {
	xattrs := map[string]string{
		"security.capability":      "\x01\x00\x00\x02\x00\x20\x00\x00",
		"user.comment":             "hello",
		"trusted.overlay.opaque":   "y",
		"system.posix_acl_access":  "\x02\x00\x00\x00",
		"system.posix_acl_default": "\x02\x00\x00\x00",
	}
	fsys := write(t, func(w *erofs.Writer) {
		must(t, w.File("usr/bin/ping", erofs.Attr{Mode: 0o4755, UID: 70000, GID: 80000, ModTime: noon, Xattrs: xattrs}, 4, strings.NewReader("ping")))
		must(t, w.Link("bin/ping", "usr/bin/ping"))
		must(t, w.Symlink("sbin", erofs.Attr{}, "usr/sbin"))
		must(t, w.Directory("var/tmp", erofs.Attr{Mode: 0o1777}))
		must(t, w.Node("gone", erofs.Attr{}, erofs.CharDev, 0, 0))
		must(t, w.Node("dev/sda300", erofs.Attr{Mode: 0o660}, erofs.BlockDev, 8, 300))
		must(t, w.Node("run/pipe", erofs.Attr{Mode: 0o600}, erofs.FIFO, 0, 0))
	})
	st := stat(t, fsys, "usr/bin/ping")
	if st.UID != 70000 || st.GID != 80000 || int64(st.Mtime) != noon.Unix() || int(st.MtimeNs) != noon.Nanosecond() {
		t.Errorf("ping: %+v", st)
	}
	if st.Mode != fs.ModeSetuid|0o755 || st.Nlink != 2 || st.Ino != stat(t, fsys, "bin/ping").Ino {
		t.Errorf("ping: mode %v, %d links, and bin/ping must be the same file", st.Mode, st.Nlink)
	}
	for name, value := range xattrs {
		got, ok := st.Xattrs[name]
		if !ok {
			got = st.Xattrs[name+"."] // go-erofs 0.3.1 reads the ACLs' names so
		}
		if got != value {
			t.Errorf("%s = %q, want %q", name, got, value)
		}
	}
	if target, err := fs.ReadLink(fsys, "sbin"); err != nil || target != "usr/sbin" {
		t.Errorf("sbin -> %q, %v", target, err)
	}
	if st := stat(t, fsys, "gone"); st.Mode&fs.ModeCharDevice == 0 || st.Rdev != 0 {
		t.Errorf("whiteout: %+v", st)
	}
	// The kernel's new_encode_dev: the minor number is in two parts.
	if st := stat(t, fsys, "dev/sda300"); st.Rdev != 300&0xff|8<<8|(300&^0xff)<<12 {
		t.Errorf("sda300: rdev %#x", st.Rdev)
	}
	if st := stat(t, fsys, "var/tmp"); st.Mode&fs.ModeSticky == 0 {
		t.Errorf("var/tmp: %v", st.Mode)
	}
}

// Sizes around every limit of the format: inline, one block, several.
func TestContents(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	files := map[string][]byte{}
	for _, size := range []int{0, 1, 31, 32, 3583, 3584, 3585, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 100_000} {
		data := make([]byte, size)
		random.Read(data)
		files[fmt.Sprintf("sizes/%06d", size)] = data
	}
	// A directory of several blocks, names before and after "." and "..".
	for i := range 700 {
		files[fmt.Sprintf("many/%s-%d", strings.Repeat("x", i%200), i)] = []byte{byte(i)}
	}
	files["many/!first"], files["many/..."], files["many/-"] = nil, nil, nil
	fsys := write(t, func(w *erofs.Writer) {
		for name, data := range files {
			must(t, w.File(name, erofs.Attr{Mode: 0o644}, int64(len(data)), bytes.NewReader(data)))
		}
	})
	for name, want := range files {
		if got, err := fs.ReadFile(fsys, name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d (%v)", name, len(got), len(want), err)
		}
	}
	entries, err := fs.ReadDir(fsys, "many")
	if err != nil || len(entries) != 703 {
		t.Errorf("many has %d entries (%v)", len(entries), err)
	}
}

func TestReplaceAndUndo(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	fsys := write(t, func(w *erofs.Writer) {
		must(t, w.File("a", erofs.Attr{}, 3, strings.NewReader("old")))
		must(t, w.File("a", erofs.Attr{}, 3, strings.NewReader("new")))
		must(t, w.File("big", erofs.Attr{}, int64(len(big)), bytes.NewReader(big)))
		must(t, w.Undo("big"))
		must(t, w.File("after", erofs.Attr{}, 8000, bytes.NewReader(big[1:8001])))
		must(t, w.File("d/x", erofs.Attr{}, 0, nil))
		must(t, w.Directory("d", erofs.Attr{Mode: 0o700}))
	})
	if got, _ := fs.ReadFile(fsys, "a"); string(got) != "new" {
		t.Errorf("a = %q", got)
	}
	if _, err := fs.Stat(fsys, "big"); err == nil {
		t.Error("big is still there")
	}
	if got, _ := fs.ReadFile(fsys, "after"); !bytes.Equal(got, big[1:8001]) {
		t.Error("after has other contents")
	}
	if _, err := fs.Stat(fsys, "d/x"); err != nil {
		t.Error("a directory that is added again loses its entries:", err)
	}
}

func TestRefusals(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image.erofs"))
	must(t, err)
	defer f.Close()
	w, err := erofs.NewWriter(f)
	must(t, err)
	must(t, w.File("file", erofs.Attr{}, 0, nil))
	for what, err := range map[string]error{
		"a link to nothing":     w.Link("b", "missing"),
		"a link to a directory": w.Link("b", "."),
		"a short file":          w.File("c", erofs.Attr{}, 10, strings.NewReader("short")),
		"a short large file":    w.File("c", erofs.Attr{}, 1<<20, strings.NewReader("short")),
		"below a file":          w.File("file/x", erofs.Attr{}, 0, nil),
		"the root as a file":    w.File("..", erofs.Attr{}, 0, nil),
		"a long name":           w.File(strings.Repeat("n", 256), erofs.Attr{}, 0, nil),
		"an empty symlink":      w.Symlink("s", erofs.Attr{}, ""),
		"a regular node":        w.Node("n", erofs.Attr{}, erofs.Regular, 0, 0),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// A name in a tar cannot lead out of the image.
func TestNamesStayInside(t *testing.T) {
	fsys := write(t, func(w *erofs.Writer) {
		must(t, w.File("../../etc/passwd", erofs.Attr{}, 1, strings.NewReader("x")))
	})
	if _, err := fs.Stat(fsys, "etc/passwd"); err != nil {
		t.Error(err)
	}
}

// An unfinished image cannot be taken for one.
func TestUnfinished(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image.erofs"))
	must(t, err)
	defer f.Close()
	w, err := erofs.NewWriter(f)
	must(t, err)
	must(t, w.File("big", erofs.Attr{}, 4<<20, io.LimitReader(rand.NewChaCha8([32]byte{}), 4<<20)))
	if _, err := goerofs.Open(f); err == nil {
		t.Error("it can be opened")
	}
}
