package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestFiles copies in both directions, also what is hard to copy.
func TestFiles(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	lab := attest.NewLab(t, attest.LabConfig{OutDir: out, Machines: []attest.MachineConfig{{Name: "m", Image: attest.Debian{}, Memory: 256, Networks: []int{}}}})
	m := lab.Machine("m")
	m.WaitForUnit("multi-user.target")
	for _, test := range []struct {
		name string
		run  func(*testing.T, tried, string)
	}{
		{"copies", func(t *testing.T, m tried, _ string) { testCopies(t, m) }},
		{"copies that fail", testCopyErrors},
		{"holes", testHoles},
		{"names and links", testNamesAndLinks},
		{"what is in the way", testInTheWay},
		{"a tree that leads out", testLeadingOut},
		{"through the shell", testViaShell},
		{"given up", testCopyGivenUp},
		{"the guest panics", testCopyPanic},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, tried{m.Machine, t}, out) })
	}
}

// A tree comes back as it was sent: modes, symbolic links, empty files, and
// names that are hard to write.
func testCopies(t *testing.T, m tried) {
	ctx := t.Context()
	tree := filepath.Join(t.TempDir(), "tree")
	makeTree(t, tree)
	if err := m.CopyFromHost(ctx, tree, "/srv/made/for/it"); err != nil {
		t.Fatal(err)
	}
	if got, want := m.succeed("cd /srv/made/for/it; stat -c '%a %F' program sub link empty; readlink link; cat sub/$'new\\nline'; sha256sum < big"),
		"750 regular file\n711 directory\n777 symbolic link\n644 regular empty file\nsub/nowhere\ntext\n"; !strings.HasPrefix(got, want) {
		t.Errorf("in the guest:\n%s", got)
	}
	back := t.TempDir()
	if err := m.CopyFromMachine(ctx, "/srv/made/for/it", back); err != nil {
		t.Fatal(err)
	}
	if got, want := listTree(t, filepath.Join(back, "it")), listTree(t, tree); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// One file, into a directory and to a name.
	if err := errors.Join(m.CopyFromHost(ctx, filepath.Join(tree, "program"), "/srv"), m.CopyFromHost(ctx, filepath.Join(tree, "program"), "/srv/renamed")); err != nil {
		t.Fatal(err)
	}
	if got := m.succeed("cmp /srv/program /srv/renamed; /srv/renamed"); got != "a program\n" {
		t.Errorf("got %q", got)
	}
}

func makeTree(t *testing.T, dir string) {
	t.Helper()
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "sub"), 0o711),
		os.WriteFile(filepath.Join(dir, "program"), []byte("#!/bin/sh\necho a program\n"), 0o750),
		os.WriteFile(filepath.Join(dir, "empty"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "big"), big, 0o600),
		os.WriteFile(filepath.Join(dir, "sub", "new\nline"), []byte("text\n"), 0o444),
		os.WriteFile(filepath.Join(dir, "sub", "ünï cödé $(false) 'q'"), []byte{0}, 0o644),
		os.Symlink("sub/nowhere", filepath.Join(dir, "link")),
		os.Chmod(filepath.Join(dir, "sub"), 0o711), // whatever the umask
		os.Chmod(filepath.Join(dir, "program"), 0o750),
	)
	if err != nil {
		t.Fatal(err)
	}
}

// listTree is a tree as text: names, modes, contents.
func listTree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%q %v", name, info.Mode())
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			fmt.Fprintf(&b, " %d %x %v", len(data), sha256.Sum256(data), err)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			fmt.Fprintf(&b, " %s %v", target, err)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func testCopyErrors(t *testing.T, m tried, _ string) {
	ctx := t.Context()
	if err := m.CopyFromHost(ctx, "/no/such/file", "/tmp/x"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("got %v", err)
	}
	if err := m.CopyFromHost(ctx, "main_test.go", "relative/path"); err == nil || !strings.Contains(err.Error(), "relative/path") {
		t.Errorf("got %v", err)
	}
	dir := t.TempDir()
	if err := m.CopyFromMachine(ctx, "/no/such/file", dir); err == nil || !strings.Contains(err.Error(), "/no/such/file") || attest.StatusOf(err) != attest.Failed {
		t.Errorf("got %v", err)
	}
	// Where there is no space: an error, and the machine goes on.
	m.succeed("mkdir /tmp/tiny; mount -t tmpfs -o size=64k tmpfs /tmp/tiny")
	big := writeFile(t, filepath.Join(dir, "big"), strings.Repeat("x", 1<<20))
	if err := m.CopyFromHost(ctx, big, "/tmp/tiny/big"); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("got %v", err)
	}
	m.succeed("umount /tmp/tiny")
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}

