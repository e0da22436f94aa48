package report

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/event"
)

// statusWord is a status as the first word of a line.
func statusWord(s event.Status) string {
	switch s {
	case event.Passed:
		return "PASS"
	case event.Failed:
		return "FAIL"
	case event.BootFailed:
		return "BOOT FAILED"
	case event.Infra:
		return "INFRASTRUCTURE"
	case event.Unsupported:
		return "NOT SUPPORTED"
	case event.Invalid:
		return "INVALID"
	case event.Interrupted:
		return "INTERRUPTED"
	case event.Skipped:
		return "SKIP"
	}
	return strings.ToUpper(clean(string(s)))
}

// statuses in the order in which they are counted, with the words of a count.
var statuses = []struct {
	status event.Status
	words  string
}{
	{event.Passed, "passed"},
	{event.Failed, "failed"},
	{event.BootFailed, "failed to boot"},
	{event.Infra, "infrastructure failed"},
	{event.Unsupported, "not supported"},
	{event.Invalid, "invalid"},
	{event.Interrupted, "interrupted"},
	{event.Skipped, "skipped"},
}

// A fact is a short thing that is known of a failure; a block is a long one.
type fact struct{ Name, Value string }

type block struct {
	Name string
	Note string // how much is missing
	Text []string
	// Pictures are shown instead of the text, where that can be.
	Pictures []event.Picture
}

// room bounds the blocks of a failure.
type room struct {
	lines, bytes int // of each output and detail
	console      int // lines of the console
}

var (
	terminalRoom = room{lines: 40, bytes: 8 << 10, console: 25}
	documentRoom = room{lines: 1000, bytes: 64 << 10, console: 200}
)

// parts is what a report shows of a failure below its message, laid out by
// length: what fits beside its name is a fact.
func parts(f *event.Failure, room room) (facts []fact, blocks []block) {
	add := func(name, text string) {
		ls := lines(text)
		switch {
		case len(ls) == 0:
		case len(ls) == 1 && width(ls[0]) <= 100:
			facts = append(facts, fact{name, ls[0]})
		default:
			blocks = append(blocks, newBlock(name, ls, room.lines, room.bytes))
		}
	}
	add("machine", f.Machine)
	add("operation", operation(f))
	add("command", f.Command)
	if f.ExitCode != nil {
		add("exit code", fmt.Sprint(*f.ExitCode))
	}
	add("last seen", f.LastSeen)
	if f.Command != "" && f.Stdout == "" && f.Stderr == "" {
		facts = append(facts, fact{"output", "none"})
	}
	add("stdout", f.Stdout)
	add("stderr", f.Stderr)
	for _, d := range f.Details {
		if ls := lines(d.Text); len(ls) > 0 {
			b := newBlock(firstLine(d.Title), ls, room.lines, room.bytes)
			b.Pictures = d.Pictures
			blocks = append(blocks, b)
		}
	}
	if ls := lines(strings.Join(f.Console, "\n")); len(ls) > 0 {
		blocks = append(blocks, newBlock("console", ls, room.console, room.bytes))
	}
	return facts, blocks
}

// operation is "wait_for_unit, 9 tries, 30.0s".
func operation(f *event.Failure) string {
	var s []string
	if f.Operation != "" {
		s = append(s, f.Operation)
	}
	if f.Tries > 1 {
		s = append(s, plural(f.Tries, "try"))
	}
	if f.Duration > 0 {
		s = append(s, took(f.Duration))
	}
	return strings.Join(s, ", ")
}

func newBlock(name string, ls []string, maxLines, maxBytes int) block {
	kept, cut := tail(ls, maxLines, maxBytes)
	b := block{Name: name, Text: kept}
	if cut > 0 {
		b.Note = fmt.Sprintf("the last %d of %d lines", len(kept), len(ls))
	}
	return b
}

// place is where something is in a test file.
func place(p event.Position) string { return clean(p.String()) }

// source is the line of the test file with its number, and below it a mark at
// the column.
func source(f *event.Failure) (text, mark string) {
	line := strings.TrimRight(firstLineRaw(f.Source), " \t")
	if line == "" {
		return "", ""
	}
	indent := len(line) - len(strings.TrimLeft(line, " \t"))
	number := fmt.Sprintf("%d", f.Position.Line)
	text = number + " | " + clean(line[indent:])
	if col := f.Position.Column - 1; col >= indent && col <= utf8.RuneCountInString(line) {
		before := string([]rune(line)[indent:col])
		mark = strings.Repeat(" ", len(number)) + " | " + strings.Repeat(" ", width(clean(before))) + "^"
	}
	return text, mark
}

