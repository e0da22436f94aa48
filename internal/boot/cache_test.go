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

// An owned remembers what it owns.
type owned map[string]bool

func (o owned) Own(path string)    { o[path] = true }
func (o owned) Disown(path string) { delete(o, path) }

// What is not finished belongs to somebody who removes it, from before it is there; and
// what a process has left that was killed together with that somebody goes with the
// next look at the cache, and only that.
func TestScratchGoesWithItsProcess(t *testing.T) {
	dir, owner := t.TempDir(), owned{}
	live, err := newScratch(dir, owner)
	if err != nil {
		t.Fatal(err)
	}
	if !owner[live.dir] {
		t.Errorf("%s is nobody's: %v", live.dir, owner)
	}
	dead := filepath.Join(dir, scratchPrefix+"dead") // its process holds no lock any more
	if err := os.Mkdir(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "initramfs"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if removed, err := pruneDir(dir); err != nil || len(removed) != 1 || removed[0] != dead {
		t.Errorf("removed %v, %v", removed, err)
	}
	if _, err := os.Stat(live.dir); err != nil {
		t.Error(err)
	}
	if err := live.remove(); err != nil || len(owner) != 0 {
		t.Errorf("%v, %v", err, owner)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
