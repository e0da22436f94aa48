package starlark

import (
	"context"
	"errors"
	"io"
	"sync"

	sl "go.starlark.net/starlark"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// A thread is one Starlark thread: its Go side. All threads of one call share
// the interpreter.
type thread struct {
	sources sources
	lab     operation.Runner // nil while a file is loaded
	load    func(*sl.Thread, string) (sl.StringDict, error)
	print   *printer
	session *Session // nil unless a person types

	interpreter *interpreter    // held while Starlark code of this call runs
	ctx         context.Context // of the operations; subtest changes it
	caller      event.Position  // of the builtin that started this thread; zero in the first
	fault       error           // why the thread was cancelled, unless ctx ended
}

const threadKey = "attest"

func threadOf(t *sl.Thread) *thread { return t.Local(threadKey).(*thread) }

// child is a thread that runs on behalf of t's builtin that is being called.
func (th *thread) child(t *sl.Thread, ctx context.Context) *thread {
	c := *th
	c.ctx, c.fault = ctx, nil
	c.caller = th.position(t)
	return &c
}

// start is a Starlark thread that ends when the context does. Call stop when it
// has ended.
func (th *thread) start() (t *sl.Thread, stop func() bool) {
	t = &sl.Thread{Load: th.load, Print: th.print.line}
	t.SetLocal(threadKey, th)
	t.SetMaxExecutionSteps(depthInterval)
	t.OnMaxSteps = th.checkDepth
	return t, context.AfterFunc(th.ctx, func() { t.Cancel("the context is over") })
}

// Starlark does not limit recursion and Go ends the whole program when its own
// stack is full, so the depth is looked at every so many instructions.
const (
	maxDepth      = 1000
	depthInterval = 10_000
)

var errTooDeep = errors.New("calls are nested too deeply (the limit is 1000); is a recursion endless?")

func (th *thread) checkDepth(t *sl.Thread) {
	if t.CallStackDepth() > maxDepth {
		th.fault = errTooDeep
		t.Cancel(errTooDeep.Error())
	}
	t.SetMaxExecutionSteps(t.ExecutionSteps() + depthInterval)
}

// call runs a function in a new Starlark thread. Its error is an *script.Error.
func (th *thread) call(fn sl.Value, args ...sl.Value) (sl.Value, error) {
	return th.run(func(t *sl.Thread) (sl.Value, error) { return sl.Call(t, fn, args, nil) })
}

// run gives code a new Starlark thread. Its error is an *script.Error.
func (th *thread) run(code func(*sl.Thread) (sl.Value, error)) (sl.Value, error) {
	t, stop := th.start()
	defer stop()
	th.interpreter.Lock()
	defer th.interpreter.Unlock()
	v, err := code(t)
	if err != nil {
		return nil, th.explain(err)
	}
	return v, nil
}

// explain makes an Error of how the thread ended.
func (th *thread) explain(err error) *script.Error {
	e := th.sources.explain(err)
	if cancelled(err) {
		e.Err = th.fault
		if e.Err == nil {
			e.Err = cause(th.ctx)
		}
	}
	return e
}

// unlocked lets other threads run Starlark code while fn waits for something.
func (th *thread) unlocked(fn func()) {
	th.interpreter.Unlock()
	defer th.interpreter.Lock()
	fn()
}

// position is where the test file calls the builtin that is running.
func (th *thread) position(t *sl.Thread) event.Position {
	for depth := 1; depth < t.CallStackDepth(); depth++ {
		f := t.CallFrame(depth)
		if f.Pos.Filename() != builtinFile {
			p := positionOf(f.Pos)
			p.Func = f.Name
			return p
		}
	}
	return th.caller
}

// A printer writes whole lines, whichever thread they come from.
type printer struct {
	mu  sync.Mutex
	out io.Writer
}

func (p *printer) line(_ *sl.Thread, msg string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	io.WriteString(p.out, msg+"\n") // a reader that went away must not fail the test
}
