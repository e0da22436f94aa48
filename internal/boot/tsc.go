package boot

import (
	"os"
	"strings"
	"sync"
	"time"
)

// hostTSC is the frequency of this host's time stamp counter in kHz, to the
// nearest MHz so that it is the same in every process; 0 if it has none that
// runs evenly.
//
// A CPU that QEMU emulates has the host's counter. Its kernel measures the
// frequency against a timer that is emulated too, and on a busy host gets it
// wrong by some percent: a guest whose clock is that wrong. On a microvm, which
// has no second timer to compare with, every third boot hung instead.
var hostTSC = sync.OnceValue(func() int {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.Contains(string(info), " constant_tsc ") {
		return 0
	}
	const span = 20 * time.Millisecond
	from, start := readTSC()
	time.Sleep(span)
	to, end := readTSC()
	if to <= from {
		return 0
	}
	mhz := float64(to-from) / float64(end.Sub(start).Nanoseconds()) * 1e3
	return int(mhz+0.5) * 1000
})

// readTSC reads the counter and the clock at the same moment: the best of some
// tries, as this process can be stopped between the two.
func readTSC() (ticks uint64, at time.Time) {
	best := time.Duration(1<<63 - 1)
	for range 10 {
		before := time.Now()
		t := rdtsc()
		if d := time.Since(before); d < best {
			best, ticks, at = d, t, before.Add(d/2)
		}
	}
	return ticks, at
}
