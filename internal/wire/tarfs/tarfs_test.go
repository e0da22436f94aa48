package tarfs

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// stream is a tar stream with these entries; files contain "evil".
func stream(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Mode == 0 {
			h.Mode = 0o777
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write([]byte("evil"))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sparse is a stream with a file of this size and parts of "evil", of which there
// may not be enough.
func sparse(t testing.TB, size string, parts ...part) []byte {
	t.Helper()
	var content, b bytes.Buffer
	for _, p := range parts {
		binary.Write(&content, binary.BigEndian, p)
		content.WriteString("evil")
	}
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644, Size: int64(content.Len()), Format: tar.FormatPAX, PAXRecords: map[string]string{sparseSize: size}})
	w.Write(content.Bytes())
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hostile(t testing.TB) map[string][]byte {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	return map[string][]byte{
		"absolute":               stream(t, file("/victim")),
		"parent":                 stream(t, file("../victim")),
		"parent below":           stream(t, file("x/../../victim")),
		"dot":                    stream(t, file(".")),
		"empty component":        stream(t, file("x//victim")),
		"through a link":         stream(t, link("x", ".."), file("x/victim")),
		"through a long link":    stream(t, link("x", "y/z/../../.."), tar.Header{Typeflag: tar.TypeDir, Name: "y/"}, file("x/victim")),
		"onto a link":            stream(t, link("x", "../victim"), file("x")),
		"directory on a link":    stream(t, link("x", ".."), tar.Header{Typeflag: tar.TypeDir, Name: "x/"}, file("x/victim")),
		"hard link out":          stream(t, tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "../victim"}, file("x")),
		"hard link in":           stream(t, file("y"), tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "y"}),
		"device":                 stream(t, tar.Header{Typeflag: tar.TypeChar, Name: "x", Devmajor: 1, Devminor: 3}),
		"pipe":                   stream(t, tar.Header{Typeflag: tar.TypeFifo, Name: "x"}, file("x")),
		"set user id":            stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o6755}),
		"cut off":                stream(t, file("x"))[:700],
		"garbage":                bytes.Repeat([]byte("garbage "), 200),
		"link into itself":       stream(t, link("x", "x"), file("x/y")),
		"link to a sibling":      stream(t, tar.Header{Typeflag: tar.TypeDir, Name: "x/"}, link("x/y", "../victim"), file("x/y"), link("x/up", ".."), file("x/up/victim")),
		"hard link to a link":    stream(t, link("x", "../victim"), tar.Header{Typeflag: tar.TypeLink, Name: "y", Linkname: "x"}, file("y")),
		"hard link via a link":   stream(t, link("x", ".."), tar.Header{Typeflag: tar.TypeLink, Name: "y", Linkname: "x/victim"}, file("y")),
		"hard link to itself":    stream(t, file("x"), tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "x"}),
		"a very long name":       stream(t, file(strings.Repeat("x/", 3000)+"y")),
		"a long component":       stream(t, file(strings.Repeat("x", 300))),
		"duplicates":             stream(t, file("x"), file("x"), link("x", "../victim"), file("x")),
		"a link for a directory": stream(t, tar.Header{Typeflag: tar.TypeDir, Name: "x/"}, link("x", ".."), file("x/victim")),
		"sparse, huge":           sparse(t, "9223372036854775807", part{0, 4}),
		"sparse, negative":       sparse(t, "-1", part{0, 4}),
		"sparse, no number":      sparse(t, "many", part{0, 4}),
		"sparse, backwards":      sparse(t, "100", part{50, 4}, part{10, 4}),
		"sparse, outside":        sparse(t, "100", part{98, 4}),
		"sparse, overflow":       sparse(t, "100", part{1, 1<<63 - 1}),
		"sparse, cut off":        sparse(t, "100", part{0, 4}, part{50, 40}),
		"directory and a file":   stream(t, tar.Header{Typeflag: tar.TypeDir, Name: "x/"}, file("x")),
	}
}

// check extracts a stream into a directory next to one victim and around another,
// and looks whether anything but the copy itself has changed.
func check(t *testing.T, b []byte, name string) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "inside")
	victims := []string{filepath.Join(dir, "victim")}
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	if name != "" { // then the copy is one file or directory of several
		victims = append(victims, filepath.Join(inside, "victim"))
	}
	for _, v := range victims {
		if err := os.WriteFile(v, []byte("unharmed"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	_, err = Extract(bytes.NewReader(b), root, name, 1)
	t.Logf("error: %v", err)
	for _, v := range victims {
		if got, err := os.ReadFile(v); string(got) != "unharmed" {
			t.Errorf("%s has %q, %v", v, got, err)
		}
		if fi, err := os.Stat(v); err != nil || fi.Sys().(*syscall.Stat_t).Nlink != 1 {
			t.Errorf("%s has another name, %v", v, err)
		}
	}
	if outside, _ := os.ReadDir(dir); len(outside) != 2 {
		t.Errorf("the directory has %v", outside)
	}
	if around, _ := os.ReadDir(inside); name != "" && len(around) > 2 {
		t.Errorf("beside the copy are %v", around)
	}
	filepath.Walk(inside, func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeDevice|os.ModeNamedPipe) != 0 {
			t.Errorf("%s is %s", path, fi.Mode())
		}
		return nil
	})
}

func TestHostileStreams(t *testing.T) {
	for name, b := range hostile(t) {
		for _, as := range []string{"", "other"} {
			t.Run(name+"/"+as, func(t *testing.T) { check(t, b, as) })
		}
	}
}

func FuzzExtract(f *testing.F) {
	for _, b := range hostile(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		check(t, b, "")
		check(t, b, "other")
	})
}

