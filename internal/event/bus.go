package event

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// A Bus delivers every event to every subscriber, in one order, before
// Publish returns: a subscriber that is slow slows the run down and never
// loses an event. The zero value is ready to use.
type Bus struct {
	mu          sync.Mutex // held while subscribers run: they must not publish
	seq         uint64
	subscribers []*subscriber
}

type subscriber struct{ fn func(Record) }

// Subscribe calls fn for every later event until cancel is called. fn must not
// publish, subscribe or cancel.
func (b *Bus) Subscribe(fn func(Record)) (cancel func()) {
	s := &subscriber{fn}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscribers = append(b.subscribers, s)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for i, x := range b.subscribers {
			if x == s {
				b.subscribers = append(b.subscribers[:i:i], b.subscribers[i+1:]...)
				return
			}
		}
	}
}

// Publish delivers one event.
func (b *Bus) Publish(scope Scope, e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seq++
	// Without the monotonic clock, which a file of events does not have.
	r := Record{Seq: b.seq, Time: time.Now().Round(0), Scope: scope, Event: e}
	for _, s := range b.subscribers {
		s.fn(r)
	}
}

type busKey struct{}
type scopeKey struct{}

// WithBus returns a context whose events go to b.
func WithBus(ctx context.Context, b *Bus) context.Context {
	return context.WithValue(ctx, busKey{}, b)
}

// BusOf is the context's bus; events on a context without one are dropped.
func BusOf(ctx context.Context) *Bus {
	b, _ := ctx.Value(busKey{}).(*Bus)
	return b
}

// WithScope returns a context whose events carry s.
func WithScope(ctx context.Context, s Scope) context.Context {
	return context.WithValue(ctx, scopeKey{}, s)
}

// ScopeOf is the scope that WithScope set.
func ScopeOf(ctx context.Context) Scope {
	s, _ := ctx.Value(scopeKey{}).(Scope)
	return s
}

// Publish delivers e to the context's bus with the context's scope.
func Publish(ctx context.Context, e Event) {
	if b := BusOf(ctx); b != nil {
		b.Publish(ScopeOf(ctx), e)
	}
}

// Logf publishes a Log of level info.
func Logf(ctx context.Context, format string, args ...any) {
	Publish(ctx, Log{Level: "info", Text: fmt.Sprintf(format, args...)})
}

// Warnf publishes a Log of level warning.
func Warnf(ctx context.Context, format string, args ...any) {
	Publish(ctx, Log{Level: "warning", Text: fmt.Sprintf(format, args...)})
}

type positionKey struct{}

// WithPosition returns a context for an operation that a test file calls at p.
func WithPosition(ctx context.Context, p Position) context.Context {
	return context.WithValue(ctx, positionKey{}, p)
}

// PositionOf is the position that WithPosition set.
func PositionOf(ctx context.Context) Position {
	p, _ := ctx.Value(positionKey{}).(Position)
	return p
}
