package suite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	_ "github.com/attest-vm/attest/internal/script/starlark"
	chfake "github.com/attest-vm/attest/internal/vmm/cloudhypervisor/fake"
	fcfake "github.com/attest-vm/attest/internal/vmm/firecracker/fake"
)

func TestMain(m *testing.M) {
	fcfake.Main()
	chfake.Main()
	goleak.VerifyTestMain(m)
}

// fakeHost makes labs without machines. A command is what happens: "false"
// fails, "boot" finds that the guest does not come up, "hang" waits for the end,
// "write x" adds to a file that "read" returns. "cold" fails in a lab that booted.
type fakeHost struct {
	newLab     error // of NewLab
	slowLab    bool  // NewLab lasts until the run's time is over
	noSnapshot error // of Snapshot
	noFork     error // of the second fork

	mu     sync.Mutex
	labs   []attest.LabConfig
	said   []string // "setup", "test_a": with what labs were asked to "say"
	open   int      // labs
	states int      // snapshots that are open
	hangs  int      // commands that hang
	most   int      // … at once
	forks  int
	closed bool
	hung   chan struct{} // gets a value when a command hangs
}

func (h *fakeHost) String() string { return "a fake host" }
func (h *fakeHost) Close() error   { h.closed = true; return nil }

func (h *fakeHost) NewLab(ctx context.Context, c attest.LabConfig) (operation.Runner, error) {
	if h.slowLab {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.labs = append(h.labs, c)
	if h.newLab != nil {
		return nil, h.newLab
	}
	lab := &fakeLab{host: h}
	if len(c.Machines) > 0 {
		lab.boot = c.Machines[0].Boot
	}
	return h.lab(lab), nil
}

func (h *fakeHost) lab(l *fakeLab) operation.Runner {
	h.open++
	return l
}

type fakeLab struct {
	host *fakeHost
	boot attest.Boot
	file string
}

func (l *fakeLab) Close() error {
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	l.host.open--
	return nil
}

func (l *fakeLab) Snapshot(context.Context) (operation.Snapshot, error) {
	if l.host.noSnapshot != nil {
		return nil, l.host.noSnapshot
	}
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	l.host.states++
	return &fakeState{*l}, nil
}

type fakeState struct{ of fakeLab }

func (s *fakeState) Fork(context.Context) (operation.Runner, error) {
	h := s.of.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.forks++; h.forks == 2 && h.noFork != nil {
		return nil, h.noFork
	}
	lab := s.of
	return h.lab(&lab), nil
}

func (s *fakeState) Close() error {
	s.of.host.mu.Lock()
	defer s.of.host.mu.Unlock()
	s.of.host.states--
	return nil
}

func (s *fakeState) Save(ctx context.Context, dir string) error { return s.of.Save(ctx, dir) }

func (l *fakeLab) Save(_ context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o755) // as the real one, which wants it to be empty
}

