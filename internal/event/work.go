package event

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Work is one piece of long work that is not a test's, told by Progress. Its methods
// may be called at the same time.
type Work struct {
	ctx       context.Context
	id, title string
	start     time.Time

	mu   sync.Mutex
	told time.Time // when Say did last; zero: nobody knows of the work
}

var works atomic.Int64

// NewWork begins a piece of work, and tells nobody yet.
func NewWork(ctx context.Context, title string) *Work {
	return &Work{ctx: ctx, id: fmt.Sprintf("%d %s", works.Add(1), title), title: title, start: time.Now()}
}

// Say reports what people should see.
func (w *Work) Say(format string, args ...any) {
	w.mu.Lock()
	w.told = time.Now()
	w.mu.Unlock()
	w.publish(Progress{Message: fmt.Sprintf(format, args...)})
}

// Tick is Say for one of many, of which a few a second are enough.
func (w *Work) Tick(format string, args ...any) {
	w.mu.Lock()
	since := time.Since(w.told)
	w.mu.Unlock()
	if since >= 300*time.Millisecond {
		w.Say(format, args...)
	}
}

// Done ends the work, for people if they know of it.
func (w *Work) Done(err error) {
	w.mu.Lock()
	untold := w.told.IsZero()
	w.mu.Unlock()
	switch {
	case untold:
	case err != nil:
		w.publish(Progress{Message: "failed", Done: true, Error: err.Error()})
	default:
		w.publish(Progress{Message: "done", Done: true})
	}
}

func (w *Work) publish(p Progress) {
	p.ID, p.Title, p.Elapsed = w.id, w.title, time.Since(w.start)
	Publish(w.ctx, p)
}
