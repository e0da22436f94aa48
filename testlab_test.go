package attest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
	"github.com/attest-vm/attest/internal/wire"
)

// A fakeT is a test whose failure is not one of the test that plays it.
type fakeT struct {
	*testing.T
	name string

	mu       sync.Mutex
	log      bytes.Buffer
	failed   bool
	cleanups []func()
}

func (f *fakeT) Name() string  { return f.name }
func (f *fakeT) Skipped() bool { return false }

func (f *fakeT) Output() io.Writer { return writerFunc(f.write) }

func (f *fakeT) write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.Write(p)
}

func (f *fakeT) Logf(format string, args ...any) { fmt.Fprintf(f.Output(), format+"\n", args...) }

func (f *fakeT) Fatalf(format string, args ...any) {
	f.Logf(format, args...)
	f.mu.Lock()
	f.failed = true
	f.mu.Unlock()
	runtime.Goexit()
}

func (f *fakeT) Failed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

func (f *fakeT) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }

func (f *fakeT) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.String()
}

type writerFunc func([]byte) (int, error)

func (fn writerFunc) Write(p []byte) (int, error) { return fn(p) }

// play runs a test to its end, with its cleanups.
func play(t *testing.T, name string, test func(*fakeT)) *fakeT {
	f := &fakeT{T: t, name: name}
	var body sync.WaitGroup
	body.Go(func() { test(f) })
	body.Wait()
	for len(f.cleanups) > 0 {
		fn := f.cleanups[len(f.cleanups)-1]
		f.cleanups = f.cleanups[:len(f.cleanups)-1]
		fn()
	}
	return f
}

// testStage is a stage whose machines are for labs of go test.
func testStage(t *testing.T, o mock.Options) (*stage, func(names ...string) LabConfig) {
	s := newStage(t, o)
	return s, func(names ...string) LabConfig {
		config := LabConfig{OutDir: t.TempDir()}
		for _, n := range names {
			config.Machines = append(config.Machines, MachineConfig{Name: n, Backend: s.backend, Memory: minMemory, Boot: BootCold})
		}
		return config
	}
}

func wantIn(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s\nlacks %s", text, want)
		}
	}
}

func TestTestLab(t *testing.T) {
	_, config := testStage(t, mock.Options{})
	f := play(t, "TestX", func(f *fakeT) {
		lab := NewLab(f, config("a", "b"))
		for _, m := range lab.Machines() {
			if got := m.Succeed("echo hello"); got != "hello\n" {
				t.Errorf("%s says %q", m.Name(), got)
			}
		}
		lab.Machine("a").Succeed("exit 3")
		t.Error("the test goes on")
	})
	wantIn(t, f.text(), "attest: seed ", "a: ready", "attest: a: command `exit 3` failed (exit code 3)")
	if strings.Contains(f.text(), "goroutine") {
		t.Errorf("blames a goroutine: %s", f.text())
	}
	f = play(t, "TestX", func(f *fakeT) { NewLab(f, config("a")).Machine("c") })
	wantIn(t, f.text(), `there is no machine "c" in this lab, only a`)
}

// What a guest says does nothing to the terminal that shows the log of a test.
func TestLogsAreHarmless(t *testing.T) {
	_, config := testStage(t, mock.Options{})
	f := play(t, "TestX", func(f *fakeT) {
		NewLab(f, config("a")).Machine("a").Succeed("printf '\\033]0;title\\007\\033[2Jsaid'; exit 3")
	})
	if text := f.text(); !f.Failed() || !strings.Contains(text, "said") || strings.ContainsAny(text, "\x1b\x07") {
		t.Errorf("got %q", text)
	}
}

// A subtest has the parent's machines, and a log, faults and failures of its own.
func TestSubtestWithLab(t *testing.T) {
	_, config := testStage(t, mock.Options{})
	var sub *fakeT
	parent := play(t, "TestX", func(f *fakeT) {
		lab := NewLab(f, config("a", "b"))
		lab.Machine("a").Succeed("true")
		sub = play(t, "TestX/sub", func(f *fakeT) {
			with := lab.With(f)
			with.Network().Down(with.Machine("a"))
			with.Machine("b").Succeed("exit 4")
		})
		lab.Machine("a").Log("the parent goes on")
	})
	wantIn(t, sub.text(), "network: down(a)", "network: down(a) ended after", "`exit 4` failed")
	wantIn(t, parent.text(), "a: ready", "a: the parent goes on")
	if parent.Failed() || strings.Contains(parent.text(), "down(a)") {
		t.Errorf("the parent has failed, or has the subtest's log: %s", parent.text())
	}
}

