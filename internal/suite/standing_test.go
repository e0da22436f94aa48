package suite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/supervise"
)

// A buildHost runs commands, too, and its states can be refreshed.
type buildHost struct {
	*fakeHost
	supervisor *supervise.Supervisor
	used       []string // what Refresh returns
}

func newBuildHost(t *testing.T) *buildHost {
	t.Helper()
	root, err := os.MkdirTemp("/tmp", "at")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	s, err := supervise.Start(t.Context(), supervise.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	return &buildHost{fakeHost: &fakeHost{}, supervisor: s}
}

func (h *buildHost) Command(ctx context.Context, c supervise.Command) (*supervise.Process, error) {
	return h.supervisor.Start(ctx, c)
}

func (h *buildHost) NewLab(ctx context.Context, c attest.LabConfig) (operation.Runner, error) {
	lab, err := h.fakeHost.NewLab(ctx, c)
	if err != nil {
		return nil, err
	}
	return &refreshedLab{lab.(*fakeLab), h}, nil
}

type refreshedLab struct {
	*fakeLab
	host *buildHost
}

func (l *refreshedLab) Snapshot(ctx context.Context) (operation.Snapshot, error) {
	s, err := l.fakeLab.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return refreshedState{s, l.host}, nil
}

type refreshedState struct {
	operation.Snapshot
	host *buildHost
}

func (s refreshedState) Refresh(context.Context, []attest.MachineConfig) ([]string, error) {
	return s.host.used, nil
}

// runOn runs the files of the current directory on a host, and returns the run's end, its
// failures and what was logged.
func runOn(t *testing.T, host Host, opts Options) (Summary, []*event.Failure, string) {
	t.Helper()
	var mu sync.Mutex
	var failures []*event.Failure
	var log []string
	var bus event.Bus
	bus.Subscribe(func(r event.Record) {
		mu.Lock()
		defer mu.Unlock()
		switch e := r.Event.(type) {
		case event.FileFinished:
			if e.Failure != nil {
				failures = append(failures, e.Failure)
			}
		case event.Log:
			log = append(log, e.Text)
		}
	})
	opts.Open = func(context.Context) (Host, error) { return host, nil }
	s, err := Run(event.WithBus(t.Context(), &bus), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s, failures, strings.Join(log, "\n")
}

func writeFiles(t *testing.T, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(data)
}

// A command runs before the tests, once for all files, and only if what it reads or makes
// has changed.
func TestBuild(t *testing.T) {
	host := newBuildHost(t)
	t.Chdir(t.TempDir())
	const test = `
build = {"command": "echo x >> runs; cat in/* > made", "inputs": ["in", "*.mod"], "outputs": ["made"]}
m = machine(backend = "mock", mount = {"/opt": "made"})
def test_x(): m.succeed("true")
`
	writeFiles(t, map[string]string{"a_test.star": test, "b_test.star": test, "in/a": "a", "x.mod": "m"})
	run := func(why string, runs int, opts Options) {
		t.Helper()
		opts.Files = []string{"a_test.star", "b_test.star"}
		if s, failures, _ := runOn(t, host, opts); s.Status != event.Passed {
			t.Fatalf("%s: %s %+v", why, s.Status, failures)
		}
		if got := strings.Count(read(t, "runs"), "x"); got != runs {
			t.Errorf("%s: the command ran %d times, want %d", why, got, runs)
		}
	}
	run("the first time", 1, Options{})
	run("again", 1, Options{})
	writeFiles(t, map[string]string{"in/a": "b"})
	run("another input", 2, Options{})
	writeFiles(t, map[string]string{"in/a": "b", "in/c": "c"})
	run("one more input", 3, Options{})
	writeFiles(t, map[string]string{"y.mod": "m"})
	run("one more for a pattern", 4, Options{})
	writeFiles(t, map[string]string{"made": "by hand"})
	run("another output", 5, Options{})
	if err := os.Remove("made"); err != nil {
		t.Fatal(err)
	}
	run("no output", 6, Options{})
	writeFiles(t, map[string]string{"in/a": "c"})
	run("without builds", 6, Options{NoBuild: true})
}

// A disk that a build makes is looked for when it has been made, and not before.
func TestBuildMakesADisk(t *testing.T) {
	host := newBuildHost(t)
	t.Chdir(t.TempDir())
	for _, tt := range []struct{ build, want string }{
		{"build = 'echo > made.img'\n", ""},
		{"build = 'true'\n", `machine "m": image: made.img: no such file or directory`},
		{"", "disk: made.img: no such file or directory"},
	} {
		os.Remove("made.img")
		writeFiles(t, map[string]string{"f_test.star": tt.build + "m = machine(image = disk('made.img'))\ndef test_x(): pass\n"})
		s, failures, _ := runOn(t, host, Options{Files: []string{"f_test.star"}})
		if tt.want == "" && s.Status != event.Passed || tt.want != "" && s.Status != event.Invalid {
			t.Errorf("%q: %s %v", tt.build, s.Status, failures)
		}
		wd, _ := os.Getwd()
		for _, f := range failures {
			if got := strings.ReplaceAll(f.Message, wd, "DIR"); got != tt.want || f.Position.Line == 0 {
				t.Errorf("%q: at %v: %s, want %s", tt.build, f.Position, got, tt.want)
			}
		}
	}
}

// A build that fails is a mistake of what is built: its place, its output, and no test.
func TestBuildThatFails(t *testing.T) {
	host := newBuildHost(t)
	t.Chdir(t.TempDir())
	for _, tt := range []struct {
		name, build, mount string
		want               string
		status             event.Status
		output             string
	}{
		{"exit code", `"echo some words >&2; exit 3"`, "x", `build "echo some words >&2; exit 3" failed (exit code 3)`, event.Invalid, "some words\n"},
		{"no such command", `"no-such-command-at-all"`, "x", `build "no-such-command-at-all" failed (exit code 127)`, event.Invalid, ""},
		{"killed", `"kill -9 $$"`, "x", `build "kill -9 $$" failed (killed by SIGKILL)`, event.Infra, ""},
		{"no input", `{"command": "true", "inputs": ["none"], "outputs": ["x"]}`, "x", `build: input "none": DIR/none: no such file or directory`, event.Invalid, ""},
		{"no output", `{"command": "true", "inputs": ["f_test.star"], "outputs": ["none"]}`, "f_test.star",
			`build "true" succeeded, and did not make its output "none": DIR/none: no such file or directory`, event.Invalid, ""},
		{"nothing to mount", `"true"`, "none", `machine "m": mount["/opt"]: DIR/none: no such file or directory`, event.Invalid, ""},
	} {
		writeFiles(t, map[string]string{"f_test.star": "build = " + tt.build + "\nm = machine(backend = 'mock', mount = {'/opt': '" + tt.mount + "'})\ndef test_x(): pass\n"})
		s, failures, _ := runOn(t, host, Options{Files: []string{"f_test.star"}})
		if s.Status != tt.status || len(failures) != 1 {
			t.Errorf("%s: %s, %d failures", tt.name, s.Status, len(failures))
			continue
		}
		f := failures[0]
		wd, _ := os.Getwd()
		if got := strings.ReplaceAll(f.Message, wd, "DIR"); got != tt.want || f.Position.File != "f_test.star" || f.Position.Line == 0 {
			t.Errorf("%s: at %v\n%s\nwant\n%s", tt.name, f.Position, got, tt.want)
		}
		if tt.output != "" && f.Stdout != tt.output {
			t.Errorf("%s: output %q", tt.name, f.Stdout)
		}
	}
	if n := len(host.labs); n > 0 {
		t.Errorf("%d labs were made", n)
	}
}

// A build ends with the run.
func TestBuildIsInterrupted(t *testing.T) {
	host := newBuildHost(t)
	t.Chdir(t.TempDir())
	writeFiles(t, map[string]string{"f_test.star": "build = 'sleep infinity & echo $! > pid; wait'\nm = machine(backend = 'mock')\ndef test_x(): pass\n"})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	done := make(chan Summary, 1)
	go func() {
		s, _ := Run(ctx, Options{Files: []string{"f_test.star"}, Open: func(context.Context) (Host, error) { return host, nil }})
		done <- s
	}()
	for deadline := time.Now().Add(time.Minute); read(t, "pid") == ""; {
		select {
		case s := <-done:
			t.Fatalf("it ended: %v", s.Status)
		case <-time.After(time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("the build does not start")
			}
		}
	}
	cancel(errors.New("enough"))
	if s := <-done; s.Status != event.Interrupted {
		t.Errorf("%s", s.Status)
	}
	pid := strings.TrimSpace(read(t, "pid"))
	for deadline := time.Now().Add(time.Minute); ; {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("what the build started is left: %s", stat)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

// Sources that no build makes are looked for before anything starts.
func TestMissingSources(t *testing.T) {
	host := newBuildHost(t)
	t.Chdir(t.TempDir())
	writeFiles(t, map[string]string{
		"a_test.star": "m = machine(backend = 'mock', files = {'/etc/x': {'path': 'none'}})\ndef test_x(): pass\n",
		"b_test.star": "m = machine(backend = 'mock')\ndef test_x(): pass\n",
	})
	s, failures, _ := runOn(t, host, Options{Files: []string{"a_test.star", "b_test.star"}})
	if s.Status != event.Invalid || len(failures) != 1 || failures[0].Position.Line != 1 || !strings.Contains(failures[0].Message, `files["/etc/x"]`) {
		t.Errorf("%s %+v", s.Status, failures)
	}
	if len(host.labs) > 0 {
		t.Error("a lab was made")
	}
}

// What a setup has left stands as long as a setup now would leave the same.
func TestStanding(t *testing.T) {
	host := newBuildHost(t)
	t.Chdir(t.TempDir())
	const test = `
m = machine(backend = "mock", mount = {"/opt": "made"})
def setup(): m.succeed("say setup")
def test_a(): m.succeed("say a")
`
	standing := &Standing{}
	closed := false
	defer func() {
		if !closed {
			standing.Close()
		}
	}()
	round := func(why string, want event.Status, said, log string) {
		t.Helper()
		host.mu.Lock()
		host.said = nil
		host.mu.Unlock()
		s, failures, logged := runOn(t, host, Options{Files: []string{"f_test.star"}, Standing: standing})
		if s.Status != want {
			t.Fatalf("%s: %s %+v", why, s.Status, failures)
		}
		if got := strings.Join(host.said, " "); got != said {
			t.Errorf("%s: %q, want %q", why, got, said)
		}
		if !strings.Contains(logged, log) || log == "" && logged != "" {
			t.Errorf("%s: logged %q", why, logged)
		}
		if host.closed {
			t.Errorf("%s: the host is closed", why)
		}
	}
	change := func(files map[string]string) {
		t.Helper()
		writeFiles(t, files)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		changed, err := standing.Await(ctx)
		if err != nil || len(changed) == 0 {
			t.Fatalf("changed: %v, %v", changed, err)
		}
		for name := range files {
			if !slices.ContainsFunc(changed, func(p string) bool { return strings.HasSuffix(p, name) }) {
				t.Errorf("changed: %v, want %s", changed, name)
			}
		}
	}
	writeFiles(t, map[string]string{"f_test.star": test, "made": "one"})
	round("the first time", event.Passed, "setup a", "")
	change(map[string]string{"made": "two"})
	round("a file of a machine", event.Passed, "a", "")
	change(map[string]string{"f_test.star": strings.Replace(test, "say a", "say b", 1)})
	round("a test", event.Passed, "b", "")
	change(map[string]string{"f_test.star": "def test_a(: pass\n"})
	round("a mistake", event.Invalid, "", "")
	change(map[string]string{"f_test.star": test})
	round("a mistake less", event.Passed, "a", "")
	change(map[string]string{"made": "three"})
	host.used = []string{"m: /opt/made", "m: /opt/more"}
	round("what setup has used", event.Passed, "setup a", "setup runs again: it had used what has changed (m: /opt/made and more)")
	host.used = nil
	change(map[string]string{"f_test.star": strings.Replace(test, "say setup", "say other", 1)})
	round("setup", event.Passed, "other a", "setup runs again: setup, a machine or what they depend on has changed")
	if err := os.Remove("made"); err != nil {
		t.Fatal(err)
	}
	change(nil)
	round("a source is gone", event.Invalid, "", "")
	change(map[string]string{"made": "four"})
	round("and is back", event.Passed, "a", "")
	closed = true
	if err := standing.Close(); err != nil || host.states != 0 || host.open != 0 || !host.closed {
		t.Errorf("%d states and %d labs are open, the host is closed: %v, %v", host.states, host.open, host.closed, err)
	}
}

// A variable that no file asks for is misspelt.
func TestVars(t *testing.T) {
	host := newBuildHost(t)
	t.Chdir(t.TempDir())
	writeFiles(t, map[string]string{"f_test.star": "m = machine(backend = 'mock')\ndef test_x(): m.succeed('say ' + var('WORD'))\n"})
	if s, failures, _ := runOn(t, host, Options{Files: []string{"f_test.star"}, Vars: map[string]string{"WORD": "hello"}}); s.Status != event.Passed {
		t.Errorf("%s %+v", s.Status, failures)
	}
	if got := strings.Join(host.said, " "); got != "hello" {
		t.Errorf("said %q", got)
	}
	_, err := Run(t.Context(), Options{Files: []string{"f_test.star"}, Vars: map[string]string{"WORDS": "x"}, Open: func(context.Context) (Host, error) { return host, nil }})
	if err == nil || err.Error() != `--var WORDS: no test file asks for it by var("WORDS")` {
		t.Error(err)
	}
}
