package event

import "testing"

// The order and the codes are a contract.
func TestWorstDecides(t *testing.T) {
	for _, tt := range []struct {
		statuses []Status
		worst    Status
		exit     int
	}{
		{nil, Skipped, 0},
		{[]Status{Skipped, Passed}, Passed, 0},
		{[]Status{Passed, Unsupported, Skipped}, Unsupported, 4},
		{[]Status{Unsupported, Infra}, Infra, 3},
		{[]Status{Infra, BootFailed, Unsupported}, BootFailed, 3},
		{[]Status{BootFailed, Failed, Unsupported}, Failed, 1},
		{[]Status{Failed, Invalid, Infra}, Invalid, 2},
		{[]Status{Invalid, Interrupted}, Interrupted, 130},
		{[]Status{Passed, "from a later version"}, "from a later version", 1},
	} {
		worst := Worst(tt.statuses...)
		if worst != tt.worst || worst.ExitCode() != tt.exit {
			t.Errorf("%q: %s, exit code %d; want %s, %d", tt.statuses, worst, worst.ExitCode(), tt.worst, tt.exit)
		}
	}
}
