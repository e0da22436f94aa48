package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/atomicfile"
)

func TestPruneDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, memoDir), 0o755); err != nil {
		t.Fatal(err)
	}
	add := func(name string, age time.Duration) {
		path := filepath.Join(dir, name)
		then := time.Now().Add(-age)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
		if err := atomicfile.Symlink(filepath.Join("..", name), filepath.Join(dir, memoDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range keepNewest + 5 {
		add(fmt.Sprint("busy", i), keepRecent/2) // too many, and all used just now
	}
	add("yesterday", 24*time.Hour) // one too many
	add("old", keepUnused+time.Hour)
	removed, err := pruneDir(dir)
	if err != nil || len(removed) != 2 {
		t.Errorf("removed %v, %v", removed, err)
	}
	for _, name := range []string{"yesterday", "old"} {
		for _, path := range []string{name, memoDir + "/" + name} {
			if _, err := os.Lstat(filepath.Join(dir, path)); err == nil {
				t.Errorf("%s is still there", path)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, memoDir, "busy0")); err != nil {
		t.Error(err)
	}
}
