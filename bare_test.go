package attest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/vmm"
)

// The variables of a machine's firmware go where its disks go: into what is kept of it,
// and from there into another one.
func TestVariablesAreKept(t *testing.T) {
	l := &Lab{scratch: t.TempDir()}
	newBare := func(name string) *bare {
		o := diskMachine(t, l, name, Disk{Size: 512})
		b := &bare{own: *o}
		o.m.kind = b
		return b
	}
	a := newBare("a")
	a.variables = a.variablesPath()
	if err := os.WriteFile(a.variables, []byte("boot order"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.slotDisks(); err != nil {
		t.Fatal(err)
	}
	// Its disks come and go as those of other machines do.
	if kind, ok := a.m.kind.(laidOut); !ok || kind.layout() != &a.own {
		t.Error("nothing can be plugged into a machine that boots by its own loader")
	}
	dir := t.TempDir()
	path := func(n int) string { return filepath.Join(dir, string(rune('a'+n))) }
	kept, err := a.keep(path)
	if err != nil {
		t.Fatal(err)
	}
	b := newBare("b")
	if err := b.adopt(kept); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(b.variables); string(data) != "boot order" || b.variables == a.variables {
		t.Errorf("%s: %q, %v", b.variables, data, err)
	}
	if len(b.disk.Backing) != 1 || len(b.further) != 1 {
		t.Errorf("its disks are %v and %v", b.disk, b.further)
	}
	if err := b.adopt([]vmm.Backing(nil)); err != nil || b.variables != "" {
		t.Errorf("a machine that was never started has %q, %v", b.variables, err)
	}
}

func TestBareMachinesAreKnown(t *testing.T) {
	for _, tt := range []struct {
		image Image
		bare  bool
		root  string
	}{
		{Debian{Kernel: "k"}, false, ""},
		{Disk{Path: "d", Kernel: "k"}, false, ""},
		{Disk{Path: "d", Boot: "bios"}, true, ""},
		{Disk{Path: "d", Kernel: "k", Initrd: "i"}, true, ""},
		{Rootfs{Path: "r", Kernel: "k", Initrd: "i"}, true, "ext4"},
		{Debian{Kernel: "k", Initrd: "i", Root: "xfs"}, true, "xfs"},
	} {
		m := MachineConfig{Name: "a", Image: tt.image}
		if err := m.normalize(); err != nil || m.bare() != tt.bare || m.Root != tt.root {
			t.Errorf("%#v: %v, %v, root %q", tt.image, err, m.bare(), m.Root)
		}
	}
}

// A root is copied by a guest with a kernel whose drivers attest's initramfs can have.
func TestKernelThatCopiesARoot(t *testing.T) {
	key, err := image.Key(Debian{}.spec())
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{images: map[string]*image.Image{key: {Kernel: &image.Kernel{Path: "attest's"}}}}
	for _, tt := range []struct {
		image   Image
		modules string
		want    string
	}{
		{Debian{Kernel: "k", Modules: "m"}, "m", "the user's"},
		{Debian{Kernel: "k"}, "", "the user's"}, // it has the drivers built in, or its machines do not boot, either
		{Debian{Kernel: "k", Initrd: "i"}, "", "attest's"},
		{Rootfs{Path: "r", Kernel: "k", Initrd: "i"}, "r/lib/modules/6.1", "the user's"},
	} {
		m := &Machine{config: MachineConfig{Image: tt.image}}
		img := &image.Image{Kernel: &image.Kernel{Path: "the user's", Modules: image.Layer{Path: tt.modules}}}
		if kernel, err := l.fillKernel(t.Context(), img, m); err != nil || kernel.Path != tt.want {
			t.Errorf("%#v: %+v, %v", tt.image, kernel, err)
		}
	}
}
