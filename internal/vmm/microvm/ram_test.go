package microvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/supervise"
)

func ramSupervisor(t *testing.T) *supervise.Supervisor {
	t.Helper()
	root, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	s, err := supervise.Start(t.Context(), supervise.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		os.RemoveAll(root)
	})
	return s
}

// Files of a RAM have names, where nobody else finds them, and are gone with their directory.
func TestRAM(t *testing.T) {
	s := ramSupervisor(t)
	mount, namespace, err := mountRAM(t.Context(), s)
	if err != nil {
		t.Skip("this host lets nobody make a file system: ", err)
	}
	mount.Close()
	namespace.Close()
	for _, onDisk := range []bool{false, true} {
		r, dir := RAM{Disk: onDisk}, t.TempDir()
		for range 2 { // one machine after the other, or at once
			d, remove, err := r.Directory(t.Context(), s, dir)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(Inherited(int(d.Fd())), "memory")
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			var fs unix.Statfs_t
			if err := unix.Stat(path, &st); err != nil || st.Nlink != 1 {
				t.Errorf("%d names (%v)", st.Nlink, err)
			}
			if err := unix.Statfs(path, &fs); err != nil || !onDisk && fs.Type != unix.TMPFS_MAGIC {
				t.Errorf("the file system is %#x (%v)", fs.Type, err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 != onDisk {
				t.Errorf("in the machine's directory: %v", left)
			}
			if err := remove(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(path); !os.IsNotExist(err) {
				t.Errorf("it is still there: %v", err)
			}
			d.Close()
		}
	}
}

// A file lives as long as somebody has it open or mapped, and nobody has to say when that ends.
func TestRAMFile(t *testing.T) {
	s, r := ramSupervisor(t), new(RAM)
	f, namespace, err := r.File(t.Context(), s)
	if err != nil {
		t.Skip("this host lets nobody make a file system: ", err)
	}
	if _, err := f.WriteString("content"); err != nil {
		t.Fatal(err)
	}
	name, err := os.Readlink(Inherited(int(namespace.Fd())))
	if ours, ourErr := os.Readlink("/proc/self/ns/mnt"); err != nil || ourErr != nil || !strings.HasPrefix(name, "mnt:[") || name == ours {
		t.Errorf("its namespace is %s, and this is %s (%v, %v)", name, ours, err, ourErr)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), s.Dir()) {
		t.Errorf("the host sees it (%v):\n%s", err, mounts)
	}
	elsewhere, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	if !r.Has(f) || r.Has(elsewhere) || new(RAM).Has(f) {
		t.Error("it does not know its file from others")
	}
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	path := r.files[0]
	f.Close()
	r.Sweep()
	if b, err := os.ReadFile(path); string(b) != "content" || string(page[:7]) != "content" {
		t.Errorf("while it is mapped: %q, %q, %v", b, page[:7], err)
	}
	if err := unix.Munmap(page); err != nil {
		t.Fatal(err)
	}
	other, _, err := r.File(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) || len(r.files) != 1 {
		t.Errorf("there are still %v (%v)", r.files, err)
	}
}
