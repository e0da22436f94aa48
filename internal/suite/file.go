package suite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// file runs the tests of one file, once for each way in which machines start.
func (r *run) file(ctx context.Context, f *file, passes []*pass) {
	ctx = event.WithScope(ctx, event.Scope{File: f.path})
	var start time.Time
	begin := sync.OnceFunc(func() {
		start = time.Now()
		started := event.FileStarted{Tests: f.names()}
		for _, p := range passes {
			if p.label != "" {
				started.Boots = append(started.Boots, p.label)
			}
		}
		event.Publish(ctx, started)
	})
	endings := make([]ending, len(passes))
	var wg sync.WaitGroup
	for i, p := range passes {
		wg.Go(func() { endings[i] = p.run(ctx, begin) })
	}
	wg.Wait()
	done := event.FileFinished{Status: event.Skipped}
	for _, o := range endings {
		done.Status = event.Worst(done.Status, o.status)
		if done.Failure == nil {
			done.Failure = o.failure
		}
	}
	done.Duration = time.Since(start)
	event.Publish(ctx, done)
}

// An ending is how a pass ended, with what failed that is not a test.
type ending struct {
	status  event.Status
	failure *event.Failure
}

// A pass is one run through the tests of a file.
type pass struct {
	suite  *run
	file   *file
	boot   attest.Boot // how machines start that do not say it; empty: as the host has it
	label  string      // what it is called where there are several: Scope.Boot
	ticket *ticket
}

// run runs all tests of the file; begin is called when it is its turn.
func (p *pass) run(ctx context.Context, begin func()) ending {
	err := p.ticket.wait(ctx)
	defer p.ticket.leave()
	begin()
	if err != nil {
		return ending{status: p.skip(ctx, p.file.tests)}
	}
	if err := p.suite.build(ctx, p.file); err != nil {
		return p.failed(ctx, err)
	}
	if p.file.alone() && p.suite.opts.From == "" && p.suite.opts.Standing == nil {
		return p.inOne(ctx)
	}
	state, o := p.state(ctx)
	if state == nil {
		return o
	}
	if p.suite.opts.SaveTo != "" {
		return p.saveState(ctx, state)
	}
	o.status = p.forks(ctx, state)
	return o
}

// state is where the tests begin; nil if there is none.
func (p *pass) state(ctx context.Context) (operation.Snapshot, ending) {
	if p.suite.opts.From == "" {
		state, err := p.standing(ctx)
		switch {
		case err != nil:
			return nil, p.failed(ctx, err)
		case state != nil:
			return state, ending{}
		}
		state, o := p.prepare(ctx)
		if state != nil {
			state = p.stand(state)
		}
		return state, o
	}
	host, ok := p.suite.host.(StateHost)
	if !ok {
		return nil, p.failed(ctx, refusef(event.Unsupported, "--from: this host opens no saved states"))
	}
	config := p.config()
	if b := p.suite.opts.Host.Backend; b == "" || b == "auto" { // nobody insists: it is that of the state
		for i := range config.Machines {
			config.Machines[i].Backend = ""
		}
	}
	state, err := host.OpenState(ctx, p.suite.opts.From, config)
	if err != nil {
		return nil, p.failed(ctx, asInfra("open the saved state", err))
	}
	return state, ending{}
}

// saveState writes the state that setup left.
func (p *pass) saveState(ctx context.Context, state operation.Snapshot) ending {
	defer state.Close()
	saver, ok := state.(operation.Saver)
	if !ok {
		return p.failed(ctx, refusef(event.Unsupported, "%s: the state of its machines cannot be saved", p.file.path))
	}
	if err := saver.Save(ctx, p.suite.opts.SaveTo); err != nil {
		return p.failed(ctx, asInfra("save the state", err))
	}
	event.Publish(ctx, event.Artifact{Kind: "lab", Path: p.suite.opts.SaveTo})
	return ending{status: event.Passed}
}

// inOne runs setup and the only test, or main, in one lab.
func (p *pass) inOne(ctx context.Context) (o ending) {
	lab, err := p.newLab(p.scoped(ctx, ""))
	if err != nil {
		return p.failed(ctx, err)
	}
	defer func() { o = p.closed(o, lab.Close()) }()
	if p.file.script.Setup() != nil {
		if o := p.setup(ctx, lab); o.status != event.Passed {
			return o
		}
	}
	if ctx.Err() != nil {
		return ending{status: p.skip(ctx, p.file.tests)}
	}
	t := p.file.tests[0]
	status, _ := p.report(ctx, t, func(ctx context.Context) error { return p.test(ctx, lab, t) })
	p.suite.count(status)
	return ending{status: status}
}

