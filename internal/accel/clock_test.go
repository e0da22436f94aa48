package accel

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestTSCFrequency measures a second time, over another interval, and wants the
// same to one part in a thousand.
func TestTSCFrequency(t *testing.T) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	khz := tscFrequency()
	if !strings.Contains(string(cpuinfo), " constant_tsc") {
		if khz != 0 || ClockParameters() != nil {
			t.Errorf("%d kHz on a host without an even TSC", khz)
		}
		return
	}
	start := readTSC()
	<-time.After(2 * minTSCInterval)
	end := readTSC()
	again := float64(end.ticks-start.ticks) / end.time.Sub(start.time).Seconds() / 1000
	if ratio := float64(khz) / again; ratio < 0.999 || ratio > 1.001 {
		t.Errorf("%d kHz, and then %.0f", khz, again)
	}
}
