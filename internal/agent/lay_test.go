package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// A file that the host has brought is used as soon as somebody has read, changed or
// removed it, and not before.
func TestUsed(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	l := &layer{root: root, name: "t"}
	write := func(name string) {
		t.Helper()
		path := filepath.Join(dir, "t", name)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x"), 0o644))
		in, openErr := root.OpenRoot(filepath.Join("t", filepath.Dir(name)))
		if err := errors.Join(err, openErr); err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if err := l.made(in, filepath.Base(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"unread", "read", "changed", "removed", "d/x"} {
		write(name)
	}
	in := func(name string) string { return filepath.Join(dir, "t", name) }
	if err := l.made(mustRoot(t, in(".")), "d", os.ModeDir|0o755); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if noatime := fs.Flags&unix.ST_NOATIME != 0; l.result.Blind != noatime {
		t.Fatalf("blind: %v, and the file system keeps times of access: %v", l.result.Blind, !noatime)
	}
	if l.result.Blind {
		return // the host takes everything for used
	}
	for _, name := range []string{"unread", "read", "changed", "removed", "d", "d/x"} {
		if l.used(filepath.Join("t", name)) {
			t.Errorf("%s is used before anybody has looked", name)
		}
	}
	_, err = os.ReadFile(in("read"))
	_, listErr := os.ReadDir(in("d"))
	if err := errors.Join(err, listErr, os.Remove(in("changed")), os.WriteFile(in("changed"), nil, 0o644), os.Remove(in("removed"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"unread": false, "read": true, "changed": true, "removed": true, "d": true, "d/x": false} {
		if got := l.used(filepath.Join("t", name)); got != want {
			t.Errorf("%s is used: %v", name, got)
		}
	}
}

func mustRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestLayTarget(t *testing.T) {
	dir := t.TempDir()
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755), os.Symlink("usr/lib", filepath.Join(dir, "lib")), os.WriteFile(filepath.Join(dir, "file"), nil, 0o644),
		os.Symlink("file", filepath.Join(dir, "link")))
	for _, tt := range []struct {
		target string
		tree   bool
		want   string // relative to dir; empty: an error
	}{
		{"new/deep/x", false, "new/deep/x"},
		{"lib/x", false, "usr/lib/x"},
		{"lib", true, "usr/lib"},
		{"lib", false, ""},
		{"usr", true, "usr"},
		{"file", false, "file"},
		{"link", false, "link"}, // is replaced
		{"file/x", false, ""},
	} {
		in, name, err := layTarget(filepath.Join(dir, tt.target), tt.tree)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%s: %s in %s", tt.target, name, in)
			}
			continue
		}
		if got := filepath.Join(in, name); err != nil || got != filepath.Join(dir, tt.want) {
			t.Errorf("%s: %s, %v", tt.target, got, err)
		}
	}
	var refused *wire.Error
	if _, _, err := layTarget("/", true); !errors.As(err, &refused) {
		t.Errorf("the root: %v", err)
	}
}
