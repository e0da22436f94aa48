package starlark

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	slmath "go.starlark.net/lib/math"
	sltime "go.starlark.net/lib/time"

	sljson "go.starlark.net/lib/json"
	sl "go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// predeclared is what every file finds besides Starlark's own names.
func (l *loader) predeclared() sl.StringDict {
	env := sl.StringDict{
		"json": sljson.Module, "math": slmath.Module, "re": reModule, "time": sltime.Module,
		"machines": machineList{l},
	}
	for name, fn := range map[string]func(*sl.Thread, *sl.Builtin, sl.Tuple, []sl.Tuple) (sl.Value, error){
		"machine":   l.declare,
		"assert_eq": assertEq, "assert_contains": assertContains, "assert_matches": assertMatches, "fail": fail,
		"subtest": subtest, "retry": retry, "polling_condition": pollingCondition, "wait_all": waitAll, "log": log,
		"struct": starlarkstruct.Make, "var": l.variable,
	} {
		env[name] = sl.NewBuiltin(name, fn)
	}
	for _, f := range operation.ImageFunctions {
		env[f.Name] = sl.NewBuiltin(f.Name, l.makeImage(f))
	}
	for _, o := range operation.All(operation.Lab) {
		env[o.Name] = operate("", nil, o)
	}
	for _, on := range operation.Kinds() {
		if name := on.Global(); name != "" {
			env[name] = &object{on: on}
		}
	}
	env[operation.Network.Global()] = networkGlobal{&object{on: operation.Network}, l}
	return env
}

// unpack reads arguments; a call that does not fit is a mistake in the file.
func unpack(b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple, pairs ...any) error {
	if err := sl.UnpackArgs(b.Name(), args, kwargs, pairs...); err != nil {
		return &usageError{err.Error()}
	}
	return nil
}

func log(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var text string
	if err := unpack(b, args, kwargs, "text", &text); err != nil {
		return nil, err
	}
	event.Logf(threadOf(t).ctx, "%s", text)
	return sl.None, nil
}

// subtest(name, fn) runs fn as a named part of the test.
func subtest(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var name string
	var fn sl.Callable
	if err := unpack(b, args, kwargs, "name", &name, "fn", &fn); err != nil {
		return nil, err
	}
	th := threadOf(t)
	outer := th.ctx
	scope := event.ScopeOf(outer)
	scope.Subtest = strings.TrimPrefix(scope.Subtest+"/"+name, "/")
	th.ctx = event.WithScope(outer, scope)
	defer func() { th.ctx = outer }()
	event.Publish(th.ctx, event.SubtestStarted{Name: name})
	start := time.Now()
	v, err := sl.Call(t, fn, nil, nil)
	done := event.SubtestFinished{Name: name, Status: event.Status(attest.StatusOf(err)), Duration: time.Since(start)}
	if err != nil {
		e := th.explain(err)
		done.Status, done.Message = event.Status(attest.StatusOf(e)), e.Err.Error()
	}
	event.Publish(th.ctx, done)
	return v, err
}

// A RetryError is a retry(fn) whose time was over.
type RetryError struct {
	Elapsed, Limit time.Duration
	Tries          int   // that came to an end
	Last           error // of the last of them; nil if there was none
}

func (e *RetryError) Error() string {
	msg := fmt.Sprintf("retry: timed out after %v (limit %v, tries: %d)", round(e.Elapsed), e.Limit, e.Tries)
	if e.Last == nil {
		return msg + "; the first try had not ended"
	}
	return msg + "; last: " + e.Last.Error()
}

func (e *RetryError) Unwrap() error         { return e.Last }
func (e *RetryError) Status() attest.Status { return attest.Failed }

func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Millisecond)
}

// The limit is that of the machines' waits; the interval is short since a try
// costs little compared to what a test loses by waiting.
const (
	retryTimeout  = 15 * time.Minute
	retryInterval = 250 * time.Millisecond
)

