package attest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/event"
)

// What a guest's earlier copy has brought does not lead a later one out of the
// output directory.
func TestOutputDoesNotFollowLinks(t *testing.T) {
	dir, victim := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"data/link": victim, "file": filepath.Join(victim, "made"), "inside": "data"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	o := output{dir: dir}
	defer o.close()
	for _, name := range []string{"data/link", "inside", "../x"} {
		if root, _, err := o.directory(name, "x", "m: copy of /x"); err == nil {
			root.Close()
			t.Errorf("%s: a copy may be made there", name)
		}
	}
	if f, _, err := o.create("data/link/net.pcapng", "network.capture"); err == nil {
		f.Close()
		t.Error("a capture went through a link")
	}
	f, path, err := o.create("file", "m: screenshot") // the link makes room
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if fi, err := os.Lstat(path); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("%s: %v, %v", path, fi, err)
	}
	if left, err := os.ReadDir(victim); err != nil || len(left) > 0 {
		t.Errorf("outside of the directory there is %v, %v", left, err)
	}
}

// Two things of one name are an error that names both; the same thing twice is not.
func TestOutputCollides(t *testing.T) {
	o := output{dir: t.TempDir()}
	defer o.close()
	open := func(what string) error {
		root, _, err := o.directory("logs", "a.log", what)
		if err == nil {
			root.Close()
		}
		return err
	}
	if err := errors.Join(open("a: copy of /tmp/a.log"), open("a: copy of /tmp/a.log")); err != nil {
		t.Error(err)
	}
	err := open("b: copy of /tmp/a.log")
	if StatusOf(err) != Invalid || !strings.Contains(err.Error(), "b: copy of") || !strings.Contains(err.Error(), "by a: copy of") {
		t.Errorf("got %v", err)
	}
}

// A test file's tests and machines have directories of their own.
func TestPlaces(t *testing.T) {
	ctx := context.Background()
	var o output
	if got := o.place(ctx, "m", "x"); got != "x" {
		t.Errorf("in Go: %s", got)
	}
	ctx = event.WithScope(ctx, event.Scope{File: "sub/web_test.star", Test: "test_a"})
	if got := o.place(ctx, "m", "logs/x"); got != "sub-web_test-test_a/m/logs/x" {
		t.Errorf("in a test file: %s", got)
	}
	if got := o.place(ctx, "", "x.pcapng"); got != "sub-web_test-test_a/x.pcapng" {
		t.Errorf("of no machine: %s", got)
	}
	o.flat = true
	if got := o.place(ctx, "m", "logs/x"); got != "logs/x" {
		t.Errorf("in a flat directory: %s", got)
	}
	if err := errors.Join(o.claim("x", "a: copy of /x"), o.claim("x", "b: copy of /x")); err != nil {
		t.Error(err)
	}
}
