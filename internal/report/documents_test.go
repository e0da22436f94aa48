package report

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"html"
	"io"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/google/go-cmp/cmp"
)

// hostile is what a guest may print.
const hostile = "</pre><script>alert(1)</script>]]>&\"'\x00\x01\x1b[31m\xff\xfe\u202e\ufffe\r\n{{.}}\u2028"

// gather is a whole run in a Run, as Close leaves it.
func gather(t *testing.T, tell func(*story)) *Run {
	r := NewRun()
	synctest.Test(t, func(t *testing.T) {
		var s story
		s.bus.Subscribe(r.Record)
		tell(&s)
		r.close(time.Now())
	})
	return r
}

func hostileRun(s *story) {
	s.scope.File = "dir.x/" + hostile + ".star"
	s.is(event.RunStarted{Files: []string{s.scope.File}, Host: hostile, Version: hostile})
	s.is(event.FileStarted{Tests: []string{"test_" + hostile}})
	f := &event.Failure{
		Status: event.BootFailed, Message: hostile, Source: hostile, Machine: hostile, Operation: hostile, Command: hostile, Stdout: hostile,
		Stderr: strings.Repeat(hostile, 100), LastSeen: hostile, Console: []string{hostile}, Details: []event.Detail{{Title: hostile, Text: hostile}},
		Position: event.Position{File: hostile, Line: 1, Column: 99}, Stack: []event.Position{{File: hostile, Func: hostile}, {File: hostile, Func: hostile}},
	}
	s.test("test_"+hostile, f, func() {
		s.is(event.SubtestStarted{Name: hostile})
		s.is(event.Console{Machine: hostile, Line: hostile})
		s.is(event.Log{Machine: hostile, Level: "error", Text: hostile})
		s.step(hostile, hostile, hostile, time.Second, hostile, event.StepFinished{Status: event.Failed, Message: hostile})
		s.is(event.MachineState{Machine: hostile, State: "crashed", Detail: hostile})
		s.is(event.Artifact{Kind: hostile, Path: "javascript:" + hostile})
		s.is(event.SubtestFinished{Name: hostile, Status: event.Infra, Message: hostile})
	})
	s.is(event.Progress{ID: hostile, Title: hostile, Message: hostile, Done: true, Error: hostile})
	s.is(event.FileFinished{Status: event.Invalid, Failure: &event.Failure{Status: event.Invalid, Message: "another " + hostile}})
	s.scope = event.Scope{}
	s.is(event.Log{Level: hostile, Text: hostile})
}

func TestJUnit(t *testing.T) {
	var b bytes.Buffer
	if err := WriteJUnit(&b, gather(t, (*story).wholeRun)); err != nil {
		t.Fatal(err)
	}
	golden(t, "junit.xml", b.String())
}

// readJUnit reads what WriteJUnit writes and checks what the format promises.
func readJUnit(t *testing.T, r *Run) junitSuites {
	t.Helper()
	var b bytes.Buffer
	if err := WriteJUnit(&b, r); err != nil {
		t.Fatal(err)
	}
	var doc junitSuites
	d := xml.NewDecoder(&b)
	if err := d.Decode(&doc); err != nil {
		t.Fatalf("not well-formed: %v", err)
	}
	if _, err := d.Token(); err != io.EOF && err != nil {
		t.Fatal(err)
	}
	var all junitSuite
	for _, s := range doc.Suites {
		var n junitSuite
		for _, c := range s.Cases {
			n.Tests++
			ends := 0
			for _, x := range []struct {
				has bool
				n   *int
			}{{c.Failure != nil, &n.Failures}, {c.Error != nil, &n.Errors}, {c.Skipped != nil, &n.Skipped}} {
				if x.has {
					ends++
					*x.n++
				}
			}
			if ends > 1 {
				t.Errorf("%s has %d ends", c.Name, ends)
			}
			if strings.Contains(c.Classname, "/") || c.Name == "" {
				t.Errorf("testcase %q of class %q", c.Name, c.Classname)
			}
		}
		if got, want := fmt.Sprint(s.Tests, s.Failures, s.Errors, s.Skipped), fmt.Sprint(n.Tests, n.Failures, n.Errors, n.Skipped); got != want {
			t.Errorf("suite %s counts %s, has %s", s.Name, got, want)
		}
		all.Tests += n.Tests
		all.Failures += n.Failures
		all.Errors += n.Errors
		all.Skipped += n.Skipped
	}
	if fmt.Sprint(doc.Tests, doc.Failures, doc.Errors, doc.Skipped) != fmt.Sprint(all.Tests, all.Failures, all.Errors, all.Skipped) {
		t.Errorf("the counts of testsuites are not those of its suites")
	}
	return doc
}

