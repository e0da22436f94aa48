package report

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// A screen understands what Terminal writes: text with automatic wrapping,
// CR, LF, CUU, ED 0, EL 0 and SGR. It fails the test on anything else.
type screen struct {
	t             *testing.T
	mu            sync.Mutex
	columns, rows int
	cells         [][]rune // with what has scrolled away
	y, x          int
	writes        int
}

func newScreen(t *testing.T, columns, rows int) *screen {
	return &screen{t: t, columns: columns, rows: rows, cells: [][]rune{nil}}
}

func (s *screen) size() (int, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.columns, s.rows
}

func (s *screen) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	text := []rune(string(b))
	for i := 0; i < len(text); i++ {
		switch r := text[i]; {
		case r == '\n':
			s.down()
			s.x = 0
		case r == '\r':
			s.x = 0
		case r == '\x1b':
			i += s.control(string(text[i:]))
		case r < ' ':
			s.t.Errorf("control character %q on the screen", r)
		default:
			if s.x == s.columns {
				s.down()
				s.x = 0
			}
			for len(s.cells[s.y]) <= s.x {
				s.cells[s.y] = append(s.cells[s.y], ' ')
			}
			s.cells[s.y][s.x] = r
			s.x++
		}
	}
	return len(b), nil
}

func (s *screen) down() {
	if s.y++; s.y == len(s.cells) {
		s.cells = append(s.cells, nil)
	}
}

// control obeys one sequence and returns its length less one.
func (s *screen) control(text string) int {
	var n int
	end := strings.IndexAny(text, "AJKm")
	if end < 0 {
		s.t.Errorf("unknown sequence in %q", text)
		return 0
	}
	fmt.Sscanf(text[2:end], "%d", &n)
	switch text[end] {
	case 'A':
		if top := max(0, len(s.cells)-s.rows); s.y-n < top {
			s.t.Errorf("the cursor was moved above the screen: up %d from line %d of %d", n, s.y-top, s.rows)
		}
		s.y = max(0, s.y-n)
	case 'J':
		s.cells = s.cells[:s.y+1]
		s.cells[s.y] = s.cells[s.y][:min(s.x, len(s.cells[s.y]))]
	case 'K':
		s.cells[s.y] = s.cells[s.y][:min(s.x, len(s.cells[s.y]))]
	}
	return end
}

// resize wraps what is on the screen anew, as terminals do.
func (s *screen) resize(columns, rows int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cells [][]rune
	for i, l := range s.cells {
		if i == s.y {
			s.y = len(cells)
		}
		for len(l) > columns {
			cells, l = append(cells, l[:columns:columns]), l[columns:]
		}
		cells = append(cells, l)
	}
	s.cells, s.columns, s.rows = cells, columns, rows
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for i, l := range s.cells {
		if i == s.y && i == len(s.cells)-1 && len(l) == 0 {
			break
		}
		b.WriteString(strings.TrimRight(string(l), " ") + "\n")
	}
	return b.String()
}

