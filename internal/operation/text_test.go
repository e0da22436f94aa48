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

// The results are those of Python's decode(errors="replace").
func TestUnicode(t *testing.T) {
	for s, want := range map[string]string{
		"":                     "",
		"aä€😀":                 "aä€😀",
		"\xff\xfe":             "\uFFFD\uFFFD",
		"a\xffb\x80":           "a\uFFFDb\uFFFD",
		"\xe2\x82":             "\uFFFD",
		"\xe2\x82b":            "\uFFFDb",
		"\xf0\x9f\x98\xe2\x82": "\uFFFD\uFFFD",
		"\xe0\x80\x80":         "\uFFFD\uFFFD\uFFFD", // longer than it has to be
		"\xed\xa0\x80":         "\uFFFD\uFFFD\uFFFD", // half of a pair
		"\xf4\x90\x80\x80":     "\uFFFD\uFFFD\uFFFD\uFFFD",
		"\uFFFD\xc3":           "\uFFFD\uFFFD",
	} {
		if got := Unicode(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}