func TestJUnitStatuses(t *testing.T) {
	doc := readJUnit(t, gather(t, func(s *story) {
		s.scope.File = "tests/a.b_test.star"
		s.is(event.FileStarted{Tests: []string{"never"}})
		s.test("setup", nil, func() {})
		for _, status := range []event.Status{event.Failed, event.BootFailed, event.Infra, event.Unsupported, event.Invalid, event.Interrupted} {
			s.test("t_"+string(status), &event.Failure{Status: status, Message: "because"}, func() {})
		}
		s.test("good", nil, func() {})
		s.scope.Test = "hangs"
		s.is(event.TestStarted{})
		s.after(3 * time.Second)
	}))
	got := make(map[string]string)
	for _, c := range doc.Suites[0].Cases {
		switch {
		case c.Failure != nil:
			got[c.Name] = "failure " + c.Failure.Type
		case c.Error != nil:
			got[c.Name] = "error " + c.Error.Type
		case c.Skipped != nil:
			got[c.Name] = "skipped"
		default:
			got[c.Name] = ""
		}
		if c.Classname != "tests.a_b_test" {
			t.Errorf("classname %q", c.Classname)
		}
	}
	want := map[string]string{
		"t_failed": "failure failed", "t_boot_failed": "error boot_failed", "t_infra": "error infra", "t_unsupported": "error unsupported",
		"t_invalid": "error invalid", "t_interrupted": "error interrupted", "good": "", "hangs": "error interrupted", "never": "skipped",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestJUnitHostile(t *testing.T) {
	doc := readJUnit(t, gather(t, hostileRun))
	var names []string
	for _, c := range doc.Suites[0].Cases {
		names = append(names, c.Name)
	}
	if len(names) != 3 || names[2] != "(file)" {
		t.Errorf("want the test, its subtest and the file's failure, got %q", names)
	}
}

// setup that fails is one testcase, though the file reports its failure as well.
func TestJUnitSetupFailed(t *testing.T) {
	f := failure()
	doc := readJUnit(t, gather(t, func(s *story) {
		s.scope.File = "a.star"
		s.is(event.FileStarted{Tests: []string{"test_a"}})
		s.test("setup", f, func() {})
		s.is(event.FileFinished{Status: f.Status, Failure: failure()})
	}))
	if doc.Tests != 2 || doc.Failures != 1 || doc.Skipped != 1 {
		t.Errorf("want setup failed and test_a skipped, got %+v", doc)
	}
}

// Every test has machines of its own; one of the whole file belongs to the test
// that runs.
func TestJUnitConsole(t *testing.T) {
	doc := readJUnit(t, gather(t, func(s *story) {
		s.scope.File = "a.star"
		s.is(event.FileStarted{})
		file := s.scope
		s.test("setup", nil, func() {
			s.is(event.Console{Machine: "m", Line: "from setup"})
			s.bus.Publish(file, event.Console{Machine: "shared", Line: "shared in setup"})
		})
		s.after(time.Second)
		s.test("test_a", failure(), func() {
			s.is(event.Console{Machine: "m", Line: "from test_a"})
			s.bus.Publish(file, event.Console{Machine: "shared", Line: "shared in test_a"})
			other := event.Scope{File: "a.star", Test: "test_b"}
			s.bus.Publish(other, event.TestStarted{})
			s.bus.Publish(other, event.Console{Machine: "m", Line: "from test_b"})
			s.bus.Publish(other, event.TestFinished{Status: event.Passed, Duration: 2 * time.Second})
		})
	}))
	out := doc.Suites[0].Cases[0].SystemOut.Text
	for line, want := range map[string]bool{"from test_a": true, "shared in test_a": true, "from setup": false, "from test_b": false, "shared in setup": false} {
		if strings.Contains(out, line) != want {
			t.Errorf("%q in system-out of test_a is %v:\n%s", line, !want, out)
		}
	}
}

// parallelRun is two tests that run at once, cold and warm, in another order
// than that of the file. One of them ends otherwise when its machine was not booted.
func parallelRun(s *story) {
	s.is(event.RunStarted{Files: []string{"web_test.star"}, Boot: "both", Seed: 7})
	s.scope.File = "web_test.star"
	s.is(event.FileStarted{Tests: []string{"test_a", "test_b"}, Boots: []string{"cold", "warm"}})
	keys := []event.Scope{
		{File: "web_test.star", Test: "test_b", Boot: "warm"}, {File: "web_test.star", Test: "test_a", Boot: "cold"},
		{File: "web_test.star", Test: "test_a", Boot: "warm"}, {File: "web_test.star", Test: "test_b", Boot: "cold"},
	}
	id := uint64(0)
	for _, k := range keys {
		id++
		s.bus.Publish(k, event.TestStarted{})
		start := event.MachineState{Machine: "server", State: "starting"}
		if k.Boot == "warm" {
			start.Detail = event.FromSnapshot
		}
		s.bus.Publish(k, start)
		s.bus.Publish(k, event.Console{Machine: "server", Line: "console of " + k.Test + " " + k.Boot})
		s.bus.Publish(k, event.StepStarted{ID: id, Machine: "server", Operation: "succeed", Args: `"echo ` + k.Test + " " + k.Boot + `"`})
		k.Step = id
		s.bus.Publish(k, event.Output{Machine: "server", Stream: "stdout", Data: "output of " + k.Test + " " + k.Boot + "\n"})
		s.after(11 * time.Second)
	}
	for i, k := range keys {
		s.bus.Publish(k, event.MachineState{Machine: "server", State: "ready", After: 3 * time.Second})
		end, fail := event.Passed, (*event.Failure)(nil)
		if k.Test == "test_b" && k.Boot == "warm" {
			fail = &event.Failure{Status: event.Failed, Message: "the clock stood still"}
			end = event.Failed
		}
		s.bus.Publish(k, event.StepFinished{ID: uint64(i + 1), Machine: "server", Status: end, Duration: 40 * time.Second})
		s.bus.Publish(k, event.TestFinished{Status: end, Duration: 41 * time.Second, Failure: fail})
	}
	s.is(event.FileFinished{Status: event.Failed, Duration: 44 * time.Second})
	s.scope = event.Scope{}
	s.is(event.RunFinished{Status: event.Failed, Duration: 44 * time.Second})
}

// Tests that ran at once, and out of order, are apart and in the order of the file.
func TestParallel(t *testing.T) {
	r := gather(t, parallelRun)
	var page bytes.Buffer
	if err := WriteHTML(&page, r); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(page.String(), "≠ ended otherwise: "); n != 2 || !strings.Contains(page.String(), "≠ ended otherwise: passed [cold]") {
		t.Errorf("the page marks %d tests that differ, want both of test_b", n)
	}
	want := []string{"test_a [cold]", "test_a [warm]", "test_b [cold] ≠ failed [warm]", "test_b [warm] ≠ passed [cold]"}
	var got []string
	for _, c := range readJUnit(t, r).Suites[0].Cases {
		name := c.Name
		if c.Properties != nil {
			name += " ≠ " + c.Properties.List[0].Value
			if c.Properties.List[0].Name != "ended_otherwise" || !strings.HasPrefix(c.SystemOut.Text, "≠ ended otherwise: ") {
				t.Errorf("%s has %+v, and its output is %.80q", name, c.Properties.List, c.SystemOut.Text)
			}
		}
		got = append(got, name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for i, part := range strings.Split(page.String(), "<summary><span class=\"badge")[1:] {
		k := r.files[0].tests[i].testKey
		for _, o := range r.files[0].tests {
			own := "of " + o.test + " " + o.boot + "\n"
			if n := strings.Count(part, own); (n == 2) != (o.testKey == k) || n != 0 && n != 2 {
				t.Errorf("%q is %d times in the part of %s", own, n, k)
			}
		}
	}
}

// Each report says how a test ended on the other backends, where that is otherwise.
func TestBackendsDiffer(t *testing.T) {
	r := gather(t, func(s *story) {
		s.is(event.RunStarted{Files: []string{"a.star"}})
		s.scope.File = "a.star"
		s.is(event.FileStarted{Tests: []string{"test_a"}, Boots: []string{"mock", "qemu", "firecracker", "cloud-hypervisor"}})
		for backend, end := range map[string]event.Status{"mock": event.Failed, "qemu": event.Passed, "firecracker": event.BootFailed, "cloud-hypervisor": event.Skipped} {
			k := event.Scope{File: "a.star", Test: "test_a", Boot: backend}
			s.bus.Publish(k, event.TestStarted{})
			s.bus.Publish(k, event.TestFinished{Status: end, Failure: &event.Failure{Status: end}})
		}
		s.is(event.FileFinished{Status: event.Failed})
		s.scope = event.Scope{}
		s.is(event.RunFinished{Status: event.Failed})
	})
	want := map[string]string{
		"mock": "passed [qemu], boot failed [firecracker]", "qemu": "failed [mock], boot failed [firecracker]", "firecracker": "failed [mock], passed [qemu]",
		"cloud-hypervisor": "",
	}
	var page bytes.Buffer
	if err := WriteHTML(&page, r); err != nil {
		t.Fatal(err)
	}
	for _, c := range readJUnit(t, r).Suites[0].Cases {
		backend := strings.TrimSuffix(strings.TrimPrefix(c.Name, "test_a ["), "]")
		got := ""
		if c.Properties != nil {
			got = c.Properties.List[0].Value
		}
		if got != want[backend] {
			t.Errorf("JUnit says of %s %q, want %q", c.Name, got, want[backend])
		}
		if mark := "≠ ended otherwise: " + want[backend] + "<"; got != "" && !strings.Contains(page.String(), mark) {
			t.Errorf("the page lacks %q", mark)
		}
	}
	if n := strings.Count(page.String(), "≠ ended otherwise"); n != 3 {
		t.Errorf("the page marks %d tests, want 3", n)
	}
}

func TestHTML(t *testing.T) {
	var b bytes.Buffer
	if err := WriteHTML(&b, gather(t, (*story).wholeRun)); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.html", b.String())
}

func TestHTMLHostile(t *testing.T) {
	var b bytes.Buffer
	if err := WriteHTML(&b, gather(t, hostileRun)); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	if n := strings.Count(page, "<script"); n != 1 {
		t.Errorf("%d scripts, want the page's own", n)
	}
	for _, bad := range []string{"src=", "@import", "url(", "\x00", "\x1b", "\u202e", "ZgotmplZ"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, m := range regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if !strings.HasPrefix(m[1], "#f") && !strings.HasPrefix(m[1], "./") {
			t.Errorf("link to %q", m[1])
		}
	}
	// The page is also XML, so that its markup can be checked here.
	d := xml.NewDecoder(strings.NewReader(page))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("markup: %v", err)
		}
	}
}

// The policy names the script that the page has.
func TestHTMLPolicy(t *testing.T) {
	var b bytes.Buffer
	if err := WriteHTML(&b, gather(t, (*story).wholeRun)); err != nil {
		t.Fatal(err)
	}
	script := regexp.MustCompile(`(?s)<script>(.*)</script>`).FindStringSubmatch(b.String())[1]
	sum := sha256.Sum256([]byte(script))
	if want := "script-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(html.UnescapeString(b.String()), want) {
		t.Errorf("the policy does not have %s", want)
	}
}

// A console that never ends stays small, and says what is missing.
func TestConsoleIsBounded(t *testing.T) {
	const total = 100_000
	r := gather(t, func(s *story) {
		s.scope.File = "a.star"
		s.is(event.FileStarted{})
		for i := range total {
			s.is(event.Console{Machine: "m", Line: fmt.Sprint("line ", i)})
		}
		s.is(event.StepStarted{ID: 1, Operation: "execute"})
		s.scope.Step = 1
		for range 1000 {
			s.is(event.Output{Stream: "stdout", Data: strings.Repeat("x", 1000)})
		}
	})
	c := r.files[0].machines[0].console
	if kept := len(c.head) + len(c.tail); kept+c.cut != total || kept != 5000 {
		t.Errorf("kept %d and cut %d of %d", kept, c.cut, total)
	}
	var b bytes.Buffer
	if err := WriteHTML(&b, r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"line 0\n", "line 99999\n", "95000 lines left out here", "the last 16384 bytes of 1000000"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// heap is the memory that is in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// What is kept of long lines and texts does not keep the rest of them.
func TestMemoryIsBounded(t *testing.T) {
	scope := event.Scope{File: "a.star", Test: "t", Step: 1}
	for name, e := range map[string]func(long string) event.Event{
		"console": func(long string) event.Event { return event.Console{Machine: "m", Line: long} },
		"log":     func(long string) event.Event { return event.Log{Level: "info", Text: long} },
		"output":  func(long string) event.Event { return event.Output{Machine: "m", Stream: "stdout", Data: long} },
		"steps":   func(long string) event.Event { return event.StepStarted{ID: 2, Operation: "succeed", Args: long} },
		"messages": func(long string) event.Event {
			return event.StepFinished{ID: 1, Message: long, Failure: &event.Failure{Stdout: long}}
		},
		"subtests": func(long string) event.Event { return event.SubtestStarted{Name: long} },
		"failures": func(long string) event.Event {
			return event.TestFinished{Failure: &event.Failure{Stdout: long, Console: []string{long}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewRun()
			before := heap()
			for i := range 300 {
				r.Record(event.Record{Time: atNoon, Scope: scope, Event: event.StepStarted{ID: 1, Operation: "o"}})
				r.Record(event.Record{Time: atNoon, Scope: scope, Event: e(strings.Repeat(string(rune('a'+i%26)), 256<<10))})
			}
			if grown := (heap() - before) >> 20; grown > 30 { // of 75 MiB
				t.Errorf("the heap has grown by %d MiB", grown)
			}
			runtime.KeepAlive(r)
		})
	}
}

// A run that says more than a report keeps in all has less of each from there on.
func TestTotalIsBounded(t *testing.T) {
	r := NewRun()
	r.limits.total = 1 << 20
	for machine := range 100 {
		for i := range 1000 {
			r.Record(event.Record{Time: atNoon, Scope: event.Scope{File: "a.star"}, Event: event.Console{Machine: fmt.Sprint("m", machine), Line: fmt.Sprint(i, strings.Repeat("x", 100))}})
		}
	}
	kept := 0
	for _, m := range r.files[0].machines {
		for _, l := range slices.Concat(m.console.head, m.console.tail) {
			kept += len(l.text)
		}
		if last := m.console.last(); !strings.HasPrefix(last, "999x") {
			t.Errorf("%s: the last line is gone: %.10s", m.name, last)
		}
	}
	if kept != r.kept || kept > 4<<20 { // 200 lines of each at most, and a machine's own before that
		t.Errorf("%d bytes kept, %d counted", kept, r.kept)
	}
	r.close(atNoon)
	if len(r.logs) != 1 || !strings.Contains(r.logs[0].Text, "exceeds the limit of a report (1 MiB)") {
		t.Errorf("the report says %+v", r.logs)
	}
}

// Lists that tests can make as long as they like are bounded, and say so.
func TestListsAreBounded(t *testing.T) {
	r := NewRun()
	for i := range 3000 {
		r.Record(event.Record{Time: atNoon, Scope: event.Scope{File: "a.star", Test: "t"}, Event: event.SubtestStarted{Name: fmt.Sprint(i)}})
		r.Record(event.Record{Time: atNoon, Scope: event.Scope{File: "a.star", Test: "t"}, Event: event.SubtestFinished{Name: fmt.Sprint(i), Status: event.Passed}})
		r.Record(event.Record{Time: atNoon, Event: event.Artifact{Kind: "k", Path: "p"}})
	}
	r.close(atNoon)
	if n := len(r.files[0].tests[0].subtests); n != 2000 || len(r.artifacts) != 2000 {
		t.Errorf("%d subtests, %d files", n, len(r.artifacts))
	}
	var said []string
	for _, l := range r.logs {
		said = append(said, l.Text)
	}
	if got := strings.Join(said, "; "); got != "1000 more files are only in the JSON lines report; 1000 more subtests are only in the JSON lines report" {
		t.Errorf("the report says %q", got)
	}
}

// samples has one event of every type, with every field set.
func samples() []event.Event {
	code := 3
	f := failure()
	f.Tries, f.LastSeen, f.Stdout, f.ExitCode = 2, "seen", "out", &code
	return []event.Event{
		event.RunStarted{Version: "v", Files: []string{"a"}, Seed: 1, Output: "o", Host: "h", Boot: "both", Hostname: "n", Dir: "/d", Format: event.Format},
		event.RunFinished{Status: event.Failed, Duration: time.Second, Counts: map[event.Status]int{event.Passed: 1, event.Failed: 2}},
		event.FileStarted{Tests: []string{"a", "b"}, Boots: []string{"cold", "warm"}},
		event.FileFinished{Status: event.Failed, Duration: 1, Failure: f},
		event.TestStarted{},
		event.TestFinished{Status: event.Failed, Duration: time.Second, Failure: f},
		event.SubtestStarted{Name: "n"},
		event.SubtestFinished{Name: "n", Status: event.Passed, Duration: time.Second, Message: "m"},
		event.StepStarted{ID: 5, Parent: 4, Machine: "m", Operation: "o", Args: "a", Position: f.Position},
		event.StepFinished{ID: 5, Machine: "m", Status: event.Failed, Duration: time.Second, ExitCode: &code, Tries: 2, Message: "m", Failure: f},
		event.Output{Machine: "m", Stream: "stdout", Data: "d"},
		event.Console{Machine: "m", Line: "l"},
		event.ConsoleShown{On: true},
		event.MachineState{Machine: "m", State: "ready", Detail: "d", After: time.Second},
		event.Progress{ID: "i", Title: "t", Message: "m", Done: true, Error: "e", Elapsed: time.Second},
		event.Log{Machine: "m", Level: "info", Text: "t"},
		event.StepWaiting{ID: 3, Machine: "m", Reason: "r"},
		event.FaultStarted{ID: 3, Fault: "f"},
		event.FaultEnded{ID: 3, Fault: "f", Reason: "r", Duration: time.Second, Frames: 5, Affected: 4},
		event.Traffic{Machine: "m", Network: "network 1", NIC: "eth1", Sent: event.Counters{Frames: 1, Bytes: 60}, Received: event.Counters{Frames: 2, Bytes: 120, Lost: event.Lost{Overrun: 3}}},
		event.Egress{Machine: "m", Protocol: "tcp", Destination: "d", Name: "n", Allowed: true, Error: "e", Sent: 6, Received: 7, Duration: time.Second},
		event.Artifact{Kind: "k", Path: "p"},
		event.Omitted{Events: map[string]int{"console": 3}, Bytes: 4},
	}
}

// A new type of event is one that the reports have to show.
func TestSamplesAreAllEvents(t *testing.T) {
	source, err := os.ReadFile("../event/event.go")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, m := range regexp.MustCompile(`func \((\w+)\) kind\(\)`).FindAllStringSubmatch(string(source), -1) {
		want = append(want, m[1])
	}
	for _, e := range samples() {
		got = append(got, reflect.TypeOf(e).Name())
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-events +samples:\n%s", diff)
	}
}

var atNoon = time.Date(2026, 1, 2, 12, 0, 0, 123456789, time.UTC)

// inScope are records of events.
func inScope(events []event.Event) []event.Record {
	var out []event.Record
	for i, e := range events {
		scope := event.Scope{File: "a.star", Test: "t", Boot: "cold", Step: 5, Subtest: "s"}
		out = append(out, event.Record{Seq: uint64(i + 1), Time: atNoon, Scope: scope, Event: e})
	}
	return out
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	j := NewJSON(&b)
	records := inScope(samples())
	for _, r := range records {
		j.Record(r)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	golden(t, "events.jsonl", b.String())
	d := event.NewDecoder(&b)
	for _, want := range records {
		got, err := d.Decode()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", event.Kind(want.Event), diff)
		}
	}
	if _, err := d.Decode(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// A stream that has grown too long leaves out what comes without end, and says so.
func TestJSONIsBounded(t *testing.T) {
	var b bytes.Buffer
	j := NewJSON(&b)
	j.limit = 10_000
	seq := uint64(0)
	record := func(e event.Event) {
		seq++
		j.Record(event.Record{Seq: seq, Time: atNoon, Scope: event.Scope{File: "a.star", Test: "t"}, Event: e})
	}
	record(event.RunStarted{Files: []string{"a.star"}})
	record(event.TestStarted{})
	for range 1000 {
		record(event.Console{Machine: "m", Line: strings.Repeat("x", 100)})
		record(event.Output{Machine: "m", Stream: "stdout", Data: "y"})
	}
	record(event.TestFinished{Status: event.Passed})
	record(event.Console{Machine: "m", Line: "one more"})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 11_000 {
		t.Errorf("%d bytes", b.Len())
	}
	d := event.NewDecoder(&b)
	r := NewRun()
	kept, lost, finished := 0, 0, false
	for {
		rec, err := d.Decode()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		r.Record(rec)
		switch e := rec.Event.(type) {
		case event.Omitted:
			lost += e.Events["console"] + e.Events["output"]
			kept-- // it stands for those that it tells of
		case event.TestFinished:
			finished = true
		}
		kept++
	}
	if kept+lost != int(seq) || lost == 0 || !finished {
		t.Errorf("%d kept and %d left out of %d, the test's end: %v", kept, lost, seq, finished)
	}
	if len(r.logs) != 2 || !strings.Contains(r.logs[0].Text, "the JSON lines exceeded their limit: ") {
		t.Errorf("the report says %+v", r.logs)
	}
}

// Reports that are made of a run's JSON lines are those of the run itself.
func TestReplay(t *testing.T) {
	for name, tell := range map[string]func(*story){"whole": (*story).wholeRun, "hostile": hostileRun, "parallel": parallelRun, "killed": killedRun} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			var live, again bytes.Buffer
			options := func(name string, stdout *bytes.Buffer) Options {
				return Options{Terminal: &TerminalOptions{Stdout: stdout, Stderr: io.Discard}, JUnit: name + ".xml", HTML: name + ".html"}
			}
			synctest.Test(t, func(t *testing.T) {
				o := options("live", &live)
				o.JSON = "events.jsonl"
				set, err := Open(o)
				if err != nil {
					t.Fatal(err)
				}
				var s story
				s.bus.Subscribe(set.Record)
				tell(&s)
				if _, err := set.Close(); err != nil {
					t.Error(err)
				}
			})
			set, err := Open(options("again", &again))
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.Open("events.jsonl")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := set.Replay(f); err != nil {
				t.Error(err)
			}
			if _, err := set.Close(); err != nil {
				t.Error(err)
			}
			for _, ending := range []string{".xml", ".html"} {
				if diff := cmp.Diff(readFile(t, "live"+ending), readFile(t, "again"+ending)); diff != "" {
					t.Errorf("%s (-live +again)\n%s", ending, diff)
				}
			}
			names := regexp.MustCompile(`(?m)^(html|junit|json) +.*\n`) // of the reports themselves
			if diff := cmp.Diff(names.ReplaceAllString(live.String(), ""), names.ReplaceAllString(again.String(), "")); diff != "" {
				t.Errorf("terminal (-live +again)\n%s", diff)
			}
		})
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// killedRun ends in the middle of a test.
func killedRun(s *story) {
	s.begin()
	s.scope.Test = "test_serves"
	s.is(event.TestStarted{})
	s.after(3 * time.Second)
	s.is(event.StepStarted{ID: 1, Machine: "server", Operation: "wait_for_unit"})
}

// A file that is no stream of events is refused with the line; one whose last line
// is not complete is that of a run that was killed.
func TestReplayOfOtherFiles(t *testing.T) {
	const first = `{"seq":1,"time":"2026-01-02T12:00:00Z","type":"run_started","version":"v","files":["a.star"],"seed":1,"format":1}` + "\n"
	for _, tt := range []struct{ name, text, want string }{
		{"killed", first + `{"seq":2,"time":"2026-01-02T12:00:0`, ""},
		{"a later type", first + `{"seq":2,"time":"2026-01-02T12:00:00Z","type":"earthquake","depth":3}` + "\n", ""},
		{"text", "hello\n", "line 1: not JSON"},
		{"another run behind it", first + first, "line 2: seq 1 after 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, err bytes.Buffer
			set, openErr := Open(Options{Terminal: &TerminalOptions{Stdout: &out, Stderr: &err}})
			if openErr != nil {
				t.Fatal(openErr)
			}
			replayErr := set.Replay(strings.NewReader(tt.text))
			set.Close()
			switch {
			case tt.want == "" && replayErr != nil, tt.want != "" && (replayErr == nil || !strings.HasPrefix(replayErr.Error(), tt.want)):
				t.Errorf("got %v", replayErr)
			case tt.want == "" && !strings.HasPrefix(err.String(), "warning: "):
				t.Errorf("it does not say what is missing: %q", err.String())
			}
		})
	}
}
