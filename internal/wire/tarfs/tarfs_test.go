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
// and looks whether anything but the copy itself has changed. dir is empty, and again
// at the end.
func check(t *testing.T, dir string, b []byte, name string) {
	inside := filepath.Join(dir, "inside")
	defer func() {
		makeRemovable(inside)
		if err := errors.Join(os.RemoveAll(inside), os.RemoveAll(filepath.Join(dir, "victim"))); err != nil {
			t.Error(err)
		}
	}()
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

// makeRemovable gives back what a copy may have taken from its directories.
func makeRemovable(dir string) {
	if os.Geteuid() == 0 {
		return
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
}

func TestHostileStreams(t *testing.T) {
	for name, b := range hostile(t) {
		for _, as := range []string{"", "other"} {
			t.Run(name+"/"+as, func(t *testing.T) { check(t, t.TempDir(), b, as) })
		}
	}
}

// FuzzExtract extracts entries of a short description, so that what is tried are
// streams and not their checksums: type, name, link name and content, each behind its
// length.
func FuzzExtract(f *testing.F) {
	for _, b := range hostile(f) {
		f.Add(describe(b))
	}
	dir := memoryDir(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		s := described(b)
		check(t, dir, s, "")
		check(t, dir, s, "other")
	})
}

// gnuSparse is a stream of a kilobyte with a file of 8 TiB in GNU tar's format.
func gnuSparse(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	// archive/tar reads these records and refuses to write them, so they get their
	// names afterwards.
	records := map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.realsize": "8796093022208", "XXX.sparse.name": "x"}
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644, Size: 512, Format: tar.FormatPAX, PAXRecords: records})
	w.Write(append([]byte("1\n8796093022208\n0\n"), make([]byte, 512-18)...))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("XXX.sparse"), []byte("GNU.sparse"))
}

