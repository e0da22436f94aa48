package attest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/report"
)

// ReportsEnv is the environment variable with the directory to which the tests of a
// package write their reports: PACKAGE.jsonl as things happen, and PACKAGE.xml (JUnit)
// and PACKAGE.html whenever no test with a lab is under way. A slash in the package's
// path is an underscore there.
const ReportsEnv = "ATTEST_REPORTS"

// reports are those of all tests of this process. go test tells nobody that the last
// test has ended, so the reports are complete whenever none is open, and go on from
// there with the next one.
var reports = &processReports{}

type processReports struct {
	mu      sync.Mutex
	tried   bool
	bus     event.Bus
	file    *os.File // the JSON lines; nil: no reports are asked for, or they cannot be written
	lines   *report.JSON
	open    map[string]int // labs by the test that they are of
	started time.Time
	counts  map[event.Status]int

	lastMu   sync.Mutex
	last     event.Record // in the file, but for what finish adds
	complete bool         // finish has added to it, and nothing may follow
	size     int64        // of the file before that
}

// follow has the events of a lab's bus in the reports.
func (p *processReports) follow(bus *event.Bus) {
	bus.Subscribe(func(r event.Record) {
		r.Scope.File = testedPackage()
		p.bus.Publish(r.Scope, r.Event)
	})
}

// begin opens a test. The first test of the process opens the reports.
func (p *processReports) begin(ctx context.Context, test string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if dir := os.Getenv(ReportsEnv); !p.tried && dir != "" {
		p.tried = true
		p.warn(p.create(dir))
	}
	if p.file == nil {
		return
	}
	if len(p.open) == 0 {
		p.warn(p.goOn())
	}
	if p.open[test]++; p.open[test] == 1 {
		event.Publish(ctx, event.TestStarted{})
	}
}

// warn says that there is something wrong with the reports. A test does not fail for
// that.
func (p *processReports) warn(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "attest: reports (%s): %v\n", ReportsEnv, err)
	}
}

// goOn takes back what finish has done.
func (p *processReports) goOn() error {
	p.lastMu.Lock()
	defer p.lastMu.Unlock()
	if !p.complete {
		return nil
	}
	p.complete = false
	if err := p.file.Truncate(p.size); err != nil {
		return err
	}
	_, err := p.file.Seek(p.size, io.SeekStart)
	return err
}

// create makes the file of JSON lines.
func (p *processReports) create(dir string) error {
	p.started = time.Now()
	p.open, p.counts = map[string]int{}, map[event.Status]int{}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, strings.ReplaceAll(testedPackage(), "/", "_")+".jsonl"))
	if err != nil {
		return err
	}
	p.file, p.lines = f, report.NewJSON(f)
	p.bus.Subscribe(func(r event.Record) {
		p.lastMu.Lock()
		defer p.lastMu.Unlock()
		if !p.complete {
			p.last = r
			p.lines.Record(r)
		}
	})
	host, _ := os.Hostname()
	wd, _ := os.Getwd()
	p.bus.Publish(event.Scope{}, event.RunStarted{Version: version(), Files: []string{testedPackage()}, Hostname: host, Dir: wd})
	p.bus.Publish(event.Scope{File: testedPackage()}, event.FileStarted{})
	return nil
}

// end closes a test. When none is open the reports are complete.
func (p *processReports) end(ctx context.Context, test string, e event.TestFinished) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil || p.open[test] == 0 {
		return
	}
	if p.open[test]--; p.open[test] > 0 {
		return
	}
	delete(p.open, test)
	event.Publish(ctx, e)
	p.counts[e.Status]++
	if len(p.open) > 0 {
		return
	}
	p.warn(p.finish())
}

// finish completes the reports. The JSON lines are cut to what they were before if
// another test follows.
func (p *processReports) finish() (err error) {
	p.lastMu.Lock()
	defer p.lastMu.Unlock()
	if p.size, err = p.file.Seek(0, io.SeekCurrent); err != nil {
		return err
	}
	p.complete = true
	status := event.Worst(slices.Collect(maps.Keys(p.counts))...)
	took := time.Since(p.started)
	var lines bytes.Buffer
	r := event.Record{Seq: p.last.Seq + 1, Time: time.Now(), Scope: event.Scope{File: testedPackage()}, Event: event.FileFinished{Status: status, Duration: took}}
	event.Encode(&lines, r)
	r.Seq, r.Scope, r.Event = r.Seq+1, event.Scope{}, event.RunFinished{Status: status, Duration: took, Counts: p.counts}
	event.Encode(&lines, r)
	if _, err := p.file.Write(lines.Bytes()); err != nil {
		return err
	}
	base := strings.TrimSuffix(p.file.Name(), ".jsonl")
	set, err := report.Open(report.Options{JUnit: base + ".xml", HTML: base + ".html"})
	if err != nil {
		return err
	}
	if err := set.Replay(io.NewSectionReader(p.file, 0, math.MaxInt64)); err != nil {
		set.Abandon()
		return err
	}
	_, err = set.Close()
	return err
}

// testedPackage is the path of the package whose tests this process runs.
var testedPackage = sync.OnceValue(func() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Path != "" && info.Path != "command-line-arguments" {
		return strings.TrimSuffix(info.Path, ".test")
	}
	return strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
})

// version is that of attest in this program.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == "github.com/attest-vm/attest" {
			return m.Version
		}
	}
	return ""
}
