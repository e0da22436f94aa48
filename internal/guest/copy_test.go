package guest_test

import (
	"crypto/rand"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// tree writes a directory with everything that is hard to copy.
func tree(t *testing.T, dir string) {
	t.Helper()
	big := make([]byte, 3<<20)
	rand.Read(big)
	for name, content := range map[string]string{
		"plain": "text\n", "empty": "", "big": string(big), "with\nnewline": "x", "ünïcode": "y", "-dash": "z",
		"sub/deep/file": "deep", strings.Repeat("long", 60): "l",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Chmod(filepath.Join(dir, "plain"), 0o755),
		os.Symlink("plain", filepath.Join(dir, "link")),
		os.Symlink("/etc/passwd", filepath.Join(dir, "absolute")),
		os.Symlink("nowhere", filepath.Join(dir, "dangling")),
		os.Mkdir(filepath.Join(dir, "readonly"), 0o755),
		os.WriteFile(filepath.Join(dir, "readonly/file"), nil, 0o400),
		os.Chmod(filepath.Join(dir, "readonly"), 0o555),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// describe lists a tree: name, type and permissions, and content.
func describe(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case info.Mode().IsRegular():
			c, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(c)
		case info.Mode()&fs.ModeSymlink != 0:
			content, _ = os.Readlink(path)
		}
		b.WriteString(rel + " " + info.Mode().String() + " " + content + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCopyThereAndBack(t *testing.T) {
	m := newMachine(t)
	src, there, back := t.TempDir(), t.TempDir(), t.TempDir()
	t.Cleanup(func() { // or an ordinary user could not remove them
		for _, dir := range []string{filepath.Join(src, "tree"), filepath.Join(there, "made/on the way/copy"), filepath.Join(back, "new/copy")} {
			os.Chmod(filepath.Join(dir, "readonly"), 0o755)
		}
	})
	tree(t, filepath.Join(src, "tree"))
	want := describe(t, filepath.Join(src, "tree"))

	r, err := m.CopyIn(testContext(t), filepath.Join(src, "tree"), filepath.Join(there, "made/on the way/copy"))
	if err != nil || len(r.Skipped) > 0 || r.Bytes < 3<<20 {
		t.Fatalf("in: %+v, %v", r, err)
	}
	if got := describe(t, filepath.Join(there, "made/on the way/copy")); got != want {
		t.Errorf("in: got\n%.500s\nwant\n%.500s", got, want)
	}
	r, err = m.CopyOut(testContext(t), filepath.Join(there, "made/on the way/copy"), rootOf(t, filepath.Join(back, "new")))
	if err != nil || len(r.Skipped) > 0 {
		t.Fatalf("out: %+v, %v", r, err)
	}
	if got := describe(t, filepath.Join(back, "new/copy")); got != want {
		t.Errorf("out: got\n%.500s\nwant\n%.500s", got, want)
	}
}

func TestCopyInLikeCp(t *testing.T) {
	m := newMachine(t)
	src := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(src, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(dir+"/d", 0o755),
		os.WriteFile(dir+"/old", []byte("old and longer"), 0o644),
		os.WriteFile(dir+"/target", []byte("old"), 0o644),
		os.Symlink("target", dir+"/link"),
		os.Symlink("d", dir+"/dirlink"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for dst, lands := range map[string]string{
		"d": "d/file", "d/": "d/file", "d/other": "d/other", "old": "old", "link": "target", "dirlink": "d/file", "a/b/c": "a/b/c",
	} {
		os.Remove(filepath.Join(dir, "d/file"))
		if _, err := m.CopyIn(testContext(t), src, dir+"/"+dst); err != nil {
			t.Errorf("to %s: %v", dst, err)
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, lands)); string(b) != "new" {
			t.Errorf("to %s: %s has %q, %v", dst, lands, b, err)
		}
	}
	if _, err := os.Readlink(dir + "/link"); err != nil {
		t.Errorf("the link was replaced: %v", err)
	}
}

func TestCopySkipsWhatIsNoFile(t *testing.T) {
	m := newMachine(t)
	src := filepath.Join(t.TempDir(), "d")
	os.Mkdir(src, 0o755)
	if err := syscall.Mkfifo(src+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	dst := t.TempDir()
	r, err := m.CopyOut(testContext(t), src, rootOf(t, dst))
	if err != nil || len(r.Skipped) != 1 || r.Skipped[0] != `"d/fifo": a named pipe` {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestCopyErrors(t *testing.T) {
	m := newMachine(t)
	for _, tt := range []struct {
		name string
		do   func() error
		want string
	}{
		{"from nowhere, in", func() error { _, err := m.CopyIn(testContext(t), "/nonexistent", "/tmp/x"); return err }, "m: copy to /tmp/x: stat /nonexistent: no such file"},
		{"from nowhere, out", func() error { _, err := m.CopyOut(testContext(t), "/nonexistent", rootOf(t, t.TempDir())); return err }, "m: get-tar: lstat /nonexistent: no such file"},
		{"below a file", func() error { _, err := m.CopyIn(testContext(t), "/etc/passwd", "/etc/passwd/x"); return err }, "m: put-tar: "},
		{"relative", func() error { _, err := m.CopyIn(testContext(t), "/etc/passwd", "x"); return err }, `m: put-tar: "x" is not an absolute path`},
	} {
		if err := tt.do(); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %s…", tt.name, err, tt.want)
		}
	}
}

// rootOf opens a directory, which is made if it is missing.
func rootOf(t testing.TB, dir string) *os.Root {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}
