package report

import (
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// wellFormed reads a document to its end, and returns its text.
func wellFormed(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader(string(text)))
	for {
		if _, err := d.Token(); err == io.EOF {
			return string(text)
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
}

// The log is a document at any time, also with steps that overlap and with what guests write.
func TestXMLLogIsAlwaysWellFormed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.xml")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := NewXMLLog(f)
	scope := event.Scope{File: "a.py", Test: "main"}
	for _, e := range []event.Event{
		event.StepStarted{ID: 1, Machine: "web", Operation: "succeed", Args: `"a <b> & \x00"`},
		event.StepStarted{ID: 2, Machine: "db", Operation: "wait_for_unit", Args: `"x"`},
		event.Console{Machine: "web", Line: "\x1b[31m]]> \xff\x01 line"},
		event.StepFinished{ID: 1, Machine: "web", Status: event.Failed, Message: "it <failed>", Duration: time.Second},
		event.SubtestStarted{Name: "part"},
		event.StepFinished{ID: 2, Machine: "db", Status: event.Passed},
		event.SubtestFinished{Name: "part", Status: event.Passed},
		event.Log{Level: "info", Text: strings.Repeat("long ", xmlFlush)},
		event.StepStarted{ID: 3, Machine: "web", Operation: "is never finished"},
		event.TestFinished{Status: event.Failed, Failure: &event.Failure{Message: "it failed", Stack: []event.Position{{File: "a.py", Line: 3, Func: "f"}}}},
	} {
		l.Record(event.Record{Scope: scope, Event: e})
		l.flush()
		wellFormed(t, path)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text := wellFormed(t, path)
	for _, want := range []string{
		`<nest><head machine="db">`, `<line machine="web" type="serial">`, `<line machine="web">it &lt;failed&gt;</line>`,
		`(finished: succeed `, `, in 1.00 seconds)</line>`, `<head>subtest: part</head>`, "!!! a.py:3 f", "it failed</line>", "</logfile>\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%.2000s", want, text)
		}
	}
	if strings.Count(text, "<logfile>") != 1 || strings.Count(text, "<nest>") != strings.Count(text, "</nest>") {
		t.Errorf("got\n%.2000s", text)
	}
}

// What is no file cannot be taken back: the ends come at the end.
func TestXMLLogToAPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := NewXMLLog(w)
	l.Record(event.Record{Event: event.Log{Text: "one"}})
	l.flush()
	l.Record(event.Record{Event: event.Log{Text: "two"}})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	text, err := io.ReadAll(r)
	if want := xml.Header + "<logfile>\n<line>one</line>\n<line>two</line>\n</logfile>\n"; err != nil || string(text) != want {
		t.Errorf("%v, got\n%s", err, text)
	}
}