func (l *fakeLab) Invoke(ctx context.Context, object any, o *operation.Operation, args operation.Args) (any, error) {
	if o.Name != "succeed" {
		return nil, fmt.Errorf("the fake lab has no %s", o.Name)
	}
	machine := string(object.(operation.MachineName))
	command := args.Strings("commands")[0]
	verb, what, _ := strings.Cut(command, " ")
	switch verb {
	case "write":
		l.file += what
	case "read":
		return l.file, nil
	case "say":
		l.host.mu.Lock()
		defer l.host.mu.Unlock()
		l.host.said = append(l.host.said, what)
	case "again":
		l.host.mu.Lock()
		defer l.host.mu.Unlock()
		return strings.Repeat("x", len(l.host.labs)-1), nil
	case "cold":
		if l.boot == attest.BootCold {
			return nil, errors.New("too cold")
		}
	case "false":
		return nil, &attest.CommandError{Machine: machine, Operation: "succeed", Command: command, Result: attest.Result{ExitCode: 1, Stderr: "no"}}
	case "boot":
		return nil, &attest.BootError{Machine: machine, Reason: "kernel panic", Console: []string{"Kernel panic"}}
	case "boots":
		<-ctx.Done()
		err := context.Cause(ctx)
		return nil, &attest.BootError{Machine: machine, Reason: fmt.Sprintf("no answer yet, and %v", err), Err: err}
	case "screenshot":
		return nil, &attest.UnsupportedError{Machine: machine, Operation: "screenshot", Backend: "fake"}
	case "hang":
		l.host.mu.Lock()
		l.host.hangs++
		l.host.most = max(l.host.most, l.host.hangs)
		l.host.mu.Unlock()
		if l.host.hung != nil {
			l.host.hung <- struct{}{}
		}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return "", nil
}

// outcome is a run, told in lines: "a.star:test_x passed".
type outcome struct {
	Summary
	err   error
	lines []string
	fails map[string]*event.Failure // by file or file:test
	host  *fakeHost
	seq   []event.Record
}

// runFiles runs files, given as names and texts, in a directory of the test's own: those
// that opts names, or all.
func runFiles(t *testing.T, ctx context.Context, opts Options, host *fakeHost, files ...string) outcome {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir)
	all := opts.Files == nil
	for i := 0; i < len(files); i += 2 {
		if err := os.MkdirAll(filepath.Dir(files[i]), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(files[i], []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
		if all {
			opts.Files = append(opts.Files, files[i])
		}
	}
	return rerun(t, ctx, opts, host)
}

// inTime runs files in a bubble in which time passes only while everything waits:
// the limit of a run is not used up by a slow host that reads the files.
func inTime(t *testing.T, opts Options, host *fakeHost, files ...string) (o outcome) {
	synctest.Test(t, func(t *testing.T) { o = runFiles(t, t.Context(), opts, host, files...) })
	return o
}

// rerun runs files that are there.
func rerun(t *testing.T, ctx context.Context, opts Options, host *fakeHost) outcome {
	t.Helper()
	o := outcome{fails: map[string]*event.Failure{}, host: host}
	opts.Open = func(context.Context) (Host, error) { return host, nil }
	var bus event.Bus
	bus.Subscribe(func(r event.Record) {
		o.seq = append(o.seq, r)
		name := strings.TrimSuffix(r.Scope.File+":"+r.Scope.Test, ":")
		if r.Scope.Boot != "" {
			name += "[" + r.Scope.Boot + "]"
		}
		switch e := r.Event.(type) {
		case event.TestFinished:
			o.lines = append(o.lines, name+" "+string(e.Status))
			o.fails[name] = e.Failure
		case event.FileFinished:
			o.lines = append(o.lines, name+" "+string(e.Status))
			o.fails[name] = e.Failure
		}
	})
	o.Summary, o.err = Run(event.WithBus(ctx, &bus), opts)
	if host.open != 0 || host.states != 0 {
		t.Errorf("%d labs and %d snapshots are still open", host.open, host.states)
	}
	return o
}

const machine = "m = machine(image = debian())\n"

func (o outcome) expect(t *testing.T, status event.Status, exit int, lines ...string) {
	t.Helper()
	if o.Status != status || o.ExitCode() != exit {
		t.Errorf("status %s, exit code %d; want %s, %d (%v)", o.Status, o.ExitCode(), status, exit, o.err)
	}
	// In the order of the names: tests end in any order.
	if got, want := strings.Join(slices.Sorted(slices.Values(o.lines)), "\n"), strings.Join(slices.Sorted(slices.Values(lines)), "\n"); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// The state that setup leaves is saved, of a file with tests and of one without. Only the
// first has something to run.
func TestSetupAlone(t *testing.T) {
	const setup = machine + "def setup(): m.succeed('say setup')\n"
	for name, text := range map[string]string{"alone": setup, "with tests": setup + "def test_a(): m.succeed('say test_a')\n"} {
		o := runFiles(t, t.Context(), Options{SaveTo: "state"}, &fakeHost{}, "a.star", text)
		o.expect(t, event.Passed, 0, "a.star passed", "a.star:setup passed")
		if _, err := os.Stat("state"); err != nil || fmt.Sprint(o.host.said) != "[setup]" {
			t.Errorf("%s: %v, %s said %v", name, err, text, o.host.said)
		}
	}
	o := runFiles(t, t.Context(), Options{}, &fakeHost{}, "a.star", setup, "b.star", machine+"def test_b(): pass\n")
	o.expect(t, event.Invalid, 2, "a.star invalid", "b.star skipped")
	if f := o.fails["a.star"]; f == nil || !strings.Contains(f.Message, "a.star: the file has setup() and nothing to run: no function test_* and no main(); attest snapshot build writes the state that setup leaves") {
		t.Errorf("got %+v", f)
	}
	checked, err := Check(t.Context(), Options{Files: []string{"a.star"}})
	if err != nil || len(checked) != 1 || checked[0].Err != nil || len(checked[0].Machines) != 1 {
		t.Errorf("checked: %+v, %v", checked, err)
	}
}

func TestRunPasses(t *testing.T) {
	o := runFiles(t, t.Context(), Options{Version: "1", OutDir: "out"}, &fakeHost{},
		"sub/a.star", machine+"def setup(): m.succeed('true')\ndef test_b(): pass\ndef test_a(): pass\n")
	o.expect(t, event.Passed, 0, "sub/a.star:setup passed", "sub/a.star:test_b passed", "sub/a.star:test_a passed", "sub/a.star passed")
	if o.err != nil || o.Counts[event.Passed] != 2 || len(o.Counts) != 1 || !o.host.closed {
		t.Errorf("got %+v", o)
	}
	first, ok := o.seq[0].Event.(event.RunStarted)
	if !ok || first.Seed == 0 || first.Host != "a fake host" || first.Version != "1" || first.Files[0] != "sub/a.star" || first.Output != "out" {
		t.Errorf("first event %+v", o.seq[0].Event)
	}
	if last, ok := o.seq[len(o.seq)-1].Event.(event.RunFinished); !ok || last.Status != event.Passed || last.Counts[event.Passed] != 2 {
		t.Errorf("last event %+v", o.seq[len(o.seq)-1].Event)
	}
	if started, ok := o.seq[1].Event.(event.FileStarted); !ok || strings.Join(started.Tests, " ") != "test_b test_a" {
		t.Errorf("second event %+v", o.seq[1].Event)
	}
	lab := o.host.labs[0]
	if lab.Name != "a" || lab.OutDir != "out" || lab.SourceDir != "sub" || len(lab.Machines) != 1 {
		t.Errorf("lab %+v", lab)
	}
	if _, err := os.Stat("out"); err != nil {
		t.Error(err)
	}
}

// How each kind of end is reported, and the exit code.
func TestStatuses(t *testing.T) {
	const pass = "def test_ok(): pass\n"
	for _, tt := range []struct {
		name, text string
		status     event.Status
		exit       int
		lines      []string
	}{
		{"a test fails, the next runs", machine + "def test_a(): m.succeed('false')\n" + pass, event.Failed, 1,
			[]string{"a.star:test_a failed", "a.star:test_ok passed", "a.star failed"}},
		{"an assertion", "def main(): assert_eq(1, 2)\n", event.Failed, 1, []string{"a.star:main failed", "a.star failed"}},
		{"a type error", "def main(): len(1)\n", event.Failed, 1, []string{"a.star:main failed", "a.star failed"}},
		{"a guest does not boot", machine + "def test_a(): m.succeed('boot')\n", event.BootFailed, 3, []string{"a.star:test_a boot_failed", "a.star boot_failed"}},
		{"failed wins over boot failed", machine + "def test_a(): m.succeed('boot')\ndef test_b(): m.succeed('false')\n", event.Failed, 1,
			[]string{"a.star:test_a boot_failed", "a.star:test_b failed", "a.star failed"}},
		{"unsupported", machine + "def test_a(): m.succeed('screenshot')\n" + pass, event.Unsupported, 4, []string{"a.star:test_a unsupported", "a.star:test_ok passed", "a.star unsupported"}},
		{"boot failed wins over unsupported", machine + "def test_a(): m.succeed('screenshot')\ndef test_b(): m.succeed('boot')\n", event.BootFailed, 3,
			[]string{"a.star:test_a unsupported", "a.star:test_b boot_failed", "a.star boot_failed"}},
		{"setup fails", machine + "def setup(): m.succeed('boot')\n" + pass, event.BootFailed, 3,
			[]string{"a.star:setup boot_failed", "a.star:test_ok skipped", "a.star boot_failed"}},
		{"setup's claim fails", machine + "def setup(): m.succeed('false')\n" + pass, event.Failed, 1,
			[]string{"a.star:setup failed", "a.star:test_ok skipped", "a.star failed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := runFiles(t, t.Context(), Options{}, &fakeHost{}, "a.star", tt.text)
			o.expect(t, tt.status, tt.exit, tt.lines...)
			if o.err != nil {
				t.Error(o.err)
			}
		})
	}
}

func TestFailure(t *testing.T) {
	o := runFiles(t, t.Context(), Options{}, &fakeHost{}, "a.star", machine+"def check():\n    m.succeed(\"false\")\n\ndef test_a():\n    check()\n")
	f := o.fails["a.star:test_a"]
	if f == nil || f.Message != "m: command `false` failed (exit code 1)" || f.Machine != "m" || f.Operation != "succeed" || f.Command != "false" ||
		f.ExitCode == nil || *f.ExitCode != 1 || f.Stderr != "no" || f.Source != `    m.succeed("false")` {
		t.Fatalf("got %+v", f)
	}
	if f.Position != (event.Position{File: "a.star", Line: 3, Column: 14, Func: "check"}) || len(f.Stack) != 2 || f.Stack[0].Func != "test_a" {
		t.Errorf("at %+v, stack %+v", f.Position, f.Stack)
	}
}

// One file that makes no sense: nothing boots, and all mistakes are shown.
func TestInvalidFiles(t *testing.T) {
	o := runFiles(t, t.Context(), Options{}, &fakeHost{},
		"good.star", "def main(): pass\n", "bad.star", machine+"def main():\n    m.suceed('a')\n    m.strat()\n", "notes.txt", "")
	o.expect(t, event.Invalid, 2, "good.star skipped", "bad.star invalid", "notes.txt invalid")
	if len(o.host.labs) != 0 || !o.host.closed || o.err != nil {
		t.Errorf("the host was used: %+v, %v", o.host, o.err)
	}
	f := o.fails["bad.star"]
	if f.Message != "machine has no operation suceed; did you mean succeed?" || f.Position.Line != 3 || f.Source != "    m.suceed('a')" {
		t.Errorf("got %+v", f)
	}
	if len(f.Details) != 1 || f.Details[0].Text != "bad.star:4:7: machine has no operation strat; did you mean start?\nm.strat()" {
		t.Errorf("got %+v", f.Details)
	}
	if f := o.fails["notes.txt"]; f.Message != "notes.txt: not a test file: its name must end in .star" {
		t.Errorf("got %+v", f)
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opts   Options
		status event.Status
		want   string
	}{
		{"nothing selected", Options{Files: []string{"a.star"}, Select: regexp.MustCompile("^nothing$")}, event.Invalid, `--run "^nothing$" selects none of the 1 tests`},
		{"no such file", Options{Files: []string{"none.star"}}, event.Invalid, "none.star: no such file"},
		{"empty directory", Options{Files: []string{"empty"}}, event.Invalid, "empty: no *_test.star in this directory"},
		{"boot", Options{Boot: "lukewarm"}, event.Invalid, "--boot=lukewarm: want cold, warm or both"},
		{"output directory", Options{OutDir: "a.star"}, event.Invalid, "output directory: mkdir a.star: not a directory"},
		{"no machine configuration", Options{MachineConfig: "none.json"}, event.Invalid, "machine configuration: open none.json: no such file or directory"},
		{"TAPs of somebody else", Options{MachineConfig: "fc.json"}, event.Unsupported, `machine configuration fc.json: machine "m": /machines/0/tap_interfaces is not supported: attest makes TAPs of its own; name the machine's networks by vlans`},
		{"what an image decides", Options{MachineConfig: "both.json"}, event.Invalid, `machine configuration both.json: machine "m": /machines/0/initrd_path: it is for a machine without an image; take one of the two out`},
		{"a start command with memory", Options{MachineConfig: "start.json"}, event.Invalid, `machine configuration start.json: machine "m": /machines/0/mem_size_mib: "start_command" already determines the memory; leave one of the two out`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := runFiles(t, t.Context(), tt.opts, &fakeHost{}, "a.star", "def main(): pass\n", "empty/x", "",
				"fc.json", `{"machines": [{"name": "m", "backend": "firecracker", "kernel_image_path": "k", "rootfs_path": "r", "tap_interfaces": [["eth0", "tap0", "AA:FC:00:01:01:01"]]}]}`,
				"both.json", `{"machines": [{"name": "m", "backend": "firecracker", "image": {}, "initrd_path": "i"}]}`,
				"start.json", `{"machines": [{"name": "m", "backend": "qemu", "start_command": "x", "mem_size_mib": 256}]}`)
			if o.err == nil || o.err.Error() != tt.want || o.Status != tt.status || o.ExitCode() != tt.status.ExitCode() || len(o.seq) != 0 {
				t.Errorf("got %v (%s, exit %d, %d events)", o.err, o.Status, o.ExitCode(), len(o.seq))
			}
		})
	}
	if _, err := Run(t.Context(), Options{}); err == nil || err.Error() != "there is no test file to run" {
		t.Errorf("got %v", err)
	}
}

func TestSelect(t *testing.T) {
	const text = "def test_a(): pass\ndef test_b(): pass\n"
	o := runFiles(t, t.Context(), Options{Select: regexp.MustCompile(`^a\.star:test_b$|^main$`)}, &fakeHost{}, "a.star", text, "b.star", text, "c.star", "def main(): pass\n")
	o.expect(t, event.Passed, 0, "a.star:test_b passed", "a.star passed", "c.star:main passed", "c.star passed")
	if len(o.host.labs) != 2 {
		t.Errorf("a lab for a file of which nothing is selected: %+v", o.host.labs)
	}
}

// A file that cannot be run is in the way of what it may have to do with only.
func TestSelectBesideInvalidFiles(t *testing.T) {
	files := []string{"a.star", "def test_a(): pass\n", "b.star", machine + "def test_b(): m.suceed('x')\n", "c.star", "def test_c(:\n", "d_test.star", "def main(): nothing\n"}
	o := runFiles(t, t.Context(), Options{Select: regexp.MustCompile("^test_a$")}, &fakeHost{}, files...)
	o.expect(t, event.Passed, 0, "a.star:test_a passed", "a.star passed")
	var warned []string
	for _, r := range o.seq {
		if e, ok := r.Event.(event.Log); ok && e.Level == "warning" {
			warned = append(warned, e.Text)
		}
	}
	want := `b.star cannot be run; --run "^test_a$" selects none of its tests: b.star:2:17: machine has no operation suceed; did you mean succeed?`
	if len(warned) != 3 || warned[0] != want {
		t.Errorf("warned of %q", warned)
	}
	o = runFiles(t, t.Context(), Options{Select: regexp.MustCompile("test_[ac]")}, &fakeHost{}, files...)
	o.expect(t, event.Invalid, 2, "a.star skipped", "c.star invalid")
	o = runFiles(t, t.Context(), Options{Select: regexp.MustCompile("test_a")}, &fakeHost{}, files[2:]...)
	o.expect(t, event.Invalid, 2, "b.star invalid", "c.star invalid", "d_test.star invalid")
}

// A test has the limit that its file gives, or that of its own.
func TestLimits(t *testing.T) {
	host := &fakeHost{}
	o := inTime(t, Options{Jobs: 4}, host, "a.star", machine+`timeout = 0.2
def setup(timeout = "5m"):
    """the setup"""
    m.succeed("write x")
def test_a(): m.succeed("hang")
def test_b(timeout = "2m"):
    m.succeed("hang")
def test_c(): m.succeed("boots")
def test_d(): pass
`)
	o.expect(t, event.Failed, 1, "a.star:setup passed", "a.star:test_a failed", "a.star:test_b failed", "a.star:test_c boot_failed", "a.star:test_d passed", "a.star failed")
	for name, want := range map[string]string{
		"test_a": "test_a timed out after 200ms, the limit that its file gives",
		"test_b": "test_b timed out after 2m0s, the limit that its file gives",
	} {
		if f := o.fails["a.star:"+name]; f.Message != want || f.Machine != "m" || f.Operation != "succeed" || f.Position.Line == 0 {
			t.Errorf("%s: %+v", name, f)
		}
	}
	for _, r := range o.seq {
		if e, ok := r.Event.(event.TestStarted); ok && r.Scope.Test == "setup" && e.Title != "the setup" {
			t.Errorf("setup's title is %q", e.Title)
		}
	}
}

func TestDirectories(t *testing.T) {
	o := runFiles(t, t.Context(), Options{Files: []string{".", "./b_test.star"}}, &fakeHost{},
		"b_test.star", "def main(): pass\n", "a/a_test.star", "def main(): pass\n", "lib.star", "x = 1\n", ".hidden/x_test.star", "bad(")
	o.expect(t, event.Passed, 0, "a/a_test.star:main passed", "a/a_test.star passed", "b_test.star:main passed", "b_test.star passed")
}

func TestMachineConfiguration(t *testing.T) {
	o := runFiles(t, t.Context(), Options{Files: []string{"a.star"}, MachineConfig: "lab.json"}, &fakeHost{},
		"a.star", "def main(): b_1.succeed('true')\n",
		"lab.json", `{"machines": [{"name": "b-1", "backend": "qemu", "image": {"debian": {"packages": ["curl"]}}, "mem_size_mib": 512, "vlans": [2]}]}`)
	o.expect(t, event.Passed, 0, "a.star:main passed", "a.star passed")
	if m := o.host.labs[0].Machines[0]; m.Name != "b-1" || m.Memory != 512 || m.Networks[0] != 2 {
		t.Errorf("got %+v", m)
	}
}

// A machine is on network 1 unless the file says something else, such as no network.
func TestMachineConfigurationNetworks(t *testing.T) {
	for top, want := range map[string]string{"": "[] [2] []", `, "vlans": [3, 4]`: "[3 4] [2] []", `, "vlans": []`: "[] [2] []"} {
		o := runFiles(t, t.Context(), Options{Files: []string{"a.star"}, MachineConfig: "lab.json"}, &fakeHost{}, "a.star", "def main(): pass\n",
			"lab.json", `{"machines": [{"name": "a", "backend": "mock"}, {"name": "b", "backend": "mock", "vlans": [2]}, {"name": "c", "backend": "mock", "vlans": []}]`+top+`}`)
		m := o.host.labs[0].Machines
		if got := fmt.Sprint(m[0].Networks, m[1].Networks, m[2].Networks); got != want {
			t.Errorf("with %q: %s, want %s", top, got, want)
		}
		// Nil is network 1, and empty is none.
		if one := m[0].Networks == nil; one != (top == "") || m[2].Networks == nil {
			t.Errorf("with %q: a machine without vlans has %#v, one with none %#v", top, m[0].Networks, m[2].Networks)
		}
	}
}

// Infrastructure that fails when the lab is made is no test's fault.
func TestNoLab(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status event.Status
		exit   int
	}{
		{errors.New("no space left on device"), event.Infra, 3},
		{&attest.MissingError{What: "qemu-system-x86_64", Reason: "not found on PATH"}, event.Infra, 3},
		{&attest.ConfigError{Subject: "machine", Reason: "nonsense"}, event.Invalid, 2},
	} {
		o := runFiles(t, t.Context(), Options{}, &fakeHost{newLab: tt.err}, "a.star", "def test_a(): pass\n")
		o.expect(t, tt.status, tt.exit, "a.star:test_a skipped", "a.star "+string(tt.status))
		if !strings.Contains(o.fails["a.star"].Message, tt.err.Error()) {
			t.Errorf("got %+v", o.fails["a.star"])
		}
	}
}

func TestNoHost(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.star")
	if err := os.WriteFile(path, []byte("def main(): pass\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var bus event.Bus
	var kinds []string
	bus.Subscribe(func(r event.Record) { kinds = append(kinds, event.Kind(r.Event)) })
	s, err := Run(event.WithBus(t.Context(), &bus), Options{
		Files: []string{path},
		Open:  func(context.Context) (Host, error) { return nil, errors.New("no supervisor") },
	})
	if err == nil || s.Status != event.Infra || s.ExitCode() != 3 || strings.Join(kinds, " ") != "run_started run_finished" {
		t.Errorf("got %+v, %v, %v", s, err, kinds)
	}
}

// The run's own limit fails what was running, and skips the rest.
func TestTimeout(t *testing.T) {
	host := &fakeHost{}
	o := inTime(t, Options{Timeout: 100 * time.Millisecond, Jobs: 1, Seed: 1}, host,
		"a.star", machine+"def test_a(): m.succeed('hang')\ndef test_b(): pass\n", "b.star", "def main(): pass\n")
	o.expect(t, event.Failed, 1, "a.star:test_a failed", "a.star:test_b skipped", "a.star failed", "b.star:main skipped", "b.star skipped")
	f := o.fails["a.star:test_a"]
	if f.Message != "the run timed out after 100ms" || f.Position.Line != 2 || f.Machine != "m" || f.Operation != "succeed" {
		t.Errorf("got %+v", f)
	}
	if o.err != nil || !host.closed {
		t.Errorf("got %v, closed %v", o.err, host.closed)
	}
}

// A guest that boots when the time is over has not booted; no test has failed.
func TestTimeoutWhileBooting(t *testing.T) {
	for name, text := range map[string]string{
		"in a test": machine + "def test_a(): m.succeed('boots')\ndef test_b(): pass\n",
		"in setup":  machine + "def setup(): m.succeed('boots')\ndef test_b(): pass\n",
	} {
		t.Run(name, func(t *testing.T) {
			o := inTime(t, Options{Timeout: 50 * time.Millisecond, Jobs: 1, Seed: 1}, &fakeHost{}, "a.star", text)
			if o.Status != event.BootFailed || o.ExitCode() != 3 || o.Counts[event.BootFailed] != 1 || o.Counts[event.Failed] != 0 {
				t.Errorf("status %s, counts %v", o.Status, o.Counts)
			}
			f := o.fails["a.star"]
			if f == nil {
				f = o.fails["a.star:test_a"]
			}
			if !strings.Contains(f.Message, "guest did not boot") || !strings.Contains(f.Message, "the run timed out after 50ms") {
				t.Errorf("got %q", f.Message)
			}
		})
	}
}

// Before any test has run it is the host that took too long.
func TestTimeoutWhileBuilding(t *testing.T) {
	o := inTime(t, Options{Timeout: 50 * time.Millisecond}, &fakeHost{slowLab: true}, "a.star", machine+"def setup(): pass\ndef test_a(): pass\n")
	o.expect(t, event.Infra, 3, "a.star:test_a skipped", "a.star infra")
	if f := o.fails["a.star"]; f.Message != "make the lab: the run timed out after 50ms" {
		t.Errorf("got %q", f.Message)
	}
}

// Time that is over before any test has begun is no success.
func TestTimeoutBeforeTheTests(t *testing.T) {
	host := &fakeHost{}
	o := runFiles(t, t.Context(), Options{Timeout: time.Nanosecond}, host, "a.star", "def main(): pass\n")
	if o.ExitCode() == 0 {
		t.Errorf("got %+v", o.Summary)
	}
}

func TestTimeoutOfALoop(t *testing.T) {
	o := runFiles(t, t.Context(), Options{Timeout: time.Second}, &fakeHost{}, "a.star", "def main():\n    while True: pass\n")
	o.expect(t, event.Failed, 1, "a.star:main failed", "a.star failed")
}

// Files are read in the run's time, too. One that does not come to its end is to be
// mended; the files behind it were not read.
func TestTimeoutWhileReading(t *testing.T) {
	host := &fakeHost{}
	o := runFiles(t, t.Context(), Options{Timeout: time.Second}, host,
		"good.star", "def main(): pass\n", "loop.star", "x = 0\nwhile True:\n    x = x + 1\n", "late.star", "def main(): pass\n")
	o.expect(t, event.Invalid, 2, "good.star skipped", "loop.star invalid", "late.star invalid")
	f := o.fails["loop.star"]
	if f == nil || f.Message != "the run timed out after 1s" || f.Position.File != "loop.star" {
		t.Errorf("got %+v", f)
	}
	if o.err != nil || len(host.labs) > 0 {
		t.Errorf("%v, %d labs", o.err, len(host.labs))
	}
}

// A run that has not ended long after its time was over is given up; one that has
// ended is not.
func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var given []error
		for _, ends := range []bool{false, true} {
			r := &run{opts: Options{GiveUp: func(err error) { given = append(given, err) }}}
			ctx, cancel := r.limit(t.Context(), time.Second)
			<-ctx.Done()
			if ends {
				cancel()
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			cancel()
		}
		if len(given) != 1 || !timedOut(given[0]) {
			t.Errorf("given up: %v", given)
		}
	})
}

func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	host := &fakeHost{hung: make(chan struct{}, 1)}
	go func() {
		<-host.hung
		cancel(errors.New("interrupted (SIGINT)"))
	}()
	o := runFiles(t, ctx, Options{Seed: 1}, host, "a.star", machine+"def test_a(): m.succeed('hang')\ndef test_b(): pass\n")
	o.expect(t, event.Interrupted, 130, "a.star:test_a interrupted", "a.star:test_b skipped", "a.star interrupted")
	if f := o.fails["a.star:test_a"]; f.Message != "interrupted (SIGINT)" || f.Position.Line != 2 {
		t.Errorf("got %+v", f)
	}
}

