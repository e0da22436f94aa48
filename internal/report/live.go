package report

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// A tree is the part of a terminal that is redrawn in place: what runs now, at
// the bottom of the screen. Lines that stay are written above it. Between two
// drawings the cursor rests below the tree, visible, in the first column: a run
// that is killed leaves a terminal that needs no repair.
type tree struct {
	pending []chunk   // lines that stay, not written yet
	rows    []row     // on the screen
	columns int       // of the screen when rows were drawn
	shown   string    // rows as they were written
	drawn   time.Time // when
	midLine bool      // the last text that stays has no newline at its end
}

type chunk struct {
	result bool // goes to Stdout
	text   string
}

// A row is one line of the tree: text from the left, a time at the right.
type row struct {
	depth int
	spans []span
	right string
}

type span struct{ style, text string }

// maxColumns keeps a row's time near its text on a wide screen.
const maxColumns = 110

// render is the row in at most columns-1 cells: a full line would leave the
// cursor where terminals differ.
func (r row) render(p painter, columns int) string {
	room := min(columns-1, maxColumns)
	left := room
	if r.right != "" {
		left = max(room-len(r.right)-2, 0)
	}
	var b strings.Builder
	used := 0
	for _, s := range append([]span{{"", strings.Repeat("  ", r.depth)}}, r.spans...) {
		text := cut(oneRow.Replace(s.text), left-used)
		used += width(text)
		b.WriteString(p.paint(s.style, text))
	}
	if r.right != "" && room > len(r.right) {
		b.WriteString(strings.Repeat(" ", room-len(r.right)-used) + p.paint(dim, r.right))
	}
	return b.String()
}

// cells is the width at which the row was drawn.
func (r row) cells(columns int) int { return width(r.render(false, columns)) }

func (t *Terminal) size() (columns, rows int) {
	if t.o.Size != nil {
		columns, rows = t.o.Size()
	}
	if columns <= 0 {
		columns = 80
	}
	if rows <= 0 {
		rows = 24
	}
	return columns, rows
}

