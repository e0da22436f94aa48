package agent

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A guest is at rest when its processors were idle for a while but for restBusy ticks
// (of 10 ms) in restLooks looks.
const (
	restPace  = 50 * time.Millisecond
	restLooks = 6
	restBusy  = 3
)

// awaitRest waits until the guest has nothing to do, and at most as long as the limit. busy is
// how many ticks its processors were not idle so far.
func awaitRest(ctx context.Context, limit time.Duration, busy func() (int64, error)) error {
	over := time.NewTimer(limit)
	defer over.Stop()
	pace := time.NewTicker(restPace)
	defer pace.Stop()
	var seen []int64
	for {
		n, err := busy()
		if err != nil {
			return err
		}
		if seen = append(seen, n); len(seen) > restLooks && n-seen[len(seen)-1-restLooks] <= restBusy {
			return nil
		}
		select {
		case <-pace.C:
		case <-over.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// busyTicks reads from stat of proc(5) how many ticks all processors together have run, or
// waited for disks.
func busyTicks(stat string) (int64, error) {
	text, err := os.ReadFile(stat)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	const idle, steal = 4, 8
	if len(fields) <= steal || fields[0] != "cpu" {
		return 0, fmt.Errorf("%s begins with %q", stat, line)
	}
	var ticks int64
	for i, field := range fields[1:steal] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", stat, err)
		}
		if i+1 != idle {
			ticks += n
		}
	}
	return ticks, nil
}
