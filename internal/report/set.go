package report

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/attest-vm/attest/internal/atomicfile"
	"github.com/attest-vm/attest/internal/event"
)

// Options are the reports that a run asks for. Empty paths mean none.
type Options struct {
	Terminal *TerminalOptions // nil: nothing on a terminal
	JUnit    string           // path of a JUnit XML file, written by Close
	HTML     string           // path of an HTML page, written by Close
	JSON     string           // path of a JSON lines file, written as events happen
	XML      string           // path of the NixOS test driver's log, written as events happen
}

// A Set is all reports of one run.
type Set struct {
	terminal  *Terminal
	json      *JSON
	jsonFile  *os.File
	xml       *XMLLog
	xmlFile   *os.File
	run       *Run // for the documents
	documents []document
}

// A document is a file that is written whole, at the end.
type document struct {
	kind  string
	path  string
	write func(io.Writer, *Run) error
}

// Open prepares all reports: it makes missing parent directories and tries each
// path, so that a path that cannot be written is an error now. Every error is
// one of usage and names its path; on error nothing is left open.
func Open(o Options) (_ *Set, err error) {
	s := &Set{}
	seen := make(map[string]string)
	for _, d := range []document{{"json", o.JSON, nil}, {"xml", o.XML, nil}, {"junit", o.JUnit, WriteJUnit}, {"html", o.HTML, WriteHTML}} {
		if d.path == "" {
			continue
		}
		if d.path, err = filepath.Abs(d.path); err != nil {
			return nil, fmt.Errorf("%s report %s: %w", d.kind, d.path, err)
		}
		if other, ok := seen[d.path]; ok {
			return nil, fmt.Errorf("%s report %s: the %s report has the same path", d.kind, d.path, other)
		}
		seen[d.path] = d.kind
		if err := probe(d.path); err != nil {
			return nil, fmt.Errorf("%s report %s: %w", d.kind, d.path, err)
		}
		if d.write != nil {
			s.documents = append(s.documents, d)
		}
	}
	if len(s.documents) > 0 {
		s.run = NewRun()
		s.run.dir = filepath.Dir(s.documents[len(s.documents)-1].path)
	}
	if o.XML != "" {
		if s.xmlFile, err = os.Create(o.XML); err != nil {
			return nil, fmt.Errorf("xml report %s: %w", o.XML, reason(err))
		}
		s.xml = NewXMLLog(s.xmlFile)
	}
	if o.JSON != "" { // last, so that no other error leaves it open
		if s.jsonFile, err = os.Create(o.JSON); err != nil {
			s.Abandon()
			return nil, fmt.Errorf("json report %s: %w", o.JSON, reason(err))
		}
		s.json = NewJSON(s.jsonFile)
	}
	if o.Terminal != nil {
		s.terminal = NewTerminal(*o.Terminal)
	}
	return s, nil
}

// probe makes the directory of path and says whether a file can be made there.
func probe(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err // names the part of the path that is in the way
	}
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return errors.New("is a directory")
	case err == nil && !st.Mode().IsRegular():
		return nil // a pipe or a terminal: opening it may wait for its reader
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return reason(err)
	}
	f, err := atomicfile.Create(dir)
	if err != nil {
		return reason(err)
	}
	return f.Discard()
}

// reason is the error without the path, which the caller names.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// Replay records the events of a run that were written as JSON lines, so that Close
// writes what it would have written at the run's end. Its error is a
// *event.DecodeError, or of the reader. A run whose last line is not complete was
// killed: it is reported as interrupted.
func (s *Set) Replay(r io.Reader) error {
	if s.run != nil {
		s.run.past = true
	}
	if s.terminal != nil {
		s.terminal.mu.Lock()
		s.terminal.run.past = true
		s.terminal.mu.Unlock()
	}
	events := event.NewDecoder(r)
	for n := 0; ; n++ {
		rec, err := events.Decode()
		switch {
		case err == io.EOF && n == 0, err == io.ErrUnexpectedEOF && n == 0:
			return &event.DecodeError{Line: 1, Reason: "there is no event"}
		case err == io.EOF:
			return nil
		case err == io.ErrUnexpectedEOF:
			s.cut()
			return nil
		case err != nil:
			return err
		}
		s.Record(rec)
	}
}

// cut says that the events end in the middle of one.
func (s *Set) cut() {
	const text = "the last line of the events is not complete: the run was killed"
	if s.run != nil {
		s.run.note(s.run.last, text)
	}
	if s.terminal != nil {
		s.terminal.mu.Lock()
		defer s.terminal.mu.Unlock()
		s.terminal.warn(text)
	}
}

// Record takes one event: the subscriber of the bus.
func (s *Set) Record(r event.Record) {
	if s.json != nil {
		s.json.Record(r)
	}
	if s.xml != nil {
		s.xml.Record(r)
	}
	if s.run != nil {
		s.run.Record(r)
	}
	if s.terminal != nil {
		s.terminal.Record(r)
	}
}

// Stdout is the writer for what tests print: standard output, with the
// terminal's live tree out of the way.
func (s *Set) Stdout() io.Writer {
	if s.terminal != nil {
		return s.terminal.Stdout()
	}
	return os.Stdout
}

// Close writes what is written at the end, then the terminal's summary, and
// returns the reports that were written, with absolute paths. No event may
// follow; a run without RunFinished is reported as interrupted. A report that
// could not be written is an error that names its path and keeps none of the
// others from being written.
func (s *Set) Close() ([]event.Artifact, error) {
	var written []event.Artifact
	var errs []error
	done := func(kind, path string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s report %s: %w", kind, path, reason(err)))
			return
		}
		written = append(written, event.Artifact{Kind: kind, Path: path})
	}
	for _, d := range s.documents {
		done(d.kind, d.path, writeFile(d.path, func(w io.Writer) error { return d.write(w, s.run) }))
	}
	if s.json != nil {
		path, _ := filepath.Abs(s.jsonFile.Name())
		err := s.json.Close()
		if cerr := s.jsonFile.Close(); err == nil {
			err = cerr
		}
		done("json", path, err)
	}
	if s.xml != nil {
		path, _ := filepath.Abs(s.xmlFile.Name())
		done("xml", path, errors.Join(s.xml.Close(), s.xmlFile.Close()))
	}
	if s.terminal != nil {
		if err := s.terminal.Close(written...); err != nil {
			errs = append(errs, err)
		}
	}
	*s = Set{}
	return written, errors.Join(errs...)
}

// Abandon ends all reports and writes none.
func (s *Set) Abandon() {
	for _, f := range []*os.File{s.jsonFile, s.xmlFile} {
		if f != nil {
			f.Close()
		}
	}
	if s.terminal != nil {
		s.terminal.abandon()
	}
	*s = Set{}
}

// writeFile replaces the file at path by what write writes, as a whole or not
// at all. What is no regular file (/dev/stdout, a pipe) is written to as it is.
func writeFile(path string, write func(io.Writer) error) error {
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a rename would replace the link
	}
	f, err := atomicfile.Create(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := write(f); err != nil {
		return err
	}
	return f.Commit(path)
}
