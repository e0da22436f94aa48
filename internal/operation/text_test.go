package operation

import (
	"context"
	"testing"

	"github.com/attest-vm/attest/internal/event"
)

// Text that is none is replaced, and that does not go unnoticed.
func TestText(t *testing.T) {
	var bus event.Bus
	var warnings int
	defer bus.Subscribe(func(r event.Record) {
		if e, ok := r.Event.(event.Log); ok && e.Level == "warning" {
			warnings++
		}
	})()
	ctx := event.WithBus(context.Background(), &bus)
	execute := Find(Machine, "execute")
	if got := Text(ctx, MachineName("a"), execute, "déjà vu"); got != "déjà vu" || warnings != 0 {
		t.Errorf("got %q, %d warnings", got, warnings)
	}
	if got := Text(ctx, MachineName("a"), execute, "\xe9t\xe9"); got != "\uFFFDt\uFFFD" || warnings != 1 {
		t.Errorf("got %q, %d warnings", got, warnings)
	}
}
