package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A root is copied with all that its files are.
func TestCopier(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	data := bytes.Repeat([]byte("x"), copyBuffer+1)
	holes := append(make([]byte, copyBuffer), "end"...)
	for _, err := range []error{
		os.Mkdir(filepath.Join(from, "d"), 0o755),
		os.WriteFile(filepath.Join(from, "d", "data"), data, 0o600),
		os.WriteFile(filepath.Join(from, "empty"), nil, 0o644),
		os.WriteFile(filepath.Join(from, "holes"), holes, 0o644),
		os.WriteFile(filepath.Join(from, "zeroes"), make([]byte, copyBuffer), 0o644),
		os.WriteFile(filepath.Join(from, "suid"), []byte("#!"), 0o755),
		os.Chmod(filepath.Join(from, "suid"), 0o755|os.ModeSetuid),
		os.Link(filepath.Join(from, "suid"), filepath.Join(from, "d", "again")),
		os.Symlink("/nowhere", filepath.Join(from, "link")),
		unix.Mkfifo(filepath.Join(from, "fifo"), 0o620),
		os.Chmod(filepath.Join(from, "d"), 0o1777),
		os.Mkdir(filepath.Join(to, "d"), 0o700), // as mkfs makes lost+found
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	attributes := true
	if err := unix.Lsetxattr(filepath.Join(from, "suid"), "user.attest", []byte("value"), 0); err != nil {
		attributes = false // a file system without
	}
	old := []unix.Timespec{{Sec: 1000, Nsec: 5}, {Sec: 1000, Nsec: 5}}
	for _, name := range []string{"d/data", "d", "link", "."} {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(from, name), old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	c := copier{links: map[inode]string{}, buf: make([]byte, copyBuffer)}
	if err := c.directory(from, to); err != nil {
		t.Fatal(err)
	}
	if c.count != 9 {
		t.Errorf("%d files", c.count)
	}
	for _, name := range []string{".", "d", "d/data", "d/again", "empty", "holes", "zeroes", "suid", "link", "fifo"} {
		var a, b unix.Stat_t
		if err := errors.Join(unix.Lstat(filepath.Join(from, name), &a), unix.Lstat(filepath.Join(to, name), &b)); err != nil {
			t.Fatal(name, err)
		}
		size := a.Mode&unix.S_IFMT != unix.S_IFDIR
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim || a.Nlink != b.Nlink || size && a.Size != b.Size {
			t.Errorf("%s: %+v became %+v", name, a, b)
		}
		if name == "zeroes" && b.Blocks != 0 {
			t.Errorf("%s: %d blocks", name, b.Blocks)
		}
	}
	for name, want := range map[string][]byte{"d/data": data, "holes": holes, "d/again": []byte("#!")} {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes (%v)", name, len(got), err)
		}
	}
	if target, _ := os.Readlink(filepath.Join(to, "link")); target != "/nowhere" {
		t.Errorf("link to %q", target)
	}
	value := make([]byte, 16)
	if n, err := unix.Lgetxattr(filepath.Join(to, "d/again"), "user.attest", value); attributes && (err != nil || string(value[:n]) != "value") {
		t.Errorf("attribute %q (%v)", value[:max(n, 0)], err)
	}
	if err := c.directory(filepath.Join(from, "none"), to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
