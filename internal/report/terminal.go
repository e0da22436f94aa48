package report

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"golang.org/x/term"
)

// A Level says how much the terminal shows of what goes well.
type Level int

const (
	Normal  Level = iota // what takes long, what ended, what went wrong
	Verbose              // also every step, console line and command output, as it comes
	Quiet                // failures and the last line
)

// TerminalOptions say where a Terminal writes. The zero value of every field
// but the writers works: plain lines without colour.
type TerminalOptions struct {
	Stdout io.Writer // results: failures and the summary
	Stderr io.Writer // progress and logs
	Level  Level

	Live        bool // Stderr is a terminal: a tree of what runs, redrawn in place
	Shared      bool // Stdout is the same terminal or file as Stderr
	OnScreen    bool // Stdout is a terminal: what tests print must not control it
	ColorStdout bool
	ColorStderr bool

	// Size is the terminal's size in cells, asked for at every drawing, so that
	// it may change. Nil or zeros: 80 × 24.
	Size func() (columns, rows int)
}

// StandardTerminal are the options for this process's standard output and
// error: live on a terminal that is not TERM=dumb, in colour there if NO_COLOR
// (no-color.org) is empty. A build of Nix has a pseudo-terminal, whose lines Nix takes
// for its log: colours get through, and what moves the cursor does not.
func StandardTerminal(level Level) TerminalOptions {
	capable := os.Getenv("TERM") != "dumb"
	nixBuild := os.Getenv("NIX_BUILD_TOP") != "" && os.Getenv("IN_NIX_SHELL") == ""
	color := capable && os.Getenv("NO_COLOR") == ""
	outTTY, errTTY := term.IsTerminal(int(os.Stdout.Fd())), term.IsTerminal(int(os.Stderr.Fd()))
	return TerminalOptions{
		Stdout: os.Stdout, Stderr: os.Stderr, Level: level,
		Live:        errTTY && capable && !nixBuild && level != Quiet,
		Shared:      sameFile(os.Stdout, os.Stderr),
		OnScreen:    outTTY,
		ColorStdout: outTTY && color,
		ColorStderr: errTTY && color,
		Size: func() (int, int) {
			columns, rows, _ := term.GetSize(int(os.Stderr.Fd()))
			return columns, rows
		},
	}
}

