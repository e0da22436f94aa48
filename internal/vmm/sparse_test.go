package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// What a machine was saved in, nobody changes: not by the descriptor, nor by opening it again.
// It can be mapped privately, and be written to in there.
func TestSeal(t *testing.T) {
	f, err := MemoryFile("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("saved"); err != nil {
		t.Fatal(err)
	}
	if err := Seal(f); err != nil {
		t.Fatal(err)
	}
	again, err := os.OpenFile(filepath.Join("/proc/self/fd", strconv.Itoa(int(f.Fd()))), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for name, f := range map[string]*os.File{"the file": f, "opened again": again} {
		if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: write: %v", name, err)
		}
		if err := f.Truncate(1); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: truncate: %v", name, err)
		}
		if _, err := unix.Mmap(int(f.Fd()), 0, 5, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: map: %v", name, err)
		}
		own, err := unix.Mmap(int(f.Fd()), 0, 5, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		own[0] = 'S'
		if err := unix.Munmap(own); err != nil {
			t.Fatal(err)
		}
	}
	text := make([]byte, 5)
	if _, err := f.ReadAt(text, 0); err != nil || string(text) != "saved" {
		t.Errorf("got %q, %v", text, err)
	}
	if err := Seal(f); err == nil {
		t.Error("the seals can be changed")
	}
}

func TestReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, []byte("saved"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := ReadOnly(f)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.WriteString("x"); !errors.Is(err, unix.EBADF) {
		t.Errorf("write: %v", err)
	}
	text := make([]byte, 5)
	if _, err := r.ReadAt(text, 0); err != nil || string(text) != "saved" {
		t.Errorf("got %q, %v", text, err)
	}
	r.Close()
	if _, err := ReadOnly(r); err == nil {
		t.Error("a closed file is open again")
	}
}
