package microvm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What a VMM says that it has written is read only if it is that.
func TestReadWritten(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.WriteFile(outside, []byte("secret"), 0o600),
		os.Mkdir(in("save"), 0o700),
		os.WriteFile(in("save/state"), []byte("state"), 0o600),
		os.Symlink(outside, in("link")),
		os.Symlink(filepath.Dir(outside), in("elsewhere")),
		os.Symlink("save/state", in("inside")),
		unix.Mkfifo(in("pipe"), 0o600),
		os.WriteFile(in("large"), nil, 0o600),
		os.Truncate(in("large"), maxWritten+1),
	); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"save/state": "state", "inside": "state", "link": "", "elsewhere/secret": "", "../secret": "", "pipe": "", "save": "", "large": "", "none": ""} {
		got, err := ReadWritten(dir, name)
		if (err == nil) != (want != "") || err == nil && string(got) != want {
			t.Errorf("%s: %.20q, %v", name, got, err)
		}
	}
}
