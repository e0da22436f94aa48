package boot

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
)

// buildProgram builds a package of testdata, static as for a guest.
func buildProgram(t *testing.T, pkg string, flags ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// entries lists an archive: names in order, and contents of files.
func entries(t *testing.T, archive []byte) (order []string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{}
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return order, files
		}
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, h.Name)
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func kernelTree(t *testing.T) string {
	return writeTree(t, map[string][]byte{
		"kernel/virtio_pci.ko":                     fakeModule("virtio"),
		"kernel/virtio.ko":                         fakeModule(""),
		"kernel/virtio_blk.ko":                     fakeModule("virtio"),
		"kernel/fs/erofs.ko":                       fakeModule("libcrc32c"),
		"kernel/fs/xfs.ko":                         fakeModule("libcrc32c"),
		"kernel/lib/libcrc32c.ko":                  fakeModule(""),
		"kernel/sound/snd.ko":                      fakeModule(""),
		"kernel/net/vmw_vsock_virtio_transport.ko": fakeModule("virtio,vsock"),
		"kernel/net/vsock.ko":                      fakeModule(""),
		"modules.builtin":                          []byte("kernel/fs/ext4/ext4.ko\nkernel/fs/squashfs/squashfs.ko\n"),
	})
}

func TestInitramfsEntries(t *testing.T) {
	binary := buildProgram(t, "./testdata/hello")
	i := Initramfs{Binary: binary, Modules: kernelTree(t), Filesystems: []string{"xfs", "squashfs"}}
	var archive bytes.Buffer
	if err := i.write(&archive); err != nil {
		t.Fatal(err)
	}
	order, files := entries(t, archive.Bytes())
	want := []string{
		"dev", "proc", "sys", "run", "mnt", "root", "modules", "init",
		"modules/boot",
		"modules/boot/000-virtio.ko", "modules/boot/001-virtio_pci.ko", "modules/boot/002-virtio_blk.ko",
		"modules/boot/003-libcrc32c.ko", "modules/boot/004-erofs.ko",
		"modules/vsock",
		"modules/vsock/000-vsock.ko", "modules/vsock/001-vmw_vsock_virtio_transport.ko",
		"modules/xfs",
		"modules/xfs/000-libcrc32c.ko", "modules/xfs/001-xfs.ko",
	}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Error(diff)
	}

	// A driver comes with those of all guests, which are loaded first.
	archive.Reset()
	if err := (Initramfs{Binary: binary, Modules: kernelTree(t), Drivers: []string{"xfs"}}).write(&archive); err != nil {
		t.Fatal(err)
	}
	if order, _ := entries(t, archive.Bytes()); !slices.Contains(order, "modules/boot/005-xfs.ko") {
		t.Errorf("no driver in %q", order)
	}

	// What is left of the binary still runs, and is smaller.
	stripped := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(stripped, files["init"], 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(stripped).CombinedOutput()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("stripped binary: %q, %v", out, err)
	}
	if st, err := os.Stat(binary); err != nil || int64(len(files["init"])) >= st.Size() {
		t.Errorf("stripped binary has %d bytes, as many as before", len(files["init"]))
	}
}

func TestInitramfsIsDeterministic(t *testing.T) {
	i := Initramfs{Binary: buildProgram(t, "./testdata/hello"), Modules: kernelTree(t)}
	var a, b bytes.Buffer
	if err := errors.Join(i.write(&a), i.write(&b)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of the same inputs differ")
	}
}

func TestInitramfsCache(t *testing.T) {
	cache := t.TempDir()
	i := Initramfs{Binary: buildProgram(t, "./testdata/hello"), Modules: kernelTree(t)}
	build := func() string {
		t.Helper()
		path, err := i.build(t.Context(), cache, nil)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	first := build()
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	if again := build(); again != first {
		t.Errorf("built again as %s", again)
	}
	if after, err := os.Stat(first); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was replaced, though nothing changed: %v", err)
	}

	// Somebody pruned the cache.
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	if again := build(); again != first {
		t.Errorf("after it was pruned: %s, want %s", again, first)
	}

	// Another module of the same size.
	module := filepath.Join(i.Modules, "kernel/virtio_blk.ko")
	if err := os.WriteFile(module, fakeModule("erofs."), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := i.build(t.Context(), cache, nil); err == nil {
		t.Error("a changed module was not noticed")
	}

	leftovers, err := filepath.Glob(filepath.Join(cache, scratchPrefix+"*"))
	if err != nil || len(leftovers) > 0 {
		t.Errorf("left behind: %v, %v", leftovers, err)
	}
}

// An archive that is made again leaves the file that is there, which a VMM may be about to
// open, unless that is damaged.
func TestInitramfsStays(t *testing.T) {
	cache := t.TempDir()
	i := Initramfs{Binary: buildProgram(t, "./testdata/hello"), Modules: kernelTree(t)}
	build := func() (string, os.FileInfo) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(cache, memoDir)); err != nil {
			t.Fatal(err)
		}
		path, err := i.build(t.Context(), cache, nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return path, info
	}
	path, before := build()
	if again, after := build(); again != path || !os.SameFile(before, after) {
		t.Errorf("%s became another file, %s", path, again)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	if again, after := build(); again != path || after.Size() != before.Size() {
		t.Errorf("%s is damaged, and stays: %d bytes", path, after.Size())
	}
}

// The image cache keeps a kernel's modules as an erofs image.
func TestInitramfsFromErofs(t *testing.T) {
	dir := kernelTree(t)
	image, err := os.Create(filepath.Join(t.TempDir(), "modules.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	w := erofs.Create(image)
	if err := errors.Join(w.CopyFrom(os.DirFS(dir)), w.Close(), image.Close()); err != nil {
		t.Fatal(err)
	}
	i := Initramfs{Binary: buildProgram(t, "./testdata/hello"), Modules: dir}
	var fromDir, fromImage bytes.Buffer
	if err := i.write(&fromDir); err != nil {
		t.Fatal(err)
	}
	i.Modules = image.Name()
	if err := i.write(&fromImage); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(fromDir.Bytes(), fromImage.Bytes()) {
		t.Error("a directory and an image of it give different archives")
	}
}

func TestInitramfsErrors(t *testing.T) {
	binary := buildProgram(t, "./testdata/hello")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		initramfs Initramfs
		want      string
	}{
		"no binary":      {Initramfs{}, "no binary"},
		"missing binary": {Initramfs{Binary: "/nowhere"}, "/nowhere"},
		"script":         {Initramfs{Binary: script}, "not a program for /init"},
		"dynamic":        {Initramfs{Binary: "/bin/sh"}, "CGO_ENABLED=0"},
		"no modules":     {Initramfs{Binary: binary, Modules: "/nowhere"}, "/nowhere"},
		"no such file system": {
			Initramfs{Binary: binary, Modules: kernelTree(t), Filesystems: []string{"btrfs"}}, "does not support the file system btrfs",
		},
		"no such driver": {
			Initramfs{Binary: binary, Modules: kernelTree(t), Drivers: []string{"e1000"}}, "has no driver e1000; use another kernel",
		},
	} {
		cache := t.TempDir()
		_, err := c.initramfs.build(t.Context(), cache, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
		if left, _ := os.ReadDir(cache); len(left) > 0 {
			t.Errorf("%s: left behind %v", name, left)
		}
	}
}