// Without With a failure in a subtest is the parent's, and says what to do.
func TestSubtestWithoutLab(t *testing.T) {
	_, config := testStage(t, mock.Options{})
	f := play(t, "TestX", func(f *fakeT) {
		lab := NewLab(f, config("a"))
		play(t, "TestX/sub", func(*fakeT) { lab.Machine("a").Succeed("exit 5") })
	})
	wantIn(t, f.text(), "`exit 5` failed", "the lab belongs to TestX", "lab.With(t)")
}

func TestSnapshotForksOfTests(t *testing.T) {
	_, config := testStage(t, mock.Options{Warm: true})
	dir := filepath.Join(t.TempDir(), "saved")
	f := play(t, "TestX", func(f *fakeT) {
		lab := NewLab(f, config("a"))
		lab.Machine("a").Succeed("true")
		s := lab.Snapshot()
		for range 2 {
			if sub := play(t, "TestX/sub", func(f *fakeT) { s.Fork(f).Machine("a").Succeed("true") }); sub.Failed() {
				t.Error(sub.text())
			}
		}
		s.Save(dir)
	})
	opened := play(t, "TestY", func(f *fakeT) { OpenLab(f, dir).Machine("a").Succeed("true") })
	if f.Failed() || opened.Failed() {
		t.Errorf("%s\n%s", f.text(), opened.text())
	}
}

func TestWaitAllAndEventually(t *testing.T) {
	_, config := testStage(t, mock.Options{})
	wrong := errors.New("it is wrong")
	f := play(t, "TestX", func(f *fakeT) {
		lab := NewLab(f, config("a", "b", "c"))
		var mu sync.Mutex
		seen := map[string]bool{}
		note := func(_ context.Context, m *Machine) error {
			mu.Lock()
			defer mu.Unlock()
			seen[m.Name()] = true
			return nil
		}
		lab.WaitAll(note, lab.Machine("a"), Group{lab.Machine("c")})
		if fmt.Sprint(seen) != "map[a:true c:true]" {
			t.Errorf("waited for %v", seen)
		}
		tries := 0
		lab.Eventually("the third try", func(context.Context) error {
			if tries++; tries < 3 {
				return wrong
			}
			return nil
		})
		// The first that fails ends the others.
		lab.WaitAll(func(ctx context.Context, m *Machine) error {
			if m.Name() == "b" {
				return wrong
			}
			<-ctx.Done()
			return context.Cause(ctx)
		})
	})
	wantIn(t, f.text(), "attest: it is wrong")
}

// A boot that takes long says so meanwhile, with the end of the console.
func TestNewsOfBoots(t *testing.T) {
	said := make(chan string, 100)
	f := &fakeT{T: t, name: "TestX"}
	l := newTestLog(f)
	l.every = time.Millisecond
	l.t = loudT{f, said}
	l.record(event.Record{Event: event.MachineState{Machine: "m", State: "running"}})
	l.record(event.Record{Event: event.Console{Machine: "m", Line: "Loading initramfs"}})
	for line := range said {
		if strings.HasPrefix(line, "m: no answer yet after ") && strings.HasSuffix(line, "; its console: Loading initramfs\n") {
			break
		}
	}
	l.close()
	if len(l.boots) != 0 {
		t.Error("it goes on")
	}
}

// When the time of go test is nearly over, the error says what hangs.
func TestTimeoutIsNear(t *testing.T) {
	_, config := testStage(t, mock.Options{Operating: func(ctx context.Context, _ *mock.Machine, op string) {
		if op == wire.OpExec {
			<-ctx.Done()
		}
	}})
	nearEnd.by = ""
	f := play(t, "TestX", func(f *fakeT) {
		near := timedT{f, time.Now().Add(testGrace + time.Second)}
		NewLab(near, config("a")).Machine("a").Succeed("hang")
	})
	wantIn(t, f.text(), `attest: the test binary's -timeout is near (in 10s); under way: a: succeed("hang") for `)
	// The lab of a TestMain has no such time, its tests have.
	var lab *TestLab
	Main(mainM(func() int {
		f = play(t, "TestX", func(f *fakeT) {
			lab.With(timedT{f, time.Now().Add(testGrace + time.Second)}).Machine("a").Succeed("hang")
		})
		return 0
	}), config("a"), func(l *TestLab) { lab = l })
	wantIn(t, f.text(), `-timeout is near (in 10s); under way: a: succeed("hang") for `)
	// Another test of the process says what it was at, and not the same once more.
	f = play(t, "TestY", func(f *fakeT) {
		NewLab(timedT{f, time.Now().Add(testGrace + time.Second)}, config("a")).Machine("a").Succeed("hang")
	})
	wantIn(t, f.text(), `attest: ended with TestX; under way was a: succeed("hang") for `)
}