var (
	errRetryOver     = errors.New("retry timed out")
	errReturnedFalse = errors.New("it returned False")
)

// limit is a default limit, longer where the host is slower.
func (th *thread) limit(d time.Duration) durationArg {
	if host, ok := th.lab.(interface {
		Scale(time.Duration) time.Duration
	}); ok {
		d = host.Scale(d)
	}
	return durationArg(d)
}

// retry(fn, timeout=, interval=) calls fn until it neither fails nor returns False.
func retry(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var fn sl.Callable
	th := threadOf(t)
	timeout, interval := th.limit(retryTimeout), durationArg(retryInterval)
	if err := unpack(b, args, kwargs, "fn", &fn, "timeout?", &timeout, "interval?", &interval); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(th.ctx, time.Duration(timeout), errRetryOver)
	defer cancel()
	var v sl.Value
	var err error
	th.unlocked(func() { v, err = th.child(t, ctx).retry(fn, time.Duration(interval)) })
	var over *RetryError
	if errors.As(err, &over) && over.Limit == 0 {
		over.Limit = time.Duration(timeout)
	}
	if th.ctx.Err() != nil && err != nil {
		return nil, cause(th.ctx)
	}
	return v, err
}

func (th *thread) retry(fn sl.Callable, interval time.Duration) (sl.Value, error) {
	start := time.Now()
	over := &RetryError{}
	for {
		v, err := th.call(fn)
		switch {
		case err == nil && v != sl.False:
			return v, nil
		case err == nil:
			err = errReturnedFalse
		case errors.Is(err, errRetryOver):
			over.Elapsed = time.Since(start)
			return nil, over
		case !passing(err):
			return nil, err
		}
		over.Tries++
		over.Last = err
		select {
		case <-time.After(interval):
		case <-th.ctx.Done():
			over.Elapsed = time.Since(start)
			return nil, over
		}
	}
}

// passing reports whether what failed can work the next time. A machine that went
// down does not come back, and a call that makes no sense never will.
func passing(err error) bool {
	var down *attest.DownError
	return attest.StatusOf(err) == attest.Failed && !errors.As(err, &down) && !errors.Is(err, errTooDeep)
}

// durationArg unpacks a duration.
type durationArg time.Duration

func (d *durationArg) Unpack(v sl.Value) error {
	parsed, err := operation.ParseDuration(plain(v))
	*d = durationArg(parsed)
	return err
}

var errSibling = errors.New("another call of wait_all failed")

// An itemError says with which element wait_all failed.
type itemError struct {
	item string
	err  error
}

func (e *itemError) Error() string { return "wait_all: " + e.item + ": " + message(e.err) }
func (e *itemError) Unwrap() error { return e.err }

// message is an error's text without the place, which is shown elsewhere.
func message(err error) string {
	var e *script.Error
	if errors.As(err, &e) {
		return e.Err.Error()
	}
	return err.Error()
}

// wait_all(list, fn) calls fn with every element at once.
func waitAll(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var list sl.Iterable
	var fn sl.Callable
	if err := unpack(b, args, kwargs, "list", &list, "fn", &fn); err != nil {
		return nil, err
	}
	var items []sl.Value
	for v := range sl.Elements(list) {
		items = append(items, v)
	}
	th := threadOf(t)
	ctx, cancel := context.WithCancelCause(th.ctx)
	defer cancel(nil)
	results := make([]sl.Value, len(items))
	var first error // the one that ended the others
	var mu sync.Mutex
	var calls sync.WaitGroup
	for i, item := range items {
		child := th.child(t, ctx)
		calls.Go(func() {
			v, err := child.call(fn, item)
			mu.Lock()
			defer mu.Unlock()
			if results[i] = v; err != nil && first == nil {
				first = &itemError{describe(item), err}
				cancel(errSibling)
			}
		})
	}
	th.unlocked(calls.Wait)
	if first != nil {
		if th.ctx.Err() != nil {
			return nil, cause(th.ctx)
		}
		return nil, first
	}
	return sl.NewList(results), nil
}
