package attest

import (
	"bytes"
	"context"
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
	mu       sync.Mutex
	tried    bool
	bus      event.Bus
	file     *os.File // the JSON lines; nil: no reports are asked for, or they cannot be written
	lines    *report.JSON
	finished int64          // where the file goes on when finish has completed it; 0: it has not
	open     map[string]int // labs by the test that they are of
	started  time.Time
	counts   map[event.Status]int
	pkg      string

	lastMu sync.Mutex
	last   event.Record // in the file, but for what finish adds
}

// follow has the events of a lab's bus in the reports.
func (p *processReports) follow(bus *event.Bus) {
	bus.Subscribe(func(r event.Record) {
		r.Scope.File = p.pkg
		p.bus.Publish(r.Scope, r.Event)
	})
}

// begin opens a test. The first test of the process opens the reports.
func (p *processReports) begin(ctx context.Context, test string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if dir := os.Getenv(ReportsEnv); !p.tried && dir != "" {
		p.tried = true
		if err := p.create(dir); err != nil {
			event.Warnf(ctx, "%s: %v; there are no reports", ReportsEnv, err)
		}
	}
	if p.file == nil {
		return
	}
	if p.finished > 0 { // it goes on
		err := p.file.Truncate(p.finished)
		if err == nil {
			_, err = p.file.Seek(p.finished, io.SeekStart)
		}
		if err != nil {
			event.Warnf(ctx, "%s: %v", ReportsEnv, err)
		}
		p.finished = 0
	}
	if p.open[test]++; p.open[test] == 1 {
		event.Publish(ctx, event.TestStarted{})
	}
}

// create makes the file of JSON lines.
func (p *processReports) create(dir string) error {
	p.pkg, p.started = testedPackage(), time.Now()
	p.open, p.counts = map[string]int{}, map[event.Status]int{}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, strings.ReplaceAll(p.pkg, "/", "_")+".jsonl"))
	if err != nil {
		return err
	}
	p.file, p.lines = f, report.NewJSON(f)
	p.bus.Subscribe(func(r event.Record) {
		p.lastMu.Lock()
		defer p.lastMu.Unlock()
		p.last = r
		p.lines.Record(r)
	})
	host, _ := os.Hostname()
	wd, _ := os.Getwd()
	p.bus.Publish(event.Scope{}, event.RunStarted{Version: version(), Files: []string{p.pkg}, Hostname: host, Dir: wd})
	p.bus.Publish(event.Scope{File: p.pkg}, event.FileStarted{})
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
	if err := p.finish(); err != nil {
		event.Warnf(ctx, "%s: %v", ReportsEnv, err)
	}
}

// finish completes the reports. The JSON lines are cut to what they were before if
// another test follows.
func (p *processReports) finish() (err error) {
	p.lastMu.Lock()
	defer p.lastMu.Unlock()
	if p.finished, err = p.file.Seek(0, io.SeekCurrent); err != nil {
		return err
	}
	status := event.Worst(slices.Collect(maps.Keys(p.counts))...)
	took := time.Since(p.started)
	var lines bytes.Buffer
	r := event.Record{Seq: p.last.Seq + 1, Time: time.Now(), Scope: event.Scope{File: p.pkg}, Event: event.FileFinished{Status: status, Duration: took}}
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
func testedPackage() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Path != "" && info.Path != "command-line-arguments" {
		return strings.TrimSuffix(info.Path, ".test")
	}
	return strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
}

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