// firstLineRaw keeps the indentation, by which a column is counted.
func firstLineRaw(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return strings.TrimSuffix(s, "\r")
}

// A painter writes styles of a terminal (ECMA-48, SGR), or leaves text as it is.
type painter bool

const (
	bold   = "1"
	dim    = "2"
	red    = "31;1"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (p painter) paint(style, s string) string {
	if !p || s == "" || style == "" {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

func styleOf(s event.Status) string {
	switch s {
	case event.Passed:
		return green
	case event.Interrupted, event.Skipped, event.Unsupported:
		return yellow
	}
	return red
}

// failureText is a failure for a person at a terminal. It ends with a newline.
//
//	FAIL web_test.star test_serves (3.2s)  the client gets nginx's page
//	  web_test.star:12:9: client: command failed with exit code 7
//
//	    12 | client.succeed("curl -sf http://server/")
//	       | ^
//
//	  machine    client
//	  …
func failureText(p painter, name, title string, f *event.Failure, d time.Duration, room room) string {
	var b strings.Builder
	b.WriteString(p.paint(styleOf(f.Status), statusWord(f.Status)) + " " + p.paint(bold, clean(name)))
	if d > 0 {
		b.WriteString(p.paint(dim, " ("+took(d)+")"))
	}
	b.WriteString(titleText(p, title) + "\n")
	writeFailure(&b, p, f, room)
	return b.String()
}

// titleText is a test's title behind its name and time.
func titleText(p painter, title string) string {
	if title = firstLine(title); title == "" {
		return ""
	}
	return p.paint(dim, "  "+title)
}

// Explain is a failure for a person who has just caused it, in colour or not:
// what failureText shows without its first line.
func Explain(f *event.Failure, color bool) string {
	var b strings.Builder
	writeFailure(&b, painter(color), f, terminalRoom)
	return b.String()
}

func writeFailure(b *strings.Builder, p painter, f *event.Failure, room room) {
	where := place(f.Position)
	if where != "" {
		where += ": "
	}
	for i, l := range lines(f.Message) {
		if i == 0 {
			b.WriteString("  " + p.paint(cyan, where) + p.paint(bold, l) + "\n")
		} else {
			b.WriteString("  " + l + "\n")
		}
	}
	if f.Message == "" && where != "" {
		b.WriteString("  " + p.paint(cyan, strings.TrimSuffix(where, ": ")) + "\n")
	}
	if text, mark := source(f); text != "" {
		b.WriteString("\n    " + text + "\n")
		if mark != "" {
			b.WriteString("    " + p.paint(red, mark) + "\n")
		}
	}
	writeStack(b, p, f.Stack)
	facts, blocks := parts(f, room)
	if len(facts) > 0 {
		b.WriteString("\n")
	}
	for _, f := range facts {
		fmt.Fprintf(b, "  %s %s\n", p.paint(dim, fmt.Sprintf("%-10s", f.Name)), f.Value)
	}
	for _, bl := range blocks {
		b.WriteString("  " + p.paint(dim, bl.Name))
		if bl.Note != "" {
			b.WriteString(p.paint(dim, ", "+bl.Note))
		}
		b.WriteString("\n")
		for _, l := range bl.Text {
			b.WriteString(strings.TrimRight("  "+p.paint(dim, "|")+" "+l, " ") + "\n")
		}
	}
}

// writeStack writes a stack that says more than the position does.
func writeStack(b *strings.Builder, p painter, stack []event.Position) {
	if len(stack) < 2 {
		return
	}
	b.WriteString("\n  " + p.paint(dim, "called from, innermost last") + "\n")
	w := 0
	for _, s := range stack {
		w = max(w, width(place(s)))
	}
	for _, s := range stack {
		fmt.Fprintf(b, "    %s%s  %s\n", place(s), strings.Repeat(" ", w-width(place(s))), clean(s.Func))
	}
}

// oneLine is a failure in a list.
func oneLine(f *event.Failure) string {
	s := firstLine(f.Message)
	if at := place(f.Position); at != "" && s != "" {
		return at + ": " + s
	} else if at != "" {
		return at
	}
	return s
}
