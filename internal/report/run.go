package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// A Run is what a report that is not a stream knows: the files, their tests,
// the steps and machines, gathered from the events. Its memory is bounded per
// test and per machine. It is not safe for concurrent use; the bus delivers one
// event at a time.
type Run struct {
	limits limits

	started   bool // with RunStarted
	info      event.RunStarted
	begin     time.Time // of the first record
	last      time.Time // of the last one
	files     []*file
	work      []*work
	logs      []logLine
	artifacts []artifact
	finished  *event.RunFinished // never nil after close
	kept      int                // bytes of consoles and outputs
	cutLists  map[string]int     // how many of what lists have no room for, by their names
	dir       string             // of the HTML page: links are relative to it
	past      bool               // its events are read from a file
}

// limits say how much is kept; of what is more, the number only.
type limits struct {
	steps       int // per test; those under way are always kept
	output      int // bytes per step and stream, the last
	consoleHead int // lines per machine, the first …
	consoleTail int // … and the last
	lineBytes   int // per line of a console or a log
	text        int // bytes of every other text, such as a command or an error, the last
	list        int // lines that belong to no test; files that were written; subtests of a test
	total       int // bytes of consoles and outputs of all tests, after which there are the scarce limits
}

// The limits of the reports that are written at the end: an HTML report of a
// hundred tests stays one that a browser opens.
var documentLimits = limits{steps: 2000, output: 16 << 10, consoleHead: 500, consoleTail: 4500, lineBytes: 2000, text: 60 << 10, list: 2000, total: 256 << 20}

// scarce are the limits of consoles and outputs when a run has said more than
// documentLimits.total: what is new is still there, but less of it.
var scarce = limits{output: 1 << 10, consoleHead: 20, consoleTail: 80}

// NewRun returns a Run for JUnit and HTML.
func NewRun() *Run { return newRun(documentLimits) }

func newRun(l limits) *Run { return &Run{limits: l, cutLists: map[string]int{}} }

type file struct {
	name     string
	declared []testKey // in the order of the file
	began    time.Time
	done     bool
	status   event.Status
	duration time.Duration
	failure  *event.Failure
	tests    []*test
	outside  *test // steps and logs that belong to no test
	machines []*machine
}

// A testKey tells a test from the others of its file.
type testKey struct{ test, boot string }

func keyOf(s event.Scope) testKey { return testKey{s.Test, s.Boot} }

// String is the test's name in all reports: "test_serves", "test_serves [cold]".
func (k testKey) String() string {
	if k.boot == "" {
		return k.test
	}
	return strings.TrimSpace(k.test + " [" + k.boot + "]")
}

type test struct {
	testKey
	name     string // of the key
	title    string // what it says that it is about
	began    time.Time
	done     bool
	status   event.Status
	duration time.Duration
	failure  *event.Failure
	entries  []*entry // steps and log lines, in order of their start
	cut      int      // entries that are gone
	subtests []*subtest
}

type subtest struct {
	path     string // "outer/inner"
	began    time.Time
	done     bool
	status   event.Status
	duration time.Duration
	message  string
}

// An entry is a line of a test's story: a step, or a log line (ID 0).
type entry struct {
	event.StepStarted
	at      time.Time
	depth   int
	done    bool
	end     event.StepFinished
	waiting string // what keeps it from its end, or kept it when it was interrupted
	log     *event.Log
	stdout  capture
	stderr  capture
}

// A machine is one of a lab: every test has its own of that name.
type machine struct {
	name    string
	test    testKey   // that the lab is for; without a test: all of the file
	booting bool      // it was started and does not answer yet
	verb    string    // "booting", or "restoring" from a snapshot
	began   time.Time // of the last "starting"
	booted  time.Duration
	boots   []boot
	console console
}

// A boot is the time from "starting" to what came of it.
type boot struct {
	kind string // "boot" or "restore"
	at   time.Time
	took time.Duration
	end  string // "ready", "crashed", …; empty: not yet
}

type work struct {
	event.Progress
	began time.Time
	at    time.Time // of the last report
}

type logLine struct {
	at time.Time
	event.Log
}

type artifact struct {
	scope event.Scope
	event.Artifact
}

