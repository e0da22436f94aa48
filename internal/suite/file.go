package suite

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script/starlark"
)

// file runs the tests of one file in a lab of its own.
func (r *run) file(ctx context.Context, f *file) {
	ctx = event.WithScope(ctx, event.Scope{File: f.path})
	event.Publish(ctx, event.FileStarted{Tests: f.names()})
	start := time.Now()
	done := event.FileFinished{Status: event.Skipped}
	done.Status, done.Failure = r.inLab(ctx, f)
	done.Duration = time.Since(start)
	event.Publish(ctx, done)
}

// inLab returns the status of the file, and what failed that is not a test.
func (r *run) inLab(ctx context.Context, f *file) (event.Status, *event.Failure) {
	if ctx.Err() != nil {
		return r.skip(ctx, f.tests), nil
	}
	lab, err := r.host.NewLab(ctx, attest.LabConfig{
		Name:     strings.TrimSuffix(filepath.Base(f.path), filepath.Ext(f.path)),
		Machines: f.script.Machines(), OutDir: r.opts.OutDir, SourceDir: filepath.Dir(f.path),
		Seed: r.opts.Seed,
	})
	if err != nil {
		err = asInfra("make the lab", err)
		status := classify(ctx, err)
		r.count(status)
		r.skip(ctx, f.tests)
		return status, failureOf(err, status)
	}
	status, failure := r.tests(ctx, f, lab)
	if err := asInfra("close the lab", lab.Close()); err != nil {
		r.count(event.Infra)
		if failure == nil {
			failure = failureOf(err, event.Infra)
		}
		status = worse(status, event.Infra)
	}
	return status, failure
}

func (r *run) tests(ctx context.Context, f *file, lab operation.Runner) (event.Status, *event.Failure) {
	if f.script.HasSetup() {
		status, failure := r.test(ctx, f, lab, starlark.Test{Name: starlark.Setup})
		if status != event.Passed {
			r.count(status)
			r.skip(ctx, f.tests)
			return status, failure
		}
	}
	file := event.Skipped
	for i, t := range f.tests {
		if ctx.Err() != nil {
			r.skip(ctx, f.tests[i:])
			return worse(file, classify(ctx, ctx.Err())), nil
		}
		status, _ := r.test(ctx, f, lab, t)
		r.count(status)
		file = worse(file, status)
	}
	return file, nil
}

// test runs one function of a file.
func (r *run) test(ctx context.Context, f *file, lab operation.Runner, t starlark.Test) (event.Status, *event.Failure) {
	ctx = event.WithScope(ctx, event.Scope{File: f.path, Test: t.Name})
	event.Publish(ctx, event.TestStarted{Title: t.Title})
	start := time.Now()
	err := f.script.Call(ctx, lab, t.Name)
	if s, ok := lab.(operation.Settler); ok && t.Name != starlark.Setup { // what setup leaves is for the tests
		if e := s.Settle(ctx); err == nil {
			err = e
		}
	}
	done := event.TestFinished{Status: classify(ctx, err), Duration: time.Since(start)}
	done.Failure = failureOf(err, done.Status)
	event.Publish(ctx, done)
	return done.Status, done.Failure
}

// skip reports tests that do not run.
func (r *run) skip(ctx context.Context, tests []starlark.Test) event.Status {
	for _, t := range tests {
		scope := event.ScopeOf(ctx)
		scope.Test = t.Name
		ctx := event.WithScope(ctx, scope)
		event.Publish(ctx, event.TestStarted{Title: t.Title})
		event.Publish(ctx, event.TestFinished{Status: event.Skipped})
		r.count(event.Skipped)
	}
	if err := context.Cause(ctx); err != nil {
		status := classify(ctx, err)
		r.mu.Lock()
		r.status = worse(r.status, status)
		r.mu.Unlock()
	}
	return event.Skipped
}

// classify tells how something ended. When the context is over that is why,
// whatever came of it: a killed command, a machine that is gone.
func classify(ctx context.Context, err error) event.Status {
	if err == nil {
		return event.Passed
	}
	if ctx.Err() != nil {
		var timeout *TimeoutError
		if errors.As(context.Cause(ctx), &timeout) {
			return event.Failed
		}
		return event.Interrupted
	}
	return attest.StatusOf(err)
}

// Failure lays out an error of code that a person runs by hand; ctx is that of
// the code.
func Failure(ctx context.Context, err error) *event.Failure {
	return failureOf(err, classify(ctx, err))
}

// failureOf lays out an error for the reports: what attest knows of it, and
// where in the test file it happened.
func failureOf(err error, status event.Status) *event.Failure {
	if err == nil {
		return nil
	}
	f := attest.FailureOf(err)
	f.Status = status
	var load *starlark.LoadError
	var at *starlark.Error
	var op *operation.Error
	switch {
	case errors.As(err, &load):
		at = load.Errors[0]
		for _, e := range load.Errors[1:] {
			f.Details = append(f.Details, event.Detail{Title: "also", Text: e.Error() + "\n" + strings.TrimSpace(e.Source)})
		}
	default:
		errors.As(err, &at)
	}
	if at != nil {
		f.Message, f.Position, f.Source, f.Stack = at.Err.Error(), at.Position, at.Source, at.Stack
	}
	if errors.As(err, &op) {
		f.Machine, f.Operation = op.Machine, op.Operation
	}
	return f
}