func TestFilesWhoseSizeIsNotKnown(t *testing.T) {
	var b bytes.Buffer
	if _, err := Write(&b, "/proc/self/status", "status"); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if st, err := Extract(&b, root, "", 0); err != nil || st.Files != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
	if got, err := root.ReadFile("status"); err != nil || !strings.HasPrefix(string(got), "Name:") {
		t.Errorf("%.20q, %v", got, err)
	}
}

// copied writes src and extracts it again.
func copied(t *testing.T, src string) (dst string, written, extracted Stats) {
	t.Helper()
	dst = t.TempDir()
	root, err := os.OpenRoot(dst)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r, w := io.Pipe()
	var writer sync.WaitGroup
	writer.Go(func() {
		var err error
		written, err = Write(w, src, "copy")
		w.CloseWithError(err)
	})
	extracted, err = Extract(r, root, "", 1)
	r.Close()
	writer.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dst, "copy"), written, extracted
}

// A file with holes is copied with its holes, and only what is in it goes over
// the wire.
func TestSparse(t *testing.T) {
	const size = 64 << 30
	src := filepath.Join(t.TempDir(), "src")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := map[int64]string{0: "begin", 3 << 30: "middle", 3<<30 + 100: "near", size - 4: "last"}
	for offset, text := range at {
		if _, err := f.WriteAt([]byte(text), offset); err != nil {
			t.Fatal(err)
		}
	}
	if dataOf(f, size) == nil {
		t.Fatal("the file has holes, and none are seen")
	}
	dst, written, extracted := copied(t, src)
	if written.Bytes > 1<<20 || written.Bytes != extracted.Bytes || extracted.Files != 1 {
		t.Errorf("written %+v, extracted %+v", written, extracted)
	}
	g, err := os.Open(dst)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	fi, err := g.Stat()
	if err != nil || fi.Size() != size || fi.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Errorf("%d bytes in %d blocks, %v", fi.Size(), fi.Sys().(*syscall.Stat_t).Blocks, err)
	}
	for offset, text := range at {
		got := make([]byte, len(text))
		if _, err := g.ReadAt(got, offset); err != nil || string(got) != text {
			t.Errorf("at %d: %q, %v; want %q", offset, got, err, text)
		}
	}
}

func TestNothingButAHole(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	if err := errors.Join(os.WriteFile(src, nil, 0o640), os.Truncate(src, 10<<30)); err != nil {
		t.Fatal(err)
	}
	dst, _, extracted := copied(t, src)
	if fi, err := os.Stat(dst); err != nil || fi.Size() != 10<<30 || fi.Mode() != 0o640 || extracted.Bytes > 1<<20 {
		t.Errorf("%v, %v, %+v", fi, err, extracted)
	}
}

// A tree comes out as it went in: names of any bytes, several names of one file,
// directories that may not be written to.
func TestTree(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(src, "a/b"), 0o755),
		os.WriteFile(filepath.Join(src, "a/one"), []byte("several names"), 0o600),
		os.Link(filepath.Join(src, "a/one"), filepath.Join(src, "a/b/two")),
		os.Link(filepath.Join(src, "a/one"), filepath.Join(src, "three")),
		os.WriteFile(filepath.Join(src, "no\xffutf8\x80\n"), []byte("x"), 0o644),
		os.WriteFile(filepath.Join(src, "-rf *"), nil, 0o644),
		os.Symlink("\xfe\n", filepath.Join(src, "link")),
		os.Mkdir(filepath.Join(src, "closed"), 0o755),
		os.WriteFile(filepath.Join(src, "closed/file"), []byte("y"), 0o400),
		os.Chmod(filepath.Join(src, "closed"), 0o555),
		os.Mkdir(filepath.Join(src, "world"), 0o777),
		os.Chmod(filepath.Join(src, "world"), 0o777),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(filepath.Join(src, "closed"), 0o755)
	dst, _, extracted := copied(t, src)
	defer os.Chmod(filepath.Join(dst, "closed"), 0o755)
	if got, want := tree(t, dst), tree(t, src); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	one, err := os.Stat(filepath.Join(dst, "a/one"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b/two", "three"} {
		if fi, err := os.Stat(filepath.Join(dst, name)); err != nil || !os.SameFile(fi, one) {
			t.Errorf("%s is a file of its own, %v", name, err)
		}
	}
	if want := int64(len("several names") + 2); extracted.Bytes != want {
		t.Errorf("%d bytes were copied, want %d", extracted.Bytes, want)
	}
}

// tree is a tree as text.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		text := ""
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(data)
		case fi.Mode()&os.ModeSymlink != 0:
			text, _ = os.Readlink(path)
		}
		b.WriteString(strings.Join([]string{fi.Mode().String(), strconv.Quote(name), strconv.Quote(text)}, " ") + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// endless is a stream that never ends: files, or one file.
type endless struct{ next []byte }

func (e *endless) Read(p []byte) (int, error) { return copy(p, e.next), nil }

// A stream without end is ended before the file system is full.
func TestEndlessStream(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644, Size: 1 << 62}); err != nil {
		t.Fatal(err)
	}
	var full *NoSpaceError
	_, err = Extract(io.MultiReader(&head, &endless{make([]byte, 64<<10)}), root, "", 1<<62)
	if !errors.As(err, &full) {
		t.Errorf("one file: got %v", err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "x")); err != nil || fi.Size() > 2*lookEvery {
		t.Errorf("%v, %v", fi, err)
	}
	var empty bytes.Buffer
	w = tar.NewWriter(&empty)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "y", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := Extract(&endless{empty.Bytes()}, root, "", 1<<62); !errors.As(err, &full) {
		t.Errorf("many files: got %v", err)
	}
}