// A capture is the end of a stream.
type capture struct {
	data []byte
	cut  int // bytes
}

// add returns by how many bytes the capture has grown.
func (c *capture) add(s string, limit int) int {
	before := len(c.data)
	if n := len(s) - 2*limit; n > 0 { // more than is kept in any case
		c.cut += n
		s = s[n:]
	}
	c.data = append(c.data, s...)
	if len(c.data) > 2*limit { // twice, so that a byte is moved once only
		c.trim(limit)
	}
	return len(c.data) - before
}

// trim returns how many bytes are gone.
func (c *capture) trim(limit int) int {
	n := len(c.data) - limit
	if n <= 0 {
		return 0
	}
	c.cut += n
	c.data = slices.Clone(c.data[n:])
	return n
}

// A console is the beginning and the end of a machine's console log.
type console struct {
	head, tail []consoleLine
	cut        int // lines between them
}

type consoleLine struct {
	at   time.Time
	text string
}

// add returns by how many bytes the console has grown.
func (c *console) add(l consoleLine, lim limits) int {
	grown := len(l.text)
	if len(c.head) < lim.consoleHead && len(c.tail) == 0 {
		c.head = append(c.head, l)
		return grown
	}
	c.tail = append(c.tail, l)
	if len(c.tail) > 2*lim.consoleTail {
		grown -= c.trim(lim)
	}
	return grown
}

// trim returns how many bytes are gone.
func (c *console) trim(lim limits) (freed int) {
	n := len(c.tail) - lim.consoleTail
	if n <= 0 {
		return 0
	}
	for _, l := range c.tail[:n] {
		freed += len(l.text)
	}
	c.cut += n
	c.tail = slices.Clone(c.tail[n:]) // and not the array of all
	return freed
}

// last is the last line that says something.
func (c *console) last() string {
	for _, part := range [][]consoleLine{c.tail, c.head} {
		for _, l := range slices.Backward(part) {
			if s := lastLine(l.text); s != "" {
				return s
			}
		}
	}
	return ""
}

// Record takes one event.
func (r *Run) Record(rec event.Record) {
	if r.begin.IsZero() {
		r.begin = rec.Time
	}
	r.last = rec.Time
	switch e := rec.Event.(type) {
	case event.RunStarted:
		r.started, r.info = true, e
	case event.RunFinished:
		r.finished = &e
	case event.FileStarted:
		r.files = append(r.files, newFile(rec, e))
	case event.FileFinished:
		f := r.file(rec)
		f.done, f.status, f.duration, f.failure = true, e.Status, e.Duration, r.limits.failure(e.Failure)
	case event.TestStarted:
		f := r.file(rec)
		t := newTest(rec)
		t.title = r.limits.bound(e.Title)
		f.tests = append(f.tests, t)
	case event.TestFinished:
		t := r.test(rec)
		t.done, t.status, t.duration, t.failure = true, e.Status, e.Duration, r.limits.failure(e.Failure)
	case event.SubtestStarted:
		t := r.test(rec)
		if r.room(len(t.subtests), "subtests") {
			t.subtests = append(t.subtests, &subtest{path: r.limits.bound(subtestPath(rec.Scope, e.Name)), began: rec.Time})
		}
	case event.SubtestFinished:
		if s := r.test(rec).subtest(r.limits.bound(subtestPath(rec.Scope, e.Name))); s != nil {
			s.done, s.status, s.duration, s.message = true, e.Status, e.Duration, r.limits.bound(e.Message)
		}
	case event.StepStarted:
		r.stepStarted(rec, e)
	case event.StepWaiting:
		if s := r.step(rec, e.ID); s != nil {
			s.waiting = r.limits.line(e.Reason)
		}
	case event.StepFinished:
		r.stepFinished(rec, e)
	case event.Output:
		if s := r.step(rec, rec.Scope.Step); s != nil && r.limits.output > 0 {
			stream := &s.stdout
			if e.Stream == "stderr" {
				stream = &s.stderr
			}
			r.kept += stream.add(e.Data, r.roomy().output)
		}
	case event.Console:
		line := consoleLine{rec.Time, r.limits.line(e.Line)}
		r.kept += r.machine(rec, e.Machine).console.add(line, r.roomy())
	case event.MachineState:
		r.machine(rec, e.Machine).change(rec.Time, e)
	case event.Progress:
		r.progress(rec, e)
	case event.Log:
		r.log(rec, e)
	case event.FaultStarted, event.FaultEnded:
		r.log(rec, faultLog(e))
	case event.Egress:
		r.log(rec, egressLog(e))
	case event.Artifact:
		if r.room(len(r.artifacts), "files") {
			r.artifacts = append(r.artifacts, artifact{rec.Scope, e})
		}
	case event.Omitted:
		r.note(rec.Time, omittedText(e))
	case event.Unknown:
		r.unknown(rec.Time, e)
	}
}

