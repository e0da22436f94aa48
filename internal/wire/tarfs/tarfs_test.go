package tarfs

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
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

func hostile(t testing.TB) map[string][]byte {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	return map[string][]byte{
		"absolute":             stream(t, file("/victim")),
		"parent":               stream(t, file("../victim")),
		"parent below":         stream(t, file("x/../../victim")),
		"dot":                  stream(t, file(".")),
		"empty component":      stream(t, file("x//victim")),
		"through a link":       stream(t, link("x", ".."), file("x/victim")),
		"through a long link":  stream(t, link("x", "y/z/../../.."), tar.Header{Typeflag: tar.TypeDir, Name: "y/"}, file("x/victim")),
		"onto a link":          stream(t, link("x", "../victim"), file("x")),
		"directory on a link":  stream(t, link("x", ".."), tar.Header{Typeflag: tar.TypeDir, Name: "x/"}, file("x/victim")),
		"hard link out":        stream(t, tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "../victim"}, file("x")),
		"hard link in":         stream(t, file("y"), tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "y"}),
		"device":               stream(t, tar.Header{Typeflag: tar.TypeChar, Name: "x", Devmajor: 1, Devminor: 3}),
		"pipe":                 stream(t, tar.Header{Typeflag: tar.TypeFifo, Name: "x"}, file("x")),
		"set user id":          stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o6755}),
		"cut off":              stream(t, file("x"))[:700],
		"garbage":              bytes.Repeat([]byte("garbage "), 200),
		"link into itself":     stream(t, link("x", "x"), file("x/y")),
		"directory and a file": stream(t, tar.Header{Typeflag: tar.TypeDir, Name: "x/"}, file("x")),
	}
}

// check extracts a stream into a directory next to a victim, and looks whether
// anything but that directory has changed.
func check(t *testing.T, b []byte, name string) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "inside")
	if err := os.WriteFile(filepath.Join(dir, "victim"), []byte("unharmed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	_, err = Extract(bytes.NewReader(b), root, name)
	t.Logf("error: %v", err)
	if got, err := os.ReadFile(filepath.Join(dir, "victim")); string(got) != "unharmed" {
		t.Errorf("the victim has %q, %v", got, err)
	}
	if outside, _ := os.ReadDir(dir); len(outside) != 2 {
		t.Errorf("the directory has %v", outside)
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
	f.Fuzz(func(t *testing.T, b []byte) { check(t, b, "") })
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
	if st, err := Extract(&b, root, ""); err != nil || st.Files != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
	if got, err := root.ReadFile("status"); err != nil || !strings.HasPrefix(string(got), "Name:") {
		t.Errorf("%.20q, %v", got, err)
	}
}
