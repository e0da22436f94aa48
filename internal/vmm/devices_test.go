package vmm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestEventLog(t *testing.T) {
	var l EventLog
	ctx := t.Context()
	got := make(chan string, 1)
	go func() {
		e, n, err := l.Next(ctx, 0)
		got <- fmt.Sprint(e.Name, n, err)
	}()
	l.Add(Event{Name: "first"})
	if s := <-got; s != "first1 <nil>" {
		t.Errorf("got %s", s)
	}
	for i := range 2 * maxEvents {
		l.Add(Event{Name: fmt.Sprint(i)})
	}
	if e, n, err := l.Next(ctx, 1); e.Name != fmt.Sprint(maxEvents) || n != maxEvents+2 || err != nil {
		t.Errorf("the oldest that is kept: %s, %d, %v", e.Name, n, err)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, _, err := l.Next(short, 2*maxEvents+1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	l.End()
	if _, _, err := l.Next(ctx, 2*maxEvents+1); err != ErrNoMoreEvents {
		t.Errorf("got %v", err)
	}
	if e, _, err := l.Next(ctx, 2*maxEvents); err != nil || e.Name != fmt.Sprint(2*maxEvents-1) {
		t.Errorf("the last one: %s, %v", e.Name, err)
	}
}