// prepare runs setup and returns the state that it left; nil if it did not
// come to that.
func (p *pass) prepare(ctx context.Context) (state operation.Snapshot, o ending) {
	scope := ctx
	if p.file.script.Setup() != nil {
		scope = p.scoped(ctx, script.Setup)
	}
	lab, err := p.newLab(scope)
	if err != nil {
		return nil, p.failed(ctx, err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			if o = p.closed(o, err); state != nil {
				state.Close()
				state = nil
				p.skip(ctx, p.file.tests)
			}
		}
	}()
	if p.file.script.Setup() != nil {
		if o := p.setup(ctx, lab); o.status != event.Passed {
			return nil, o
		}
	}
	state, err = p.snapshot(scope, lab)
	if err != nil {
		return nil, p.failed(ctx, err)
	}
	return state, ending{}
}

// snapshot is the state of a lab, or a way to get there again.
func (p *pass) snapshot(ctx context.Context, lab operation.Runner) (operation.Snapshot, error) {
	s, ok := lab.(operation.Snapshotter)
	if !ok {
		return anew{p}, nil
	}
	if b, ok := lab.(operation.Booter); ok && p.suite.opts.SaveTo != "" {
		// What is written to files is to be of machines that have booted, not of some
		// that will go on with it in every run.
		if err := b.AwaitBooted(ctx); err != nil {
			return nil, err
		}
	}
	state, err := s.Snapshot(ctx)
	switch {
	case err == nil:
		return state, nil
	case attest.StatusOf(err) != attest.Unsupported:
		return nil, asInfra("take a snapshot for the tests to begin from", err)
	case p.file.script.Setup() != nil:
		event.Warnf(ctx, "setup runs again for each test: %v", err)
	}
	return anew{p}, nil
}

// anew is the state that setup leaves, where it cannot be kept: each fork is a
// new lab in which setup runs.
type anew struct{ *pass }

func (anew) Close() error { return nil }

func (a anew) Fork(ctx context.Context) (operation.Runner, error) {
	lab, err := a.newLab(ctx)
	if err != nil || a.file.script.Setup() == nil {
		return lab, err
	}
	scope := event.ScopeOf(ctx)
	scope.Subtest = script.Setup
	ctx = event.WithScope(ctx, scope)
	start := time.Now()
	event.Publish(ctx, event.SubtestStarted{Name: script.Setup})
	err = a.call(ctx, lab, *a.file.script.Setup())
	done := event.SubtestFinished{Name: script.Setup, Status: classify(ctx, err), Duration: time.Since(start)}
	if err != nil {
		done.Message = failureOf(err, done.Status).Message
		lab.Close()
		lab = nil
	}
	event.Publish(ctx, done)
	return lab, err
}

// forks runs each test in a fork of a state, in the order that the seed gives.
func (p *pass) forks(ctx context.Context, state operation.Snapshot) event.Status {
	var mu sync.Mutex
	status := event.Skipped
	var forked, ended sync.WaitGroup
	tests := p.suite.shuffled(p.file.tests)
	tickets := make([]*ticket, len(tests))
	for i := range tests {
		tickets[i] = p.suite.admission.enqueue(p.file.need(), true)
	}
	p.ticket.rest() // now that the next file cannot overtake them
	for i, t := range tests {
		forked.Add(1)
		ended.Go(func() {
			s := p.forkedTest(ctx, state, t, tickets[i], forked.Done)
			mu.Lock()
			defer mu.Unlock()
			status = event.Worst(status, s)
		})
	}
	forked.Wait()
	if err := asInfra("give up the state that setup left", state.Close()); err != nil {
		event.Warnf(ctx, "%v", err)
	}
	p.ticket.leave()
	ended.Wait()
	return status
}

func (p *pass) forkedTest(ctx context.Context, state operation.Snapshot, t script.Test, ticket *ticket, forked func()) event.Status {
	forked = sync.OnceFunc(forked)
	defer forked()
	defer ticket.leave()
	if ticket.wait(ctx) != nil {
		return p.skip(ctx, []script.Test{t})
	}
	status, _ := p.report(ctx, t, func(ctx context.Context) error {
		lab, err := state.Fork(ctx)
		forked()
		if err != nil {
			return err
		}
		err = p.test(ctx, lab, t)
		if closeErr := asInfra("close the lab", lab.Close()); err == nil {
			err = closeErr
		}
		return err
	})
	p.suite.count(status)
	return status
}

// test calls a test function, and ends what it left in its lab.
func (p *pass) test(ctx context.Context, lab operation.Runner, t script.Test) error {
	err := p.capture(ctx, lab)
	if err == nil {
		err = p.call(ctx, lab, t)
	}
	if s, ok := lab.(operation.Settler); ok {
		if e := s.Settle(ctx); err == nil {
			err = e
		}
	}
	return err
}

// call calls setup or a test, for as long as it may take.
func (p *pass) call(ctx context.Context, lab operation.Runner, t script.Test) error {
	limited := ctx
	if t.Timeout > 0 {
		over := &LimitError{Test: t.Name, Limit: t.Timeout}
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, t.Timeout, over)
		defer cancel()
	}
	return p.keep(ctx, lab, t, p.file.script.Call(limited, lab, t.Name))
}

