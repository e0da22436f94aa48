package report

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"os"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// xmlFlush is how much may wait before it is written.
const xmlFlush = 64 << 10

// An XMLLog writes the log that the NixOS test driver writes to LOGFILE: <nest> for what
// takes time, with a <head>, and a <line> for everything else. Unlike that driver's the file is
// a complete document whenever it is written, so that a killed run leaves one, too.
//
// Steps overlap, and elements do not. The element of a step ends when that of all steps
// that began in it have.
type XMLLog struct {
	f    *os.File
	file bool  // f is one, and not a pipe or a terminal
	at   int64 // where the next text goes, over the ends of the open elements
	text bytes.Buffer
	open []xmlNest // outermost first
	err  error
}

type xmlNest struct {
	id    any // of a step, or the name of a subtest
	over  bool
	title string
}

// NewXMLLog begins a log in an empty file, which belongs to the caller.
func NewXMLLog(f *os.File) *XMLLog {
	st, err := f.Stat()
	l := &XMLLog{f: f, file: err == nil && st.Mode().IsRegular()}
	l.text.WriteString(xml.Header + "<logfile>\n")
	return l
}

// Record takes one event.
func (l *XMLLog) Record(r event.Record) {
	switch e := r.Event.(type) {
	case event.StepStarted:
		l.begin(e.ID, e.Machine, (&entry{StepStarted: e}).label())
	case event.StepFinished:
		if e.Message != "" {
			l.line(e.Machine, "", e.Message)
		}
		l.end(e.ID, e.Machine, e.Duration)
	case event.SubtestStarted:
		l.begin("subtest "+subtestPath(r.Scope, e.Name), "", "subtest: "+e.Name)
	case event.SubtestFinished:
		l.end("subtest "+subtestPath(r.Scope, e.Name), "", e.Duration)
	case event.Console:
		if l.at > maxJSON {
			break // a guest can write for ever
		}
		l.line(e.Machine, "serial", e.Line)
	case event.Log:
		l.line(e.Machine, "", e.Text)
	case event.MachineState:
		l.line(e.Machine, "", e.State)
	case event.TestFinished:
		l.failed(testName(r.Scope), e.Failure)
	case event.FileFinished:
		if e.Failure != nil {
			l.failed(r.Scope.File, e.Failure)
		}
	}
	if l.text.Len() >= xmlFlush {
		l.flush()
	}
}

// failed writes why something failed, with the calls that led there.
func (l *XMLLog) failed(what string, f *event.Failure) {
	if f == nil {
		return
	}
	for _, p := range f.Stack {
		l.line("", "", "!!! "+p.String()+" "+p.Func)
	}
	l.line("", "", fmt.Sprintf("!!! %s: %s", what, f.Message))
}

func (l *XMLLog) begin(id any, machine, head string) {
	l.open = append(l.open, xmlNest{id: id, title: head})
	l.text.WriteString("<nest><head" + machineAttribute(machine) + ">")
	l.escape(head)
	l.text.WriteString("</head>\n")
}

func (l *XMLLog) end(id any, machine string, took time.Duration) {
	for i := range l.open {
		if n := &l.open[i]; n.id == id && !n.over {
			n.over = true
			l.line(machine, "", fmt.Sprintf("(finished: %s, in %.2f seconds)", n.title, took.Seconds()))
		}
	}
	for n := len(l.open); n > 0 && l.open[n-1].over; n-- {
		l.open = l.open[:n-1]
		l.text.WriteString("</nest>\n")
	}
}

func (l *XMLLog) line(machine, kind, text string) {
	l.text.WriteString("<line" + machineAttribute(machine))
	if kind != "" {
		l.text.WriteString(` type="` + kind + `"`)
	}
	l.text.WriteByte('>')
	l.escape(text)
	l.text.WriteString("</line>\n")
}

func machineAttribute(name string) string {
	if name == "" {
		return ""
	}
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(name))
	return ` machine="` + b.String() + `"`
}

func (l *XMLLog) escape(text string) {
	xml.EscapeText(&l.text, []byte(clean(text))) // a Buffer has no errors
}

// flush writes what has come, and to a file the ends of what is open.
func (l *XMLLog) flush() {
	n := l.text.Len()
	if l.file {
		l.writeEnds()
	}
	switch {
	case l.err != nil:
	case l.file:
		if _, l.err = l.f.WriteAt(l.text.Bytes(), l.at); l.err == nil {
			l.err = l.f.Truncate(l.at + int64(l.text.Len()))
		}
	default:
		_, l.err = l.f.Write(l.text.Bytes())
	}
	l.at += int64(n)
	l.text.Reset()
}

func (l *XMLLog) writeEnds() {
	for range l.open {
		l.text.WriteString("</nest>\n")
	}
	l.text.WriteString("</logfile>\n")
}

// Close writes the rest, and returns the first error of a write.
func (l *XMLLog) Close() error {
	if !l.file {
		l.writeEnds()
	}
	l.flush()
	return l.err
}
