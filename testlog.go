package attest

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
)

// news is how often the log says how far something is that takes long, such as a boot.
const news = 15 * time.Second

// A testLog writes to the logs of tests what helps to read a failure. Each event goes
// to the log of the test that it belongs to, which may be a subtest.
type testLog struct {
	every time.Duration // between news of one thing

	mu       sync.Mutex
	t        TB // whose lab it is; nil when it has ended
	subtests map[string]TB
	boots    map[string]*booting  // of machines that have not answered yet
	progress map[string]time.Time // when the log had something of it last, by its ID
	steps    map[uint64]underWay  // that have begun and not ended
}

type booting struct {
	since time.Time
	line  string // the last of its console
	news  *time.Timer
}

// An underWay is a step that has not ended.
type underWay struct {
	event.StepStarted
	since time.Time
}

func newTestLog(t TB) *testLog {
	return &testLog{every: news, t: t, subtests: map[string]TB{}, progress: map[string]time.Time{}, boots: map[string]*booting{}, steps: map[uint64]underWay{}}
}

func (l *testLog) add(t TB) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subtests[t.Name()] = t
}

func (l *testLog) remove(t TB) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.subtests, t.Name())
}

// close ends the log: nothing may be written when the test has ended.
func (l *testLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.boots {
		l.booted(name)
	}
	l.t = nil
}

// printf writes a line to the log of the test whose lab it is.
func (l *testLog) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		printTo(l.t, format, args...)
	}
}

// printTo writes a line to a test's log. The line of attest's source that it comes from
// says nothing to the test's author: it is left out where the testing package can do
// that.
func printTo(t TB, format string, args ...any) {
	if o, ok := t.(interface{ Output() io.Writer }); ok {
		fmt.Fprintf(o.Output(), format+"\n", args...)
		return
	}
	t.Logf(format, args...)
}

func (l *testLog) record(r event.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.t
	if sub := l.subtests[r.Scope.Test]; sub != nil {
		t = sub
	}
	if t == nil {
		return
	}
	switch e := r.Event.(type) {
	case event.Progress:
		last, known := l.progress[e.ID]
		switch {
		case e.Done:
			delete(l.progress, e.ID)
			printTo(t, "%s: %s", e.Title, cmp.Or(e.Error, "done"))
		case !known || r.Time.Sub(last) >= l.every:
			l.progress[e.ID] = r.Time
			printTo(t, "%s: %s", e.Title, cmp.Or(e.Message, "…"))
		}
	case event.MachineState:
		printTo(t, "%s: %s (%v)", e.Machine, e.State, roundDuration(e.After))
		l.booted(e.Machine)
		if e.State == "starting" || e.State == "running" {
			l.boots[e.Machine] = &booting{since: time.Now().Add(-e.After)}
			l.boots[e.Machine].news = time.AfterFunc(l.every, func() { l.tell(e.Machine) })
		}
	case event.Console:
		if b := l.boots[e.Machine]; b != nil && strings.TrimSpace(e.Line) != "" {
			b.line = e.Line
		}
	case event.StepStarted:
		l.steps[e.ID] = underWay{e, r.Time}
	case event.StepFinished:
		delete(l.steps, e.ID)
	case event.Log:
		printTo(t, "%s%s", prefix(e.Machine), printable.Text(e.Text))
	case event.FaultStarted:
		printTo(t, "network: %s", e.Fault)
	case event.FaultEnded:
		printTo(t, "network: %s ended after %v (%d of %d frames affected)", e.Fault, roundDuration(e.Duration), e.Affected, e.Frames)
	case event.Output:
		if e.Stream == "stderr" {
			printTo(t, "%s%s", prefix(e.Machine), strings.TrimSuffix(e.Data, "\n"))
		}
	}
}

// booted ends the news of a machine. mu is held.
func (l *testLog) booted(machine string) {
	if b := l.boots[machine]; b != nil {
		b.news.Stop()
		delete(l.boots, machine)
	}
}

// tell says that a machine has not answered yet.
func (l *testLog) tell(machine string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.boots[machine]
	if b == nil || l.t == nil {
		return
	}
	said := "its console is silent"
	if b.line != "" {
		said = "its console: " + b.line
	}
	printTo(l.t, "%s: no answer yet after %v; %s", machine, roundDuration(time.Since(b.since)), said)
	b.news.Reset(l.every)
}

// underWay says which operations have not ended, as an addition to a sentence: of those
// that are part of one another the innermost.
func (l *testLog) underWay() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	outer := map[uint64]bool{}
	for _, s := range l.steps {
		outer[s.Parent] = true
	}
	var texts []string
	for _, id := range slices.Sorted(maps.Keys(l.steps)) {
		if s := l.steps[id]; !outer[id] {
			texts = append(texts, fmt.Sprintf("%s%s(%s) for %v", prefix(s.Machine), s.Operation, s.Args, roundDuration(time.Since(s.since))))
		}
	}
	if len(texts) == 0 {
		return ""
	}
	return "; under way: " + strings.Join(texts, ", ")
}

func prefix(machine string) string {
	if machine == "" {
		return ""
	}
	return machine + ": "
}
