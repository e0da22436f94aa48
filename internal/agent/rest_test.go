package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwaitRest(t *testing.T) {
	// A guest that is busy for a second, and then does a little all the time.
	settling := func(until time.Duration) func() (int64, error) {
		start := time.Now()
		return func() (int64, error) {
			since := time.Since(start)
			return int64(min(since, until)/(10*time.Millisecond)) + int64(since/(200*time.Millisecond)), nil
		}
	}
	for _, test := range []struct {
		name           string
		busy, limit    time.Duration
		least, longest time.Duration
	}{
		{"at rest", 0, time.Minute, restLooks * restPace, restLooks * restPace},
		{"busy for a second", time.Second, time.Minute, time.Second + (restLooks-1)*restPace, time.Second + restLooks*restPace},
		{"never at rest", time.Hour, time.Minute, time.Minute, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				if err := awaitRest(t.Context(), test.limit, settling(test.busy)); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took < test.least || took > test.longest {
					t.Errorf("it took %v; want %v to %v", took, test.least, test.longest)
				}
			})
		})
	}
	t.Run("given up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			reason := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(reason) })
			if err := awaitRest(ctx, time.Minute, settling(time.Hour)); !errors.Is(err, reason) {
				t.Errorf("got %v, want %v", err, reason)
			}
		})
	})
}

func TestBusyTicks(t *testing.T) {
	for text, want := range map[string]string{
		"cpu  1 20 300 99999 4000 50000 600000 99999 0 0\ncpu0 7 7\n": "",
		"":                             `begins with ""`,
		"cpu0 1 2 3 4 5 6 7 8 9 10\n":  `begins with "cpu0`,
		"cpu 1 2 3 4 5 6 many 8 9 0\n": `"many"`,
	} {
		stat := filepath.Join(t.TempDir(), "stat")
		if err := os.WriteFile(stat, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		switch n, err := busyTicks(stat); {
		case want == "" && (err != nil || n != 654321):
			t.Errorf("%q: got %d and %v", text, n, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}
