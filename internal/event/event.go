// Package event is what happens in a run, as typed values on one bus.
//
// Every other package publishes here and does not know the subscribers: the
// terminal, the JUnit and JSON writers and the HTML report are subscribers.
// The bus and the scope (which file, which test, which step) travel in the
// context, so that a function deep in a backend publishes without being handed
// either.
package event

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// An Event is one of the types of this package. The set is closed: a
// subscriber can switch over it.
type Event interface{ kind() string }

// Kind is the name of an event's type in the JSON lines output, such as
// "step_finished".
func Kind(e Event) string { return e.kind() }

// A Scope says what an event belongs to. Zero fields mean "the whole run".
type Scope struct {
	File    string `json:"file,omitempty"`    // the test file, as given on the command line; in go test the package
	Test    string `json:"test,omitempty"`    // the test_* function, or "main", or "setup"
	Boot    string `json:"boot,omitempty"`    // "cold" or "warm" where each test runs both ways, "qemu" or "qemu-cold" where it runs on several backends, see FileStarted
	Step    uint64 `json:"step,omitempty"`    // the step that is under way, see StepStarted
	Subtest string `json:"subtest,omitempty"` // names of the subtests that are open, joined by "/"
	Label   string `json:"-"`                 // of the file, where FileLabel gives another file of the run the same; see Labels
}

// Name is a name for files and directories that is different for every test of a
// run: "web_test-test_serves".
func (s Scope) Name() string {
	name := cmp.Or(s.Label, FileLabel(s.File)) + "-" + s.Test
	if s.Boot != "" {
		name += "-" + s.Boot
	}
	return name
}

// FileLabel is the part of a Scope's name that stands for a file: "sub/web_test.star" is
// "sub-web_test".
func FileLabel(file string) string {
	label := strings.TrimSuffix(file, filepath.Ext(file))
	label = strings.NewReplacer("/", "-", "..", "").Replace(filepath.ToSlash(filepath.Clean(label)))
	return strings.Trim(label, "-")
}

// Labels are labels for the files of a run, in their order: FileLabel, or more where
// that is the same for several, such as "a/b.star" and "a-b.star".
func Labels(files []string) []string {
	count := map[string]int{}
	for _, f := range files {
		count[FileLabel(f)]++
	}
	labels := make([]string, len(files))
	for i, f := range files {
		if labels[i] = FileLabel(f); count[labels[i]] > 1 {
			labels[i] += fmt.Sprintf("-%.3x", sha256.Sum256([]byte(filepath.Clean(f))))
		}
	}
	return labels
}

// A Record is an event with its place in the run. Seq counts from 1 without
// gaps; records reach every subscriber in the order of Seq.
type Record struct {
	Seq   uint64
	Time  time.Time
	Scope Scope
	Event Event
}

// Position is a place in a test file. Line and Column count from 1; zero is unknown.
type Position struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Func   string `json:"func,omitempty"` // the function of a stack frame
}

// String is "web_test.star:12:5", which editors and terminals make a link; empty
// for an unknown place.
func (p Position) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// A Failure is everything a person needs to understand why something failed.
type Failure struct {
	Status    Status        `json:"status"`
	Message   string        `json:"message"`
	Position  Position      `json:"position,omitzero"`
	Source    string        `json:"source,omitempty"` // the line at Position
	Stack     []Position    `json:"stack,omitempty"`  // outermost first
	Machine   string        `json:"machine,omitempty"`
	Operation string        `json:"operation,omitempty"`
	Command   string        `json:"command,omitempty"`
	ExitCode  *int          `json:"exit_code,omitempty"`
	Stdout    string        `json:"stdout,omitempty"`
	Stderr    string        `json:"stderr,omitempty"`
	Duration  time.Duration `json:"duration,omitempty"`
	Tries     int           `json:"tries,omitempty"`
	LastSeen  string        `json:"last_seen,omitempty"` // what a wait observed last
	Console   []string      `json:"console,omitempty"`   // the machine's last console lines
	Details   []Detail      `json:"details,omitempty"`   // failed units, journal lines, …
}

// A Detail is a titled block of text attached to a failure.
type Detail struct {
	Title string `json:"title"`
	Text  string `json:"text"`
	// Pictures are shown beside each other instead of the text, where that can be.
	Pictures []Picture `json:"pictures,omitempty"`
}

// Picture is a PNG file that belongs to a failure.
type Picture struct {
	Title string `json:"title"`
	Path  string `json:"path"`
}

