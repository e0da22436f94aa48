package protocol

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
)

// A scope is a part of the peer's script in which operations belong to something: a
// subtest, a condition that has to hold, a function that an operation calls. Operations in it
// end with its context.
type scope struct {
	ctx    context.Context
	finish func(*Thrown) error // nil: the engine closes it
}

// scopes are those that are open, by number.
type scopes struct {
	mu   sync.Mutex
	last int64
	all  map[int64]*scope
}

func (s *scopes) open(ctx context.Context, finish func(*Thrown) error) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[int64]*scope{}
	}
	s.last++
	s.all[s.last] = &scope{ctx, finish}
	return s.last
}

func (s *scopes) close(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, id)
}

// take removes a scope that the peer finishes.
func (s *scopes) take(id int64) (*scope, error) {
	sc, err := s.find(id)
	switch {
	case err != nil:
		return nil, err
	case sc.finish == nil:
		return nil, paramsError{fmt.Errorf("scope %d ends with the call that it belongs to", id)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[id] != sc {
		return nil, paramsError{fmt.Errorf("scope %d is over", id)}
	}
	delete(s.all, id)
	return sc, nil
}

func (s *scopes) find(id int64) (*scope, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sc, ok := s.all[id]; ok {
		return sc, nil
	}
	return nil, paramsError{fmt.Errorf("there is no scope %d, or it is over", id)}
}

// enter is a context that ends with the request's and with the scope's, and has the
// scope's values; 0 is the script itself.
func (s *scopes) enter(request context.Context, id int64) (context.Context, func(), error) {
	if id == 0 {
		return request, func() {}, nil
	}
	sc, err := s.find(id)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(sc.ctx)
	stop := context.AfterFunc(request, func() { cancel(context.Cause(request)) })
	return ctx, func() { stop(); cancel(nil) }, nil
}

type beginParams struct {
	Name  string `json:"name"`
	Scope int64  `json:"scope"`
}

// doBegin begins a subtest.
func (s *Server) doBegin(_ context.Context, p beginParams) (any, error) {
	ctx, err := s.within(p.Scope)
	if err != nil {
		return nil, err
	}
	sc := event.ScopeOf(ctx)
	sc.Subtest = strings.TrimPrefix(sc.Subtest+"/"+p.Name, "/")
	ctx = event.WithScope(ctx, sc)
	event.Publish(ctx, event.SubtestStarted{Name: p.Name})
	start := time.Now()
	id := s.scopes.open(ctx, func(thrown *Thrown) error {
		done := event.SubtestFinished{Name: p.Name, Status: event.Passed, Duration: time.Since(start)}
		if thrown != nil {
			err := s.Explain(thrown)
			done.Status, done.Message = event.Status(attest.StatusOf(err)), err.Error()
		}
		event.Publish(ctx, done)
		return nil
	})
	return map[string]int64{"scope": id}, nil
}

// within is the context of a scope that is to have another one in it.
func (s *Server) within(id int64) (context.Context, error) {
	if id == 0 {
		return s.ctx, nil
	}
	sc, err := s.scopes.find(id)
	if err != nil {
		return nil, err
	}
	return sc.ctx, nil
}

type watchParams struct {
	Function    int64   `json:"function"`
	Description string  `json:"description"`
	Interval    float64 `json:"interval"` // seconds; 0: 2
	Scope       int64   `json:"scope"`
}

var errNotHeld = errors.New("it returned False")

// doWatch begins a scope whose operations end when a condition does not hold any more.
func (s *Server) doWatch(_ context.Context, p watchParams) (any, error) {
	ctx, err := s.within(p.Scope)
	if err != nil {
		return nil, err
	}
	fn := s.function(p.Function)
	c := attest.Condition{Description: p.Description, Interval: time.Duration(p.Interval * float64(time.Second)), Check: func(ctx context.Context) error {
		v, err := fn(ctx)
		if err == nil && v == false {
			err = errNotHeld
		}
		return err
	}}
	opened := make(chan int64, 1)
	over := make(chan struct{})
	ended := make(chan error, 1)
	s.work.Go(func() {
		ended <- c.During(ctx, func(inner context.Context) error {
			opened <- s.scopes.open(inner, func(*Thrown) error {
				close(over)
				return <-ended
			})
			select {
			case <-over:
			case <-ctx.Done():
			}
			return nil
		})
	})
	select {
	case id := <-opened:
		return map[string]int64{"scope": id}, nil
	case err := <-ended:
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

type finishParams struct {
	Scope int64   `json:"scope"`
	Error *Thrown `json:"error"`
}

// doFinish ends a subtest or a condition.
func (s *Server) doFinish(_ context.Context, p finishParams) (any, error) {
	sc, err := s.scopes.take(p.Scope)
	if err != nil {
		return nil, err
	}
	return nil, sc.finish(p.Error)
}
