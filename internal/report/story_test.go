package report

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -update writes it):\n%s", path, diff)
	}
}

// A story publishes what a run would. In a synctest bubble its time passes at
// once and is the same every time.
type story struct {
	bus   event.Bus
	scope event.Scope
	steps uint64
}

func (s *story) is(e event.Event) { s.bus.Publish(s.scope, e) }

// after passes time; what the reports do at the end of it is done on return.
func (s *story) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// step runs a step that takes d and prints out.
func (s *story) step(machine, operation, args string, d time.Duration, out string, end event.StepFinished) {
	s.steps++
	id, scope := s.steps, s.scope
	s.is(event.StepStarted{ID: id, Machine: machine, Operation: operation, Args: args, Position: event.Position{File: s.scope.File, Line: int(10 + id), Column: 5}})
	s.scope.Step = id
	s.after(d / 2)
	if out != "" {
		s.is(event.Output{Machine: machine, Stream: "stdout", Data: out[:len(out)/2]})
		s.is(event.Output{Machine: machine, Stream: "stdout", Data: out[len(out)/2:]})
	}
	s.after(d - d/2)
	s.scope = scope
	end.ID, end.Machine, end.Duration = id, machine, d
	if end.Status == "" {
		end.Status = event.Passed
	}
	s.is(end)
}

func (s *story) boot(machine string, d time.Duration) {
	s.is(event.MachineState{Machine: machine, State: "starting"})
	s.after(d / 4)
	s.is(event.MachineState{Machine: machine, State: "running", After: d / 4})
	s.is(event.Console{Machine: machine, Line: "\x1b[0m[    0.000000] Linux version 6.1.0-40-cloud-amd64\r"})
	s.after(d / 2)
	s.is(event.Console{Machine: machine, Line: "\x1b[32m[  OK  ]\x1b[0m Started \x1b[1msystemd-journald.service\x1b[0m."})
	s.after(d - d/4 - d/2)
	s.is(event.MachineState{Machine: machine, State: "ready", After: d})
}

// begin opens the run, and a file with an image to build.
func (s *story) begin() {
	s.is(event.RunStarted{Version: "0.1.0", Files: []string{"web_test.star"}, Seed: 42, Host: "2 cores, 4 GiB, tcg", Hostname: "HOST"})
	s.scope.File = "web_test.star"
	s.is(event.FileStarted{Tests: []string{"test_serves", "test_partition", "test_late"}})
	p := event.Progress{ID: "image1", Title: "build image debian:bookworm+nginx"}
	s.is(p)
	for _, m := range []string{"resolving", "unpacking nginx", "packing"} {
		s.after(7 * time.Second)
		p.Message = m
		s.is(p)
	}
	s.after(3 * time.Second)
	p.Done, p.Elapsed = true, 24*time.Second
	s.is(p)
}

// titles are what some tests say that they are about.
var titles = map[string]string{"setup": "the server is up", "test_serves": "nginx's <page> comes", "test_partition": "no page through a partition"}

// test runs a test that ends with f, or passes if f is nil.
func (s *story) test(name string, f *event.Failure, during func()) {
	s.scope.Test = name
	begin := time.Now()
	s.is(event.TestStarted{Title: titles[name]})
	during()
	status := event.Passed
	if f != nil {
		status = f.Status
	}
	s.is(event.TestFinished{Status: status, Duration: time.Since(begin), Failure: f})
	s.scope.Test = ""
}

func failure() *event.Failure {
	code := 7
	return &event.Failure{
		Status:   event.Failed,
		Message:  "client: `curl -sf http://server/` failed with exit code 7",
		Position: event.Position{File: "web_test.star", Line: 21, Column: 12, Func: "fetch"},
		Source:   "    return client.succeed(\"curl -sf http://server/\")",
		Stack: []event.Position{
			{File: "web_test.star", Line: 30, Column: 20, Func: "test_partition"},
			{File: "web_test.star", Line: 21, Column: 12, Func: "fetch"},
		},
		Machine: "client", Operation: "succeed", Command: "curl -sf http://server/",
		ExitCode: &code, Duration: 2130 * time.Millisecond,
		Stderr:  "curl: (7) Failed to connect to server port 80 after 2003 ms\nCouldn't connect to server\n",
		Console: []string{"[   21.1] systemd[1]: Started cron.service\r", "\x1b[1;31mdebian login:\x1b[0m "},
		Details: []event.Detail{{Title: "failed units of server", Text: "nginx.service  failed  A high performance web server\n"}},
	}
}

