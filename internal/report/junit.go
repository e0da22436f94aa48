package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// WriteJUnit writes a run as JUnit XML, shaped for the programs that read it:
//
//   - One testsuite per file, one testcase per test. setup() and a failure that
//     belongs to the whole file ("(file)") are testcases only when they failed.
//   - A subtest is a testcase "test/subtest" beside its test's: GitLab, Jenkins and
//     the GitHub actions show testcases, and none of them shows nested suites and
//     properties alike.
//   - classname is the file's path with dots for slashes and without its
//     extension: Jenkins splits it at the last dot into package and class, GitLab
//     tells tests apart by classname and name.
//   - file and line are the place of the failure, which GitLab and the GitHub
//     actions link.
//   - A test's title is its property "title", and stands above what went wrong.
//   - How a test ended that ended otherwise when its machines started the other way,
//     or on another backend, is its property "ended_otherwise", and the first line of its system-out.
//   - failure is the test's own claim that did not hold; every other bad end is an
//     error, whose type is the status ("boot_failed", "infra", …).
//   - system-out has the steps and, unless the test passed, the end of what each
//     machine's console said meanwhile.
//   - Files that a test wrote are in system-out as [[ATTACHMENT|path]], which
//     GitLab and Jenkins show.
func WriteJUnit(w io.Writer, r *Run) error {
	r.close(r.now())
	doc := junitSuites{Name: "attest", Time: seconds(r.finished.Duration), Timestamp: stamp(r.begin)}
	for _, f := range r.files {
		s := r.junitSuite(f)
		s.Hostname = clean(r.info.Hostname)
		doc.Tests += s.Tests
		doc.Failures += s.Failures
		doc.Errors += s.Errors
		doc.Skipped += s.Skipped
		doc.Suites = append(doc.Suites, s)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(doc); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

type junitSuites struct {
	XMLName   xml.Name     `xml:"testsuites"`
	Name      string       `xml:"name,attr"`
	Tests     int          `xml:"tests,attr"`
	Failures  int          `xml:"failures,attr"`
	Errors    int          `xml:"errors,attr"`
	Skipped   int          `xml:"skipped,attr"`
	Time      string       `xml:"time,attr"`
	Timestamp string       `xml:"timestamp,attr"`
	Suites    []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name       string           `xml:"name,attr"`
	Tests      int              `xml:"tests,attr"`
	Failures   int              `xml:"failures,attr"`
	Errors     int              `xml:"errors,attr"`
	Skipped    int              `xml:"skipped,attr"`
	Time       string           `xml:"time,attr"`
	Timestamp  string           `xml:"timestamp,attr"`
	Hostname   string           `xml:"hostname,attr,omitempty"`
	File       string           `xml:"file,attr"`
	Properties *junitProperties `xml:"properties"`
	Cases      []junitCase      `xml:"testcase"`
}

type junitProperties struct {
	List []junitProperty `xml:"property"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Name      string `xml:"name,attr"`
	Classname string `xml:"classname,attr"`
	Time      string `xml:"time,attr"`
	File      string `xml:"file,attr"`
	Line      int    `xml:"line,attr,omitempty"`

	Properties *junitProperties `xml:"properties"`

	Failure   *junitFailure `xml:"failure"`
	Error     *junitFailure `xml:"error"`
	Skipped   *junitSkipped `xml:"skipped"`
	SystemOut *junitText    `xml:"system-out"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Text    string `xml:",cdata"` // not escaped: people read it in the file, too
}

type junitText struct {
	Text string `xml:",cdata"`
}

type junitSkipped struct {
	Message string `xml:"message,attr,omitempty"`
}

// seconds with a dot in every locale, as the format wants it.
func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// stamp is an xs:dateTime in UTC.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func classname(path string) string {
	path = strings.TrimSuffix(clean(path), filepath.Ext(path))
	path = strings.Trim(strings.ReplaceAll(path, ".", "_"), "/_")
	return strings.ReplaceAll(path, "/", ".")
}

func (r *Run) junitSuite(f *file) junitSuite {
	s := junitSuite{Name: clean(f.name), Time: seconds(f.duration), Timestamp: stamp(f.began), File: clean(f.name)}
	var props []junitProperty
	for _, p := range []junitProperty{{"attest.version", r.info.Version}, {"attest.host", r.info.Host}, {"attest.boot", r.info.Boot}, {"attest.seed", fmt.Sprint(r.info.Seed)}} {
		if p.Value != "" && p.Value != "0" {
			props = append(props, junitProperty{p.Name, clean(p.Value)})
		}
	}
	if len(props) > 0 {
		s.Properties = &junitProperties{props}
	}
	for _, t := range f.tests {
		if t.isSetup() && t.status == event.Passed {
			continue
		}
		c := junitEnd(f, t.name, t.title, t.duration, t.status, t.failure)
		ends := clean(f.otherEnds(t))
		if ends != "" {
			c.property("ended_otherwise", ends)
			ends = "≠ ended otherwise: " + ends + "\n"
		}
		if out := ends + r.junitOut(f, t); out != "" {
			c.SystemOut = &junitText{out}
		}
		s.add(c)
		for _, sub := range t.subtests {
			s.add(junitEnd(f, t.name+"/"+sub.path, "", sub.duration, sub.status, sub.failure(t)))
		}
	}
	if own := f.ownFailure(); own != nil {
		s.add(junitEnd(f, "(file)", "", f.duration, own.Status, own))
	}
	return s
}

// failure of a subtest: its message, at the place of the test's when that is
// the one.
func (s *subtest) failure(t *test) *event.Failure {
	if s.message == "" {
		return nil
	}
	if t.failure != nil && t.failure.Message == s.message {
		return t.failure
	}
	return &event.Failure{Status: s.status, Message: s.message}
}

func (s *junitSuite) add(c junitCase) {
	s.Tests++
	switch {
	case c.Failure != nil:
		s.Failures++
	case c.Error != nil:
		s.Errors++
	case c.Skipped != nil:
		s.Skipped++
	}
	s.Cases = append(s.Cases, c)
}

func (c *junitCase) property(name, value string) {
	if c.Properties == nil {
		c.Properties = &junitProperties{}
	}
	c.Properties.List = append(c.Properties.List, junitProperty{name, value})
}

func junitEnd(f *file, name, title string, d time.Duration, status event.Status, fail *event.Failure) junitCase {
	c := junitCase{Name: firstLine(name), Classname: classname(f.name), Time: seconds(d), File: clean(f.name)}
	if title = firstLine(title); title != "" {
		c.property("title", title)
	}
	if fail == nil {
		fail = &event.Failure{Status: status}
	}
	if fail.Position.File != "" {
		c.File, c.Line = clean(fail.Position.File), fail.Position.Line
	}
	switch status {
	case event.Passed:
	case event.Skipped:
		c.Skipped = &junitSkipped{Message: firstLine(fail.Message)}
		if c.Skipped.Message == "" {
			c.Skipped.Message = "did not run"
		}
	default:
		message := firstLine(fail.Message)
		if message == "" {
			message = strings.ReplaceAll(string(status), "_", " ")
		}
		jf := &junitFailure{Message: message, Type: clean(string(status)), Text: failureText(false, name, title, fail, d, documentRoom)}
		if status == event.Failed {
			c.Failure = jf
		} else {
			c.Error = jf
		}
	}
	return c
}

// How much of a test's story is in its system-out: GitLab refuses files of more
// than 30 MiB, and shows this text in a small box.
const (
	junitSteps   = 500
	junitConsole = 100
	junitBytes   = 64 << 10
)

func (r *Run) junitOut(f *file, t *test) string {
	var b strings.Builder
	var steps []string
	for _, s := range t.entries {
		steps = append(steps, strings.Repeat("  ", s.depth)+stepLine(s, t.began))
	}
	kept, n := tail(steps, junitSteps, junitBytes)
	if n += t.cut; n > 0 {
		fmt.Fprintf(&b, "(%s before)\n", plural(n, "line"))
	}
	for _, l := range kept {
		b.WriteString(l + "\n")
	}
	if t.status != event.Passed && t.status != event.Skipped {
		for _, m := range f.machines {
			ls := m.during(t)
			kept, n := tail(ls, junitConsole, junitBytes)
			if len(kept) == 0 {
				continue
			}
			fmt.Fprintf(&b, "\nconsole of %s", clean(m.name))
			if n > 0 {
				fmt.Fprintf(&b, ", the last %d of %d lines", len(kept), len(ls))
			}
			b.WriteString("\n")
			for _, l := range kept {
				b.WriteString("| " + l + "\n")
			}
		}
	}
	for _, a := range r.artifacts {
		if a.scope.File == f.name && keyOf(a.scope) == t.testKey && a.Kind != "lab" { // which is a directory
			fmt.Fprintf(&b, "[[ATTACHMENT|%s]]\n", clean(a.Path))
		}
	}
	return b.String()
}

// stepLine is a step as text: "   0.2s  server: succeed true (35ms)".
func stepLine(s *entry, began time.Time) string {
	at := fmt.Sprintf("%7.1fs  ", s.at.Sub(began).Seconds())
	if s.log != nil {
		l := strings.Join(lines(s.log.Text), "\n"+strings.Repeat(" ", len(at)))
		if s.log.Level == "warning" || s.log.Level == "error" {
			l = s.log.Level + ": " + l
		}
		if s.log.Machine != "" {
			l = clean(s.log.Machine) + ": " + l
		}
		return at + l
	}
	l := s.label()
	if s.Machine != "" {
		l = clean(s.Machine) + ": " + l
	}
	l += " (" + took(s.end.Duration)
	if s.end.Status != event.Passed {
		l += ", " + strings.ToLower(statusWord(s.end.Status))
	}
	if s.end.ExitCode != nil && *s.end.ExitCode != 0 {
		l += fmt.Sprintf(", exit code %d", *s.end.ExitCode)
	}
	l += ")"
	if s.end.Status == event.Interrupted && s.waiting != "" {
		l += ": " + firstLine(s.waiting)
	}
	return at + l
}

// during are the console lines of a machine from a test's time. A machine of
// the whole file belongs to every test while it runs.
func (m *machine) during(t *test) []string {
	end := t.began.Add(t.duration)
	var ls []string
	for _, l := range slices.Concat(m.console.head, m.console.tail) {
		if m.test == t.testKey || m.test == (testKey{boot: t.boot}) && !l.at.Before(t.began) && !l.at.After(end) {
			ls = append(ls, lines(l.text)...)
		}
	}
	return ls
}