// note adds a warning that belongs to the run.
func (r *Run) note(at time.Time, text string) {
	if r.limits.list > 0 {
		r.logs = append(r.logs, logLine{at, event.Log{Level: "warning", Text: text}})
	}
}

// roomy are the limits of what is said now. When they become scarce the report
// says so.
func (r *Run) roomy() limits {
	if r.limits.total == 0 || r.kept < r.limits.total {
		return r.limits
	}
	if r.cutLists["total"]++; r.cutLists["total"] == 1 {
		r.note(r.last, fmt.Sprintf("the output of the machines exceeds the limit of a report (%d MiB): only the last lines of later output are kept", r.limits.total>>20))
	}
	return scarce
}

// room reports whether a list has room for one more, and notes what is left out.
func (r *Run) room(n int, list string) bool {
	if r.limits.list == 0 || n < r.limits.list {
		return true
	}
	r.cutLists[list]++
	return false
}

// line is what is kept of a line: a copy, and not a part that keeps the whole.
func (l limits) line(s string) string {
	if len(s) <= l.lineBytes {
		return s
	}
	return strings.Clone(s[:l.lineBytes]) + "…"
}

// bound is what is kept of a text.
func (l limits) bound(s string) string {
	if l.text == 0 || len(s) <= l.text {
		return s
	}
	return fmt.Sprintf("(%d bytes before)\n%s", len(s)-l.text, strings.ToValidUTF8(s[len(s)-l.text:], "\uFFFD"))
}

// failure is what is kept of a failure.
func (l limits) failure(f *event.Failure) *event.Failure {
	if f == nil || l.text == 0 {
		return f
	}
	c := *f
	for _, s := range []*string{&c.Message, &c.Source, &c.Command, &c.Stdout, &c.Stderr, &c.LastSeen} {
		*s = l.bound(*s)
	}
	c.Details = slices.Clone(c.Details)
	for i := range c.Details {
		c.Details[i].Text = l.bound(c.Details[i].Text)
	}
	c.Console = slices.Clone(c.Console)
	for i := range c.Console {
		c.Console[i] = l.line(c.Console[i])
	}
	return &c
}

// unknown says once of each type that events of it are not shown.
func (r *Run) unknown(at time.Time, e event.Unknown) {
	text := unknownText(e)
	if !slices.ContainsFunc(r.logs, func(l logLine) bool { return l.Text == text }) {
		r.note(at, text)
	}
}

func unknownText(e event.Unknown) string {
	return fmt.Sprintf("events of the unknown type %.100q are not shown", e.Type)
}

// omittedText says what a stream of events lacks: "12 console, 3 output events".
func omittedText(e event.Omitted) string {
	var kinds []string
	for _, k := range slices.Sorted(maps.Keys(e.Events)) {
		kinds = append(kinds, fmt.Sprintf("%d %s", e.Events[k], k))
	}
	return fmt.Sprintf("the JSON lines exceeded their limit: %s events are left out (%d bytes)", strings.Join(kinds, ", "), e.Bytes)
}

// of reports whether the machine is one of a test's lab, or of the whole file's if
// k has no test.
func (m *machine) of(k testKey) bool { return m.test == k || m.test.test == "" && k.test == "" }

// maxBoots bounds what is kept of a machine that restarts in a loop.
const maxBoots = 100