func TestInterruptWhileLoading(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("stop"))
	o := runFiles(t, ctx, Options{}, &fakeHost{}, "a.star", "while True: pass\n")
	o.expect(t, event.Interrupted, 130)
	if o.err == nil || o.err.Error() != "stop" {
		t.Errorf("got %v", o.err)
	}
}

func TestJobs(t *testing.T) {
	for _, jobs := range []int{1, 3} {
		ctx, cancel := context.WithCancelCause(t.Context())
		host := &fakeHost{hung: make(chan struct{}, 3)}
		go func() { // ends the run when as many files as may hang do
			for range jobs {
				<-host.hung
			}
			cancel(errors.New("all are here"))
		}()
		const hang = machine + "def main(): m.succeed('hang')\n"
		o := runFiles(t, ctx, Options{Jobs: jobs}, host, "a.star", hang, "b.star", hang, "c.star", hang)
		if o.Status != event.Interrupted || host.most != jobs {
			t.Errorf("-j %d: %d labs at once (%s)", jobs, host.most, o.Status)
		}
		cancel(nil)
	}
}

// What a file says while it is loaded comes after RunStarted.
func TestEarlyLog(t *testing.T) {
	var out bytes.Buffer
	o := runFiles(t, t.Context(), Options{Stdout: &out, Seed: 7}, &fakeHost{}, "a.star", "log('early')\nprint('printed')\ndef main(): pass\n")
	if first := o.seq[0].Event.(event.RunStarted); first.Seed != 7 {
		t.Errorf("seed %d", first.Seed)
	}
	if second, ok := o.seq[1].Event.(event.Log); !ok || second.Text != "early" || o.seq[1].Scope.File != "a.star" || out.String() != "printed\n" {
		t.Errorf("got %+v, %q", o.seq[1], out.String())
	}
}