// wholeRun is a run with one of everything.
func (s *story) wholeRun() {
	s.begin()
	s.test("setup", nil, func() {
		s.boot("server", 18*time.Second)
		s.step("server", "wait_for_unit", "nginx.service", 12*time.Second, "", event.StepFinished{})
	})
	s.test("test_serves", nil, func() {
		s.is(event.Log{Level: "info", Text: "looking at the page"})
		s.step("client", "succeed", "curl -sf http://server/", 212*time.Millisecond, "<h1>Welcome\n to nginx</h1>\nbye", event.StepFinished{})
		s.scope.Subtest = "head"
		s.is(event.SubtestStarted{Name: "head"})
		s.step("client", "succeed", "curl -sI http://server/", 1200*time.Millisecond, "HTTP/1.1 200 OK\r\n", event.StepFinished{})
		s.is(event.SubtestFinished{Name: "head", Status: event.Passed, Duration: 1200 * time.Millisecond})
		s.scope.Subtest = ""
	})
	f := failure()
	s.test("test_partition", f, func() {
		s.is(event.Log{Machine: "server", Level: "warning", Text: "clock jumped by 3s"})
		s.is(event.Log{Level: "debug", Text: "only for the curious"})
		s.is(event.FaultStarted{ID: 1, Fault: "partition(client, server)"})
		s.step("client", "succeed", f.Command, f.Duration, "", event.StepFinished{Status: event.Failed, ExitCode: f.ExitCode, Message: f.Message, Failure: f})
		s.is(event.FaultEnded{ID: 1, Fault: "partition(client, server)", Reason: "still in force at the end of the test", Duration: f.Duration, Frames: 7, Affected: 7})
	})
	s.is(event.MachineState{Machine: "server", State: "stopped"})
	s.is(event.FileFinished{Status: event.Failed, Duration: 57542 * time.Millisecond})
	s.scope = event.Scope{}
	s.is(event.Artifact{Kind: "screenshot", Path: "out/server.png"})
	s.is(event.RunFinished{Status: event.Failed, Duration: 57612 * time.Millisecond, Counts: map[event.Status]int{event.Passed: 1, event.Failed: 1, event.Skipped: 1}})
}

// onTerminal runs a story on a terminal without control codes and returns
// standard output and standard error.
func onTerminal(t *testing.T, o TerminalOptions, tell func(*story)) (stdout, stderr string) {
	synctest.Test(t, func(t *testing.T) {
		var out, err bytes.Buffer
		o.Stdout, o.Stderr = &out, &err
		term := NewTerminal(o)
		var s story
		s.bus.Subscribe(term.Record)
		tell(&s)
		if e := term.Close(event.Artifact{Kind: "junit", Path: "out/junit.xml"}); e != nil {
			t.Error(e)
		}
		stdout, stderr = out.String(), err.String()
	})
	return stdout, stderr
}

func TestPlain(t *testing.T) {
	for name, level := range map[string]Level{"normal": Normal, "verbose": Verbose, "quiet": Quiet} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr := onTerminal(t, TerminalOptions{Level: level}, (*story).wholeRun)
			golden(t, name+".txt", fmt.Sprintf("── stderr ──\n%s── stdout ──\n%s", stderr, stdout))
		})
	}
}

func TestColor(t *testing.T) {
	stdout, stderr := onTerminal(t, TerminalOptions{ColorStdout: true, ColorStderr: true}, (*story).wholeRun)
	golden(t, "color.txt", stderr+stdout)
}

// Plain lines of tests that run at once say whose they are.
func TestPlainParallel(t *testing.T) {
	for name, level := range map[string]Level{"parallel": Normal, "parallel_verbose": Verbose} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr := onTerminal(t, TerminalOptions{Level: level}, parallelRun)
			golden(t, name+".txt", fmt.Sprintf("── stderr ──\n%s── stdout ──\n%s", stderr, stdout))
		})
	}
}

// What a test prints may be a guest's: on a terminal it is shown, and not obeyed. A
// pipe gets it as it is.
func TestPrintOnATerminal(t *testing.T) {
	const said = "\x1b]0;PWNED\atitle \x1b[2Jcleared\rover\n"
	for _, tt := range []struct {
		name string
		o    TerminalOptions
		want string
	}{
		{"terminal", TerminalOptions{OnScreen: true}, "title cleared\nover\n"},
		{"terminal with the tree", TerminalOptions{OnScreen: true, Live: true, Shared: true}, "title cleared\nover\n"},
		{"pipe", TerminalOptions{}, said},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			tt.o.Stdout, tt.o.Stderr = &out, io.Discard
			term := NewTerminal(tt.o)
			defer term.Close()
			if n, err := io.WriteString(term.Stdout(), said); n != len(said) || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			if out.String() != tt.want {
				t.Errorf("got %q, want %q", out.String(), tt.want)
			}
		})
	}
}
