package report

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// WriteHTML writes a run as one HTML page that needs nothing else: no other
// file, no network. Its content security policy lets it load nothing and run
// only its own few lines of script, whatever a guest may have put into a log.
func WriteHTML(w io.Writer, r *Run) error {
	r.close(r.now())
	return page.Execute(w, r.page())
}

//go:embed page.html
var pageText string

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

var page = template.Must(template.New("page").Parse(pageText))

func scriptHash() string {
	sum := sha256.Sum256([]byte(pageJS))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

type htmlPage struct {
	CSS        template.CSS
	Script     template.JS
	ScriptHash string

	Status    htmlStatus
	Words     string // "3 passed, 1 failed in 42.1s"
	Facts     []fact
	Counts    []htmlCount
	Files     []htmlFile
	Work      []htmlBar
	Logs      []string
	Artifacts []htmlLink
}

type htmlStatus struct{ Word, Class string }

type htmlCount struct {
	Status htmlStatus
	N      int
	Words  string
}

type htmlFile struct {
	Name     string
	Took     string
	Failure  *htmlFailure
	Bars     []htmlBar // of the whole file: boots and tests
	Tests    []htmlTest
	Consoles []htmlConsole
}

type htmlTest struct {
	ID       string
	Name     string
	Title    string
	Status   htmlStatus
	Took     string
	Open     bool
	Note     string
	Failure  *htmlFailure
	Subtests []htmlSubtest
	Bars     []htmlBar // boots
	Rows     []htmlRow
	Cut      string
	Links    []htmlLink
	Consoles []htmlConsole
}

type htmlSubtest struct {
	Name    string
	Status  htmlStatus
	Took    string
	Message string
}

// An htmlBar is a stretch of time; Left and Width are percents of the whole.
type htmlBar struct {
	Name, Kind  string
	Link        string
	Left, Width float64
	Took        string
	Class       string
	Note        string
}

type htmlRow struct {
	At      string
	Indent  int
	Machine string
	Label   string
	Place   string
	Log     string // the level, of a log line
	Bar     htmlBar
	Message string
	Blocks  []block
}

type htmlFailure struct {
	Status  htmlStatus
	Message string
	Place   string
	Source  string
	Stack   []fact
	Facts   []fact
	Blocks  []htmlBlock
}

// An htmlBlock is a block, whose pictures have links.
type htmlBlock struct {
	block
	Links []htmlLink
}

type htmlConsole struct {
	Machine string
	Note    string
	Text    string
}

type htmlLink struct{ Kind, Path, URL string }

func newStatus(s event.Status) htmlStatus {
	class := "bad"
	switch s {
	case event.Passed:
		class = "good"
	case event.Skipped, event.Interrupted, event.Unsupported:
		class = "odd"
	}
	return htmlStatus{statusWord(s), class}
}

func (r *Run) page() htmlPage {
	p := htmlPage{
		CSS: template.CSS(pageCSS), Script: template.JS(pageJS), ScriptHash: scriptHash(),
		Status: newStatus(r.finished.Status),
		Words:  r.lastWords(),
	}
	p.Facts = append(p.Facts, fact{"started", r.begin.UTC().Format("2006-01-02 15:04:05 MST")}, fact{"took", took(r.finished.Duration)})
	if r.info.Host != "" {
		p.Facts = append(p.Facts, fact{"host", clean(r.info.Host)})
	}
	if b := bootWords[r.info.Boot]; b != "" {
		p.Facts = append(p.Facts, fact{"machines", b})
	}
	if r.info.Seed != 0 {
		p.Facts = append(p.Facts, fact{"seed", fmt.Sprint(r.info.Seed)})
	}
	if r.info.Version != "" {
		p.Facts = append(p.Facts, fact{"attest", clean(r.info.Version)})
	}
	for _, s := range statuses {
		if n := r.finished.Counts[s.status]; n > 0 {
			p.Counts = append(p.Counts, htmlCount{newStatus(s.status), n, s.words})
		}
	}
	for i, f := range r.files {
		p.Files = append(p.Files, r.htmlFile(f, i+1))
	}
	for _, w := range r.work {
		b := newBar(w.began, w.at.Sub(w.began), r.begin, r.finished.Duration)
		b.Name, b.Class, b.Note = clean(w.Title), "work", firstLine(w.Error)
		if w.Error != "" {
			b.Class = "bad"
		}
		p.Work = append(p.Work, b)
	}
	for _, l := range r.logs {
		p.Logs = append(p.Logs, fmt.Sprintf("%9.3fs  %s: %s", l.at.Sub(r.begin).Seconds(), clean(l.Level), clean(l.Text)))
	}
	for _, a := range r.artifacts {
		if keyOf(a.scope) == (testKey{}) {
			p.Artifacts = append(p.Artifacts, r.link(a))
		}
	}
	return p
}

// newBar places a stretch of time in a whole.
func newBar(at time.Time, d time.Duration, begin time.Time, whole time.Duration) htmlBar {
	b := htmlBar{Took: took(d)}
	if whole <= 0 {
		return b
	}
	percent := func(d time.Duration) float64 {
		x := float64(d) / float64(whole) * 100
		return float64(int(min(max(x, 0), 100)*100)) / 100
	}
	b.Left = percent(at.Sub(begin))
	b.Width = min(percent(d), 100-b.Left)
	return b
}

func (r *Run) htmlFile(f *file, n int) htmlFile {
	h := htmlFile{Name: cmp.Or(clean(f.name), "the run"), Took: took(f.duration)}
	if own := f.ownFailure(); own != nil {
		h.Failure = r.newFailure(own)
	}
	h.Bars, h.Consoles = r.htmlMachines(f, testKey{}, f.began, f.duration)
	for i, t := range f.tests {
		id := fmt.Sprintf("f%dt%d", n, i+1)
		h.Tests = append(h.Tests, r.htmlTest(f, t, id))
		bar := newBar(t.began, t.duration, f.began, f.duration)
		bar.Name, bar.Link, bar.Class = clean(t.name), "#"+id, newStatus(t.status).Class
		if t.status == event.Skipped {
			bar.Width, bar.Took = 0, "skipped"
		}
		h.Bars = append(h.Bars, bar)
	}
	if o := f.outside; o != nil && len(o.entries) > 0 {
		t := r.htmlTest(f, &test{began: f.began, duration: f.duration, entries: o.entries, cut: o.cut, status: event.Passed}, fmt.Sprintf("f%dt0", n))
		t.Name, t.Status = "outside of tests", htmlStatus{}
		h.Tests = append(h.Tests, t)
	}
	return h
}

// htmlMachines are the boots and consoles of a test's machines, or of those of
// the whole file.
func (r *Run) htmlMachines(f *file, k testKey, began time.Time, whole time.Duration) (bars []htmlBar, consoles []htmlConsole) {
	for _, m := range f.machines {
		if !m.of(k) {
			continue
		}
		for _, b := range m.boots {
			bar := newBar(b.at, b.took, began, whole)
			bar.Name, bar.Kind, bar.Class = clean(m.name), b.kind, "boot"
			if b.end != "ready" {
				bar.Class, bar.Note = "bad", cmp.Or(clean(b.end), "did not answer")
			}
			bars = append(bars, bar)
		}
		if c, ok := r.htmlConsole(f, m); ok {
			consoles = append(consoles, c)
		}
	}
	return bars, consoles
}

func (r *Run) htmlTest(f *file, t *test, id string) htmlTest {
	h := htmlTest{ID: id, Name: clean(t.name), Title: firstLine(t.title), Status: newStatus(t.status), Took: took(t.duration)}
	h.Open = t.status != event.Passed && t.status != event.Skipped
	switch {
	case t.isSetup() && t.status == event.Passed:
		h.Status.Word = "SETUP"
	case t.status == event.Skipped:
		h.Took = "did not run"
	}
	if t.failure != nil {
		h.Failure = r.newFailure(t.failure)
	}
	for _, s := range t.subtests {
		h.Subtests = append(h.Subtests, htmlSubtest{clean(s.path), newStatus(s.status), took(s.duration), clean(s.message)})
	}
	if t.cut > 0 {
		h.Cut = plural(t.cut, "earlier line") + " of this test are only in the JSON lines report"
	}
	for _, s := range t.entries {
		h.Rows = append(h.Rows, newRow(s, t))
	}
	if t.name != "" {
		h.Bars, h.Consoles = r.htmlMachines(f, t.testKey, t.began, t.duration)
	}
	if ends := f.otherEnds(t); ends != "" {
		h.Note = "ended otherwise: " + clean(ends)
	}
	for _, a := range r.artifacts {
		if a.scope.File == f.name && keyOf(a.scope) == t.testKey && t.name != "" {
			h.Links = append(h.Links, r.link(a))
		}
	}
	return h
}

func newRow(s *entry, t *test) htmlRow {
	h := htmlRow{At: fmt.Sprintf("%.3f", s.at.Sub(t.began).Seconds()), Indent: min(s.depth, 8), Label: s.label()}
	if s.log != nil {
		h.Log, h.Machine = clean(s.log.Level), clean(s.log.Machine)
		h.Label = clean(s.log.Text)
		return h
	}
	h.Machine = clean(s.Machine)
	h.Place = place(s.Position)
	h.Bar = newBar(s.at, s.end.Duration, t.began, t.duration)
	h.Bar.Class = newStatus(s.end.Status).Class
	var notes []string
	if s.end.Status != event.Passed {
		notes = append(notes, strings.ToLower(statusWord(s.end.Status)))
	}
	if s.end.ExitCode != nil && *s.end.ExitCode != 0 {
		notes = append(notes, fmt.Sprintf("exit code %d", *s.end.ExitCode))
	}
	if s.end.Status == event.Interrupted && s.waiting != "" {
		notes = append(notes, firstLine(s.waiting))
	}
	if s.end.Tries > 1 {
		notes = append(notes, plural(s.end.Tries, "try"))
	}
	h.Bar.Note = strings.Join(notes, ", ")
	if t.failure == nil || s.end.Message != t.failure.Message { // which is shown already
		h.Message = clean(s.end.Message)
	}
	if ls := lines(s.Args); len(ls) > 1 {
		h.Blocks = append(h.Blocks, block{Name: "command", Text: ls})
	}
	for _, c := range []struct {
		name string
		*capture
	}{{"stdout", &s.stdout}, {"stderr", &s.stderr}} {
		if ls := lines(string(c.data)); len(ls) > 0 {
			b := block{Name: c.name, Text: ls}
			if c.cut > 0 {
				b.Note = fmt.Sprintf("the last %d bytes of %d", len(c.data), len(c.data)+c.cut)
			}
			h.Blocks = append(h.Blocks, b)
		}
	}
	return h
}

func (r *Run) newFailure(f *event.Failure) *htmlFailure {
	h := &htmlFailure{Status: newStatus(f.Status), Message: clean(f.Message), Place: place(f.Position)}
	if text, mark := source(f); text != "" {
		h.Source = strings.TrimRight(text+"\n"+mark, "\n")
	}
	if len(f.Stack) > 1 {
		for _, s := range f.Stack {
			h.Stack = append(h.Stack, fact{place(s), clean(s.Func)})
		}
	}
	var blocks []block
	h.Facts, blocks = parts(f, documentRoom)
	for _, b := range blocks {
		with := htmlBlock{block: b}
		for _, p := range b.Pictures {
			with.Links = append(with.Links, r.linkTo(p.Title, p.Path))
		}
		h.Blocks = append(h.Blocks, with)
	}
	return h
}

// htmlConsole is a machine's console with the time in the run before each line,
// and a rule where a test begins, if it is a machine of the whole file.
func (r *Run) htmlConsole(f *file, m *machine) (htmlConsole, bool) {
	h := htmlConsole{Machine: clean(m.name)}
	if m.test.test == "" && m.test.boot != "" {
		h.Machine += " " + m.test.String()
	}
	var b strings.Builder
	var tests []*test
	if m.test.test == "" {
		tests = slices.SortedStableFunc(slices.Values(f.tests), func(a, b *test) int { return a.began.Compare(b.began) })
	}
	n := 0
	write := func(part []consoleLine) {
		for _, l := range part {
			for len(tests) > 0 && !tests[0].began.After(l.at) {
				if tests[0].status != event.Skipped && tests[0].boot == m.test.boot {
					fmt.Fprintf(&b, "%9.3f  ──── %s begins ────\n", tests[0].began.Sub(r.begin).Seconds(), clean(tests[0].name))
				}
				tests = tests[1:]
			}
			for _, text := range lines(l.text) {
				fmt.Fprintf(&b, "%9.3f  %s\n", l.at.Sub(r.begin).Seconds(), text)
				n++
			}
		}
	}
	write(m.console.head)
	if m.console.cut > 0 {
		fmt.Fprintf(&b, "           ──── %s left out here; the JSON lines report has more ────\n", plural(m.console.cut, "line"))
		h.Note = plural(m.console.cut, "line") + " in the middle left out"
	}
	write(m.console.tail)
	h.Text = b.String()
	h.Note = strings.TrimPrefix(strings.TrimSuffix(plural(n, "line")+", "+h.Note, ", "), ", ")
	return h, n > 0
}

// link is relative to the page where that can be, so that a directory of
// reports can be moved as a whole.
func (r *Run) link(a artifact) htmlLink { return r.linkTo(a.Kind, a.Path) }

func (r *Run) linkTo(kind, to string) htmlLink {
	path := to
	if !filepath.IsAbs(path) {
		path = filepath.Join(r.info.Dir, path)
	}
	if abs, err := filepath.Abs(path); err == nil && r.dir != "" {
		if rel, err := filepath.Rel(r.dir, abs); err == nil {
			path = rel
		}
	}
	u := url.URL{Path: path}
	return htmlLink{Kind: clean(kind), Path: clean(to), URL: u.String()}
}