func (m *machine) change(at time.Time, e event.MachineState) {
	switch e.State {
	case "starting":
		m.booting, m.began = true, at
		kind := "boot"
		if m.verb = "booting"; e.Detail == event.FromSnapshot {
			kind, m.verb = "restore", "restoring"
		}
		if len(m.boots) < maxBoots {
			m.boots = append(m.boots, boot{kind: kind, at: at})
		}
	case "running", "paused", "suspended":
	default:
		m.booting = false
		d := cmp.Or(e.After, at.Sub(m.began))
		if e.State == "ready" {
			m.booted = d
		}
		if n := len(m.boots); n > 0 && m.boots[n-1].end == "" {
			m.boots[n-1].took, m.boots[n-1].end = d, e.State
		}
	}
}

func newFile(rec event.Record, e event.FileStarted) *file {
	f := &file{name: rec.Scope.File, began: rec.Time}
	boots := e.Boots
	if len(boots) == 0 {
		boots = []string{""}
	}
	for _, name := range e.Tests {
		for _, boot := range boots {
			f.declared = append(f.declared, testKey{name, boot})
		}
	}
	return f
}

func newTest(rec event.Record) *test {
	k := keyOf(rec.Scope)
	return &test{testKey: k, name: k.String(), began: rec.Time}
}

// file is the one of the record's scope. An event may come without the one
// that should have opened it: a report shows it all the same.
func (r *Run) file(rec event.Record) *file {
	for _, f := range slices.Backward(r.files) {
		if f.name == rec.Scope.File {
			return f
		}
	}
	f := &file{name: rec.Scope.File, began: rec.Time}
	r.files = append(r.files, f)
	return f
}

func (r *Run) test(rec event.Record) *test {
	f := r.file(rec)
	if rec.Scope.Test == "" {
		if f.outside == nil {
			f.outside = &test{began: rec.Time}
		}
		return f.outside
	}
	if t := f.test(keyOf(rec.Scope)); t != nil {
		return t
	}
	t := newTest(rec)
	f.tests = append(f.tests, t)
	return t
}

// test is the latest of that key: a retried test has several.
func (f *file) test(k testKey) *test {
	for _, t := range slices.Backward(f.tests) {
		if t.testKey == k {
			return t
		}
	}
	return nil
}

// subtestPath is the subtest's full name, whether or not the scope of its
// events already has its own name at the end.
func subtestPath(s event.Scope, name string) string {
	switch {
	case s.Subtest == "":
		return name
	case s.Subtest == name, strings.HasSuffix(s.Subtest, "/"+name):
		return s.Subtest
	}
	return s.Subtest + "/" + name
}

// subtest is the one of that path that runs; nil if there is none, since the list
// had no room for it.
func (t *test) subtest(path string) *subtest {
	for _, s := range slices.Backward(t.subtests) {
		if s.path == path && !s.done {
			return s
		}
	}
	return nil
}

func (r *Run) stepStarted(rec event.Record, e event.StepStarted) {
	t := r.test(rec)
	e.Args = r.limits.bound(e.Args)
	s := &entry{StepStarted: e, at: rec.Time}
	if p := t.step(e.Parent); p != nil {
		s.depth = p.depth + 1
	}
	t.entries = append(t.entries, s)
}

func (r *Run) stepFinished(rec event.Record, e event.StepFinished) {
	t := r.test(rec)
	s := t.step(e.ID)
	if s == nil {
		return
	}
	e.Message, e.Failure = r.limits.bound(e.Message), nil // which is that of the test, if it matters
	s.done, s.end = true, e
	r.kept -= s.stdout.trim(r.limits.output) + s.stderr.trim(r.limits.output)
	r.bound(t)
}

// bound drops the oldest entries that are done.
func (r *Run) bound(t *test) {
	for i := 0; len(t.entries) > r.limits.steps && i < len(t.entries); {
		s := t.entries[i]
		if !s.done {
			i++
			continue
		}
		r.kept -= len(s.stdout.data) + len(s.stderr.data)
		t.entries = slices.Delete(t.entries, i, i+1)
		t.cut++
	}
}

func (t *test) step(id uint64) *entry {
	if id == 0 {
		return nil
	}
	for _, s := range slices.Backward(t.entries) {
		if s.ID == id {
			return s
		}
	}
	return nil
}

func (r *Run) step(rec event.Record, id uint64) *entry { return r.test(rec).step(id) }