// RunStarted is the first event of a run.
type RunStarted struct {
	Version string   `json:"version"`
	Files   []string `json:"files"`
	Seed    int64    `json:"seed"`
	Output  string   `json:"output,omitempty"` // -o
	Host    string   `json:"host,omitempty"`   // one line: cores, memory, accelerator
	Boot    string   `json:"mode,omitempty"`   // how machines start: "cold", "both"; empty: warm

	Hostname string `json:"hostname,omitempty"`
	Dir      string `json:"dir,omitempty"` // the working directory, which relative paths begin at
	Format   int    `json:"format"`        // of the JSON lines; Encode sets it
}

// RunFinished is the last event of a run.
type RunFinished struct {
	Status   Status         `json:"status"`
	Duration time.Duration  `json:"duration"`
	Counts   map[Status]int `json:"counts"`
}

// FileStarted and FileFinished enclose all that one test file does. A Failure
// in FileFinished is one that belongs to no test: the file is invalid, setup
// failed, a machine did not boot in setup.
//
// Tests run in any order, and several at once.
type FileStarted struct {
	Tests []string `json:"tests"`           // in the order of the file
	Boots []string `json:"boots,omitempty"` // where each test runs more than one way: Scope.Boot of each
}
type FileFinished struct {
	Status   Status        `json:"status"`
	Duration time.Duration `json:"duration"`
	Failure  *Failure      `json:"failure,omitempty"`
}

// TestStarted and TestFinished enclose one test; the scope names it. setup()
// is reported as a test of that name.
type TestStarted struct {
	Title string `json:"title,omitempty"` // what the test says it is about, in one line
}
type TestFinished struct {
	Status   Status        `json:"status"`
	Duration time.Duration `json:"duration"`
	Failure  *Failure      `json:"failure,omitempty"`
}

// SubtestStarted and SubtestFinished enclose subtest(name, fn).
type SubtestStarted struct {
	Name string `json:"name"`
}
type SubtestFinished struct {
	Name     string        `json:"name"`
	Status   Status        `json:"status"`
	Duration time.Duration `json:"duration"`
	Message  string        `json:"message,omitempty"`
}

// StepStarted begins one operation of a test: a command, a wait, a fault.
// Steps of one test nest (Parent) and may overlap.
type StepStarted struct {
	ID        uint64   `json:"id"`
	Parent    uint64   `json:"parent,omitempty"`
	Machine   string   `json:"machine,omitempty"`
	Operation string   `json:"operation"`
	Args      string   `json:"args,omitempty"` // as a person would write them
	Position  Position `json:"position,omitzero"`
}

// StepWaiting says what keeps the step with this ID from its end, as far as it is known
// while it is under way. Later ones are instead of it.
type StepWaiting struct {
	ID      uint64 `json:"id"`
	Machine string `json:"machine,omitempty"`
	Reason  string `json:"reason,omitempty"` // empty: nothing that is known
}

// StepFinished ends the step with the same ID.
type StepFinished struct {
	ID       uint64        `json:"id"`
	Machine  string        `json:"machine,omitempty"`
	Status   Status        `json:"status"`
	Duration time.Duration `json:"duration"`
	ExitCode *int          `json:"exit_code,omitempty"`
	Tries    int           `json:"tries,omitempty"`
	Message  string        `json:"message,omitempty"` // the error's text
	Failure  *Failure      `json:"failure,omitempty"`
}

// Output is a piece of a command's output, as it arrives.
type Output struct {
	Machine string `json:"machine"`
	Stream  string `json:"stream"` // "stdout" or "stderr"
	Data    string `json:"data"`
}

// Console is one line of a machine's serial console, without its newline.
type Console struct {
	Machine string `json:"machine"`
	Line    string `json:"line"`
}

// ConsoleShown sets whether later Console lines are shown while the run
// goes on. They are, at first.
type ConsoleShown struct {
	On bool `json:"on"`
}

// MachineState says that a machine changed: "starting", "running" (the VMM
// runs), "ready" (the guest answers), "paused" or "suspended" ("running" again after it),
// "stopped", "crashed", "panicked".
type MachineState struct {
	Machine string        `json:"machine"`
	State   string        `json:"state"`
	Detail  string        `json:"detail,omitempty"`
	After   time.Duration `json:"after,omitempty"` // since "starting"
}

// FromSnapshot is the Detail of "starting" when the machine does not boot.
const FromSnapshot = "from a snapshot"

// Progress is long work that is not a test's: an image that is built. ID is
// the same for all reports of one piece of work; Done ends it.
type Progress struct {
	ID      string        `json:"id"`
	Title   string        `json:"title"`             // "build image debian:bookworm+nginx"
	Message string        `json:"message,omitempty"` // "unpacking nginx"
	Done    bool          `json:"done,omitempty"`
	Error   string        `json:"error,omitempty"`
	Elapsed time.Duration `json:"elapsed,omitempty"`
}

