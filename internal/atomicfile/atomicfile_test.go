package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
)

// content is what a directory's files contain.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
	}
	return all
}

func create(t *testing.T, dir, text string) *File {
	t.Helper()
	f, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	for _, text := range []string{"one", "two"} {
		f := create(t, dir, text)
		if err := f.Commit(path); err != nil {
			t.Fatal(err)
		}
		if err := f.Discard(); err != nil {
			t.Errorf("Discard after Commit: %v", err)
		}
		if got := content(t, dir); len(got) != 1 || got["a"] != text {
			t.Errorf("after %q: %q", text, got)
		}
	}
}

func TestNothingStays(t *testing.T) {
	dir := t.TempDir()
	if err := create(t, dir, "one").Discard(); err != nil {
		t.Error(err)
	}
	if err := create(t, dir, "two").Commit(filepath.Join(dir, "missing", "a")); err == nil {
		t.Error("Commit into a directory that does not exist: no error")
	}
	if err := Symlink("x", filepath.Join(dir, "missing", "a")); err == nil {
		t.Error("Symlink in a directory that does not exist: no error")
	}
	if err := os.Mkdir(filepath.Join(dir, "busy"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Symlink("x", filepath.Join(dir, "busy")); err == nil {
		t.Error("Symlink in place of a directory: no error")
	}
	if err := os.Remove(filepath.Join(dir, "busy")); err != nil {
		t.Fatal(err)
	}
	if got := content(t, dir); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestSymlink(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "link")
	for _, target := range []string{"one", "two"} {
		if err := Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(path); err != nil || got != target {
			t.Errorf("got %q, %v; want %q", got, err, target)
		}
	}
}
