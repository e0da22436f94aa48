package microvm

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/supervise"
)

// Files of a RAM have names, where nobody else finds them, and are gone with their directory.
func TestRAM(t *testing.T) {
	root, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	s, err := supervise.Start(t.Context(), supervise.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mount, err := mountRAM(t.Context(), s)
	if err != nil {
		t.Skip("this host lets nobody make a file system: ", err)
	}
	mount.Close()
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
