package image

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"

	"github.com/attest-vm/attest/internal/supervise"
)

// realStore is a store with a supervisor on a cache that outlives the test: the
// base takes half a minute and is built once for all tests of the project.
func realStore(t *testing.T) *Store {
	t.Helper()
	if testing.Short() {
		t.Skip("builds real images")
	}
	needBuilds(t)
	sup, err := supervise.Start(t.Context(), supervise.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sup.Close() })
	root := os.Getenv("ATTEST_TEST_CACHE")
	if root == "" {
		if root, err = DefaultRoot(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := OpenStoreAt(root, sup)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openLayer(t *testing.T, l Layer) fs.FS {
	t.Helper()
	if l.Format != "erofs" {
		t.Fatalf("%+v", l)
	}
	fsys, closer, err := openErofs(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
	if fsck, err := exec.LookPath("fsck.erofs"); err == nil {
		if out, err := exec.Command(fsck, l.Path).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v\n%s", err, out)
		}
	}
	return fsys
}

func TestDebian(t *testing.T) {
	s := realStore(t)
	img, err := s.Build(t.Context(), Debian{
		Packages: []string{"tree"},
		Files:    map[string]File{"/etc/motd": {Content: "hello\n", Mode: 0o600}, "/lib/attest-test/x": {Content: "x"}},
		Run:      []string{"tree --version > /root/tree", "rm /usr/bin/ping", "useradd --create-home alice"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	if len(img.Layers) != 2 || img.Layers[1].Size > 8<<20 {
		t.Fatalf("a base and what differs from it: %+v", img.Layers)
	}
	base, layer := openLayer(t, img.Layers[0]), openLayer(t, img.Layers[1])

	t.Run("base", func(t *testing.T) { checkBase(t, base) })
	t.Run("layer", func(t *testing.T) {
		for name, want := range map[string]string{"etc/motd": "hello", "root/tree": "tree v", "usr/lib/attest-test/x": "x", "etc/passwd": "root:x:0:0"} {
			if got, err := fs.ReadFile(layer, name); err != nil || !strings.HasPrefix(string(got), want) {
				t.Errorf("%s: %.60q (%v)", name, got, err)
			}
		}
		if st := stat(t, layer, "etc/motd"); st.Mode.Perm() != 0o600 {
			t.Errorf("motd: %v", st.Mode)
		}
		if st := stat(t, layer, "usr/bin/ping"); st.Mode&fs.ModeCharDevice == 0 || st.Rdev != 0 {
			t.Errorf("ping is not deleted: %+v", st)
		}
		if st := stat(t, layer, "home/alice"); st.UID != 1000 {
			t.Errorf("alice's home belongs to %d", st.UID)
		}
		for _, name := range []string{"usr/sbin/policy-rc.d", "etc/resolv.conf", "tmp", "lib"} {
			if _, err := fs.Lstat(layer, name); err == nil {
				t.Errorf("%s is in the layer", name)
			}
		}
		// apt may give its empty directory there another owner.
		lists, _ := fs.ReadDir(layer, "var/lib/apt/lists")
		for _, l := range lists {
			if l.Name() != "partial" {
				t.Errorf("apt's list %s is in the layer", l.Name())
			}
		}
	})
	t.Run("kernel", func(t *testing.T) { checkKernelObject(t, img.Kernel) })

	t.Run("again", func(t *testing.T) {
		again, err := s.Build(t.Context(), img.Spec)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Release()
		if again.ID != img.ID || again.Dir != img.Dir {
			t.Errorf("%s, %s", again.ID, again.Dir)
		}
		found, err := s.Find(t.Context(), img.ID[:12])
		if err != nil || len(found) != 1 || !found[0].InUse || found[0].Own < img.Layers[1].Size {
			t.Errorf("%+v, %v", found, err)
		}
	})
}

func stat(t *testing.T, fsys fs.FS, name string) *goerofs.Stat {
	t.Helper()
	info, err := fs.Lstat(fsys, name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*goerofs.Stat)
}

// checkBase looks for what base.sh promises.
func checkBase(t *testing.T, base fs.FS) {
	for name, want := range map[string]string{
		"etc/resolv.conf": "", "etc/fstab": "", "etc/machine-id": "", "etc/hostname": "localhost\n",
	} {
		if got, err := fs.ReadFile(base, name); err != nil || string(got) != want {
			t.Errorf("%s: %q (%v), want %q", name, got, err, want)
		}
	}
	const units = "etc/systemd/system/"
	for name, want := range map[string]string{
		units + "default.target":        "/lib/systemd/system/multi-user.target",
		units + "apt-daily.timer":       "/dev/null",
		units + "serial-getty@.service": "/dev/null",
		"sbin":                          "usr/sbin",
		"usr/sbin/init":                 "/lib/systemd/systemd",
	} {
		if got, err := fs.ReadLink(base, name); err != nil || got != want {
			t.Errorf("%s -> %q (%v), want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"usr/sbin/policy-rc.d", "usr/sbin/start-stop-daemon.REAL", "etc/apt/apt.conf.d/99mmdebstrap", "var/log/journal", "dev/null"} {
		if _, err := fs.Lstat(base, name); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if lists, _ := fs.Glob(base, "var/lib/apt/lists/*_Packages*"); len(lists) != 0 {
		t.Errorf("package lists in the image: %v", lists)
	}
	if st := stat(t, base, "usr/bin/ping"); st.Xattrs["security.capability"] == "" {
		t.Error("ping lost its capability")
	}
	shadow, err := fs.ReadFile(base, "etc/shadow")
	if err != nil || !strings.Contains("\n"+string(shadow), "\nroot:*:") {
		t.Errorf("root's password is not locked: %q (%v)", shadow, err)
	}
}

func checkKernelObject(t *testing.T, k *Kernel) {
	if k == nil || !k.PVH || !strings.HasSuffix(k.Release, "-cloud-amd64") || k.BzImage == "" {
		t.Fatalf("%+v", k)
	}
	image, err := os.ReadFile(k.BzImage)
	if err != nil {
		t.Fatal(err)
	}
	if release, err := kernelRelease(image, nil); err != nil || release != k.Release {
		t.Errorf("release %q, %v", release, err)
	}
	modules := openLayer(t, k.Modules)
	dep, err := fs.ReadFile(modules, "modules.dep")
	if err != nil || !strings.Contains(string(dep), "virtio_blk.ko") {
		t.Errorf("modules.dep: %v", err)
	}
	if _, err := fs.Stat(modules, "modules.dep.bin"); err != nil {
		t.Error(err)
	}
}

// foreignKernel is the path of a kernel without a package.
func foreignKernel(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(name, fakeVmlinux(t), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRootfsFromDirectory(t *testing.T) {
	s := openTest(t)
	dir := t.TempDir()
	modules := filepath.Join(dir, "lib/modules/6.1.0-test")
	for name, text := range map[string]string{"bin/sh": "#!", "lib/modules/6.1.0-test/modules.dep": "a.ko:\n"} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("bin", filepath.Join(dir, "sbin")), os.Link(filepath.Join(dir, "bin/sh"), filepath.Join(dir, "bin/ash"))); err != nil {
		t.Fatal(err)
	}
	source := Rootfs{Path: dir, Boot: Boot{Kernel: foreignKernel(t)}}
	img, err := s.Build(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	want := []string{"bin/", "bin/ash* #!", "bin/sh = bin/ash", "lib/", "lib/modules/", "lib/modules/6.1.0-test/", "lib/modules/6.1.0-test/modules.dep* a.ko:\n", "sbin -> bin"}
	if got := listing(t, openLayer(t, img.Layers[0])); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if img.Kernel.Release != "6.1.0-test" || img.Kernel.BzImage != "" {
		t.Errorf("%+v", img.Kernel)
	}
	if got := listing(t, openLayer(t, img.Kernel.Modules)); len(got) != 1 {
		t.Errorf("modules of %s: %q", modules, got)
	}

	// Another content is another image.
	if err := os.WriteFile(filepath.Join(dir, "bin/new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	changed, err := s.Build(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	defer changed.Release()
	if changed.ID == img.ID {
		t.Error("a changed directory gives the old image")
	}
}

func TestRootfsFromTar(t *testing.T) {
	s := openTest(t)
	kernel := foreignKernel(t)
	plain := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(plain, makeTar(t, "dir .", "dir etc", "file etc/x X"), 0o644); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, pack := range []string{"", "gzip", "zstd", "xz"} {
		name := plain
		if pack != "" {
			out, err := exec.Command(pack, "-c", plain).Output()
			if err != nil {
				t.Logf("not with %s: %v", pack, err)
				continue
			}
			name = plain + "." + pack
			if err := os.WriteFile(name, out, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		img, err := s.Build(t.Context(), Rootfs{Path: name, Boot: Boot{Kernel: kernel}})
		if err != nil {
			t.Fatal(err)
		}
		defer img.Release()
		if got := listing(t, openLayer(t, img.Layers[0])); !slices.Equal(got, []string{"etc/", "etc/x X"}) {
			t.Errorf("%s: %q", name, got)
		}
		ids = append(ids, img.Layers[0].ID)
	}
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("the same tree is not the same layer: %v", ids)
	}
}

// Names in an archive do nothing to a terminal that shows an error, and an archive
// that is cut off between two of its entries is no root.
func TestHostileTars(t *testing.T) {
	s := openTest(t)
	const name = "\x1b]0;title\a"
	whole := makeTar(t, "dir .", "file a A")
	for what, test := range map[string]struct {
		data []byte
		want string
	}{
		"a name that is too long": {makeTar(t, "file "+name+strings.Repeat("x", 256)+" A"), "invalid name"},
		"a file as a directory":   {makeTar(t, "file "+name+" A", "file "+name+"/x A"), "not a directory"},
		"a link to nothing":       {makeTar(t, "link x "+name), "hard link"},
		"cut off":                 {whole[:2048], "cut off"},
		"cut off in a file":       {whole[:len(whole)-1100], "cut off"},
		"without an entry":        {whole[:0], "cut off"},
	} {
		path := filepath.Join(t.TempDir(), "root.tar")
		if err := os.WriteFile(path, test.data, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := s.Build(t.Context(), Rootfs{Path: path, Boot: Boot{Kernel: foreignKernel(t)}})
		var spec *SpecError
		if !errors.As(err, &spec) || strings.ContainsAny(err.Error(), "\x1b\a") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s (%d bytes): %q, want %s", what, len(test.data), err, test.want)
		}
	}
}

// A file system that somebody else made is used where it is.
func TestRootfsImageInPlace(t *testing.T) {
	s := openTest(t)
	for format, magic := range map[string]struct {
		at    int
		bytes string
	}{"erofs": {1024, "\xe2\xe1\xf5\xe0"}, "squashfs": {0, "hsqs"}, "ext4": {1080, "\x53\xef"}} {
		name := filepath.Join(t.TempDir(), "root.img")
		data := make([]byte, 8192)
		copy(data[magic.at:], magic.bytes)
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
		img, err := s.Build(t.Context(), Rootfs{Path: name, Boot: Boot{Kernel: foreignKernel(t)}})
		if err != nil {
			t.Fatal(err)
		}
		if l := img.Layers[0]; l.Path != name || l.Format != format || l.Size != 8192 {
			t.Errorf("%s: %+v", format, l)
		}
		img.Release()
	}
}

func TestForeignRefusals(t *testing.T) {
	s := openTest(t)
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("neither tar nor kernel\n", 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, source := range map[string]Source{
		"no root":        Rootfs{Path: dir + "/missing"},
		"not a root":     Rootfs{Path: text, Boot: Boot{Kernel: foreignKernel(t)}},
		"a device":       Rootfs{Path: "/dev/null"},
		"no kernel":      Rootfs{Path: dir, Boot: Boot{Kernel: dir + "/missing"}},
		"not a kernel":   Rootfs{Path: dir, Boot: Boot{Kernel: text}},
		"no modules.dep": Rootfs{Path: dir, Boot: Boot{Kernel: foreignKernel(t), Modules: dir}},
		"no disk":        Disk{Path: dir + "/missing"},
		"a directory":    Disk{Path: dir},
		"another format": Disk{Path: text, Format: "qcow2"},
	} {
		img, err := s.Build(t.Context(), source)
		var specErr *SpecError
		if !errors.As(err, &specErr) {
			t.Errorf("%s: %v, %v", what, img, err)
		}
	}
}

func TestDisk(t *testing.T) {
	s := openTest(t)
	path := sparse(t, "disk.raw", 1<<20)
	img, err := s.Build(t.Context(), Disk{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	if img.Disk == nil || *img.Disk != (BaseDisk{Path: path, Format: "raw", Size: 1 << 20}) || img.Kernel != nil || img.Layers != nil {
		t.Errorf("%+v", img)
	}
	if err := CreateOverlay(filepath.Join(t.TempDir(), "o"), img.Disk.Path, img.Disk.Format); err != nil {
		t.Error(err)
	}
}