// Files of many GiB that are mostly holes are copied as fast as what is in them,
// and take no more room there.
func testHoles(t *testing.T, m tried, out string) {
	ctx := t.Context()
	const size = 20 << 30
	src := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.WriteAt([]byte("in the middle"), 7<<30)
	if err := errors.Join(err, f.Truncate(size)); err != nil {
		t.Fatal(err)
	}
	if err := m.CopyFromHost(ctx, src, "/var/tmp/"); err != nil {
		t.Fatal(err)
	}
	if got := m.succeed("cd /var/tmp; stat -c %s sparse; test $(du -k sparse | cut -f1) -lt 1024; tail -c +$((7*1024*1024*1024+1)) sparse | head -c 13 || true"); got != "21474836480\nin the middle" {
		t.Errorf("in the guest: %q", got)
	}
	m.succeed("printf end >> /var/tmp/sparse; truncate -s 30G /var/tmp/nothing")
	if err := errors.Join(m.CopyFromMachine(ctx, "/var/tmp/sparse", ""), m.CopyFromMachine(ctx, "/var/tmp/nothing", "")); err != nil {
		t.Fatal(err)
	}
	back, err := os.Open(filepath.Join(out, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	for offset, want := range map[int64]string{7 << 30: "in the middle", size: "end"} {
		got := make([]byte, len(want))
		if _, err := back.ReadAt(got, offset); err != nil || string(got) != want {
			t.Errorf("at %d: %q, %v; want %q", offset, got, err, want)
		}
	}
	if fi, err := os.Stat(filepath.Join(out, "nothing")); err != nil || fi.Size() != 30<<30 {
		t.Errorf("a file that is one hole: %v, %v", fi, err)
	}
	for _, name := range []string{"sparse", "nothing"} {
		if n := blocks(t, filepath.Join(out, name)); n > 1<<20 {
			t.Errorf("%s takes %d bytes", name, n)
		}
	}
}

// Names have any bytes, and a file may have several.
func testNamesAndLinks(t *testing.T, m tried, _ string) {
	ctx := t.Context()
	src := filepath.Join(t.TempDir(), "odd \xff\n")
	for _, err := range []error{
		os.Mkdir(src, 0o755),
		os.WriteFile(filepath.Join(src, "\xfe$(touch harm)"), []byte("x"), 0o644),
		os.WriteFile(filepath.Join(src, "one"), []byte("of several"), 0o600),
		os.Link(filepath.Join(src, "one"), filepath.Join(src, "two")),
		os.Symlink("\x80\n", filepath.Join(src, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.CopyFromHost(ctx, src, "/srv/odd \xff\n"); err != nil {
		t.Fatal(err)
	}
	m.succeed(`cd $'/srv/odd \xff\n'; test one -ef two; test -f $'\xfe$(touch harm)'; test "$(readlink link; echo x)" = $'\x80\n\nx'; test ! -e harm`)
	back := t.TempDir()
	if err := m.CopyFromMachine(ctx, "/srv/odd \xff\n", back); err != nil {
		t.Fatal(err)
	}
	if got, want := listTree(t, filepath.Join(back, filepath.Base(src))), listTree(t, src); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	one, err1 := os.Stat(filepath.Join(back, filepath.Base(src), "one"))
	two, err2 := os.Stat(filepath.Join(back, filepath.Base(src), "two"))
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(one, two) {
		t.Errorf("one and two are two files, %v", err)
	}
}

// Files are overwritten, directories merged, links replaced.
func testInTheWay(t *testing.T, m tried, _ string) {
	ctx := t.Context()
	back := t.TempDir()
	victim := writeFile(t, filepath.Join(back, "victim"), "unharmed")
	if err := errors.Join(os.Mkdir(filepath.Join(back, "tree"), 0o755), os.Symlink(victim, filepath.Join(back, "tree", "file"))); err != nil {
		t.Fatal(err)
	}
	kept := writeFile(t, filepath.Join(back, "tree", "kept"), "kept")
	m.succeed("mkdir /tmp/tree; echo new > /tmp/tree/file")
	for range 2 {
		if err := m.CopyFromMachine(ctx, "/tmp/tree", back); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{victim: "unharmed", kept: "kept", filepath.Join(back, "tree", "file"): "new\n"} {
		if got, err := os.ReadFile(path); string(got) != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	m.succeed("rm -r /tmp/tree; echo a file > /tmp/tree")
	if err := m.CopyFromMachine(ctx, "/tmp/tree", back); err == nil || attest.StatusOf(err) != attest.Failed {
		t.Errorf("a file in the place of a directory: %v", err)
	}
}

// Links that lead out of a tree, and devices in it, do no harm on the host.
func testLeadingOut(t *testing.T, m tried, _ string) {
	back := t.TempDir()
	m.succeed("mkdir -p /tmp/evil/sub; cd /tmp/evil; ln -s .. up; ln -s / root; ln -s ../../victim sub/v; mknod null c 1 3; mkfifo pipe; ln -s self self; echo ok > file")
	if err := m.CopyFromMachine(t.Context(), "/tmp/evil", filepath.Join(back, "here")); err != nil {
		t.Fatal(err)
	}
	want := []string{"file", "root", "self", "sub", "up"}
	entries, err := os.ReadDir(filepath.Join(back, "here", "evil"))
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if around, err := os.ReadDir(back); err != nil || len(around) != 1 {
		t.Errorf("beside the copy: %v, %v", around, err)
	}
}

func testViaShell(t *testing.T, m tried, _ string) {
	ctx := t.Context()
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcde\x00"), 1<<16)
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.CopyFromHostViaShell(ctx, big, "/tmp/made/for it/'big"), m.CopyFromMachine(ctx, "/tmp/made/for it/'big", filepath.Join(dir, "back"))); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "back", "'big")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	if err := m.CopyFromHostViaShell(ctx, dir, "/tmp/x"); err == nil || !strings.Contains(err.Error(), "copy_from_host copies trees") {
		t.Errorf("a directory: %v", err)
	}
	if err := m.CopyFromHostViaShell(ctx, filepath.Join(dir, "nothing"), "/tmp/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := m.CopyFromHostViaShell(ctx, big, "/proc/no/such"); err == nil || attest.StatusOf(err) != attest.Failed {
		t.Errorf("a place where nothing can be written: %v", err)
	}
}

// Who gives a copy up can go on with the machine.
func testCopyGivenUp(t *testing.T, m tried, _ string) {
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 256<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- m.CopyFromHost(ctx, big, "/var/tmp/big") }()
	m.succeed("until test -s /var/tmp/big; do sleep 0.01; done", attest.Timeout(patience))
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("in: %v", err)
	}
	m.succeed("rm /var/tmp/big")

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	back := t.TempDir()
	go func() { result <- m.CopyFromMachine(ctx, "/usr", back) }()
	awaitHost(t, result, func() bool { _, err := os.Stat(filepath.Join(back, "usr")); return err == nil })
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("out: %v", err)
	}
	m.succeed("true")
}

// awaitHost waits for what an operation that is under way does on the host.
func awaitHost(t *testing.T, result <-chan error, happened func() bool) {
	t.Helper()
	for !happened() {
		select {
		case err := <-result:
			t.Fatalf("it ended before that: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// A guest that panics in the middle of a copy ends it at once.
func testCopyPanic(t *testing.T, m tried, _ string) {
	ctx := t.Context()
	back := t.TempDir()
	m.succeed("set +o pipefail; yes much | head -c 200M > /var/tmp/much") // head ends yes by SIGPIPE
	result := make(chan error, 1)
	go func() { result <- m.CopyFromMachine(ctx, "/var/tmp/much", back) }()
	awaitHost(t, result, func() bool { fi, err := os.Stat(filepath.Join(back, "much")); return err == nil && fi.Size() > 0 })
	if err := m.KernelPanic(ctx); err != nil {
		t.Fatal(err)
	}
	if down := errorAs[*attest.DownError](t, <-result); !strings.Contains(down.Reason, "Kernel panic") || down.Operation != "copy_from_machine" {
		t.Errorf("got %+v", down)
	}
}