// onScreen tells a story on a live terminal.
func onScreen(t *testing.T, columns, rows int, tell func(*testing.T, *screen, *Terminal, *story)) {
	synctest.Test(t, func(t *testing.T) {
		sc := newScreen(t, columns, rows)
		term := NewTerminal(TerminalOptions{Stdout: sc, Stderr: sc, Live: true, Shared: true, ColorStdout: true, ColorStderr: true, Size: sc.size})
		var s story
		s.bus.Subscribe(term.Record)
		tell(t, sc, term, &s)
		if err := term.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestLiveFrames(t *testing.T) {
	var frames strings.Builder
	onScreen(t, 90, 30, func(t *testing.T, sc *screen, _ *Terminal, s *story) {
		look := func(what string) {
			fmt.Fprintf(&frames, "════ %s\n%s", what, sc)
		}
		s.is(event.RunStarted{Version: "0.1.0", Files: []string{"a.star", "b.star"}})
		s.scope.File = "a.star"
		s.is(event.FileStarted{Tests: []string{"test_one", "test_two"}})
		s.is(event.Progress{ID: "i", Title: "build image debian:bookworm+nginx", Message: "unpacking nginx"})
		s.after(2500 * time.Millisecond)
		look("an image is built")
		s.is(event.Progress{ID: "i", Done: true})
		s.is(event.MachineState{Machine: "server", State: "starting"})
		s.is(event.Console{Machine: "server", Line: "[    0.1] \x1b[31mLinux\x1b[2J version 6.1"})
		b := &story{scope: event.Scope{File: "b.star"}}
		b.bus.Subscribe(func(r event.Record) { s.bus.Publish(r.Scope, r.Event) })
		b.is(event.FileStarted{Tests: []string{"main"}})
		b.scope.Test = "main"
		b.is(event.TestStarted{})
		b.is(event.StepStarted{ID: 100, Operation: "retry"})
		b.is(event.StepStarted{ID: 101, Parent: 100, Machine: "db", Operation: "succeed", Args: "psql -c 'select a very long list of columns from a table with a very long name'"})
		s.after(4 * time.Second)
		look("a machine boots, another file runs")
		s.is(event.MachineState{Machine: "server", State: "ready"})
		s.test("test_one", nil, func() { s.after(300 * time.Millisecond) })
		s.test("test_two", failure(), func() {
			s.is(event.SubtestStarted{Name: "inner"})
			s.after(300 * time.Millisecond)
			look("a test has passed, the next one runs")
		})
		s.after(drawEvery)
		look("and has failed")
		s.is(event.FileFinished{Status: event.Failed, Duration: 7 * time.Second})
		b.is(event.StepFinished{ID: 101, Status: event.Passed})
		b.is(event.StepFinished{ID: 100, Status: event.Passed})
		b.is(event.TestFinished{Status: event.Passed, Duration: 4 * time.Second})
		b.is(event.FileFinished{Status: event.Passed, Duration: 4 * time.Second})
		s.bus.Publish(event.Scope{}, event.RunFinished{Status: event.Failed, Duration: 7 * time.Second, Counts: map[event.Status]int{event.Passed: 2, event.Failed: 1}})
		s.after(drawEvery)
		look("the end, before Close")
	})
	golden(t, "live.txt", frames.String())
}

// What stays on the screen is what plain lines say, and nothing of the tree.
func TestLiveLeavesOnlyLines(t *testing.T) {
	var sc *screen
	onScreen(t, 300, 30, func(_ *testing.T, s *screen, _ *Terminal, st *story) {
		sc = s
		st.wholeRun()
	})
	golden(t, "live_end.txt", sc.String())
}

func TestLiveInterrupted(t *testing.T) {
	var sc *screen
	onScreen(t, 80, 24, func(t *testing.T, s *screen, _ *Terminal, st *story) {
		sc = s
		st.begin()
		st.scope.Test = "test_serves"
		st.is(event.TestStarted{})
		st.is(event.StepStarted{ID: 1, Machine: "server", Operation: "sleep"})
		st.after(time.Second)
		if !strings.Contains(s.String(), "server sleep") {
			t.Errorf("the step is not on the screen:\n%s", s)
		}
	})
	got := sc.String()
	if strings.Contains(got, "server sleep") {
		t.Errorf("the tree is still there:\n%s", got)
	}
	if !strings.HasSuffix(got, "1 interrupted, 2 skipped in 25.0s\n") {
		t.Errorf("want the counts in the last line:\n%s", got)
	}
}

func TestLiveKeepsRate(t *testing.T) {
	onScreen(t, 80, 24, func(t *testing.T, sc *screen, _ *Terminal, s *story) {
		s.begin()
		before := sc.count()
		for range 5000 { // a console that floods, for a second
			s.is(event.Console{Machine: "server", Line: strings.Repeat("x", 60)})
			time.Sleep(200 * time.Microsecond)
		}
		if n := sc.count() - before; n > 2*11 { // a drawing is one or two writes
			t.Errorf("%d writes in a second", n)
		}
	})
}

func TestLiveResize(t *testing.T) {
	onScreen(t, 120, 24, func(t *testing.T, sc *screen, _ *Terminal, s *story) {
		s.begin()
		s.is(event.StepStarted{ID: 1, Machine: "server", Operation: "succeed", Args: strings.Repeat("long ", 40)})
		s.after(time.Second)
		for _, size := range [][2]int{{50, 24}, {31, 20}, {200, 50}, {80, 24}, {10, 3}} {
			sc.resize(size[0], size[1])
			s.after(2 * drawEvery)
			if n := strings.Count(sc.String(), "server "); n > 1 && size[1] > 3 { // a tree that scrolled away cannot be erased
				t.Errorf("at %v the step is on the screen %d times:\n%s", size, n, sc)
			}
			for _, l := range strings.Split(sc.String(), "\n") {
				if width(l) > size[0] {
					t.Errorf("at %v: a line of %d cells: %q", size, width(l), l)
				}
			}
		}
	})
}

func TestLiveFitsTheHeight(t *testing.T) {
	onScreen(t, 80, 10, func(t *testing.T, sc *screen, _ *Terminal, s *story) {
		for i := range 30 {
			s.bus.Publish(event.Scope{File: fmt.Sprintf("f%d.star", i)}, event.FileStarted{})
		}
		s.after(time.Second)
		if n := strings.Count(sc.String(), "\n"); n != 9 {
			t.Errorf("%d lines on a screen of 10:\n%s", n, sc)
		}
		if !strings.Contains(sc.String(), "… 23 lines more") {
			t.Errorf("the tree does not say what is missing:\n%s", sc)
		}
	})
}

// What a test prints comes whole, in its place, and the tree comes back.
func TestLivePrint(t *testing.T) {
	onScreen(t, 80, 24, func(t *testing.T, sc *screen, term *Terminal, s *story) {
		s.begin()
		for _, part := range []string{"one\ntwo ", "goes on\n", "three, without an end"} {
			fmt.Fprint(term.Stdout(), part)
		}
		s.after(time.Second)
		got := sc.String()
		if !strings.Contains(got, "\none\ntwo goes on\nthree, without an end\nweb_test.star") {
			t.Errorf("got:\n%s", got)
		}
	})
}

// Building an image shows its progress, and no summary of tests.
func TestOnlyProgress(t *testing.T) {
	var sc *screen
	onScreen(t, 80, 24, func(t *testing.T, s *screen, _ *Terminal, st *story) {
		sc = s
		st.is(event.Progress{ID: "i", Title: "build image", Message: "unpacking"})
		st.after(2 * time.Second)
		if n := strings.Count(sc.String(), "\n"); n != 1 {
			t.Errorf("want one line:\n%s", sc)
		}
		st.is(event.Progress{ID: "i", Done: true})
	})
	if got, want := sc.String(), "    2.0s  build image: done in 2.0s\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Nothing that a guest says reaches the terminal as a control code, and nothing
// moves the tree.
func TestTerminalHostile(t *testing.T) {
	for _, level := range []Level{Normal, Verbose} {
		stdout, stderr := onTerminal(t, TerminalOptions{Level: level}, hostileRun)
		for _, r := range stdout + stderr {
			if r != '\n' && !harmless(r) {
				t.Errorf("%U in plain output", r)
			}
		}
	}
	onScreen(t, 80, 24, func(t *testing.T, sc *screen, _ *Terminal, s *story) {
		s.scope.File = hostile
		s.is(event.FileStarted{})
		s.is(event.MachineState{Machine: hostile, State: "starting"})
		s.is(event.Console{Machine: hostile, Line: hostile})
		s.is(event.Progress{ID: "1", Title: hostile, Message: hostile})
		s.scope.Test = hostile
		s.is(event.TestStarted{})
		s.is(event.SubtestStarted{Name: hostile})
		s.is(event.StepStarted{ID: 1, Machine: hostile, Operation: hostile, Args: hostile})
		s.after(time.Second)
		if n := strings.Count(sc.String(), "\n"); n != 6 {
			t.Errorf("%d lines, want the build, the file, the machine, the test, the step and the counts:\n%s", n, sc)
		}
		hostileRun(s)
	})
}

// Events may come in any order, without those that should have been before.
func TestAnyOrder(t *testing.T) {
	events := samples()
	for range 2 {
		slices.Reverse(events)
		for _, live := range []bool{false, true} {
			onTerminal(t, TerminalOptions{Live: live, Level: Verbose}, func(s *story) {
				s.scope = event.Scope{File: "a.star", Test: "t"}
				for _, e := range append(events, events...) {
					s.is(e)
					s.after(time.Second)
				}
			})
		}
		readJUnit(t, gather(t, func(s *story) {
			s.scope = event.Scope{File: "a.star", Test: "t"}
			for _, e := range events {
				s.is(e)
			}
		}))
	}
}