// Log is a line for a person. Level is "debug", "info", "warning" or "error".
type Log struct {
	Machine string `json:"machine,omitempty"`
	Level   string `json:"level"`
	Text    string `json:"text"`
}

// FaultStarted says that something is wrong with the network from now on.
type FaultStarted struct {
	ID    int    `json:"id"`    // counts from 1 in its lab
	Fault string `json:"fault"` // `drop(client, rate=0.3, match="icmp")`
}

// FaultEnded says that the fault of this ID is over.
type FaultEnded struct {
	ID       int           `json:"id"`
	Fault    string        `json:"fault"`
	Reason   string        `json:"reason,omitempty"` // why, if the test did not ask for it
	Duration time.Duration `json:"duration"`
	Frames   uint64        `json:"frames"`   // that the fault was asked about
	Affected uint64        `json:"affected"` // of them
}

// Egress is a connection that a guest wanted to make to the world outside of its
// lab: one that was allowed, when it is over, or a destination that was refused.
type Egress struct {
	Machine     string        `json:"machine"`
	Protocol    string        `json:"protocol"`       // "tcp", "udp"; "dns": a name was asked for
	Destination string        `json:"destination"`    // "192.0.2.1:443", or the name
	Name        string        `json:"name,omitempty"` // by which the guest knows the destination
	Allowed     bool          `json:"allowed"`
	Error       string        `json:"error,omitempty"` // why an allowed one was not made, or broke; why one was refused that a rule seems to allow
	Sent        uint64        `json:"sent"`            // by the guest, in bytes
	Received    uint64        `json:"received"`
	Duration    time.Duration `json:"duration"`
}

// Traffic is what went through a network card of a machine, when the machine is
// off or the card is gone.
type Traffic struct {
	Machine  string   `json:"machine"`
	Network  string   `json:"network"` // "net1"
	NIC      string   `json:"nic"`     // "eth1"
	Sent     Counters `json:"sent"`    // by the machine
	Received Counters `json:"received"`
}

// Counters count one direction of a network card. Frames and Bytes are those that
// went on: into the network, or to the machine.
type Counters struct {
	Frames uint64 `json:"frames"`
	Bytes  uint64 `json:"bytes"`
	Lost   Lost   `json:"lost,omitzero"`
}

// Lost is frames that did not go on, by reason.
type Lost struct {
	Runt      uint64 `json:"runt,omitempty"`      // from the machine: shorter than an Ethernet header (14 bytes)
	Oversized uint64 `json:"oversized,omitempty"` // from the machine: longer than a VMM takes (69632 bytes)
	Local     uint64 `json:"local,omitempty"`     // from the machine: for an address behind the same port
	Down      uint64 `json:"down,omitempty"`      // the cable was out
	Fault     uint64 `json:"fault,omitempty"`     // a fault lost it
	Overrun   uint64 `json:"overrun,omitempty"`   // to the machine: it does not read fast enough
}

// Artifact is a file that the run wrote for a person: a report, a screenshot.
type Artifact struct {
	Kind string `json:"kind"` // "junit", "html", "json", "screenshot", "pcap", …
	Path string `json:"path"`
}

// Omitted stands, in a stream of JSON lines, for the events before it that were
// left out because the stream had grown too long. It is never published.
type Omitted struct {
	Events map[string]int `json:"events"` // how many, by type
	Bytes  int64          `json:"bytes"`  // that their lines would have had
}

func (RunStarted) kind() string      { return "run_started" }
func (RunFinished) kind() string     { return "run_finished" }
func (FileStarted) kind() string     { return "file_started" }
func (FileFinished) kind() string    { return "file_finished" }
func (TestStarted) kind() string     { return "test_started" }
func (TestFinished) kind() string    { return "test_finished" }
func (SubtestStarted) kind() string  { return "subtest_started" }
func (SubtestFinished) kind() string { return "subtest_finished" }
func (StepStarted) kind() string     { return "step_started" }
func (StepWaiting) kind() string     { return "step_waiting" }
func (StepFinished) kind() string    { return "step_finished" }
func (Output) kind() string          { return "output" }
func (Console) kind() string         { return "console" }
func (ConsoleShown) kind() string    { return "console_shown" }
func (MachineState) kind() string    { return "machine_state" }
func (Progress) kind() string        { return "progress" }
func (Log) kind() string             { return "log" }
func (FaultStarted) kind() string    { return "fault_started" }
func (FaultEnded) kind() string      { return "fault_ended" }
func (Egress) kind() string          { return "egress" }
func (Traffic) kind() string         { return "traffic" }
func (Artifact) kind() string        { return "artifact" }
func (Omitted) kind() string         { return "omitted" }
