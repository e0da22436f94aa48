package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// summary is the end of the results: every test, the files written, the counts.
// Work that is no run of tests (an image that is built) has none.
func (t *Terminal) summary(written []event.Artifact) {
	if !t.run.tests() {
		return
	}
	p := painter(t.o.ColorStdout)
	var b strings.Builder
	if !t.spaced && t.o.Level != Quiet {
		b.WriteString("\n")
	}
	for _, f := range t.run.files {
		t.fileSummary(&b, p, f)
	}
	var all []event.Artifact
	for _, a := range t.run.artifacts {
		all = append(all, a.Artifact)
	}
	for _, a := range append(all, written...) {
		fmt.Fprintf(&b, "%s %s\n", p.paint(dim, fmt.Sprintf("%-10s", clean(a.Kind))), clean(a.Path))
	}
	fin := t.run.finished
	if t.run.info.Seed != 0 && fin.Status != event.Passed {
		fmt.Fprintf(&b, "%s %d\n", p.paint(dim, fmt.Sprintf("%-10s", "seed")), t.run.info.Seed)
	}
	if n := t.run.differing(); n > 0 {
		b.WriteString(p.paint(red, "≠ "+plural(n, "test")+" ended otherwise "+t.run.otherwise()) + "\n")
	}
	b.WriteString(p.paint(styleOf(fin.Status), t.run.lastWords()) + "\n")
	t.writeStdout(b.String())
}

func (t *Terminal) fileSummary(b *strings.Builder, p painter, f *file) {
	var rows [][3]string // status, name, time and why
	var styles []string
	wordWidth, nameWidth := 4, 0
	add := func(s event.Status, word, name, title string, d time.Duration, fail *event.Failure, differs bool) {
		if t.o.Level == Quiet && s == event.Passed && !differs {
			return
		}
		rest := ""
		if s != event.Skipped {
			rest = took(d)
		}
		if fail != nil {
			rest = fmt.Sprintf("%-6s  %s", rest, oneLine(fail))
		} else if title = firstLine(title); title != "" {
			rest = fmt.Sprintf("%-6s  %s", rest, p.paint(dim, title))
		}
		if differs {
			name += " ≠"
		}
		rows, styles = append(rows, [3]string{word, clean(name), rest}), append(styles, styleOf(s))
		wordWidth, nameWidth = max(wordWidth, len(word)), max(nameWidth, width(clean(name)))
	}
	for _, ts := range f.tests {
		word := statusWord(ts.status)
		if ts.isSetup() && ts.status == event.Passed {
			word = ""
		}
		add(ts.status, word, ts.name, ts.title, ts.duration, ts.failure, f.differs(ts))
	}
	if own := f.ownFailure(); own != nil {
		add(own.Status, statusWord(own.Status), "", "", f.duration, own, false)
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "%s%s\n", p.paint(bold, cmp.Or(clean(f.name), "-")), p.paint(dim, "  "+took(f.duration)))
	for i, r := range rows {
		l := "  " + p.paint(styles[i], fmt.Sprintf("%-*s", wordWidth, r[0])) + "  " +
			r[1] + strings.Repeat(" ", nameWidth-width(r[1])) + "  " + r[2]
		b.WriteString(strings.TrimRight(l, " ") + "\n")
	}
	b.WriteString("\n")
}

// lastWords is "3 passed, 1 failed in 42.1s".
func (r *Run) lastWords() string {
	fin := r.finished
	var n []string
	for _, s := range statuses {
		if c := fin.Counts[s.status]; c > 0 {
			n = append(n, fmt.Sprintf("%d %s", c, s.words))
		}
	}
	if len(n) == 0 {
		n = []string{"no tests ran"}
		if fin.Status == event.Passed && slices.ContainsFunc(r.files, func(f *file) bool { return len(f.tests) > 0 }) {
			n = []string{"set up"} // which was all that was to be done
		}
	}
	return strings.Join(n, ", ") + " in " + took(fin.Duration)
}