func TestHolesOfGNUTar(t *testing.T) {
	h, err := tar.NewReader(bytes.NewReader(gnuSparse(t))).Next()
	if err != nil || h.Size != 8<<40 {
		t.Fatalf("not what tar.Reader takes for it: %+v, %v", h, err)
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	st, err := Extract(bytes.NewReader(gnuSparse(t)), root, "", 1<<20)
	if err == nil || !strings.Contains(err.Error(), "GNU.sparse.") || st.Bytes != 0 {
		t.Errorf("%d bytes were written: %v", st.Bytes, err)
	}
}

// memoryDir is a directory in memory if that can be had: it is made and removed
// thousands of times.
func memoryDir(f *testing.F) string {
	dir, err := os.MkdirTemp("/dev/shm", "tarfs")
	if err != nil {
		return f.TempDir()
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// describe is the description of a stream, as far as it can be read.
func describe(stream []byte) (b []byte) {
	field := func(text string) {
		text = text[:min(len(text), 255)]
		b = append(append(b, byte(len(text))), text...)
	}
	r := tar.NewReader(bytes.NewReader(stream))
	for {
		h, err := r.Next()
		if err != nil {
			return b
		}
		content, _ := io.ReadAll(r)
		b = append(b, h.Typeflag, byte(h.Mode>>8), byte(h.Mode))
		field(h.Name)
		field(h.Linkname)
		field(h.PAXRecords[sparseSize])
		field(string(content))
	}
}

// described is the stream of a description.
func described(b []byte) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	field := func() string {
		if len(b) == 0 {
			return ""
		}
		n := min(int(b[0]), len(b)-1)
		text := string(b[1 : 1+n])
		b = b[1+n:]
		return text
	}
	for len(b) >= 3 {
		h := tar.Header{Typeflag: b[0], Mode: int64(b[1])<<8&0o7777 | int64(b[2]), Format: tar.FormatPAX}
		b = b[3:]
		h.Name, h.Linkname = field(), field()
		if size := field(); size != "" {
			h.PAXRecords = map[string]string{sparseSize: size}
		}
		content := field()
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if w.WriteHeader(&h) == nil && h.Typeflag == tar.TypeReg {
			io.WriteString(w, content)
		}
	}
	w.Close()
	return out.Bytes()
}

// A deep tree costs what its entries cost, and not its depth each time; also on the
// way up.
func TestDeepTree(t *testing.T) {
	const depth = 500
	var entries []tar.Header
	for i := range depth {
		name := strings.Repeat("d/", i+1)
		entries = append(entries, tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o500})
	}
	for i := range depth {
		name := strings.Repeat("d/", depth-i) + "x"
		entries = append(entries, tar.Header{Typeflag: tar.TypeReg, Name: name}, tar.Header{Typeflag: tar.TypeLink, Name: name + "y", Linkname: name})
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	before := openFiles(t)
	x := newExtractor(root, "", 1)
	st, err := x.extract(bytes.NewReader(stream(t, entries...)))
	if err != nil || st.Files != 2*depth {
		t.Fatalf("%+v, %v", st, err)
	}
	if most := len(entries) + depth*depth/keepOpen + 2*depth; x.chain.opens > most {
		t.Errorf("%d directories were opened for %d entries, want at most %d", x.chain.opens, len(entries), most)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, and %d were before", after, before)
	}
	makeRemovable(root.Name())
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// An earlier copy may have left links: nothing is written through them, also not to
// what is below the output directory.
func TestOutputDirectory(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	out, err := os.OpenRoot(mkdir(t, dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	mkdir(t, dir, "victim")
	first := stream(t, tar.Header{Typeflag: tar.TypeDir, Name: "data/"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "data/link", Linkname: victim},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "data/up", Linkname: "../.."},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "data/here", Linkname: ".."},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "data/net.pcapng", Linkname: "../../victim/captured"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "data/report", Linkname: "../report"})
	if _, err := Extract(bytes.NewReader(first), out, "", 1); err != nil {
		t.Fatal(err)
	}
	if err := out.WriteFile("report", []byte("unharmed"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"data/link", "data/link/below", "data/up/victim", "data/here", "data/here/below", "..", "../victim", victim, "data/../..", "report", "a\x1b[31m/../../b"} {
		d, err := OpenDir(out, name)
		if err == nil {
			d.Close()
			t.Errorf("%q was opened", name)
		} else if strings.Contains(err.Error(), "\x1b") {
			t.Errorf("an escape in %q", err)
		}
		if f, err := Create(out, name+"/file"); err == nil {
			f.Close()
			t.Errorf("a file was made in %q", name)
		}
	}
	for _, name := range []string{"data/net.pcapng", "data/report", "new/below/file", "data/report"} {
		f, err := Create(out, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(name); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if got, err := out.ReadFile(name); err != nil || string(got) != name {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	d, err := OpenDir(out, "new/below")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := Extract(bytes.NewReader(stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "owned"})), d, "", 1); err != nil {
		t.Fatal(err)
	}
	if got, err := out.ReadFile("new/below/owned"); err != nil || string(got) != "evil" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := out.ReadFile("report"); err != nil || string(got) != "unharmed" {
		t.Errorf("the report has %q, %v", got, err)
	}
	if around, _ := os.ReadDir(victim); len(around) > 0 {
		t.Errorf("written outside: %v", around)
	}
}

func mkdir(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// The names in a stream do nothing to a terminal that shows an error.
func TestNamesInErrors(t *testing.T) {
	const name = "\x1b]0;title\a\n"
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	dir := tar.Header{Typeflag: tar.TypeDir, Name: name + "/"}
	file := tar.Header{Typeflag: tar.TypeReg, Name: name}
	for what, s := range map[string][]byte{
		"a file on a directory":        stream(t, dir, file),
		"a link on a directory":        stream(t, dir, tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: name}),
		"a hard link on a directory":   stream(t, dir, tar.Header{Typeflag: tar.TypeReg, Name: "x"}, tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: "x"}),
		"no directory above":           stream(t, tar.Header{Typeflag: tar.TypeReg, Name: name + "/x/y"}),
		"a link to nothing":            stream(t, tar.Header{Typeflag: tar.TypeLink, Name: "z", Linkname: name}),
		"a name that is too long":      stream(t, tar.Header{Typeflag: tar.TypeReg, Name: name + strings.Repeat("x", 300)}),
		"a name that is no local path": stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "../" + name}),
	} {
		_, err := Extract(bytes.NewReader(s), root, "", 1)
		if err == nil || strings.ContainsAny(err.Error(), "\x1b\a\n") {
			t.Errorf("%s: %q", what, err)
		}
	}
}

// A stream of empty files ends before the inodes do, and one without end at some
// number of entries.
func TestInodes(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var empty bytes.Buffer
	if err := tar.NewWriter(&empty).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "y", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	x := newExtractor(root, "", 1)
	free := uint64(6_000)
	x.statfs = func(_ int, st *syscall.Statfs_t) error {
		free -= 256
		*st = syscall.Statfs_t{Bsize: 4096, Bavail: 1 << 30, Files: 6_000, Ffree: free}
		return nil
	}
	_, err = x.extract(&endless{empty.Bytes()})
	var full *NoSpaceError
	if !errors.As(err, &full) || !full.Inodes || full.Free < 300-256 || full.Free >= 300 {
		t.Errorf("%d inodes are left: %v", free, err)
	}
	x = newExtractor(root, "", 1)
	x.entries = maxEntries - 1
	x.statfs = func(_ int, st *syscall.Statfs_t) error { // without a number of inodes
		*st = syscall.Statfs_t{Bsize: 4096, Bavail: 1 << 30}
		return nil
	}
	if st, err := x.extract(&endless{empty.Bytes()}); st.Files != 1 || err == nil || !strings.Contains(err.Error(), "entries") {
		t.Errorf("%+v, %v", st, err)
	}
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
