package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"github.com/klauspost/compress/zstd"

	"github.com/attest-vm/attest/internal/vmm"
)

// makeTar writes entries of the form "dir d/", "file name content",
// "link name target", "symlink name target", "exec name content" (another mode),
// "touch name content" (another time).
func makeTar(t testing.TB, entries ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		f := strings.SplitN(e+"  ", " ", 3)
		arg := strings.TrimRight(f[2], " ")
		h := &tar.Header{Name: "./" + f[1], Mode: 0o644, ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX}
		switch f[0] {
		case "dir":
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
			h.ModTime = time.Now() // a directory's time is no difference
		case "file", "exec", "touch":
			h.Typeflag, h.Size = tar.TypeReg, int64(len(arg))
			if f[0] == "exec" {
				h.Mode = 0o755
			}
			if f[0] == "touch" {
				h.ModTime = h.ModTime.Add(time.Second)
			}
		case "link":
			h.Typeflag, h.Linkname = tar.TypeLink, "./"+arg
		case "symlink":
			h.Typeflag, h.Linkname = tar.TypeSymlink, arg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, arg)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// makeTree writes a tar as an image.
func makeTree(t *testing.T, data []byte) (index, fs.FS) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "tree.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	tr, err := newTree(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := eachEntry(bytes.NewReader(data), tr.add); err != nil {
		t.Fatal(err)
	}
	if err := tr.w.Close(); err != nil {
		t.Fatal(err)
	}
	fsys, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return tr.index, fsys
}

