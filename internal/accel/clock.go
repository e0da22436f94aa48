package accel

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Under TCG the guest's TSC is the host's. A Linux guest measures its frequency
// against an emulated timer when it boots, which goes wrong when the host is
// busy: seen are "Unable to calibrate against PIT", after which a microvm hangs,
// and 346 MHz instead of 2596, after which the guest's clock runs seven times
// too fast. So the guest is told.

// ClockParameters are the arguments that tell the kernel of an emulated guest
// how fast its clock runs; none where the host has no TSC that ticks evenly.
func ClockParameters() []string {
	khz := tscFrequency()
	if khz == 0 {
		return nil
	}
	return []string{
		fmt.Sprintf("tsc_early_khz=%d", khz),
		// No watchdog: it compares with emulated timers too.
		"tsc=reliable",
		// No test whether timer interrupts come in time: the kernel panics if
		// they do not.
		"no_timer_check",
	}
}

// minTSCInterval is how long counting takes at least: a reading is good to
// about 100 ns, so the result is to 20 parts in a million.
const minTSCInterval = 10 * time.Millisecond

var (
	firstTSC = readTSC() // so that nobody has to wait later

	// tscFrequency is the host's TSC in kHz, or 0.
	tscFrequency = sync.OnceValue(func() uint64 {
		cpuinfo, err := os.ReadFile("/proc/cpuinfo")
		if err != nil || !strings.Contains(string(cpuinfo), " constant_tsc") || firstTSC.ticks == 0 {
			return 0
		}
		time.Sleep(minTSCInterval - time.Since(firstTSC.time))
		last := readTSC()
		return uint64(float64(last.ticks-firstTSC.ticks) / last.time.Sub(firstTSC.time).Seconds() / 1000)
	})
)

// tscReading is the TSC at a time.
type tscReading struct {
	ticks uint64
	time  time.Time
}

// readTSC takes the closest of several readings: between the two halves of one
// the thread may have lost its processor.
func readTSC() (r tscReading) {
	closest := time.Hour
	for range 10 {
		start := time.Now()
		ticks := tsc()
		if took := time.Since(start); took < closest {
			closest, r = took, tscReading{ticks, start.Add(took / 2)}
		}
	}
	return r
}