// Every test goes on from what setup left, in a lab of its own, in an order that
// the seed gives.
func TestForks(t *testing.T) {
	const text = machine + `
def setup():
    m.succeed("say setup")
    m.succeed("write 0")
def alone(name):
    m.succeed("say " + name)
    m.succeed("write " + name)
    assert_eq(m.succeed("read"), "0" + name)
def test_a(): alone("a")
def test_b(): alone("b")
def test_c(): alone("c")
def test_d(): alone("d")
`
	orders := map[string]bool{}
	for seed := range int64(6) {
		var first []string
		for _, jobs := range []int{1, 1, 4} {
			host := &fakeHost{}
			o := runFiles(t, t.Context(), Options{Seed: seed + 1, Jobs: jobs}, host, "a.star", text)
			o.expect(t, event.Passed, 0, "a.star:setup passed", "a.star:test_a passed", "a.star:test_b passed", "a.star:test_c passed", "a.star:test_d passed", "a.star passed")
			if len(host.labs) != 1 || host.forks != 4 || host.said[0] != "setup" || len(host.said) != 5 {
				t.Errorf("%d labs, %d forks, said %q", len(host.labs), host.forks, host.said)
			}
			switch {
			case jobs > 1:
			case first == nil:
				first = host.said
			case !slices.Equal(first, host.said):
				t.Errorf("seed %d: %q, and again %q", seed+1, first, host.said)
			}
		}
		orders[fmt.Sprint(first)] = true
	}
	if len(orders) < 2 {
		t.Errorf("every seed gives the same order: %v", orders)
	}
}

