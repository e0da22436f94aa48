package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/event"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSet(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	o := Options{
		Terminal: &TerminalOptions{Stdout: &out, Stderr: io.Discard},
		JUnit:    filepath.Join(dir, "deep/er/junit.xml"), HTML: filepath.Join(dir, "html/report.html"), JSON: filepath.Join(dir, "events.jsonl"),
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	var bus event.Bus
	bus.Subscribe(s.Record)
	bus.Publish(event.Scope{}, event.RunStarted{Files: []string{"a.star"}})
	bus.Publish(event.Scope{File: "a.star", Test: "main"}, event.TestStarted{})

	// A run that is killed here has its lines.
	if n := strings.Count(read(t, o.JSON), "\n"); n != 2 {
		t.Errorf("%d lines of JSON after two events", n)
	}
	for _, path := range []string{o.JUnit, o.HTML} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s exists before the end", path)
		}
	}
	// One that is interrupted has everything.
	written, err := s.Close()
	if err != nil {
		t.Fatal(err)
	}
	if want := []event.Artifact{{Kind: "junit", Path: o.JUnit}, {Kind: "html", Path: o.HTML}, {Kind: "json", Path: o.JSON}}; !equal(written, want) {
		t.Errorf("Close returned %v, want %v", written, want)
	}
	for _, a := range written {
		if !strings.Contains(out.String(), a.Path) {
			t.Errorf("the summary does not name %s:\n%s", a.Path, out.String())
		}
	}
	var doc junitSuites
	if err := xml.Unmarshal([]byte(read(t, o.JUnit)), &doc); err != nil || doc.Errors != 1 {
		t.Errorf("JUnit has %d errors, want the interrupted test (%v)", doc.Errors, err)
	}
	for line := range strings.Lines(read(t, o.JSON)) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	onlyFiles(t, dir, 3)
	if again, err := s.Close(); len(again) > 0 || err != nil {
		t.Errorf("a second Close: %v, %v", again, err)
	}
}

func equal(a, b []event.Artifact) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// onlyFiles fails when dir has more than n files: something temporary stayed.
func onlyFiles(t *testing.T, dir string, n int) {
	t.Helper()
	var files []string
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if len(files) != n {
		t.Errorf("want %d files, have %q", n, files)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o666); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"a directory":       {Options{JUnit: dir}, []string{"junit", dir, "is a directory"}},
		"below a file":      {Options{HTML: file + "/x/report.html"}, []string{"html", file, "not a directory"}},
		"no such file tree": {Options{JSON: "/proc/nothing/x.jsonl"}, []string{"json", "/proc/nothing"}},
		"one path twice":    {Options{JUnit: file, JSON: filepath.Join(dir, ".", "file")}, []string{file, "same path"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(c.o)
			if err == nil {
				s.Close()
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
	if read(t, file) != "kept" {
		t.Error("a refused Open changed a file")
	}
	onlyFiles(t, dir, 1)
}

// A report that cannot be written keeps the others from nothing.
func TestCloseFails(t *testing.T) {
	dir := t.TempDir()
	o := Options{JUnit: filepath.Join(dir, "gone/junit.xml"), HTML: filepath.Join(dir, "report.html"), JSON: "/dev/full"}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Dir(o.JUnit)); err != nil {
		t.Fatal(err)
	}
	s.Record(event.Record{Seq: 1, Event: event.RunStarted{}})
	written, err := s.Close()
	if err == nil || !strings.Contains(err.Error(), o.JUnit) || !strings.Contains(err.Error(), "/dev/full: no space left") {
		t.Errorf("error %v", err)
	}
	if want := []event.Artifact{{Kind: "html", Path: o.HTML}}; !equal(written, want) {
		t.Errorf("written %v, want %v", written, want)
	}
	onlyFiles(t, dir, 1)
}

// A disk that is full when a document is written leaves the one that was there.
func TestWriteFileIsWhole(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("target", link); err != nil {
		t.Fatal(err)
	}
	err := writeFile(link, func(w io.Writer) error {
		io.WriteString(w, "half of ")
		return io.ErrShortWrite
	})
	if err != io.ErrShortWrite || read(t, target) != "old" {
		t.Errorf("error %v, target %q", err, read(t, target))
	}
	if err := writeFile(link, func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }); err != nil {
		t.Fatal(err)
	}
	if read(t, target) != "new" {
		t.Errorf("target %q: the link was replaced", read(t, target))
	}
	onlyFiles(t, dir, 2)
}

func TestStdoutError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	s, err := Open(Options{Terminal: &TerminalOptions{Stdout: full, Stderr: io.Discard}})
	if err != nil {
		t.Fatal(err)
	}
	s.Record(event.Record{Seq: 1, Event: event.RunStarted{}})
	if _, err := s.Close(); err == nil || !strings.Contains(err.Error(), "standard output") {
		t.Errorf("results were lost in silence: %v", err)
	}
}