func (r *Run) machine(rec event.Record, name string) *machine {
	f, k := r.file(rec), keyOf(rec.Scope)
	for _, m := range f.machines {
		if m.name == name && m.test == k {
			return m
		}
	}
	m := &machine{name: name, test: k, began: rec.Time}
	f.machines = append(f.machines, m)
	return m
}

func (r *Run) progress(rec event.Record, e event.Progress) {
	i := slices.IndexFunc(r.work, func(w *work) bool { return w.ID == e.ID && !w.Done })
	if i < 0 {
		r.work = append(r.work, &work{began: rec.Time.Add(-e.Elapsed)})
		i = len(r.work) - 1
	}
	w := r.work[i]
	if e.Title == "" {
		e.Title = w.Title
	}
	e.Message, e.Error = r.limits.line(e.Message), r.limits.bound(e.Error)
	w.Progress, w.at = e, rec.Time
}

func (r *Run) log(rec event.Record, e event.Log) {
	e.Text = r.limits.line(e.Text)
	if rec.Scope.File == "" {
		if r.room(len(r.logs), "log lines") && r.limits.list > 0 {
			r.logs = append(r.logs, logLine{rec.Time, e})
		}
		return
	}
	t := r.test(rec)
	s := &entry{at: rec.Time, done: true, log: &e}
	if p := t.step(rec.Scope.Step); p != nil {
		s.depth = p.depth + 1
	}
	t.entries = append(t.entries, s)
	r.bound(t)
}

// now is when the run's last event was, or the present for one that goes on.
func (r *Run) now() time.Time {
	if r.past && !r.last.IsZero() {
		return r.last
	}
	return time.Now()
}

// close completes a run that may have been interrupted: what was under way is
// interrupted, a test that never began is skipped. Again, it changes nothing.
func (r *Run) close(now time.Time) {
	if r.begin.IsZero() {
		r.begin = now
	}
	for _, f := range r.files {
		for _, t := range f.tests {
			t.close(now, r.limits)
		}
		if f.outside != nil {
			f.outside.close(now, r.limits)
		}
		f.complete(now)
		for _, m := range f.machines {
			m.console.trim(r.limits)
			if n := len(m.boots); n > 0 && m.boots[n-1].end == "" {
				m.boots[n-1].took = now.Sub(m.boots[n-1].at)
			}
		}
		if !f.done {
			f.done, f.status, f.duration = true, event.Interrupted, now.Sub(f.began)
		}
	}
	for _, list := range slices.Sorted(maps.Keys(r.cutLists)) {
		if list != "total" {
			r.note(r.last, fmt.Sprintf("%d more %s are only in the JSON lines report", r.cutLists[list], list))
		}
	}
	clear(r.cutLists)
	if r.finished == nil {
		r.finished = &event.RunFinished{Status: event.Interrupted, Duration: now.Sub(r.begin)}
	}
	if len(r.finished.Counts) == 0 {
		r.finished.Counts = r.counts()
	}
}

// complete gives the file the tests that never began, and puts all into the
// order of the file, whatever the order in which they ran.
func (f *file) complete(now time.Time) {
	for _, k := range f.declared {
		if f.test(k) == nil {
			f.tests = append(f.tests, &test{testKey: k, name: k.String(), began: now, done: true, status: event.Skipped})
		}
	}
	rank := func(t *test) int {
		if i := slices.Index(f.declared, t.testKey); i >= 0 || t.isSetup() {
			return i
		}
		return len(f.declared)
	}
	slices.SortStableFunc(f.tests, func(a, b *test) int { return cmp.Compare(rank(a), rank(b)) })
}

// differs says that the test ended otherwise when its machines started the
// other way, or on another backend.
func (f *file) differs(t *test) bool { return f.otherEnds(t) != "" }

// otherEnds is how the test ended where it ended otherwise: "passed [mock], failed [qemu]".
func (f *file) otherEnds(t *test) string {
	var ends []string
	for _, o := range f.tests {
		if o.test == t.test && o.boot != t.boot && o.status != t.status && o.status != event.Skipped && t.status != event.Skipped {
			ends = append(ends, fmt.Sprintf("%s [%s]", strings.ReplaceAll(string(o.status), "_", " "), o.boot))
		}
	}
	return strings.Join(ends, ", ")
}