// Without setup each test begins with machines that are off. One test alone, or
// main, needs no fork.
func TestNoForks(t *testing.T) {
	host := &fakeHost{}
	o := runFiles(t, t.Context(), Options{}, host, "a.star", machine+"def setup(): m.succeed('say setup')\ndef main(): m.succeed('say main')\n",
		"b.star", machine+"def setup(): m.succeed('say setup')\ndef test_b(): m.succeed('say b')\n",
		"c.star", machine+"def test_c(): m.succeed('write c')\ndef test_d(): assert_eq(m.succeed('read'), '')\n")
	o.expect(t, event.Passed, 0, "a.star:setup passed", "a.star:main passed", "a.star passed", "b.star:setup passed", "b.star:test_b passed", "b.star passed",
		"c.star:test_c passed", "c.star:test_d passed", "c.star passed")
	if len(host.labs) != 3 || host.forks != 2 {
		t.Errorf("%d labs, %d forks", len(host.labs), host.forks)
	}
}

// Where a lab cannot be saved, setup runs again for each test.
func TestWithoutSnapshots(t *testing.T) {
	const text = machine + `
def setup():
    m.succeed("say setup")
    m.succeed("write 0")
def test_a():
    m.succeed("write a")
    assert_eq(m.succeed("read"), "0a")
def test_b():
    m.succeed("write b")
    assert_eq(m.succeed("read"), "0b")
`
	host := &fakeHost{noSnapshot: &attest.UnsupportedError{Machine: "m", Operation: "snapshot", Backend: "fake"}}
	o := runFiles(t, t.Context(), Options{}, host, "a.star", text)
	o.expect(t, event.Passed, 0, "a.star:setup passed", "a.star:test_a passed", "a.star:test_b passed", "a.star passed")
	if len(host.labs) != 3 || host.forks != 0 || strings.Join(host.said, " ") != "setup setup setup" {
		t.Errorf("%d labs, %d forks, said %q", len(host.labs), host.forks, host.said)
	}
	warned, subtests := "", 0
	for _, r := range o.seq {
		switch e := r.Event.(type) {
		case event.Log:
			warned += e.Text
		case event.SubtestFinished:
			if e.Name == "setup" && e.Status == event.Passed && r.Scope.Test != "setup" {
				subtests++
			}
		}
	}
	if !strings.HasPrefix(warned, "setup runs again for each test: ") || subtests != 2 {
		t.Errorf("warned %q; %d subtests", warned, subtests)
	}
}

