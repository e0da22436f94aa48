package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A root is made once for an image, a file system and a size, and stays as long as its
// image.
func TestMakeRoot(t *testing.T) {
	s := openTest(t)
	fakeImage(t, s, "one", 0, nil).release()
	img := &Image{ID: "one0123456789", Title: "one", Layers: []Layer{{ID: "layer", Size: 1 << 20}}, users: 1}
	fills := 0
	fill := func(_ context.Context, path string) error {
		fills++
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}
	const size = 64 << 20
	root, err := s.MakeRoot(t.Context(), img, "ext4", size, fill)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(root.Path, &st); err != nil || st.Size != size || st.Blocks*512 > 1<<20 || root.Format != "raw" || root.Filesystem != "ext4" {
		t.Errorf("%+v: %d bytes that occupy %d (%v)", root, st.Size, st.Blocks*512, err)
	}
	fsck, err := lookTool("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(fsck, "-fn", root.Path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	again, err := s.MakeRoot(t.Context(), img, "ext4", size, fill)
	if err != nil || *again != *root || fills != 1 {
		t.Errorf("again: %+v, %v, filled %d times", again, err, fills)
	}
	if other, err := s.MakeRoot(t.Context(), img, "ext4", 2*size, fill); err != nil || other.ID == root.ID || fills != 2 {
		t.Errorf("of another size: %+v, %v", other, err)
	}
	wrong := errors.New("wrong")
	if _, err := s.MakeRoot(t.Context(), img, "ext4", 3*size, func(context.Context, string) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("got %v", err)
	}
	if _, err := s.MakeRoot(t.Context(), img, "fat", size, fill); err == nil || !strings.Contains(err.Error(), `no root of "fat"`) {
		t.Errorf("got %v", err)
	}

	// It is a part of its image.
	if _, _, err := s.Prune(t.Context(), PruneOptions{OlderThan: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	img.Release()
	if _, err := os.Stat(root.Path); err != nil {
		t.Errorf("after a prune that leaves the image: %v", err)
	}
	entries, err := s.List(t.Context())
	if err != nil || len(entries) != 1 || len(entries[0].parts) != 2 {
		t.Fatalf("%+v, %v", entries, err)
	}
	if _, err := s.Remove(t.Context(), entries[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the image is gone, and its root is not: %v", err)
	}
	if _, err := s.MakeRoot(t.Context(), img, "ext4", size, fill); err == nil || !strings.Contains(err.Error(), "already released") {
		t.Errorf("got %v", err)
	}
}
