package starlark

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// nested is code for a list that is nested so deeply that to write it takes much
// longer than the grace, and not too long for a test.
const nested = `
def nested():
    x = []
    for i in range(30000):
        x = [x]
    return x
`

// A built-in function that does not end is left alone a moment after it was told to.
func TestStuck(t *testing.T) {
	old := stuckGrace
	stuckGrace = 20 * time.Millisecond
	t.Cleanup(func() { stuckGrace = old })
	stop := errors.New("timed out")

	t.Run("test", func(t *testing.T) {
		f := load(t, "m = machine(image = debian())\n"+nested+"def test_a():\n    x = nested()\n    m.log('now')\n    str(x)\n    m.log('never')\n")
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		said := make(chan string, 2)
		lab := &fakeLab{}
		lab.answer = func(context.Context, string, string, operation.Args) (any, error) {
			said <- "now"
			cancel(stop)
			return nil, nil
		}
		err := f.Call(ctx, lab, "test_a")
		var stuck *StuckError
		var at *script.Error
		if !errors.As(err, &stuck) || !errors.Is(err, stop) || !errors.As(err, &at) || at.Position.Line == 0 {
			t.Errorf("got %v", err)
		}
		if len(said) != 1 {
			t.Errorf("the test went on: %d", len(said))
		}
	})
	t.Run("top level", func(t *testing.T) {
		path := filepath.Join(write(t, "x.star", nested+"print(nested())\ndef main(): pass\n"), "x.star")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, stop)
		defer cancel()
		_, err := Load(ctx, path, script.Options{})
		if !errors.Is(err, stop) || !strings.Contains(err.Error(), "x.star") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("session", func(t *testing.T) {
		s, _ := newSession(t, "", &fakeLab{})
		if got := converse(t, s, strings.TrimPrefix(nested, "\n")+"\nx = nested()\n"); got != nil {
			t.Fatal(got)
		}
		in, err := s.Read(func(bool) (string, error) { return "x\n", nil })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, stop)
		defer cancel()
		var stuck *StuckError
		if _, err := s.Run(ctx, in); !errors.As(err, &stuck) {
			t.Errorf("got %v", err)
		}
		if got := converse(t, s, "1 + 1\n"); len(got) != 1 || got[0] != "2" {
			t.Errorf("the session is over: %q", got)
		}
	})
}

// withMemory lets scripts have so many more bytes than are in use.
func withMemory(t *testing.T, more int64) (exhausted *atomic.Int32) {
	t.Helper()
	oldLimit, oldExhausted := memoryLimit, script.Exhausted
	limit := memoryInUse() + more
	exhausted = new(atomic.Int32)
	memoryLimit = func() (int64, error) { return limit, nil }
	script.Exhausted = func(error) { exhausted.Add(1) }
	t.Cleanup(func() { memoryLimit, script.Exhausted = oldLimit, oldExhausted })
	return exhausted
}

// A list without end is an error of the test that makes it, with its place.
func TestMemory(t *testing.T) {
	withMemory(t, 24<<20)
	const grow = "    x = []\n    while True:\n        x.append('x' * 1000)\n"
	f := load(t, "def grow():\n"+grow+"\ndef test_a(): grow()\n\ndef test_b(): pass\n")
	err := f.Call(t.Context(), &fakeLab{}, "test_a")
	var at *script.Error
	var memory *MemoryError
	if !errors.As(err, &memory) || !errors.As(err, &at) || at.Position.Func != "grow" || attest.StatusOf(err) != attest.Failed {
		t.Errorf("got %v (%s)", err, attest.StatusOf(err))
	}
	if err := f.Call(t.Context(), &fakeLab{}, "test_b"); err != nil {
		t.Errorf("the next test: %v", err)
	}
	path := filepath.Join(write(t, "x.star", "def grow():\n"+grow+"\ngrow()\n"), "x.star")
	var loadErr *script.LoadError
	if _, err := Load(t.Context(), path, script.Options{}); !errors.As(err, &loadErr) || !errors.As(err, &memory) || loadErr.Errors[0].Position.Line == 0 || attest.StatusOf(err) != attest.Invalid {
		t.Errorf("got %v (%s)", err, attest.StatusOf(err))
	}
}

// A built-in function does not look at whether it is to end: when the limit is far
// behind, the process has to. Who only waits for a machine is not to blame.
func TestMemoryOfOneCall(t *testing.T) {
	exhausted := withMemory(t, 0)
	busy, waiting := newInterpreter(), newInterpreter()
	var ctxs [2]context.Context
	for i, in := range []*interpreter{busy, waiting} {
		ctxs[i], in.cancel = context.WithCancelCause(t.Context())
		evaluations.running[in] = true
		defer delete(evaluations.running, in)
	}
	busy.Lock()
	defer busy.Unlock()
	checkMemory(memoryInUse() + 1<<30)
	if exhausted.Load() != 0 || ctxs[0].Err() != nil {
		t.Error("there was memory enough")
	}
	checkMemory(1)
	var memory *MemoryError
	if exhausted.Load() != 1 || !errors.As(context.Cause(ctxs[0]), &memory) || ctxs[1].Err() != nil {
		t.Errorf("told %d times; %v, %v", exhausted.Load(), context.Cause(ctxs[0]), context.Cause(ctxs[1]))
	}
}
