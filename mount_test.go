package attest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// Machines of these tests have canned answers, so that each has files of its own, which
// snapshots keep.
func (s *stage) cannedLab(t *testing.T, config MachineConfig) *Lab {
	t.Helper()
	config.Name, config.Backend, config.Boot = "a", s.backend, BootCold
	config.MockScript = []byte(`{"answers": [{"command": "true"}]}`)
	return s.open(t, LabConfig{OutDir: t.TempDir(), Machines: []MachineConfig{config}})
}

// hostFiles writes files of the host; an empty content removes one.
func hostFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if content == "" {
			err = os.RemoveAll(path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

var copies int

// has copies a path of the guest out and compares what is there: files by their path,
// with their content, "-> x" for links, and directories without an own entry if they have
// any.
func has(t *testing.T, l *Lab, dir string, want map[string]string) {
	t.Helper()
	copies++
	out := fmt.Sprint("out", copies)
	if err := l.Machine("a").CopyFromMachine(limited(t), dir, out); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	root := filepath.Join(l.config.OutDir, out, filepath.Base(dir))
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		switch {
		case err != nil:
		case d.IsDir():
			if names, _ := os.ReadDir(path); len(names) == 0 {
				got[rel+"/"] = ""
			}
		case d.Type() == os.ModeSymlink:
			var link string
			link, err = os.Readlink(path)
			got[rel] = "-> " + link
		default:
			var content []byte
			content, err = os.ReadFile(path)
			got[rel] = string(content)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s has %v, want %v", dir, got, want)
	}
}

// A machine has its files before its first operation, and each fork has what has changed
// since; what a test has made of them stays.
func TestFilesOfForks(t *testing.T) {
	s := newStage(t, mock.Options{})
	dir := t.TempDir()
	hostFiles(t, dir, map[string]string{"app": "one", "conf/a": "a", "conf/b": "b", "d/e/f": "f"})
	if err := os.Symlink("app", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	l := s.cannedLab(t, MachineConfig{
		Mount: map[string]string{"/opt/app": dir},
		Files: map[string]File{"/etc/app.conf": {Content: "x"}, "/opt/app/conf/own": {Content: "in the tree", Mode: 0o600}},
	})
	a := l.Machine("a")
	if _, err := a.Succeed(limited(t), "true"); err != nil {
		t.Fatal(err)
	}
	has(t, l, "/opt/app", map[string]string{"app": "one", "conf/a": "a", "conf/b": "b", "conf/own": "in the tree", "d/e/f": "f", "link": "-> app"})
	has(t, l, "/etc", map[string]string{"app.conf": "x"})

	// The guest changes one, and makes another.
	own := filepath.Join(t.TempDir(), "own")
	hostFiles(t, filepath.Dir(own), map[string]string{"own": "the guest's"})
	for _, to := range []string{"/opt/app/conf/b", "/opt/app/d/mine"} {
		if err := a.CopyFromHost(limited(t), own, to); err != nil {
			t.Fatal(err)
		}
	}
	state, err := l.Snapshot(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	fork := func() *Lab {
		t.Helper()
		f, err := state.Fork(s.context(t))
		if err != nil {
			t.Fatal(err)
		}
		closeLab(t, f)
		return f
	}
	steps := func() (n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range s.records {
			if e, ok := r.Event.(event.StepStarted); ok && e.Operation == "files" {
				n++
			}
		}
		return n
	}
	before := steps()
	unchanged := fork()
	has(t, unchanged, "/opt/app", map[string]string{
		"app": "one", "conf/a": "a", "conf/b": "the guest's", "conf/own": "in the tree", "d/e/f": "f", "d/mine": "the guest's", "link": "-> app",
	})
	if n := steps(); n != before {
		t.Errorf("files came to a fork %d times although nothing had changed", n-before)
	}

	hostFiles(t, dir, map[string]string{"app": "two", "conf/a": "", "conf/c": "c", "d/e": "", "new/x": "x"})
	hostFiles(t, dir, map[string]string{"d/e": "a file now"})
	changed := fork()
	has(t, changed, "/opt/app", map[string]string{
		"app": "two", "conf/b": "the guest's", "conf/c": "c", "conf/own": "in the tree", "d/e": "a file now", "d/mine": "the guest's", "link": "-> app", "new/x": "x",
	})
	// A further start from the disk leaves it alone.
	hostFiles(t, dir, map[string]string{"app": "three"})
	m := changed.Machine("a")
	if err := m.Crash(limited(t)); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(limited(t)); err != nil {
		t.Fatal(err)
	}
	has(t, changed, "/opt/app", map[string]string{
		"app": "two", "conf/b": "the guest's", "conf/c": "c", "conf/own": "in the tree", "d/e": "a file now", "d/mine": "the guest's", "link": "-> app", "new/x": "x",
	})
	// And so does a checkpoint, but for what has changed.
	if err := m.SnapshotCreate(limited(t), "here"); err != nil {
		t.Fatal(err)
	}
	if err := m.SnapshotRestore(limited(t), "here"); err != nil {
		t.Fatal(err)
	}
	has(t, changed, "/opt/app/conf", map[string]string{"b": "the guest's", "c": "c", "own": "in the tree"})
	has(t, changed, "/opt/app", map[string]string{
		"app": "three", "conf/b": "the guest's", "conf/c": "c", "conf/own": "in the tree", "d/e": "a file now", "d/mine": "the guest's", "link": "-> app", "new/x": "x",
	})
}

// A saved lab has the files that it was saved with, and is good for others.
func TestFilesOfSavedLabs(t *testing.T) {
	s := newStage(t, mock.Options{Warm: true})
	dir := t.TempDir()
	hostFiles(t, dir, map[string]string{"app": "one"})
	l := s.cannedLab(t, MachineConfig{Mount: map[string]string{"/opt/app": dir}, Files: map[string]File{"/etc/x": {Content: "\xff"}, "/etc/old": {Content: "old"}}})
	if _, err := l.Machine("a").Succeed(limited(t), "true"); err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(t.TempDir(), "saved")
	if err := l.Save(limited(t), saved); err != nil {
		t.Fatal(err)
	}
	hostFiles(t, dir, map[string]string{"app": "two"})
	open := func(machines ...MachineConfig) *Lab {
		t.Helper()
		l, err := testHost.OpenLab(s.context(t), saved, LabConfig{OutDir: t.TempDir(), Machines: machines})
		if err != nil {
			t.Fatal(err)
		}
		closeLab(t, l)
		return l
	}
	as := open()
	has(t, as, "/opt/app", map[string]string{"app": "one"})
	has(t, as, "/etc", map[string]string{"x": "\xff", "old": "old"})
	same := open(l.config.Machines...)
	has(t, same, "/opt/app", map[string]string{"app": "two"})
	has(t, same, "/etc", map[string]string{"x": "\xff", "old": "old"})
	other := open(MachineConfig{Name: "a", Files: map[string]File{"/etc/x": {Content: "y"}, "/etc/new": {Content: "new"}}})
	has(t, other, "/etc", map[string]string{"x": "y", "new": "new"})
	if !strings.Contains(s.warnings(), "changed since the snapshot") { // a canned guest keeps no times
		t.Errorf("the warnings are %q", s.warnings())
	}
}

// A saved lab goes on with the backend that it was saved on, and not with another that
// somebody asks for.
func TestBackendOfSavedLabs(t *testing.T) {
	s := newStage(t, mock.Options{Warm: true})
	l := s.cannedLab(t, MachineConfig{})
	saved := filepath.Join(t.TempDir(), "saved")
	if _, err := l.Machine("a").Succeed(limited(t), "true"); err != nil {
		t.Fatal(err)
	}
	if err := l.Save(limited(t), saved); err != nil {
		t.Fatal(err)
	}
	for backend, fits := range map[string]bool{"": true, "auto": true, s.backend: true, "firecracker": false} {
		l, err := testHost.OpenLab(s.context(t), saved, LabConfig{OutDir: t.TempDir(), Machines: []MachineConfig{{Name: "a", Backend: backend}, {Name: "other", Backend: "qemu"}}})
		var mismatch *SnapshotMismatchError
		switch {
		case err == nil:
			closeLab(t, l)
			if !fits {
				t.Errorf("it goes on with %s", backend)
			}
		case fits || !errors.As(err, &mismatch) || mismatch.What != "backend" || mismatch.Now != backend:
			t.Errorf("%q: %v", backend, err)
		}
	}
}

// Trees may be large: what has to be said of them does not fit into one request.
func TestManyFiles(t *testing.T) {
	s := newStage(t, mock.Options{})
	dir := t.TempDir()
	const count = 450
	name := func(i int) string {
		return fmt.Sprintf("directory %d/%s %d", i%50, strings.Repeat("x", 150), i)
	}
	for i := range count {
		hostFiles(t, dir, map[string]string{name(i): "one"})
	}
	l := s.cannedLab(t, MachineConfig{Mount: map[string]string{"/opt/many": dir}})
	if _, err := l.Machine("a").Succeed(limited(t), "true"); err != nil {
		t.Fatal(err)
	}
	state, err := l.Snapshot(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	want := map[string]string{}
	for i := range count {
		switch i % 3 {
		case 0:
			hostFiles(t, dir, map[string]string{name(i): ""})
			continue
		case 1:
			hostFiles(t, dir, map[string]string{name(i): "two"})
			want[name(i)] = "two"
		default:
			want[name(i)] = "one"
		}
	}
	for i := range 50 {
		if err := os.Chmod(filepath.Join(dir, filepath.Dir(name(i))), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	fork, err := state.Fork(s.context(t))
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, fork)
	has(t, fork, "/opt/many", want)
}

// Files that cannot be are refused before anything starts, and those that come to
// nothing later say so with the kind of a mistake.
func TestFilesThatCannotBe(t *testing.T) {
	s := newStage(t, mock.Options{})
	dir := t.TempDir()
	hostFiles(t, dir, map[string]string{"app": "one"})
	for _, tt := range []struct {
		name   string
		config MachineConfig
		want   string
	}{
		{"relative target", MachineConfig{Mount: map[string]string{"opt": dir}}, `machine "a": mount["opt"]: want a clean absolute path in the guest`},
		{"root", MachineConfig{Mount: map[string]string{"/": dir}}, `machine "a": mount["/"]: want a path below /, such as /opt/app`},
		{"empty at boot", MachineConfig{Files: map[string]File{"/run/x": {}}}, `machine "a": files["/run/x"]: the guest mounts an empty file system there when it boots; choose another place, such as below /opt or /etc`},
		{"twice", MachineConfig{Mount: map[string]string{"/x": dir}, Files: map[string]File{"/x": {}}}, `machine "a": files["/x"]: it is in files, too`},
		{"no source", MachineConfig{Mount: map[string]string{"/x": ""}}, `machine "a": mount["/x"]: want the path of a file or a directory of the host`},
		{"content and path", MachineConfig{Files: map[string]File{"/x": {Content: "x", Path: dir}}}, `machine "a": files["/x"]: it has both content and path; leave out one of the two`},
		{"not there", MachineConfig{Mount: map[string]string{"/x": dir + "/none"}}, `machine "a": mount["/x"]: ` + dir + "/none: no such file or directory"},
		{"a directory", MachineConfig{Files: map[string]File{"/x": {Path: dir}}}, `machine "a": files["/x"]: ` + dir + ": a directory; mount takes directories"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.Name, tt.config.Backend, tt.config.Boot = "a", s.backend, BootCold
			l, err := testHost.NewLab(limited(t), LabConfig{Machines: []MachineConfig{tt.config}})
			if err == nil {
				defer l.Close()
				err = l.Prepare(limited(t))
			}
			if err == nil || err.Error() != tt.want || StatusOf(err) != Invalid {
				t.Errorf("got %v (%s)\nwant %s", err, StatusOf(err), tt.want)
			}
		})
	}
	starts := s.starts()
	if starts != 0 {
		t.Errorf("%d machines were started", starts)
	}
	l := s.cannedLab(t, MachineConfig{Mount: map[string]string{"/opt/app": filepath.Join(dir, "app")}})
	hostFiles(t, dir, map[string]string{"app": ""})
	_, err := l.Machine("a").Succeed(limited(t), "true")
	var files *FilesError
	if !errors.As(err, &files) || StatusOf(err) != Invalid || files.Path != "/opt/app" {
		t.Errorf("a file that is gone: %v (%s)", err, StatusOf(err))
	}
	hostFiles(t, dir, map[string]string{"app": "one", "tree/x": "x"})
	l = s.cannedLab(t, MachineConfig{Mount: map[string]string{"/opt": filepath.Join(dir, "tree"), "/opt/x/y": filepath.Join(dir, "app")}})
	_, err = l.Machine("a").Succeed(limited(t), "true")
	if !errors.As(err, &files) || StatusOf(err) != Invalid || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file below a file: %v (%s)", err, StatusOf(err))
	}
}

// A state is of no use for a file that something in it has used and that has changed.
func TestRefresh(t *testing.T) {
	s := newStage(t, mock.Options{})
	dir, guest := t.TempDir(), inGuest(t)
	hostFiles(t, dir, map[string]string{"read": "one", "unread": "one"})
	l := s.open(t, LabConfig{OutDir: t.TempDir(), Machines: []MachineConfig{{
		Name: "a", Backend: s.backend, Boot: BootCold, Mount: map[string]string{guest + "/t": dir},
	}}})
	prints(t, l.Machine("a"), "cat "+guest+"/t/read", "one")
	state, err := l.Snapshot(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	blind := state.machines["a"].laid[guest+"/t"].Blind
	used := func() string {
		t.Helper()
		used, err := access.Refresh(limited(t), state, l.config.Machines)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(used, ", ")
	}
	if got := used(); got != "" {
		t.Errorf("nothing has changed, and %s was used", got)
	}
	hostFiles(t, dir, map[string]string{"unread": "two"})
	if got := used(); got != "" && !blind {
		t.Errorf("a file that nobody has read has changed, and %s was used", got)
	}
	// What was looked at is the next fork, with the events that it had.
	before := s.starts()
	fork, err := state.Fork(s.context(t))
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, fork)
	prints(t, fork.Machine("a"), "cat "+guest+"/t/unread", "two")
	if !blind && s.starts() != before {
		t.Error("another fork was made")
	}
	s.awaitState(t, "a ready")
	hostFiles(t, dir, map[string]string{"read": "two"})
	if got := used(); !strings.Contains(got, "a: "+guest+"/t/read") {
		t.Errorf("a file that was read has changed, and %q was used", got)
	}
}

// inGuest is a directory for a machine whose agent runs in this process: its files are
// the host's.
func inGuest(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "attest-files")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