// setup that fails when it runs again is that test's failure.
func TestSetupFailsAgain(t *testing.T) {
	host := &fakeHost{noSnapshot: &attest.UnsupportedError{}}
	o := runFiles(t, t.Context(), Options{Boot: "cold"}, host, "a.star", machine+`
def setup():
    if m.succeed("again"): fail("again")
def test_a(): pass
def test_b(): pass
`)
	o.expect(t, event.Failed, 1, "a.star:setup passed", "a.star:test_a failed", "a.star:test_b failed", "a.star failed")
	if f := o.fails["a.star:test_a"]; f == nil || f.Message != "again" || f.Position.Line != 4 {
		t.Errorf("got %+v", f)
	}
}

// What breaks when a test's lab is made is that test's trouble.
func TestForkFails(t *testing.T) {
	host := &fakeHost{noFork: &attest.InfraError{Action: "fork", Err: errors.New("no space left on device")}}
	o := runFiles(t, t.Context(), Options{Jobs: 1, Seed: 1}, host, "a.star", machine+"def setup(): pass\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): pass\n")
	if o.Status != event.Infra || o.Counts[event.Passed] != 2 || o.Counts[event.Infra] != 1 {
		t.Errorf("got %+v: %q", o.Summary, o.lines)
	}
}

// A state that cannot be kept for another reason ends the file.
func TestSnapshotFails(t *testing.T) {
	for err, status := range map[error]event.Status{
		errors.New("no space left on device"):                          event.Infra,
		&attest.BootError{Machine: "m", Reason: "the kernel panicked"}: event.BootFailed,
	} {
		o := runFiles(t, t.Context(), Options{}, &fakeHost{noSnapshot: err}, "a.star", machine+"def setup(): pass\ndef test_a(): pass\ndef test_b(): pass\n")
		o.expect(t, status, 3, "a.star:setup passed", "a.star:test_a skipped", "a.star:test_b skipped", "a.star "+string(status))
	}
}