type timedT struct {
	*fakeT
	deadline time.Time
}

func (t timedT) Deadline() (time.Time, bool) { return t.deadline, true }

func TestNewsOfBuilds(t *testing.T) {
	f := &fakeT{T: t, name: "TestX"}
	l := newTestLog(f)
	start := time.Now()
	for _, p := range []struct {
		after time.Duration
		event.Progress
	}{
		{0, event.Progress{Title: "image x", Message: "unpacking"}},
		{time.Second, event.Progress{Title: "image x", Message: "not said"}},
		{news, event.Progress{Title: "image x", Message: "configuring"}},
		{news + time.Second, event.Progress{Title: "image x", Done: true}},
	} {
		l.record(event.Record{Time: start.Add(p.after), Event: p.Progress})
	}
	if got, want := f.text(), "image x: unpacking\nimage x: configuring\nimage x: done\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type loudT struct {
	*fakeT
	said chan string
}

func (l loudT) Output() io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		select {
		case l.said <- string(p):
		default: // nobody has to hear all of it
		}
		return len(p), nil
	})
}

func TestReportsOfGoTest(t *testing.T) {
	_, config := testStage(t, mock.Options{})
	dir := t.TempDir()
	t.Setenv(ReportsEnv, dir)
	before := reports
	reports = &processReports{}
	defer func() {
		reports.file.Close()
		reports = before
	}()
	read := func(ending string) string {
		files, _ := filepath.Glob(filepath.Join(dir, "*"+ending))
		if len(files) != 1 {
			t.Fatalf("reports %s: %v", ending, files)
		}
		data, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	play(t, "TestGood", func(f *fakeT) { NewLab(f, config("a")).Machine("a").Succeed("true") })
	wantIn(t, read(".xml"), `name="TestGood"`, `failures="0"`)
	play(t, "TestBad", func(f *fakeT) {
		lab := NewLab(f, config("a"))
		play(t, "TestBad/sub", func(f *fakeT) { lab.With(f).Machine("a").Succeed("exit 6") })
		var without sync.WaitGroup
		without.Go(func() { lab.Machine("a").Succeed("exit 5") }) // as a subtest that forgets With
		without.Wait()
		lab.Machine("a").Succeed("exit 7")
	})
	junit := read(".xml")
	wantIn(t, junit, `name="TestGood"`, `name="TestBad"`, `name="TestBad/sub"`, `name="TestBad/at testlab_test.go:`, `failures="3"`, "exit 5", "exit 6", "exit 7")
	wantIn(t, read(".html"), "TestBad/sub")
	lines := read(".jsonl")
	if n := strings.Count(lines, `"type":"run_finished"`); n != 1 {
		t.Errorf("%d ends of the run", n)
	}
	if _, file, _, _ := runtime.Caller(0); !strings.Contains(lines, `"position":{"file":"`+file) {
		t.Errorf("no step has its line in %s", file)
	}
	d := event.NewDecoder(strings.NewReader(lines))
	for {
		if _, err := d.Decode(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

type mainM func() int

func (m mainM) Run() int { return m() }

func TestMainWithLab(t *testing.T) {
	s, config := testStage(t, mock.Options{})
	var lab *TestLab
	code := Main(mainM(func() int {
		sub := play(t, "TestX", func(f *fakeT) { lab.With(f).Machine("a").Succeed("true") })
		if sub.Failed() {
			t.Error(sub.text())
		}
		return 0
	}), config("a"), func(l *TestLab) { lab = l })
	if code != 0 || s.starts() != 1 || s.started(t, 1).Exit().Reason != vmm.Killed {
		t.Errorf("exit code %d, %d starts", code, s.starts())
	}
	code = Main(mainM(func() int { t.Error("the tests run"); return 0 }), config("a"), func(l *TestLab) { l.Machine("a").Succeed("exit 8") })
	if code == 0 {
		t.Error("a setup that fails is a success")
	}
}