// listing describes a tree, one line per file but the root.
func listing(t *testing.T, fsys fs.FS) (lines []string) {
	t.Helper()
	first := map[int64]string{}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*goerofs.Stat)
		switch mode := info.Mode(); {
		case mode.IsDir():
			name += "/"
		case mode&fs.ModeCharDevice != 0 && st.Rdev == 0:
			name = "whiteout " + name
		case mode&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(fsys, name)
			if err != nil {
				return err
			}
			name += " -> " + target
		case first[st.Ino] != "":
			name += " = " + first[st.Ino]
		default:
			first[st.Ino] = name
			data, err := fs.ReadFile(fsys, name)
			if err != nil {
				return err
			}
			if mode&0o100 != 0 {
				name += "*"
			}
			name += " " + string(data)
		}
		lines = append(lines, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func TestDifference(t *testing.T) {
	base := []string{"dir .", "dir etc", "file etc/a A", "file etc/b B", "dir usr", "dir usr/bin", "file usr/bin/perl P",
		"link usr/bin/perl5 usr/bin/perl", "symlink bin usr/bin", "dir opt", "dir opt/x", "file opt/x/1 1"}
	edit := func(remove []string, add ...string) []string {
		out := slices.DeleteFunc(slices.Clone(base), func(e string) bool { return slices.Contains(remove, strings.Fields(e)[1]) })
		return append(out, add...)
	}
	big := strings.Repeat("0123456789", compareInMemory/10+1)
	for _, test := range []struct {
		name    string
		derived []string
		want    []string
	}{
		{"nothing", base, nil},
		{"new file", edit(nil, "file etc/c C"), []string{"etc/", "etc/c C"}},
		{"new directory", edit(nil, "dir srv", "file srv/x X"), []string{"srv/", "srv/x X"}},
		{"content", edit([]string{"etc/a"}, "file etc/a AA"), []string{"etc/", "etc/a AA"}},
		{"mode", edit([]string{"etc/a"}, "exec etc/a A"), []string{"etc/", "etc/a* A"}},
		{"time", edit([]string{"etc/a"}, "touch etc/a A"), []string{"etc/", "etc/a A"}},
		{"deleted file", edit([]string{"etc/b"}), []string{"etc/", "whiteout etc/b"}},
		{"deleted directory", edit([]string{"opt/x", "opt/x/1"}), []string{"opt/", "whiteout opt/x"}},
		{"deleted tree", edit([]string{"opt", "opt/x", "opt/x/1"}), []string{"whiteout opt"}},
		{"directory becomes file", edit([]string{"opt", "opt/x", "opt/x/1"}, "file opt O"), []string{"opt O"}},
		{"symlink becomes directory", edit([]string{"bin"}, "dir bin", "file bin/sh S"), []string{"bin/", "bin/sh S"}},
		{"symlink's target", edit([]string{"bin"}, "symlink bin bin2"), []string{"bin -> bin2"}},
		{"both names of a file", edit([]string{"usr/bin/perl", "usr/bin/perl5"}, "file usr/bin/perl Q", "link usr/bin/perl5 usr/bin/perl"),
			[]string{"usr/", "usr/bin/", "usr/bin/perl Q", "usr/bin/perl5 = usr/bin/perl"}},
		{"new name of an old file", edit(nil, "link usr/bin/p2 usr/bin/perl", "link usr/bin/p3 usr/bin/p2"),
			[]string{"usr/", "usr/bin/", "usr/bin/p2 P", "usr/bin/p3 = usr/bin/p2"}},
		{"large file", edit(nil, "file etc/big "+big), []string{"etc/", "etc/big " + big}},
	} {
		t.Run(test.name, func(t *testing.T) {
			x, lower := makeTree(t, makeTar(t, base...))
			f, err := os.Create(filepath.Join(t.TempDir(), "layer.erofs"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			d, err := newDifference(x, lower, f)
			if err != nil {
				t.Fatal(err)
			}
			if err := eachEntry(bytes.NewReader(makeTar(t, test.derived...)), d.add); err != nil {
				t.Fatal(err)
			}
			if err := d.finish(); err != nil {
				t.Fatal(err)
			}
			fsys, err := goerofs.Open(f)
			if err != nil {
				t.Fatal(err)
			}
			if got := listing(t, fsys); !slices.Equal(got, test.want) {
				t.Errorf("got  %.300q\nwant %.300q", got, test.want)
			}
		})
	}
}

// A large file that did not change leaves no trace, also not of its size.
func TestDifferenceOfLargeFile(t *testing.T) {
	data := makeTar(t, "dir .", "file big "+strings.Repeat("x", compareInMemory+1), "file small s")
	x, lower := makeTree(t, data)
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := newDifference(x, lower, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := eachEntry(bytes.NewReader(data), d.add); err != nil {
		t.Fatal(err)
	}
	if err := d.finish(); err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 16<<10 {
		t.Errorf("a layer without changes has %d bytes", st.Size())
	}
}

func TestIndexSurvivesItsFile(t *testing.T) {
	x, _ := makeTree(t, makeTar(t, "dir .", "file a A", "link b a", "symlink c a"))
	var b bytes.Buffer
	if err := x.encode(&b); err != nil {
		t.Fatal(err)
	}
	y, err := decodeIndex(&b)
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range x {
		if !n.same(y[name]) {
			t.Errorf("%s: %+v became %+v", name, n, y[name])
		}
	}
}

// memoryFile is a file in memory, for what is made thousands of times.
func memoryFile(f *testing.F) *os.File {
	file, err := vmm.MemoryFile("attest-fuzz")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { file.Close() })
	return file
}

// A tar that ends early or is none is an error, whatever is in it. What is taken can
// be read again.
func FuzzTree(f *testing.F) {
	f.Add([]byte("garbage"))
	f.Add(bytes.Repeat([]byte{0}, 1024))
	for _, entries := range [][]string{{"dir .", "file a A", "link b a", "symlink c a"}, {"file a/b/c A", "dir a", "exec a/b/c B"}, {"file .. A"}, {"symlink a /", "file a/b A"}} {
		f.Add(makeTar(f, entries...))
	}
	out := memoryFile(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := empty(out); err != nil {
			t.Fatal(err)
		}
		tr, err := newTree(out)
		if err != nil {
			t.Fatal(err)
		}
		if err := eachEntry(bytes.NewReader(data), tr.add); err != nil {
			return
		}
		if err := tr.w.Close(); err != nil {
			t.Fatal(err)
		}
		fsys, err := goerofs.Open(out)
		if err != nil {
			t.Fatal(fmt.Errorf("what was written cannot be read: %w", err))
		}
		if err := fs.WalkDir(fsys, ".", func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
			t.Error(err)
		}
	})
}

func seekTo(f *os.File, offset int64) error {
	_, err := f.Seek(offset, io.SeekStart)
	return err
}

// An index that a disk has damaged gives errors and no crash. (The image has only its
// own reader's word; attest reads what it has written, of the size that it had.)
func FuzzIndex(f *testing.F) {
	image := memoryFile(f)
	tr, err := newTree(image)
	if err == nil {
		err = eachEntry(bytes.NewReader(makeTar(f, "dir .", "dir a", "file a/b content", "link c a/b", "symlink d a")), tr.add)
	}
	if err != nil {
		f.Fatal(err)
	}
	var index bytes.Buffer
	z, err := zstd.NewWriter(&index)
	if err = errors.Join(err, tr.index.encode(z), z.Close()); err != nil {
		f.Fatal(err)
	}
	f.Add(index.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		z, err := newZstdReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		x, err := decodeIndex(io.LimitReader(z, 1<<20))
		if err != nil {
			return
		}
		if err := empty(image); err != nil {
			t.Fatal(err)
		}
		d, err := newDifference(x, nil, image)
		if err != nil {
			t.Fatal(err)
		}
		if err := eachEntry(bytes.NewReader(makeTar(t, "dir .", "dir a", "file a/b content")), d.add); err != nil {
			t.Fatal(err)
		}
		d.finish() // whatever paths it has
	})
}

// FuzzErofs: a base image that a disk has damaged gives errors and no crash.
func FuzzErofs(f *testing.F) {
	image, out := memoryFile(f), memoryFile(f)
	base := makeTar(f, "dir .", "dir a", "file a/b content", "link c a/b", "symlink d a", "exec e "+strings.Repeat("x", 9000))
	tr, err := newTree(image)
	if err == nil {
		err = errors.Join(eachEntry(bytes.NewReader(base), tr.add), tr.w.Close(), seekTo(image, 0))
	}
	changed := makeTar(f, "dir .", "dir a", "file a/b content", "link c a/b", "link new a/b", "file e y") // the new link needs what is in the base
	whole, readErr := io.ReadAll(image)
	if err = errors.Join(err, readErr); err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		lower, err := goerofs.Open(bytes.NewReader(data))
		if err != nil {
			return
		}
		if err := empty(out); err != nil {
			t.Fatal(err)
		}
		d, err := newDifference(tr.index, lower, out)
		if err != nil {
			t.Fatal(err)
		}
		if eachEntry(bytes.NewReader(changed), d.add) == nil {
			d.finish()
		}
	})
}