func sameFile(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

const (
	drawEvery     = 100 * time.Millisecond
	checkEvery    = time.Second      // plain lines: how often long work is looked for
	announceAfter = time.Second      // work and boots that end before are not worth a line
	remindEvery   = 10 * time.Second // work and boots that last
)

// A Terminal shows a run to a person. Create it with NewTerminal.
type Terminal struct {
	o      TerminalOptions
	ticker *time.Ticker
	quit   chan struct{}
	ended  chan struct{} // closed when the ticker's goroutine is gone

	mu        sync.Mutex
	run       *Run
	noConsole bool                  // a test does not want to see it
	reminder  map[any]time.Duration // *work, *machine, *entry: at which age the next plain line is due
	partial   map[streamKey][]byte  // output that has no newline yet
	unknown   map[string]bool       // types of events that a warning has told of
	live      tree
	stdout    error // the first error of a write to o.Stdout
	spaced    bool  // the results end with an empty line
	held      bool  // see Hold
	closed    bool
}

type streamKey struct {
	file, machine, stream string
	step                  uint64
}

// NewTerminal starts a Terminal; Close ends it.
func NewTerminal(o TerminalOptions) *Terminal {
	every := checkEvery
	if o.Live {
		every = drawEvery
	}
	t := &Terminal{
		o:      o,
		ticker: time.NewTicker(every),
		quit:   make(chan struct{}),
		ended:  make(chan struct{}),
		run:    newRun(limits{consoleTail: 1, lineBytes: 1000, text: 4 << 10}),

		reminder: make(map[any]time.Duration),
		partial:  make(map[streamKey][]byte),
		unknown:  make(map[string]bool),
	}
	go t.tick()
	return t
}

func (t *Terminal) tick() {
	defer close(t.ended)
	for {
		select {
		case <-t.quit:
			return
		case now := <-t.ticker.C:
			t.mu.Lock()
			switch {
			case t.closed || t.held:
			case t.o.Live:
				t.draw(now)
			default:
				t.remind(now)
			}
			t.mu.Unlock()
		}
	}
}

// Record takes one event.
func (t *Terminal) Record(r event.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	var step *entry
	if e, ok := r.Event.(event.StepFinished); ok {
		step = t.run.step(r, e.ID) // it is forgotten below
		delete(t.reminder, step)
	}
	t.run.Record(r)
	t.show(r, step)
	if t.o.Live && !t.held && time.Since(t.live.drawn) >= drawEvery {
		t.draw(time.Now())
	}
}

// show writes the lines that an event is worth.
func (t *Terminal) show(r event.Record, step *entry) {
	verbose, at, p := t.o.Level == Verbose, r.Time, painter(t.o.ColorStderr)
	switch e := r.Event.(type) {
	case event.RunStarted:
		t.line(at, p.paint(dim, header(e)))
	case event.FileStarted:
		if verbose {
			t.line(at, t.subject(r.Scope, "")+"started, "+plural(len(e.Tests), "test"))
		}
	case event.FileFinished:
		if f := t.run.file(r); f.ownFailure() != nil {
			t.failed(at, f.name, "", e.Failure, e.Duration)
		}
	case event.TestStarted:
		if verbose {
			t.line(at, p.paint(bold, testName(r.Scope))+" started")
		}
	case event.TestFinished:
		t.testFinished(r, e)
	case event.SubtestFinished:
		path := subtestPath(r.Scope, e.Name)
		t.line(at, t.endLine(p, e.Status, testName(r.Scope)+"/"+path, e.Duration, e.Message))
	case event.StepStarted:
		if verbose {
			t.line(at, t.subject(r.Scope, e.Machine)+p.paint(bold, cut((&entry{StepStarted: e}).label(), 200)))
		}
	case event.StepFinished:
		t.flushOutput(r, e)
		if verbose && step != nil {
			t.line(at, t.subject(r.Scope, step.Machine)+stepEnd(p, step, e))
		}
	case event.Output:
		if verbose {
			t.output(r, e)
		}
	case event.Omitted:
		t.warn(omittedText(e))
	case event.Unknown:
		if !t.unknown[e.Type] {
			t.unknown[e.Type] = true
			t.warn(unknownText(e))
		}
	case event.ConsoleShown:
		t.noConsole = !e.On
	case event.Console:
		if verbose && !t.noConsole {
			for _, l := range lines(e.Line) {
				t.line(at, t.mark(r.Scope, e.Machine, "#")+p.paint(dim, l))
			}
		}
	case event.MachineState:
		t.machine(r, e)
	case event.Progress:
		t.progress(r, e)
	case event.Log:
		t.log(r, e)
	case event.FaultStarted, event.FaultEnded:
		t.log(r, faultLog(e))
	case event.Egress:
		t.log(r, egressLog(e))
	case event.Artifact:
		if verbose {
			t.line(at, "wrote "+clean(e.Path))
		}
	}
}

func header(e event.RunStarted) string {
	s := []string{"attest"}
	if e.Version != "" {
		s[0] += " " + e.Version
	}
	s = append(s, plural(len(e.Files), "file"))
	if e.Host != "" {
		s = append(s, e.Host)
	}
	if b := bootWords[e.Boot]; b != "" {
		s = append(s, b)
	}
	if e.Seed != 0 {
		s = append(s, fmt.Sprintf("seed %d", e.Seed))
	}
	return clean(strings.Join(s, ", "))
}

// bootWords say how machines start, where that is not the usual way.
var bootWords = map[string]string{"cold": "cold boots", "both": "cold and warm boots"}

func testName(s event.Scope) string {
	return strings.TrimSpace(clean(s.File + " " + keyOf(s).String()))
}

// warn writes a warning that is not of the run itself.
func (t *Terminal) warn(text string) {
	t.write(painter(t.o.ColorStderr).paint(yellow, "warning: ") + clean(text) + "\n")
}

// subject is the beginning of a line: who it is about.
func (t *Terminal) subject(s event.Scope, machine string) string {
	who := t.who(s, machine, machine == "")
	if who == "" {
		return ""
	}
	return painter(t.o.ColorStderr).paint(cyan, who) + ": "
}

// who is the file where there are several, the test where several run, and the
// machine.
func (t *Terminal) who(s event.Scope, machine string, needFile bool) string {
	var who []string
	if s.File != "" && (needFile || t.several()) {
		who = append(who, s.File)
	}
	if k := keyOf(s); k != (testKey{}) && !t.alone(s.File, k) {
		who = append(who, k.String())
	}
	if machine != "" {
		who = append(who, machine)
	}
	return clean(strings.Join(who, " "))
}

// alone says that no other test of the file runs.
func (t *Terminal) alone(name string, k testKey) bool {
	for _, f := range t.run.files {
		if f.name != name {
			continue
		}
		for _, ts := range f.tests {
			if !ts.done && ts.testKey != k {
				return false
			}
		}
	}
	return true
}

// mark is the subject of a line that a guest wrote: "server | ", "server ! "
// (standard error), "server # " (the console).
func (t *Terminal) mark(s event.Scope, machine, sign string) string {
	p := painter(t.o.ColorStderr)
	return p.paint(cyan, t.who(s, machine, false)) + p.paint(dim, " "+sign) + " "
}

func (t *Terminal) several() bool { return len(t.run.info.Files) > 1 || len(t.run.files) > 1 }

// endLine is the line of something that ended.
func (t *Terminal) endLine(p painter, s event.Status, name string, d time.Duration, message string) string {
	l := p.paint(styleOf(s), statusWord(s)) + " " + clean(name) + p.paint(dim, " ("+took(d)+")")
	if m := firstLine(message); m != "" {
		l += ": " + m
	}
	return l
}

func (t *Terminal) testFinished(r event.Record, e event.TestFinished) {
	p := painter(t.o.ColorStderr)
	switch {
	case e.Failure != nil:
		t.failed(r.Time, testName(r.Scope), t.run.test(r).title, e.Failure, e.Duration)
	case keyOf(r.Scope).isSetup() && e.Status == event.Passed:
		setUp := strings.Replace(testName(r.Scope), " setup", " set up", 1)
		t.line(r.Time, setUp+p.paint(dim, " ("+took(e.Duration)+")"))
	default:
		t.line(r.Time, t.endLine(p, e.Status, testName(r.Scope), e.Duration, "")+titleText(p, t.run.test(r).title))
	}
}

// failed shows a failure at once, as a result. Where results go elsewhere than
// progress, progress gets its one line, too.
func (t *Terminal) failed(at time.Time, name, title string, f *event.Failure, d time.Duration) {
	if !t.o.Shared {
		t.line(at, t.endLine(painter(t.o.ColorStderr), f.Status, name, d, oneLine(f)))
	}
	t.result("\n" + failureText(painter(t.o.ColorStdout), name, title, f, d, terminalRoom) + "\n")
	t.spaced = true
}

// stepEnd is the line of a step that ended, in verbose output.
func stepEnd(p painter, s *entry, e event.StepFinished) string {
	how := "ok"
	if e.Status != event.Passed {
		how = p.paint(styleOf(e.Status), strings.ToLower(statusWord(e.Status)))
	}
	l := clean(s.Operation) + ": " + how
	if e.ExitCode != nil && *e.ExitCode != 0 {
		l += fmt.Sprintf(", exit code %d", *e.ExitCode)
	}
	if e.Tries > 1 {
		l += ", " + plural(e.Tries, "try")
	}
	l += p.paint(dim, " ("+took(e.Duration)+")")
	if m := firstLine(e.Message); m != "" {
		l += ": " + m
	}
	return l
}

// maxPartial bounds a line of output that does not end.
const maxPartial = 8 << 10

// output shows the whole lines that have arrived.
func (t *Terminal) output(r event.Record, e event.Output) {
	k := streamKey{r.Scope.File, e.Machine, e.Stream, r.Scope.Step}
	data := append(t.partial[k], e.Data...)
	end := strings.LastIndexByte(string(data), '\n') + 1
	if len(data)-end > maxPartial {
		end = len(data)
	}
	t.outputLines(r, k, data[:end])
	if end == len(data) {
		delete(t.partial, k)
	} else {
		t.partial[k] = data[end:]
	}
}

// flushOutput shows what a step that ended left without a newline.
func (t *Terminal) flushOutput(r event.Record, e event.StepFinished) {
	for _, stream := range []string{"stdout", "stderr"} {
		for k, data := range t.partial {
			if k.file == r.Scope.File && k.step == e.ID && k.stream == stream {
				t.outputLines(r, k, data)
				delete(t.partial, k)
			}
		}
	}
}

func (t *Terminal) outputLines(r event.Record, k streamKey, data []byte) {
	sign := "|"
	if k.stream == "stderr" {
		sign = "!"
	}
	for _, l := range lines(string(data)) {
		t.line(r.Time, t.mark(r.Scope, k.machine, sign)+l)
	}
}

func (t *Terminal) machine(r event.Record, e event.MachineState) {
	m := t.run.machine(r, e.Machine)
	_, announced := t.reminder[m]
	if !m.booting {
		delete(t.reminder, m)
	}
	p, who := painter(t.o.ColorStderr), t.subject(r.Scope, e.Machine)
	switch e.State {
	case "ready":
		if announced || m.booted >= announceAfter || t.o.Level == Verbose {
			t.line(r.Time, who+"ready after "+took(m.booted))
		}
	case "crashed", "panicked":
		l := who + p.paint(red, clean(e.State))
		if d := firstLine(e.Detail); d != "" {
			l += ": " + d
		}
		t.line(r.Time, l)
	default:
		if t.o.Level == Verbose {
			t.line(r.Time, who+clean(e.State))
		}
	}
}

func (t *Terminal) progress(r event.Record, e event.Progress) {
	if !e.Done {
		return
	}
	w := t.run.work[len(t.run.work)-1]
	for _, x := range t.run.work {
		if x.ID == e.ID {
			w = x
		}
	}
	_, announced := t.reminder[w]
	delete(t.reminder, w)
	p, d := painter(t.o.ColorStderr), cmp.Or(e.Elapsed, r.Time.Sub(w.began))
	switch title := clean(w.Title); {
	case e.Error != "":
		t.line(r.Time, title+": "+p.paint(red, "failed")+" after "+took(d)+": "+firstLine(e.Error))
	case announced || d >= announceAfter || t.o.Level == Verbose:
		t.line(r.Time, title+": done in "+took(d))
	}
}

func (t *Terminal) log(r event.Record, e event.Log) {
	if e.Level == "debug" && t.o.Level != Verbose {
		return
	}
	p := painter(t.o.ColorStderr)
	who := ""
	if e.Machine != "" || t.several() {
		who = t.subject(r.Scope, e.Machine)
	}
	for i, l := range lines(e.Text) {
		switch {
		case i > 0:
			l = "  " + l
		case e.Level == "warning":
			l = p.paint(yellow, "warning: ") + l
		case e.Level == "error":
			l = p.paint(red, "error: ") + l
		}
		if t.o.Level == Quiet && (e.Level == "warning" || e.Level == "error") {
			t.write(l + "\n")
			continue
		}
		t.line(r.Time, who+l)
	}
}

// oneRow keeps text, the name of a machine for instance, on its line.
var oneRow = strings.NewReplacer("\n", " ", "\t", " ")

// line writes one line of progress with its time in the run.
func (t *Terminal) line(at time.Time, s string) {
	if t.o.Level == Quiet || t.run.past {
		return
	}
	stamp := fmt.Sprintf("%8s  ", fmt.Sprintf("%.1fs", at.Sub(t.run.begin).Seconds()))
	t.write(painter(t.o.ColorStderr).paint(dim, stamp) + oneRow.Replace(s) + "\n")
}

// Hold keeps all lines back while another user has the screen; Hold(false)
// writes them.
func (t *Terminal) Hold(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held = on; !on && !t.closed {
		t.erase()
	}
}

func (t *Terminal) write(s string) {
	if t.o.Shared {
		t.spaced = false
	}
	if t.o.Live || t.held {
		t.live.pending = append(t.live.pending, chunk{text: s})
		return
	}
	io.WriteString(t.o.Stderr, s)
}

// result writes to standard output.
func (t *Terminal) result(s string) {
	if t.o.Live && t.o.Shared {
		t.live.pending = append(t.live.pending, chunk{result: true, text: s})
		return
	}
	t.writeStdout(s)
}

func (t *Terminal) writeStdout(s string) {
	if _, err := io.WriteString(t.o.Stdout, s); err != nil && t.stdout == nil {
		t.stdout = fmt.Errorf("standard output: %w", err)
	}
}

// Stdout is the writer for what a test prints, whole lines at a time: standard
// output itself, with the live tree out of the way when it is on the same
// terminal. What is printed on a terminal is shown harmless, since it may be a
// guest's; a file or a pipe gets every byte.
func (t *Terminal) Stdout() io.Writer {
	w := t.o.Stdout
	if t.o.Live && t.o.Shared {
		w = printer{t}
	}
	if t.o.OnScreen {
		w = cleaner{w}
	}
	return w
}

// A cleaner writes text so that it is shown and not obeyed.
type cleaner struct{ w io.Writer }

func (c cleaner) Write(b []byte) (int, error) {
	if _, err := io.WriteString(c.w, clean(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

type printer struct{ t *Terminal }

func (p printer) Write(b []byte) (int, error) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	return p.t.print(b)
}

// Close writes the summary, with the files that the run wrote, and leaves the
// terminal as it was. A run that has not ended is shown as interrupted.
func (t *Terminal) Close(artifacts ...event.Artifact) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.run.close(t.run.now())
	if t.o.Live || t.held {
		t.erase()
	}
	t.summary(artifacts)
	err := t.stdout
	t.mu.Unlock()
	t.end()
	return err
}

// abandon ends the terminal without a summary.
func (t *Terminal) abandon() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.end()
}

// end ends the ticker.
func (t *Terminal) end() {
	t.ticker.Stop()
	close(t.quit)
	<-t.ended
}
