package attest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
)

// Main runs the tests of a package with one lab for all of them, for a TestMain:
//
//	var lab *attest.TestLab
//
//	func TestMain(m *testing.M) {
//		os.Exit(attest.Main(m, config, func(l *attest.TestLab) { lab = l }))
//	}
//
// Each test has it as lab.With(t). setup runs before the first test; an operation that
// fails in it ends the program's tests before they have begun. Main returns the exit
// code, when the lab is closed.
func Main(m interface{ Run() int }, config LabConfig, setup func(*TestLab)) int {
	if !flag.Parsed() {
		flag.Parse() // m.Run does that, too late for -v
	}
	t := &mainTest{}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	if config.Name == "" {
		config.Name = t.Name()
	}
	ready := false
	var setUp sync.WaitGroup
	setUp.Go(func() { // Fatalf ends this goroutine
		setup(NewLab(t, config))
		ready = true
	})
	setUp.Wait()
	code := 1
	if ready {
		code = m.Run()
		t.after(code)
	}
	t.close()
	return code
}

// A mainTest is what a TestMain has instead of a test.
type mainTest struct {
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	log      bytes.Buffer // what go test does not show without -v, unless setup fails
	broken   bool         // setup has failed
	failed   bool         // it or a test
	cleanups []func()
}

var _ TB = (*mainTest)(nil)

func (*mainTest) Name() string               { return "TestMain" }
func (*mainTest) Helper()                    {}
func (t *mainTest) Context() context.Context { return t.ctx }

func (t *mainTest) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

// after notes how the tests have ended.
func (t *mainTest) after(code int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = code != 0
}

// blamed says whether the failure is of the lab's own test.
func (t *mainTest) blamed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.broken
}

// Logf writes to standard output, as go test does, at once with go test -v and
// otherwise if setup fails.
func (t *mainTest) Logf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := flag.Lookup("test.v"); v != nil && v.Value.String() != "false" {
		fmt.Fprintf(os.Stdout, format+"\n", args...)
		return
	}
	fmt.Fprintf(&t.log, format+"\n", args...)
}

func (t *mainTest) Fatalf(format string, args ...any) {
	t.mu.Lock()
	t.broken, t.failed = true, true
	os.Stdout.Write(t.log.Bytes())
	fmt.Fprintf(os.Stdout, "TestMain: "+format+"\n", args...)
	t.mu.Unlock()
	runtime.Goexit()
}

func (t *mainTest) Cleanup(fn func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, fn)
}

var errMainOver = errors.New("all tests have ended")

// close does what a test does at its end.
func (t *mainTest) close() {
	t.cancel(errMainOver)
	for {
		t.mu.Lock()
		n := len(t.cleanups)
		if n == 0 {
			t.mu.Unlock()
			return
		}
		fn := t.cleanups[n-1]
		t.cleanups = t.cleanups[:n-1]
		t.mu.Unlock()
		fn()
	}
}