// otherwise says what differs between the ends of a test.
func (r *Run) otherwise() string {
	for _, f := range r.files {
		for _, t := range f.tests {
			if t.boot != "cold" && t.boot != "warm" && f.differs(t) {
				return "on one backend than on another"
			}
		}
	}
	return "cold than warm"
}

// differing is the number of tests for which it matters how machines start, and on which backend.
func (r *Run) differing() int {
	names := make(map[string]bool)
	for _, f := range r.files {
		for _, t := range f.tests {
			if f.differs(t) {
				names[f.name+":"+t.test] = true
			}
		}
	}
	return len(names)
}

func (t *test) close(now time.Time, lim limits) {
	if !t.done {
		t.done, t.status, t.duration = true, event.Interrupted, now.Sub(t.began)
	}
	for _, s := range t.subtests {
		if !s.done {
			s.done, s.status, s.duration = true, event.Interrupted, now.Sub(s.began)
		}
	}
	for _, s := range t.entries {
		if !s.done {
			s.done = true
			s.stdout.trim(lim.output)
			s.stderr.trim(lim.output)
			s.end = event.StepFinished{ID: s.ID, Status: event.Interrupted, Duration: now.Sub(s.at)}
		}
	}
}

// isSetup says that the test is setup(): reported as a test, but none of those
// that people count, unless it failed.
func (k testKey) isSetup() bool { return k.test == "setup" }

// tests says that this is a run of tests, and not machines that somebody
// operates by hand.
func (r *Run) tests() bool {
	return r.started || slices.ContainsFunc(r.files, func(f *file) bool { return f.name != "" })
}

// counts are the tests by status.
func (r *Run) counts() map[event.Status]int {
	n := make(map[event.Status]int)
	for _, f := range r.files {
		for _, t := range f.tests {
			if t.done && !(t.isSetup() && t.status == event.Passed) {
				n[t.status]++
			}
		}
		if f.ownFailure() != nil {
			n[f.failure.Status]++
		}
	}
	return n
}

// ownFailure is the file's failure when it is not also the one of a test, as it
// is when setup failed.
func (f *file) ownFailure() *event.Failure {
	if f.failure == nil {
		return nil
	}
	for _, t := range f.tests {
		if t.failure == f.failure ||
			t.failure != nil && t.failure.Message == f.failure.Message && t.failure.Position == f.failure.Position {
			return nil
		}
	}
	return f.failure
}

// step as a person reads it: "server: wait_for_unit nginx.service".
func (s *entry) label() string {
	l := s.Operation
	if s.log != nil {
		return s.log.Text
	}
	if a := firstLine(s.Args); a != "" {
		l += " " + a
	}
	return clean(l)
}

// faultLog is a line about a fault of the network.
func faultLog(e event.Event) event.Log {
	l := event.Log{Level: "info"}
	switch e := e.(type) {
	case event.FaultStarted:
		l.Text = "network: " + e.Fault
	case event.FaultEnded:
		l.Text = fmt.Sprintf("network: healed %s after %s (%d of %s affected)", e.Fault, took(e.Duration), e.Affected, plural(int(e.Frames), "frame"))
		if e.Reason != "" {
			l.Text += ", " + e.Reason
		}
	}
	return l
}

// egressLog is a line about a connection out of the lab. That one was refused is
// what somebody who looks for the reason of a failure has to see.
func egressLog(e event.Egress) event.Log {
	to := e.Protocol + " " + e.Destination
	if e.Name != "" {
		to += " (" + e.Name + ")"
	}
	l := event.Log{Machine: e.Machine, Level: "info"}
	switch {
	case !e.Allowed:
		l.Level, l.Text = "warning", "egress refused: "+to+"; "+cmp.Or(e.Error, "the machine's egress= does not have it")
	case e.Error != "":
		l.Level, l.Text = "warning", fmt.Sprintf("egress: %s: %s", to, e.Error)
	default:
		l.Level, l.Text = "debug", fmt.Sprintf("egress: %s: %d bytes sent, %d received in %s", to, e.Sent, e.Received, took(e.Duration))
	}
	return l
}