// With both, each test runs booted and restored, and is reported as two.
func TestBootBoth(t *testing.T) {
	o := runFiles(t, t.Context(), Options{Boot: "both"}, &fakeHost{}, "a.star", machine+"def setup(): pass\ndef test_a(): m.succeed('cold')\ndef test_b(): pass\n")
	o.expect(t, event.Failed, 1, "a.star:setup[cold] passed", "a.star:setup[warm] passed", "a.star:test_a[cold] failed", "a.star:test_a[warm] passed",
		"a.star:test_b[cold] passed", "a.star:test_b[warm] passed", "a.star failed")
	var started event.FileStarted
	for _, r := range o.seq {
		if e, ok := r.Event.(event.FileStarted); ok {
			started = e
		}
	}
	if fmt.Sprint(started.Tests, started.Boots) != "[test_a test_b] [cold warm]" || o.Counts[event.Passed] != 3 {
		t.Errorf("%+v, %+v", started, o.Counts)
	}
}

// Tests of all files share the run's jobs and the host's memory.
func TestParallelTests(t *testing.T) {
	for _, tt := range []struct {
		jobs, memory, want int
	}{{4, 100_000, 4}, {4, 2 * (1024 + vmmMemory), 2}, {2, 100_000, 2}, {9, 1, 1}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		host := &fakeHost{hung: make(chan struct{}, 9)}
		go func() {
			for range tt.want {
				<-host.hung
			}
			cancel(errors.New("all are here"))
		}()
		const hang = machine + "def test_a(): m.succeed('hang')\ndef test_b(): m.succeed('hang')\ndef test_c(): m.succeed('hang')\n"
		o := runFiles(t, ctx, Options{Jobs: tt.jobs, Memory: tt.memory}, host, "a.star", hang, "b.star", hang)
		if o.Status != event.Interrupted || host.most != tt.want {
			t.Errorf("%+v: %d labs at once (%s)", tt, host.most, o.Status)
		}
		cancel(nil)
	}
}

