package attest

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
)

// A scope is the test that operations belong to, and end when they fail.
type scope struct {
	t    TB
	ctx  context.Context // carries the lab's events and ends with the test
	test *openedTest
}

// An openedTest is a test, or a subtest, with a lab.
type openedTest struct {
	log       *testLog
	goroutine string // that the test runs in

	mu      sync.Mutex
	failure *event.Failure // of the operation that ended the test
}

// testGrace is what is left of the test binary's own deadline (-timeout) for
// attest to say what hangs and to clean up; go test itself would say nothing
// but a stack trace.
const testGrace = 10 * time.Second

// openTest gives a test a bus, with its log and the reports of the process on it,
// and a context that ends with it. All that is closed when the test ends.
func openTest(t TB) scope {
	bus := &event.Bus{}
	log := newTestLog(t)
	reports.follow(bus)
	bus.Subscribe(log.record)
	// Not t.Context itself: that one ends before the Cleanup functions run.
	ctx, cancel := context.WithCancelCause(event.WithBus(context.WithoutCancel(t.Context()), bus))
	t.Cleanup(func() {
		cancel(nil)
		log.close()
	})
	return openScope(t, ctx, log)
}

// with is the scope of a subtest that has no bus of its own.
func (s scope) with(t TB) scope {
	s.test.log.add(t)
	t.Cleanup(func() { s.test.log.remove(t) })
	return openScope(t, s.ctx, s.test.log)
}

// openScope is a test in a context that may outlive it, until it ends.
func openScope(t TB, ctx context.Context, log *testLog) scope {
	ctx, cancel := context.WithCancelCause(event.WithScope(ctx, event.Scope{Test: t.Name()}))
	stop := context.AfterFunc(t.Context(), func() { cancel(context.Cause(t.Context())) })
	var near *time.Timer
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if deadline, ok := d.Deadline(); ok {
			near = time.AfterFunc(time.Until(deadline)-testGrace, func() {
				cancel(nearEnd.tell(t.Name(), log.underWay()))
			})
		}
	}
	s := scope{t, ctx, &openedTest{log: log, goroutine: goroutine()}}
	reports.begin(ctx, t.Name())
	started := time.Now()
	t.Cleanup(func() {
		stop()
		if near != nil {
			near.Stop()
		}
		cancel(nil)
		reports.end(ctx, t.Name(), s.finished(time.Since(started)))
	})
	return s
}

// nearEnd is what is said in this process of the test binary's own deadline: all of it by
// one test, since the others say the same.
var nearEnd timeoutNotice

type timeoutNotice struct {
	mu sync.Mutex
	by string // the test that says it; empty: none yet
}

func (n *timeoutNotice) tell(test, underWay string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.by == "" || n.by == test {
		n.by = test
		return fmt.Errorf("the test binary's -timeout is near (in %v)%s", testGrace, underWay)
	}
	return fmt.Errorf("ended with %s", n.by)
}

// finished is how the test has ended.
func (s scope) finished(after time.Duration) event.TestFinished {
	s.test.mu.Lock()
	defer s.test.mu.Unlock()
	e := event.TestFinished{Status: event.Passed, Duration: after}
	if skipper, ok := s.t.(interface{ Skipped() bool }); ok && skipper.Skipped() {
		e.Status = event.Skipped
	}
	failed := s.t.Failed()
	if main, ok := s.t.(*mainTest); ok {
		failed = main.blamed() // tests that have failed are reported themselves
	}
	if failed {
		e.Failure = s.test.failure
		if e.Failure == nil {
			e.Failure = &event.Failure{Status: event.Failed, Message: "the test has failed; the output of go test says why"}
		}
		e.Status = e.Failure.Status
	}
	return e
}

// at is the scope's context for an operation that the caller's caller asks for: reports
// name its line.
func (s scope) at() context.Context {
	_, file, line, ok := runtime.Caller(2)
	if !ok {
		return s.ctx
	}
	return event.WithPosition(s.ctx, event.Position{File: file, Line: line})
}

// check ends the test if an operation has failed.
func (s scope) check(err error) {
	if err == nil {
		return
	}
	s.t.Helper()
	s.test.mu.Lock()
	if s.test.failure == nil {
		s.test.failure = failureOf(err, "", "")
	}
	s.test.mu.Unlock()
	text := printable.Text(explainError(err)) // which has words of guests in it
	if goroutine() != s.test.goroutine {
		s.reportElsewhere(err)
		// FailNow ends the goroutine that it is called in, and the test goes on.
		text += fmt.Sprintf("\nattest: the lab belongs to %s, and this goroutine is another's. In a subtest use lab.With(t); in a goroutine that the test starts use operations that return an error, such as those of lab.Lab and of the field Machine.", s.t.Name())
	}
	s.t.Fatalf("attest: %s", text)
}

// reportElsewhere gives what has failed in another goroutine than the test's a place of
// its own in the reports. It is a subtest as a rule, whose name nobody knows here.
func (s scope) reportElsewhere(err error) {
	_, file, line, ok := runtime.Caller(3)
	if !ok {
		return
	}
	name := fmt.Sprintf("at %s:%d", filepath.Base(file), line)
	scope := event.ScopeOf(s.ctx)
	scope.Subtest = name
	ctx := event.WithScope(s.ctx, scope)
	event.Publish(ctx, event.SubtestStarted{Name: name})
	event.Publish(ctx, event.SubtestFinished{Name: name, Status: event.Status(StatusOf(err)), Message: err.Error()})
}

// goroutine names the goroutine that calls it.
func goroutine() string {
	var b [64]byte
	fields := strings.Fields(string(b[:runtime.Stack(b[:], false)])) // "goroutine 7 [running]:"
	return fields[1]
}
