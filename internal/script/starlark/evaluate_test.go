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
	"github.com/attest-vm/attest/internal/script"
	sl "go.starlark.net/starlark"
)

// A slow function is one that goes on when its thread is told to end, until the
// test does.
type slow struct{ started, release chan struct{} }

func newSlow(t *testing.T) *slow {
	f := &slow{make(chan struct{}), make(chan struct{})}
	t.Cleanup(func() { close(f.release) })
	return f
}

func (f *slow) builtin() *sl.Builtin {
	return sl.NewBuiltin("slow", func(*sl.Thread, *sl.Builtin, sl.Tuple, []sl.Tuple) (sl.Value, error) {
		close(f.started)
		<-f.release
		return sl.None, nil
	})
}

// A built-in function that does not end is left alone a moment after it was told to.
func TestStuck(t *testing.T) {
	old := stuckGrace
	stuckGrace = 20 * time.Millisecond
	t.Cleanup(func() { stuckGrace = old })
	stop := errors.New("timed out")
	// stopped is a context that ends when the function has begun.
	stopped := func(t *testing.T, f *slow) context.Context {
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			<-f.started
			cancel(stop)
		}()
		return ctx
	}
	loadSlow := func(t *testing.T, ctx context.Context, f *slow, text string) (*File, error) {
		l := newLoader(ctx, script.Options{})
		l.env["slow"] = f.builtin()
		return l.file(filepath.Join(write(t, "x.star", text), "x.star"), (*File).choose)
	}
	var stuck *StuckError
	var at *script.Error

	t.Run("test", func(t *testing.T) {
		fn := newSlow(t)
		f, err := loadSlow(t, t.Context(), fn, "m = machine(image = debian())\ndef test_a():\n    slow()\n    m.log('never')\n")
		if err != nil {
			t.Fatal(err)
		}
		lab := &fakeLab{}
		err = f.Call(stopped(t, fn), lab, "test_a")
		if !errors.As(err, &stuck) || !errors.Is(err, stop) || !errors.As(err, &at) || at.Position.Line != 2 {
			t.Errorf("got %v", err)
		}
		if len(lab.calls) != 0 {
			t.Errorf("the test went on: %q", lab.calls)
		}
	})
	t.Run("top level", func(t *testing.T) {
		fn := newSlow(t)
		_, err := loadSlow(t, stopped(t, fn), fn, "slow()\ndef main(): pass\n")
		if !errors.As(err, &stuck) || !errors.Is(err, stop) || !errors.As(err, &at) || !strings.HasSuffix(at.Position.File, "x.star") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("session", func(t *testing.T) {
		fn := newSlow(t)
		s, _ := newSession(t, "", &fakeLab{})
		s.globals["slow"] = fn.builtin()
		in, err := s.Read(func(bool) (string, error) { return "slow()\n", nil })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Run(stopped(t, fn), in); !errors.As(err, &stuck) || !errors.Is(err, stop) {
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
