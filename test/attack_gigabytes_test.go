package test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/report"
)

const gigabyte = 1 << 30

// A flood is lines without end.
type flood struct{ line []byte }

func (f flood) Read(p []byte) (n int, err error) {
	for n < len(p) {
		n += copy(p[n:], f.line)
	}
	return n, nil
}

// A tally counts the bytes that are written to it.
type tally struct{ n int64 }

func (c *tally) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

// heap is the memory in use, in MiB.
func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc >> 20)
}

func atMost(what string, got, limit int64, unit string) error {
	if got > limit {
		return fmt.Errorf("%s: %d %s, and at most %d are promised", what, got, unit, limit)
	}
	return nil
}

// TestStressGigabytes gives each log a gigabyte or more. All end at their limits, and
// say so.
func TestStressGigabytes(t *testing.T) {
	a := newAttack(t, "gigabytes (console log, JSON lines, JUnit and HTML reports, print, output of a command)")
	a.try("console log", gigabytesOfConsole(t))
	a.try("reports", gigabytesOfEvents(t))
	a.try("print", gigabytesOfPrint(t))
	a.try("output", gigabytesOfOutput(t))
}

// gigabytesOfConsole has a guest write to its console.
func gigabytesOfConsole(t *testing.T) error {
	log, err := os.Create(filepath.Join(t.TempDir(), "console.log"))
	if err != nil {
		return err
	}
	before, lines := heap(), 0
	c := console.New(log, func(string) { lines++ })
	c.Pump(io.LimitReader(flood{[]byte(strings.Repeat("z", 1000) + "\n")}, gigabyte))
	info, err := log.Stat()
	if err != nil {
		return err
	}
	end := make([]byte, 100)
	log.ReadAt(end, info.Size()-100)
	if !strings.Contains(string(end), "this log ends here, at its limit") {
		err = fmt.Errorf("the log does not say that it was cut: %q", end)
	}
	grown := heap() - before
	t.Logf("console: %d lines; a log of %d MiB, %d MiB of memory", lines, info.Size()>>20, grown)
	return errors.Join(err, atMost("console log", info.Size(), 64<<20+100, "bytes"), atMost("memory", int64(grown), 32, "MiB"), c.Close())
}

// gigabytesOfEvents has a run with more output than a report takes.
func gigabytesOfEvents(t *testing.T) error {
	before := heap()
	dir := t.TempDir()
	var json, junit, html tally
	run, lines := report.NewRun(), report.NewJSON(&json)
	seq := uint64(0)
	publish := func(s event.Scope, e event.Event) {
		seq++
		r := event.Record{Seq: seq, Time: time.Unix(int64(seq), 0), Scope: s, Event: e}
		run.Record(r)
		lines.Record(r)
	}
	const machines, each = 8, 16 << 10 // of 16 KiB
	publish(event.Scope{}, event.RunStarted{Files: []string{"a.star"}, Dir: dir})
	file, test := event.Scope{File: "a.star"}, event.Scope{File: "a.star", Test: "main"}
	publish(file, event.FileStarted{Tests: []string{"main"}})
	publish(test, event.TestStarted{})
	for i := range machines * each {
		line := fmt.Sprintf("%d %s", i, strings.Repeat("z", 16<<10))
		machine := fmt.Sprint("m", i%machines)
		if i%2 == 0 {
			publish(test, event.Console{Machine: machine, Line: line})
		} else {
			publish(test, event.Log{Machine: machine, Level: "info", Text: line})
		}
	}
	publish(test, event.TestFinished{Status: event.Passed})
	publish(file, event.FileFinished{Status: event.Passed})
	publish(event.Scope{}, event.RunFinished{Status: event.Passed})
	err := errors.Join(lines.Close(), report.WriteJUnit(&junit, run), report.WriteHTML(&html, run))
	grown := heap() - before
	t.Logf("reports of %d MiB: JSON lines %d MiB, JUnit %d MiB, HTML %d MiB, %d MiB of memory", machines*each>>6, json.n>>20, junit.n>>20, html.n>>20, grown)
	runtime.KeepAlive(run)
	return errors.Join(err, atMost("JSON lines", json.n, 513<<20, "bytes"), atMost("JUnit", junit.n, 512<<20, "bytes"),
		atMost("HTML", html.n, 512<<20, "bytes"), atMost("memory", int64(grown), 512, "MiB"))
}

// gigabytesOfPrint has a test print. What is printed is the reader's; attest keeps none
// of it.
func gigabytesOfPrint(t *testing.T) error {
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "print.star"), `
def main():
    text = "z" * 65535
    for _ in range(16 * 1024):
        print(text)
`)
	cmd := exec.Command("attest", "run", "-o", filepath.Join(dir, "out"), file)
	cmd.Env = append(os.Environ(), "ATTEST_STATE_DIR="+newStateDir(t))
	var out tally
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// Not what wait(2) says: that begins with the memory of the process that forked.
	memory := 0
	var err error
	for running := true; running; {
		select {
		case err = <-ended:
			running = false
		case <-time.After(20 * time.Millisecond):
			if mib, ok := statusMiB(cmd.Process.Pid, "VmHWM:"); ok {
				memory = mib
			}
		}
	}
	if err != nil {
		return err
	}
	var reports int64
	for _, name := range []string{"events.jsonl", "junit.xml", "report.html"} {
		info, err := os.Stat(filepath.Join(dir, "out", name))
		if err != nil {
			return err
		}
		reports += info.Size()
	}
	t.Logf("print: %d MiB printed; reports of %d KiB, %d MiB of memory", out.n>>20, reports>>10, memory)
	if out.n < gigabyte {
		return fmt.Errorf("only %d bytes were printed", out.n)
	}
	return errors.Join(atMost("reports", reports, 1<<20, "bytes"), atMost("memory", int64(memory), 200, "MiB"))
}

// gigabytesOfOutput has a guest answer a command with more than a result takes.
func gigabytesOfOutput(t *testing.T) error {
	before := heap()
	lab := attest.New(t, attest.MachineConfig{Name: "m", Backend: "mock"})
	m := lab.Machine("m")
	_, err := m.Machine.Execute(t.Context(), "head -c 3G /dev/zero | tr '\\0' z | fold -w 1000")
	grown := heap() - before
	t.Logf("output: %d MiB of memory; %v", grown, err)
	if err == nil || !strings.Contains(err.Error(), "64 MiB") || !strings.HasPrefix(err.Error(), "m: ") {
		return fmt.Errorf("got %v", err)
	}
	m.Succeed("true")
	return atMost("memory", int64(grown), 300, "MiB")
}
