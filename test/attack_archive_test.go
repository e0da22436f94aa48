package test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	goerofs "github.com/erofs/go-erofs"

	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

// hostileArchive is an archive of entries that get in each other's way, with names and
// links that lead to a victim, and possibly with damage.
func hostileArchive(victim string) []byte {
	names := []string{
		"x", "x/a", "x/a/b", "x/l", "x/l/file", "x/../x", "../file", "/" + victim + "/file", "x/./a", "x//a", ".", "", "x/" + strings.Repeat("d/", 50) + "e",
		strings.Repeat("n", 300), "x/\x1b[2J", "x/\xff\xfe", "x/a\nb", "other", "x/a/",
	}
	links := []string{victim, victim + "/file", "../../" + filepath.Base(victim), "x/l", "x/a", "/", "..", ".", "x/l/file", strings.Repeat("../", 40) + victim + "/file"}
	types := []byte{tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo}
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for range 1 + rand.IntN(12) {
		h := tar.Header{Typeflag: types[rand.IntN(len(types))], Name: names[rand.IntN(len(names))], Mode: rand.Int64N(0o10000), Format: tar.FormatPAX}
		body := ""
		switch h.Typeflag {
		case tar.TypeReg:
			body = strings.Repeat("y", rand.IntN(2000))
			h.Size = int64(len(body))
			if rand.IntN(8) == 0 {
				h.PAXRecords = map[string]string{"ATTEST.size": fmt.Sprint(rand.Int64())}
			}
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = links[rand.IntN(len(links))]
		}
		if t.WriteHeader(&h) == nil {
			t.Write([]byte(body))
		}
	}
	t.Close()
	out := b.Bytes()
	for range rand.IntN(3) {
		out[rand.IntN(len(out))] = byte(rand.Uint32())
	}
	if rand.IntN(4) == 0 {
		out = out[:rand.IntN(len(out))]
	}
	return out
}

// newVictim makes a directory with one more in it, which hostile archives know.
func newVictim(t *testing.T) (dir, victim string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	victim = filepath.Join(dir, "victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(victim, "file"), "unharmed")
	return dir, victim
}

// unharmed returns an error if anything of a victim is not as newVictim has made it.
func unharmed(victim string) (err error) {
	if left, _ := os.ReadDir(victim); len(left) != 1 {
		err = fmt.Errorf("the victim has %v", left)
	}
	if text, readErr := os.ReadFile(filepath.Join(victim, "file")); string(text) != "unharmed" {
		err = errors.Join(err, fmt.Errorf("the victim's file: %q, %v", text, readErr))
	}
	return err
}

// TestStressArchives extracts archives that nobody should trust. The victim beside the
// target stays as it is, and what comes out has no special rights.
func TestStressArchives(t *testing.T) {
	a := newAttack(t, "hostile archives")
	dir, victim := newVictim(t)
	for i := range 20000 {
		data := hostileArchive(victim)
		err := extractHostile(filepath.Join(dir, "target"), data)
		err = errors.Join(err, unharmed(victim))
		if beside, _ := os.ReadDir(dir); len(beside) != 1 {
			err = errors.Join(err, fmt.Errorf("beside the target: %v", beside))
		}
		a.try(fmt.Sprint("archive ", i), err)
		if err != nil {
			t.Fatalf("%q", data)
		}
	}
}

// TestStressRootfs takes such archives as the root of a machine. What comes out is an image that
// can be read, or an error about the archive; the host's files stay as they are.
func TestStressRootfs(t *testing.T) {
	a := newAttack(t, "hostile archives as a rootfs")
	dir, victim := newVictim(t)
	home := ownCache(t, "kernel", "initramfs")
	defer os.RemoveAll(home)
	store, err := image.OpenStoreAt(filepath.Join(home, "attest"), nil)
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	writeFile(t, filepath.Join(other, "file"), "unharmed")
	held, err := store.Build(t.Context(), image.Rootfs{Path: other}) // or the kernel would be removed with each image
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	images := 0
	for i := range 2000 {
		path := filepath.Join(dir, "root.tar")
		data := hostileArchive(victim)
		writeFile(t, path, string(data))
		built, err := rootfsOf(t, store, path)
		err = errors.Join(err, unharmed(victim))
		if beside, _ := os.ReadDir(dir); len(beside) != 2 {
			err = errors.Join(err, fmt.Errorf("beside the archive: %v", beside))
		}
		a.try(fmt.Sprint("archive ", i), err)
		if err != nil {
			t.Fatalf("%q", data)
		}
		if built {
			images++
		}
	}
	t.Logf("%d archives are an image", images)
	if images == 0 {
		t.Error("no archive became an image")
	}
}

// rootfsOf builds an image of an archive, reads all of it, and removes it.
func rootfsOf(t *testing.T, store *image.Store, path string) (built bool, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	img, err := store.Build(ctx, image.Rootfs{Path: path})
	var wrong *image.SpecError
	switch {
	case errors.As(err, &wrong) && strings.ContainsFunc(err.Error(), unicode.IsControl):
		return false, fmt.Errorf("the error reaches for the terminal: %q", err)
	case errors.As(err, &wrong):
		return false, nil
	case err != nil:
		return false, err
	}
	for _, l := range img.Layers {
		f, err := os.Open(l.Path)
		if err != nil {
			return false, err
		}
		fsys, err := goerofs.Open(f)
		if err == nil {
			err = fs.WalkDir(fsys, ".", func(_ string, _ fs.DirEntry, err error) error { return err })
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return false, err
		}
	}
	img.Release()
	found, err := store.Find(ctx, img.ID)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("the cache has %d such images", len(found))
	}
	if err == nil {
		_, err = store.Remove(ctx, found[0])
	}
	return true, err
}

// extractHostile extracts an archive to a new directory, which is removed. An error of
// the archive is right; its result must be harmless.
func extractHostile(target string, data []byte) error {
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(target)
	root, err := os.OpenRoot(target)
	if err != nil {
		return err
	}
	defer root.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tarfs.Extract(bytes.NewReader(data), root, "x", 1<<20)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	select {
	case <-ended:
	case <-ctx.Done():
		return errors.New("the archive takes more than a minute")
	}
	return filepath.WalkDir(target, func(path string, d fs.DirEntry, err error) error {
		if d == nil {
			return err
		}
		if d.IsDir() {
			os.Chmod(path, 0o700) // it may come without rights
		}
		info, err := d.Info()
		if err == nil && info.Mode()&^(fs.ModePerm|fs.ModeDir|fs.ModeSymlink) != 0 {
			err = fmt.Errorf("%q has mode %v", path, info.Mode())
		}
		return err
	})
}
