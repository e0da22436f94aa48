package tree

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func scan(t *testing.T, dir string, before Tree) Tree {
	t.Helper()
	got, err := Scan(dir, before)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSince(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(dir string) error
		want    Change
		touches []string
	}{
		{"nothing", func(string) error { return nil }, Change{}, nil},
		{"written again with the same", func(dir string) error { return os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644) }, Change{}, nil},
		{"content of the same length", func(dir string) error { return os.WriteFile(filepath.Join(dir, "a"), []byte("b"), 0o644) },
			Change{Write: []string{"a"}}, []string{"a"}},
		{"permissions of a file", func(dir string) error { return os.Chmod(filepath.Join(dir, "a"), 0o755) }, Change{Write: []string{"a"}}, []string{"a"}},
		{"permissions of a directory", func(dir string) error { return os.Chmod(filepath.Join(dir, "d"), 0o700) },
			Change{Modes: map[string]fs.FileMode{"d": 0o700}}, nil},
		{"a new file", func(dir string) error { return os.WriteFile(filepath.Join(dir, "d/new"), nil, 0o644) },
			Change{Write: []string{"d/new"}}, []string{"d"}},
		{"a file removed", func(dir string) error { return os.Remove(filepath.Join(dir, "a")) }, Change{Remove: []string{"a"}}, []string{".", "a"}},
		{"a directory removed", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "d")) },
			Change{Remove: []string{"d/e/c", "d/e", "d/b", "d"}}, []string{".", "d", "d/b", "d/e", "d/e/c"}},
		{"a directory becomes a file", func(dir string) error {
			if err := os.RemoveAll(filepath.Join(dir, "d")); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "d"), nil, 0o644)
		}, Change{Clear: []string{"d"}, Write: []string{"d"}}, []string{"d"}},
		{"a link leads elsewhere", func(dir string) error {
			if err := os.Remove(filepath.Join(dir, "l")); err != nil {
				return err
			}
			return os.Symlink("d", filepath.Join(dir, "l"))
		}, Change{Write: []string{"l"}}, []string{"l"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"a": "a", "d/b": "b", "d/e/c": "c"})
			must(t, os.Symlink("a", filepath.Join(dir, "l")))
			old := scan(t, dir, nil)
			must(t, tt.change(dir))
			c := scan(t, dir, old).Since(old)
			if diff := cmp.Diff(tt.want, c); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if c.Empty() != (tt.name == "nothing" || tt.name == "written again with the same") {
				t.Errorf("empty: %v", c.Empty())
			}
			if diff := cmp.Diff(tt.touches, c.Touches(old)); diff != "" {
				t.Errorf("touches (-want +got)\n%s", diff)
			}
		})
	}
}

// A file that nobody has written to is not read again; one that was written to right
// before it was read is.
func TestStamps(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": "a"})
	path := filepath.Join(dir, "a")
	fresh := scan(t, dir, nil)
	if stamp := fresh["a"].Stamp; stamp != "" {
		info, err := os.Stat(path)
		if must(t, err); time.Since(info.ModTime()) < settled {
			t.Errorf("a stamp %q of a file that was just written", stamp)
		}
	}
	var old Tree
	for old["a"].Stamp == "" { // until the write is some time ago
		old = scan(t, dir, nil)
	}
	forged := Tree{"a": old["a"]}
	e := forged["a"]
	e.Sum = "not read"
	forged["a"] = e
	if got := scan(t, dir, forged)["a"].Sum; got != "not read" {
		t.Errorf("the file was read again: %s", got)
	}
	must(t, os.WriteFile(path, []byte("b"), 0o644), os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	if got := scan(t, dir, forged)["a"].Sum; got == "not read" || got == old["a"].Sum {
		t.Errorf("the file was not read again: %s", got)
	}
}

func TestScanOfAFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": "a"})
	must(t, os.Symlink("a", filepath.Join(dir, "l")))
	got := scan(t, filepath.Join(dir, "l"), nil)
	if c := got.Since(OfContent("a", 0o644)); !c.Empty() || len(got) != 1 {
		t.Errorf("%v, %v", got, c)
	}
	if _, err := Scan(filepath.Join(dir, "none"), nil); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestWithout(t *testing.T) {
	whole := Tree{".": {Mode: fs.ModeDir}, "a": {}, "ab": {}, "a/b": {}, "c/a": {}}
	for rel, want := range map[string]Tree{
		"a": {".": {Mode: fs.ModeDir}, "ab": {}, "c/a": {}},
		"c": {".": {Mode: fs.ModeDir}, "a": {}, "ab": {}, "a/b": {}},
		"x": whole,
		".": {},
	} {
		if diff := cmp.Diff(want, whole.Without(rel)); diff != "" {
			t.Errorf("without %s (-want +got)\n%s", rel, diff)
		}
	}
}