// An interrupt ends all that run at once and skips the rest; the reports have
// every test once.
func TestInterruptForks(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	host := &fakeHost{hung: make(chan struct{}, 9)}
	go func() {
		for range 2 {
			<-host.hung
		}
		cancel(errors.New("interrupted (SIGINT)"))
	}()
	o := runFiles(t, ctx, Options{Jobs: 2, Seed: 3}, host, "a.star", machine+"def setup(): pass\n"+
		"def test_a(): m.succeed('hang')\ndef test_b(): m.succeed('hang')\ndef test_c(): m.succeed('hang')\ndef test_d(): m.succeed('hang')\n")
	if o.Counts[event.Interrupted] != 2 || o.Counts[event.Skipped] != 2 || len(o.lines) != 6 || o.ExitCode() != 130 {
		t.Errorf("got %+v: %q", o.Counts, o.lines)
	}
}

// With Keep each failed test leaves its lab, and says how to open it.
func TestKeep(t *testing.T) {
	const text = machine + "def setup(): pass\ndef test_a(): m.succeed('false')\ndef test_b(): pass\ndef test_c(): fail('no')\n"
	o := runFiles(t, t.Context(), Options{Keep: true, OutDir: "out"}, &fakeHost{}, "sub/web_test.star", text)
	for again := range 2 {
		var kept []string
		for _, r := range o.seq {
			if e, ok := r.Event.(event.Artifact); ok && e.Kind == "lab" {
				kept = append(kept, r.Scope.Test+" "+e.Path)
			}
		}
		slices.Sort(kept)
		if want := "test_a out/kept/sub-web_test-test_a, test_c out/kept/sub-web_test-test_c"; strings.Join(kept, ", ") != want {
			t.Errorf("kept %q", kept)
		}
		f := o.fails["sub/web_test.star:test_c"]
		if len(f.Details) != 1 || f.Details[0].Text != "attest debug out/kept/sub-web_test-test_c" {
			t.Errorf("got %+v", f.Details)
		}
		k, err := ReadKept("out/kept/sub-web_test-test_c")
		if err != nil || filepath.Base(k.File) != "web_test.star" || !filepath.IsAbs(k.File) || k.Test != "test_c" || k.Place != "sub/web_test.star:5:19" || k.Message != "no" {
			t.Errorf("got %+v, %v", k, err)
		}
		if again == 0 { // in the place of those of before
			o = rerun(t, t.Context(), Options{Keep: true, OutDir: "out", Files: []string{"sub/web_test.star"}}, &fakeHost{})
		}
	}
}

// A lab that cannot be kept does not hide why the test failed.
func TestKeepFails(t *testing.T) {
	o := runFiles(t, t.Context(), Options{Keep: true, Files: []string{"a.star"}}, &fakeHost{}, "a.star", machine+"def test_a(): fail('no')\n", "kept", "a file")
	o.expect(t, event.Failed, 1, "a.star:test_a failed", "a.star failed")
	f := o.fails["a.star:test_a"]
	if f.Message != "no" || len(f.Details) != 1 || f.Details[0].Title != "the lab could not be kept" || !strings.Contains(f.Details[0].Text, "kept: not a directory") {
		t.Errorf("got %+v", f)
	}
}

// Whoever interrupts a run does not want to wait until labs are saved.
func TestKeepNothingOfAnInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	host := &fakeHost{hung: make(chan struct{}, 1)}
	go func() {
		<-host.hung
		cancel(errors.New("interrupted (SIGINT)"))
	}()
	o := runFiles(t, ctx, Options{Keep: true}, host, "a.star", machine+"def main(): m.succeed('hang')\n")
	o.expect(t, event.Interrupted, 130, "a.star:main interrupted", "a.star interrupted")
	if _, err := os.Stat("kept"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was kept (%v)", err)
	}
}