func empty(f *os.File) error { return errors.Join(f.Truncate(0), seekTo(f, 0)) }

// FuzzMark: of an object whose end mark is damaged, or says something else than what is there, nothing
// is used, and gc removes it.
func FuzzMark(f *testing.F) {
	f.Add([]byte(`{"files":{"meta.json":2}}`))
	f.Add([]byte(`{"files":{"meta.json":3}}`))
	f.Add([]byte(`{"files":{"../image/k/meta.json":2,"":0,"x":-1}}`))
	f.Add([]byte(`{"files":{"meta.json":2}`))
	f.Add([]byte(`null`))
	s, err := OpenStoreAt(f.TempDir(), nil)
	if err != nil {
		f.Fatal(err)
	}
	dir := filepath.Join(s.root, "layer", "k")
	f.Fuzz(func(t *testing.T, mark []byte) {
		err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, metaName), []byte("{}"), 0o644), os.WriteFile(filepath.Join(dir, completeName), mark, 0o644))
		if err != nil {
			t.Fatal(err)
		}
		bad := checkMark(dir)
		if incomplete := (*incompleteError)(nil); bad != nil && (!errors.As(bad, &incomplete) || incomplete.reason == "") {
			t.Errorf("%q: %v", mark, bad)
		}
		l, err := s.acquire("layer/k", &layerMeta{})
		if err == nil {
			l.release()
		}
		if (err == nil) != (bad == nil) {
			t.Errorf("%q: the mark is %v, and the object %v", mark, bad, err)
		}
		removed, err := s.RemoveUseless(t.Context())
		if err != nil || (len(removed) == 1) != (bad != nil) {
			t.Errorf("%q (%v): gc removed %v, %v", mark, bad, removed, err)
		}
	})
}

// A record of an image that is damaged, or names parts that cannot be, is listed and
// removed like others.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"1","title":"x","spec":{},"parts":["base/b","layer"],"kernel":"kernel/k"}`))
	f.Add([]byte(`{"parts":["","/","../..","image/k"]}`))
	s, err := OpenStoreAt(f.TempDir(), nil)
	if err != nil {
		f.Fatal(err)
	}
	dir := filepath.Join(s.root, "image", "k")
	f.Fuzz(func(t *testing.T, data []byte) {
		err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, metaName), data, 0o644), markComplete(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, meta := range []any{&imageMeta{}, &layerMeta{}, &kernelMeta{}} {
			if l, err := s.acquire("image/k", meta); err == nil {
				l.release()
			}
		}
		list, err := s.List(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		if _, err := s.Remove(t.Context(), list[0]); err != nil {
			t.Fatal(err)
		}
	})
}