// draw writes the lines that are pending and the tree below them, in one write.
func (t *Terminal) draw(now time.Time) {
	columns, height := t.size()
	rows := t.frame(now, height-1)
	p := painter(t.o.ColorStderr)
	ls := make([]string, len(rows))
	for i, r := range rows {
		ls[i] = r.render(p, columns)
	}
	shown := strings.Join(ls, "\n")
	if shown == t.live.shown && len(t.live.pending) == 0 && columns == t.live.columns {
		return
	}
	var b strings.Builder
	if len(t.live.pending) > 0 || columns != t.live.columns {
		t.erase()
	} else {
		b.WriteString(t.up())
	}
	if t.live.midLine {
		b.WriteString("\n")
		t.live.midLine = false
	}
	for _, l := range ls {
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	io.WriteString(t.o.Stderr, b.String())
	t.live.rows, t.live.columns, t.live.shown, t.live.drawn = rows, columns, shown, now
}

// up moves the cursor to where the tree begins. A terminal that became narrower
// has wrapped the rows.
func (t *Terminal) up() string {
	columns, height := t.size()
	n := 0
	for _, r := range t.live.rows {
		n += max(1, (r.cells(t.live.columns)+columns-1)/columns)
	}
	if n = min(n, height-1); n == 0 { // what has scrolled away stays
		return "\r"
	}
	return fmt.Sprintf("\r\x1b[%dA", n)
}

// erase removes the tree and writes the lines that are pending.
func (t *Terminal) erase() {
	var b strings.Builder
	result := false
	flush := func() {
		switch {
		case b.Len() == 0:
		case result:
			t.writeStdout(b.String())
		default:
			io.WriteString(t.o.Stderr, b.String())
		}
		b.Reset()
	}
	if len(t.live.rows) > 0 {
		b.WriteString(t.up() + "\x1b[J")
	}
	if t.live.midLine && len(t.live.pending) > 0 {
		b.WriteString("\n")
		t.live.midLine = false
	}
	for _, c := range t.live.pending {
		if c.result != result {
			flush()
		}
		result = c.result
		b.WriteString(c.text)
	}
	flush()
	t.live.pending, t.live.rows, t.live.shown = nil, nil, ""
}

// print writes what a test prints, above the tree. The tree comes back with
// the next drawing.
func (t *Terminal) print(data []byte) (int, error) {
	if t.closed || len(data) == 0 {
		return t.o.Stdout.Write(data)
	}
	t.erase()
	n, err := t.o.Stdout.Write(data)
	t.live.midLine = data[len(data)-1] != '\n'
	return n, err
}

// frame is the tree as rows, at most height of them.
func (t *Terminal) frame(now time.Time, height int) []row {
	rows := t.frameRows(now, true)
	if len(rows) > height {
		rows = t.frameRows(now, false)
	}
	if n := len(rows) - height; n > 0 && height >= 2 {
		status := rows[len(rows)-1]
		rows = append(rows[:height-2], row{spans: []span{{dim, fmt.Sprintf("… %s more", plural(n+1, "line"))}}}, status)
	} else if n > 0 {
		rows = rows[len(rows)-max(height, 0):]
	}
	return rows
}

func (t *Terminal) frameRows(now time.Time, steps bool) []row {
	if t.run.begin.IsZero() || t.run.finished != nil {
		return nil
	}
	var rows []row
	for _, w := range t.run.work {
		if w.Done {
			continue
		}
		r := row{spans: []span{{"", clean(w.Title)}}, right: elapsed(now.Sub(w.began))}
		if m := lastLine(w.Message); m != "" {
			r.spans = append(r.spans, span{dim, "  " + m})
		}
		rows = append(rows, r)
	}
	running := 0
	for _, f := range t.run.files {
		if !f.done {
			rows = append(rows, t.fileRows(f, now, steps, &running)...)
		}
	}
	if t.run.tests() {
		rows = append(rows, t.statusRow(now, running))
	}
	return rows
}

func (t *Terminal) fileRows(f *file, now time.Time, steps bool, running *int) []row {
	head := row{spans: []span{{bold, clean(f.name)}}, right: elapsed(now.Sub(f.began))}
	ended := 0
	for _, ts := range f.tests {
		if ts.done && !ts.isSetup() {
			ended++
		}
	}
	if len(f.declared) > 1 {
		head.spans = append(head.spans, span{dim, fmt.Sprintf("  %d of %d tests", ended, len(f.declared))})
	}
	rows := append([]row{head}, f.bootingRows(testKey{}, 1, now)...)
	for _, ts := range f.running() {
		depth := 1
		if ts.name != "" {
			*running++
			depth = 2
			rows = append(rows, testRow(ts, now))
			rows = append(rows, f.bootingRows(ts.testKey, depth, now)...)
		}
		for _, s := range ts.entries {
			if !steps || s.log != nil {
				continue
			}
			r := row{depth: depth + s.depth, right: elapsed(now.Sub(s.at))}
			if s.Machine != "" {
				r.spans = append(r.spans, span{cyan, clean(s.Machine)}, span{"", " "})
			}
			r.spans = append(r.spans, span{"", s.label()})
			if s.waiting != "" {
				r.spans = append(r.spans, span{dim, "  " + firstLine(s.waiting)})
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// bootingRows are the machines that boot in the lab of a test.
func (f *file) bootingRows(k testKey, depth int, now time.Time) []row {
	var rows []row
	for _, m := range f.machines {
		if !m.of(k) || !m.booting {
			continue
		}
		r := row{depth: depth, spans: []span{{cyan, clean(m.name)}, {"", " " + m.verb}}, right: elapsed(now.Sub(m.began))}
		if c := m.console.last(); c != "" {
			r.spans = append(r.spans, span{dim, "  " + c})
		}
		rows = append(rows, r)
	}
	return rows
}

func testRow(ts *test, now time.Time) row {
	r := row{depth: 1, spans: []span{{"", clean(ts.name)}}, right: elapsed(now.Sub(ts.began))}
	open := ""
	for _, s := range ts.subtests {
		if !s.done && len(s.path) > len(open) {
			open = s.path
		}
	}
	if open != "" {
		r.spans = append(r.spans, span{dim, " / " + firstLine(open)})
	}
	return r
}

// statusRow is the last one: the counts so far.
func (t *Terminal) statusRow(now time.Time, running int) row {
	var spans []span
	add := func(style, s string) {
		if len(spans) > 0 {
			s = ", " + s
		}
		spans = append(spans, span{style, s})
	}
	if running > 0 {
		add(dim, fmt.Sprintf("%d running", running))
	}
	n := t.run.counts()
	for _, s := range statuses {
		if c := n[s.status]; c > 0 {
			style := styleOf(s.status)
			if s.status == event.Skipped {
				style = dim
			}
			add(style, fmt.Sprintf("%d %s", c, s.words))
		}
	}
	if len(spans) == 0 {
		add(dim, "starting")
	}
	return row{spans: spans, right: elapsed(now.Sub(t.run.begin))}
}