// A LimitError is a test that took longer than its file allows it.
type LimitError struct {
	Test  string
	Limit time.Duration
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%s timed out after %v, the limit that its file gives", e.Test, e.Limit)
}

// Status is that of a claim that was not made in time.
func (*LimitError) Status() event.Status { return event.Failed }

// setup runs setup. Unless it passed, the tests are skipped.
func (p *pass) setup(ctx context.Context, lab operation.Runner) ending {
	setup := *p.file.script.Setup()
	status, failure := p.report(ctx, setup, func(ctx context.Context) error { return p.call(ctx, lab, setup) })
	if status != event.Passed {
		p.suite.count(status)
		p.skip(ctx, p.file.tests)
	}
	return ending{status, failure}
}

// report runs one function of the file between its two events.
func (p *pass) report(ctx context.Context, t script.Test, fn func(context.Context) error) (event.Status, *event.Failure) {
	ctx = p.scoped(ctx, t.Name)
	event.Publish(ctx, event.TestStarted{Title: t.Title})
	start := time.Now()
	err := fn(ctx)
	done := event.TestFinished{Status: classify(ctx, err), Duration: time.Since(start)}
	done.Failure = failureOf(err, done.Status)
	event.Publish(ctx, done)
	return done.Status, done.Failure
}

// scoped is the context of a test of this pass.
func (p *pass) scoped(ctx context.Context, test string) context.Context {
	return event.WithScope(ctx, event.Scope{File: p.file.path, Test: test, Boot: p.label, Label: p.file.label})
}

func (p *pass) newLab(ctx context.Context) (operation.Runner, error) {
	lab, err := p.suite.host.NewLab(ctx, p.config())
	return lab, asInfra("make the lab", err)
}

func (p *pass) config() attest.LabConfig {
	machines := slices.Clone(p.file.script.Machines())
	for i := range machines {
		machines[i].Boot = cmp.Or(machines[i].Boot, p.boot)
	}
	return attest.LabConfig{
		Name: p.labName(), Machines: machines, Networks: p.file.script.Networks(),
		OutDir: p.suite.opts.OutDir, FlatOutDir: p.suite.opts.Driver != nil, StateDir: p.suite.opts.StateDir, SourceDir: filepath.Dir(p.file.path), Seed: p.suite.opts.Seed,
	}
}

func (p *pass) labName() string {
	return strings.TrimSuffix(filepath.Base(p.file.path), filepath.Ext(p.file.path))
}

// failed is the end of a pass before its tests.
func (p *pass) failed(ctx context.Context, err error) ending {
	status := classify(ctx, err)
	p.suite.count(status)
	p.skip(ctx, p.file.tests)
	return ending{status, failureOf(err, status)}
}

// closed adds to an ending that the lab was closed.
func (p *pass) closed(o ending, err error) ending {
	if err = asInfra("close the lab", err); err == nil {
		return o
	}
	p.suite.count(event.Infra)
	if o.failure == nil {
		o.failure = failureOf(err, event.Infra)
	}
	o.status = event.Worst(o.status, event.Infra)
	return o
}

// skip reports tests that do not run.
func (p *pass) skip(ctx context.Context, tests []script.Test) event.Status {
	for _, t := range tests {
		ctx := p.scoped(ctx, t.Name)
		event.Publish(ctx, event.TestStarted{Title: t.Title})
		event.Publish(ctx, event.TestFinished{Status: event.Skipped})
		p.suite.count(event.Skipped)
	}
	if err := context.Cause(ctx); err != nil {
		p.suite.stop(err)
	}
	return event.Skipped
}

// classify tells how something ended. When the context is over that is why,
// whatever came of it: a killed command, a machine that is gone.
func classify(ctx context.Context, err error) event.Status {
	switch {
	case err == nil:
		return event.Passed
	case ctx.Err() == nil:
		return event.Status(attest.StatusOf(err))
	case timedOut(context.Cause(ctx)):
		return outOfTime(err)
	}
	return event.Interrupted
}

func timedOut(err error) bool {
	var timeout *TimeoutError
	return errors.As(err, &timeout)
}

// outOfTime tells how something ended that the run's limit has ended. A test that
// waits has failed. A guest that was still booting has not booted, and where no
// test has run yet it is the host that took too long.
func outOfTime(err error) event.Status {
	var boot *attest.BootError
	var infra *attest.InfraError
	switch {
	case errors.As(err, &boot) && timedOut(boot):
		return event.BootFailed
	case errors.As(err, &infra) && timedOut(infra):
		return event.Infra
	}
	return event.Failed
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
	f := access.Failure(err)
	f.Status = status
	var load *script.LoadError
	var at *script.Error
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
	var build *BuildError
	if errors.As(err, &build) {
		f.Command, f.Stdout = build.Command, build.Output
	}
	var kept *keptError
	if errors.As(err, &kept) {
		f.Details = append(f.Details, kept.note)
	}
	return f
}
