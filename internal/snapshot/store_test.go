package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fits(image string) map[string]string { return map[string]string{"image": image, "VMM": "a\nb"} }

// fill makes a machine with a memory of 64 KiB, of which two pages are not zero.
func fill(d *Draft) error {
	if err := d.Memory.Truncate(64 << 10); err != nil {
		return err
	}
	for _, at := range []int64{8 << 10, 40 << 10} {
		if _, err := d.Memory.WriteAt(bytes.Repeat([]byte{7}, 4096), at); err != nil {
			return err
		}
	}
	if err := os.WriteFile(d.DiskPath(0), []byte("disk"), 0o600); err != nil {
		return err
	}
	d.Formats = []string{"raw"}
	return d.Finish([]byte("the devices"), []byte("it boots\n"))
}

func put(t *testing.T, s *Store, image string) {
	t.Helper()
	if err := s.Make(t.Context(), fits(image), image, func(string) {}, fill); err != nil {
		t.Fatal(err)
	}
}

func TestMakeAndGet(t *testing.T) {
	s := newStore(t)
	if _, err := s.Get(fits("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before it is made: %v", err)
	}
	put(t, s, "a")
	e, err := s.Get(fits("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	st, err := e.State.Memory.Stat()
	if err != nil || st.Size() != 64<<10 {
		t.Errorf("memory: %d bytes, %v", st.Size(), err)
	}
	if string(e.State.Device) != "the devices" || string(e.Console) != "it boots\n" || e.Disks[0].Format != "raw" {
		t.Errorf("got %+v", e.Saved)
	}
	if left, _ := os.ReadDir(s.tmp); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

// Many want what is not there, some of them with stores of their own: it is made once.
func TestMadeOnce(t *testing.T) {
	root := t.TempDir()
	var made atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		s, err := OpenStore(root, nil)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			err := s.Make(t.Context(), fits("a"), "a", func(string) {}, func(d *Draft) error {
				made.Add(1)
				return fill(d)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
}

func TestMakeFails(t *testing.T) {
	s := newStore(t)
	want := errors.New("no such luck")
	err := s.Make(t.Context(), fits("a"), "a", func(string) {}, func(d *Draft) error {
		fill(d)
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Get(fits("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	for _, dir := range []string{s.tmp, s.locks} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// Whatever is changed in an entry is noticed, and the entry goes so that
// another can be made.
func TestDamage(t *testing.T) {
	write := func(name string, at int64) func(string) error {
		return func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte{8}, at)
			return err
		}
	}
	// The time of a file can be set back; then only reading it tells.
	hidden := func(damage func(string) error, name string) func(string) error {
		return func(dir string) error {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			return errors.Join(damage(dir),
				os.Chtimes(filepath.Join(dir, name), st.ModTime(), st.ModTime()),
				os.WriteFile(filepath.Join(dir, checkedName), []byte("another boot"), 0o600))
		}
	}
	for name, damage := range map[string]func(string) error{
		"a byte of the devices":            write("device", 3),
		"a byte of the console":            write("console", 3),
		"a byte of the record":             write("meta.json", 30),
		"a byte of the memory":             write("memory", 9<<10),
		"a byte of a hole":                 write("memory", 20<<10),
		"a byte of the disk":               write("disk0", 1),
		"a memory that was damaged before": hidden(write("memory", 9<<10), "memory"),
		"a hole that was damaged before":   hidden(write("memory", 20<<10), "memory"),
		"a disk that was damaged before":   hidden(write("disk0", 1), "disk0"),
		"truncated memory":                 func(dir string) error { return os.Truncate(filepath.Join(dir, "memory"), 4096) },
		"truncated devices":                func(dir string) error { return os.Truncate(filepath.Join(dir, "device"), 2) },
		"no memory":                        func(dir string) error { return os.Remove(filepath.Join(dir, "memory")) },
		"no disk":                          func(dir string) error { return os.Remove(filepath.Join(dir, "disk0")) },
		"no record":                        func(dir string) error { return os.Remove(filepath.Join(dir, "meta.json")) },
		"an empty record":                  func(dir string) error { return os.Truncate(filepath.Join(dir, "meta.json"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			put(t, s, "a")
			dir := filepath.Join(s.dir, Key(fits("a")))
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			_, err := s.Get(fits("a"))
			var damaged *DamagedError
			if !errors.As(err, &damaged) {
				t.Fatalf("got %v", err)
			}
			t.Log(err)
			put(t, s, "a")
			e, err := s.Get(fits("a"))
			if err != nil {
				t.Fatal(err)
			}
			e.Close()
		})
	}
}

// Reading all once after a boot is enough.
func TestVerifiedOnce(t *testing.T) {
	s := newStore(t)
	put(t, s, "a")
	checked := filepath.Join(s.dir, Key(fits("a")), checkedName)
	if err := os.WriteFile(checked, []byte("another boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := s.Get(fits("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if got, err := os.ReadFile(checked); err != nil || string(got) != bootID() {
		t.Errorf("got %q, %v", got, err)
	}
}

// Nothing is written into a directory that is read-only, such as a path of the Nix store: by root
// neither.
func TestReadOnlyDirectory(t *testing.T) {
	s := newStore(t)
	put(t, s, "a")
	dir := filepath.Join(s.dir, Key(fits("a")))
	if err := os.WriteFile(filepath.Join(dir, checkedName), []byte("another boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	look := func() (all []string) {
		for _, f := range files {
			content, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, f.Name()+": "+string(content))
		}
		return all
	}
	was := look()
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if err := errors.Join(os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)), os.Chmod(path, 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o755) })
	opened, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := opened.Close(); err != nil {
		t.Error(err)
	}
	if is := look(); !slices.Equal(is, was) {
		t.Errorf("%q was changed to %q", was, is)
	}
}

func TestMismatch(t *testing.T) {
	s := newStore(t)
	put(t, s, "a")
	e, err := s.Get(fits("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	err = e.Check(map[string]string{"image": "a", "VMM": "a\nc"})
	var mismatch *MismatchError
	if !errors.As(err, &mismatch) || mismatch.What != "VMM" || mismatch.Saved != "b" || mismatch.Now != "c" {
		t.Errorf("got %v", err)
	}
}

func TestPrune(t *testing.T) {
	s := newStore(t)
	for i, name := range []string{"oldest", "older", "newest"} {
		put(t, s, name)
		used := time.Now().Add(time.Duration(i-3) * time.Hour)
		if err := os.Chtimes(filepath.Join(s.dir, Key(fits(name)), usedName), used, used); err != nil {
			t.Fatal(err)
		}
	}
	held, err := s.Get(fits("oldest"))
	if err != nil {
		t.Fatal(err)
	}
	used := time.Now().Add(-9 * time.Hour)
	if err := os.Chtimes(filepath.Join(held.Dir, usedName), used, used); err != nil {
		t.Fatal(err)
	}
	size := func() (n int64) {
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			n += i.Size
		}
		return n
	}
	want := func(o PruneOptions, titles string) {
		t.Helper()
		if _, _, err := s.Prune(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range list {
			got = append(got, i.Title)
		}
		if strings.Join(got, " ") != titles {
			t.Errorf("%+v: left %v, want %s", o, got, titles)
		}
	}
	want(PruneOptions{MaxSize: size()}, "newest older oldest")
	want(PruneOptions{MaxSize: size() - 1}, "newest oldest") // the oldest is in use
	want(PruneOptions{OlderThan: 90 * time.Minute}, "newest oldest")
	want(PruneOptions{}, "oldest")
	var inUse *InUseError
	list, _ := s.List()
	if _, err := s.Remove(list[0]); !errors.As(err, &inUse) {
		t.Errorf("removed what is in use: %v", err)
	}
	held.Close()
	want(PruneOptions{}, "")
}

// The cache keeps its limit when something is made, and what was made.
func TestLimit(t *testing.T) {
	t.Setenv(SizeEnv, "0")
	s := newStore(t)
	s.limit = 1
	for i := range 3 {
		put(t, s, fmt.Sprint(i))
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Title != "2" {
		t.Errorf("got %+v, %v", list, err)
	}
}

// Somebody who waits for another's can give up.
func TestMakeIsCancelled(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Make(t.Context(), fits("a"), "a", func(string) {}, func(*Draft) error {
		return s.Make(ctx, fits("a"), "a", func(pid string) {
			if pid != fmt.Sprint(os.Getpid()) {
				t.Errorf("waits for %q", pid)
			}
			cancel()
		}, fill)
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// FuzzMeta: a record that somebody made up is refused or read, and nothing else.
func FuzzMeta(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add([]byte("{\"format\":1}\n0000\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, metaName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir); err == nil {
			s.Close()
		}
	})
}
