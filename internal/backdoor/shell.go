package backdoor

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/wire"
)

// renewScript has the shell begin again; shellScript defines what requests ask for. They need
// bash, and coreutils and sed for what is large or comes from the host.
//
//go:embed renew.sh
var renewScript string

//go:embed shell.sh
var shellScript string

// ShellDigest names what is defined in a shell, which is saved with its guest.
func ShellDigest() string {
	return fmt.Sprintf("shell %.12x", sha256.Sum256([]byte(renewScript+shellScript)))
}

// A shell is the root shell of a guest at work, from its hello until it says Marker again or its
// console ends.
type shell struct {
	machine string
	name    string // its own, by which its frames are known
	info    wire.Info
	send    func([]byte) // to its console; returns at once
	over    chan struct{}

	pause   time.Duration    // between two looks at a command, and how long an answer is waited for
	garbage chan<- complaint // what the commands that are under way cannot be told; nil: nobody is

	mu       sync.Mutex
	serial   int
	prefix   string // of the names of this host's commands
	closed   bool
	commands map[string]*command
	asked    map[string]*question // that have no answer yet
}

// A complaint is about a shell of which nothing but the end of all is honest.
type complaint struct {
	about *shell
	err   error
}

// A question is something that the shell itself does, one after the other.
type question struct {
	serial int
	answer chan string // receives once; it is closed if the answer is lost
}

// lookPause is how long a command may say nothing before the shell is asked about it: what it has
// said last may be lost on its way.
const lookPause = 5 * time.Second

func newShell(machine, name string, info wire.Info, send func([]byte)) *shell {
	return &shell{machine: machine, name: name, info: info, send: send, over: make(chan struct{}), pause: lookPause,
		prefix: rand.Text()[:8], commands: map[string]*command{}, asked: map[string]*question{}}
}

var (
	errShellOver  = errors.New("the guest's root shell has ended")
	errAnswerLost = errors.New("the answer of the guest's root shell was lost on the way")
)

// close ends everything that waits for the shell.
func (s *shell) close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	close(s.over)
	commands := slices.Collect(maps.Values(s.commands))
	s.commands = map[string]*command{}
	s.mu.Unlock()
	for _, c := range commands {
		c.abort(&wire.Error{Kind: wire.KindLost, Message: errShellOver.Error()})
		c.endStreams()
	}
}

// hear takes a frame of this shell. An error is garbage about a command whose end is known
// already to whoever waits for it: nothing but the end of all is honest then.
func (s *shell) hear(id, text string) error {
	s.mu.Lock()
	c := s.commands[id]
	s.mu.Unlock()
	kind, text, _ := strings.Cut(text, ":")
	switch {
	case kind == "done":
		s.answered(id, text)
	case c != nil:
		if err := c.hear(kind, text); err != nil {
			err = &wire.Error{Kind: wire.KindLost, Message: fmt.Sprintf("garbage from the guest's root shell: %v: %s", err, printable.Text(kind+":"+text[:min(len(text), 60)]))}
			if !c.abort(err) {
				return err
			}
		}
	}
	return nil
}

func (s *shell) forget(c *command) {
	s.mu.Lock()
	delete(s.commands, c.id)
	s.mu.Unlock()
	c.closeInput()
	c.forget()
}

// nextID is a name for something that is asked of the shell. Those of an earlier host, from
// whose guest this one was saved, are others.
func (s *shell) nextID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next()
}

// next is nextID for who holds mu.
func (s *shell) next() string {
	s.serial++
	return fmt.Sprintf("%s%d", s.prefix, s.serial)
}

// question sends one. The shell takes them in the order of their numbers.
func (s *shell) question(words []string) (id string, q *question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id = s.next()
	q = &question{s.serial, make(chan string, 1)}
	s.asked[id] = q
	s.send(request(append(words, id)...))
	return id, q
}

// answered takes an answer. Those to earlier questions do not come any more.
func (s *shell) answered(id, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.asked[id]
	if q == nil {
		return
	}
	delete(s.asked, id)
	q.answer <- text
	for id, earlier := range s.asked {
		if earlier.serial < q.serial {
			delete(s.asked, id)
			close(earlier.answer)
		}
	}
}

// ask has the shell itself do something short, and returns what it answers. words get the
// name of the question at their end. The error is errAnswerLost if the shell has done it, and its
// answer does not come.
func (s *shell) ask(ctx context.Context, words ...string) (string, error) {
	id, q := s.question(words)
	defer s.drop(id)
	for {
		timer := time.NewTimer(s.pause)
		select {
		case text, ok := <-q.answer:
			timer.Stop()
			if !ok {
				return "", errAnswerLost
			}
			return text, nil
		case <-timer.C:
			later, _ := s.question([]string{"ping"}) // when this has its answer, the first is lost
			defer s.drop(later)
		case <-s.over:
			timer.Stop()
			return "", errShellOver
		case <-ctx.Done():
			timer.Stop()
			return "", context.Cause(ctx)
		}
	}
}

// askAgain is ask of what can be done twice.
func (s *shell) askAgain(ctx context.Context, words ...string) (string, error) {
	for {
		text, err := s.ask(ctx, words...)
		if err != errAnswerLost {
			return text, err
		}
	}
}

func (s *shell) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked, id)
}

const (
	// maxWord is how long a script may be to travel in its request, whose bytes bash reads one by one.
	maxWord = 2 << 10
	// maxArg is MAX_ARG_STRLEN, one argument of execve(2), with what precedes a script.
	maxArg = 128<<10 - 64
	// maxScript bounds what bash keeps in a variable.
	maxScript = 16 << 20
)

const options = "set -euo pipefail; "

// StartCommand starts a command as the agent would, and returns when it runs.
func (s *shell) StartCommand(ctx context.Context, q wire.ExecRequest, script []byte) (*agent.Command, error) {
	c, err := s.newCommand(q, 0)
	if err != nil {
		return nil, err
	}
	if err := s.launch(c, q, script); err != nil {
		c.abort(err)
		s.forget(c)
		return nil, err
	}
	go c.watch() // until nothing more is to be heard of it
	if err := s.awaitStart(ctx, c); err != nil {
		c.abandon()
		return nil, err
	}
	return c.public(), nil
}

// launch writes the request.
func (s *shell) launch(c *command, q wire.ExecRequest, script []byte) error {
	how, argv := "-", q.Argv
	if q.Stdin {
		how += "i"
	}
	if q.Detach {
		how += "d"
	}
	if q.Job != "" {
		how += "j"
	}
	var before []byte
	if len(argv) == 0 {
		argv = []string{"bash", "-c"}
		switch {
		case len(script) > maxScript:
			return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("a command of %d bytes; without attest's agent in the guest the limit is %d", len(script), maxScript)}
		case len(script) <= maxWord:
			argv = append(argv, options+string(script))
		default:
			text := slices.Concat([]byte(options), script)
			how += "t"
			if len(text) >= maxArg {
				how, text = how[:len(how)-1]+"T", script
				argv = append(argv, `eval "exec 3<&-; `+options+`$(</proc/self/fd/3)"`)
			}
			before = withData(request("text", encodedLen(text)), text)
		}
	}
	words := []string{"run", c.id, how, q.User, q.Dir, strconv.Itoa(len(q.Env)), c.mark}
	for _, k := range slices.Sorted(maps.Keys(q.Env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(q.Env[k], "\x00") {
			return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("environment variable %q cannot be set", k)}
		}
		words = append(words, k+"="+q.Env[k])
	}
	words = append(words, argv...)
	if strings.Contains(strings.Join(words, ""), "\x00") {
		return &wire.Error{Kind: wire.KindInvalid, Message: "a command cannot contain a NUL byte"}
	}
	s.send(append(before, request(words...)...))
	return nil
}

func encodedLen(p []byte) string { return strconv.Itoa(base64.StdEncoding.EncodedLen(len(p))) }

func withData(line, data []byte) []byte { return base64.StdEncoding.AppendEncode(line, data) }

// A command is one that the shell runs.
type command struct {
	shell   *shell
	id      string
	known   context.Context // until nothing more is to be heard of it
	forget  func()          // ends known
	started chan error      // receives once: it runs, or does not
	ended   chan agent.End
	taken   chan bool // how the guest took the last input
	gone    chan struct{}
	streams map[byte]*spool // 'o' and 'e'; none if it is detached
	files   map[byte]*os.File
	input   sync.Once
	stdin   bool
	mark    string       // at the end of standard error; nobody in the guest can guess it
	rest    []byte       // what may be the beginning of the mark; of the goroutines that hear
	next    map[byte]int // the number of the next frame of a stream, or unknown; of the goroutines that hear

	mu        sync.Mutex
	pid       int
	end       *agent.End    // waits for what standard error has had
	settled   bool          // all is there of what it wrote to standard error before it ended
	over      bool          // its end is known to whoever waits
	open      map[byte]bool // streams whose end is not known
	abandoned bool
	given     int // inputs that were sent
	answers   int // to these
	heard     int // frames of all kinds
}

// unknown is the number of a frame of a command that another host has started.
const unknown = -1

// newCommand makes one whose streams begin with this frame.
func (s *shell) newCommand(q wire.ExecRequest, first int) (*command, error) {
	c := &command{shell: s, id: q.Job, stdin: q.Stdin, mark: rand.Text(), started: make(chan error, 1), ended: make(chan agent.End, 1),
		taken: make(chan bool, 1), gone: make(chan struct{}), streams: map[byte]*spool{}, open: map[byte]bool{}, files: map[byte]*os.File{}, next: map[byte]int{'o': first, 'e': first}}
	c.known, c.forget = context.WithCancel(context.Background())
	if c.id == "" {
		c.id = s.nextID()
	}
	if strings.ContainsAny(c.id, ": \n") {
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%q cannot be the name of a job", c.id)}
	}
	if !q.Detach {
		for _, name := range []byte("oe") {
			stream, file, err := newSpool()
			if err != nil {
				c.abort(err)
				c.closeFiles()
				return nil, err
			}
			c.streams[name], c.files[name] = stream, file
			c.open[name] = true
		}
	}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.commands[c.id] = c
	}
	s.mu.Unlock()
	if closed {
		c.abort(errShellOver)
		c.closeFiles()
		return nil, errShellOver
	}
	return c, nil
}

// public is the command as the agent knows it.
func (c *command) public() *agent.Command {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &agent.Command{Pid: c.pid, Stdout: c.files['o'], Stderr: c.files['e'], Ended: c.ended, Signal: c.signal}
	if c.stdin {
		a.Stdin = commandInput{c}
	}
	return a
}

func (c *command) closeFiles() {
	for _, f := range c.files {
		f.Close()
	}
}

// hear takes a frame of this command.
func (c *command) hear(kind, text string) error {
	c.mu.Lock()
	c.heard++
	c.mu.Unlock()
	switch kind {
	case "p":
		return c.runs(text)
	case "f":
		return c.failed(text)
	case "x":
		return c.exited(text)
	case "i":
		c.mu.Lock()
		c.answers++
		c.mu.Unlock()
		select {
		case c.taken <- text == "0":
		default:
		}
		return nil
	}
	if kind == "" || c.streams[kind[0]] == nil {
		return fmt.Errorf("it says nothing that a command can")
	}
	stream, form := c.streams[kind[0]], kind[1:]
	text, err := c.inOrder(kind[0], text)
	if err != nil {
		return err
	}
	if form == "+" && text == "." {
		form = "."
	}
	switch form {
	case ".":
		if kind[0] == 'e' {
			if err := c.hasExited(); err != nil {
				return err
			}
			stream.add(c.rest)
			stream.then(c.settle)
		}
		stream.end()
		c.mu.Lock()
		delete(c.open, kind[0])
		last := len(c.open) == 0 && c.over
		c.mu.Unlock()
		if last {
			c.shell.forget(c)
		}
		return nil
	case "", "+", "0":
	default:
		return fmt.Errorf("output in an unknown form")
	}
	p, err := decodeOutput(form, text)
	if err != nil {
		return err
	}
	if kind[0] != 'e' {
		stream.add(p)
		return nil
	}
	p, settled := c.unmarked(p)
	stream.add(p)
	if settled {
		if err := c.hasExited(); err != nil {
			return err
		}
		stream.then(c.settle)
	}
	return nil
}

// hasExited is an error if its exit status, which comes before the end of standard error and the mark
// there, has not come.
func (c *command) hasExited() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil && !c.over {
		return fmt.Errorf("its exit status was lost on the way")
	}
	return nil
}

// inOrder is the text of a frame of a stream, if it is the next one and whole.
func (c *command) inOrder(stream byte, text string) (string, error) {
	number, text, _ := strings.Cut(text, ":")
	length, text, _ := strings.Cut(text, ":")
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 {
		return "", fmt.Errorf("output without a number")
	}
	if want := c.next[stream]; n != want && want != unknown {
		return "", fmt.Errorf("output was lost on the way: part %d came where part %d was due", n, want)
	}
	if length != strconv.Itoa(len(text)) {
		return "", fmt.Errorf("output was lost on the way: part %d is incomplete", n)
	}
	c.next[stream] = n + 1
	return text, nil
}

// unmarked is what has come of standard error without the mark that the shell writes there when
// the command has ended: what precedes the mark is all that the command itself has written.
// Somebody else may keep the stream open for ever.
func (c *command) unmarked(p []byte) (own []byte, settled bool) {
	p = append(c.rest, p...)
	c.rest = nil
	mark := append([]byte(c.mark), 0)
	if before, after, ok := bytes.Cut(p, mark); ok {
		return append(before, after...), true
	}
	for n := min(len(mark)-1, len(p)); n > 0; n-- { // it may have come in part
		if bytes.HasSuffix(p, mark[:n]) {
			c.rest = slices.Clone(p[len(p)-n:])
			return p[:len(p)-n], false
		}
	}
	return p, false
}

// maxPid is PID_MAX_LIMIT of linux/threads.h.
const maxPid = 1 << 22

func (c *command) runs(text string) error {
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 1 || pid > maxPid {
		return fmt.Errorf("not a process")
	}
	c.mu.Lock()
	again := c.pid != 0
	c.pid = pid
	abandoned := c.abandoned
	c.mu.Unlock()
	if abandoned {
		c.signal(syscall.SIGKILL)
	}
	if !again {
		select {
		case c.started <- nil:
		default: // it was aborted
		}
	}
	return nil
}

// failed is a command that was not started.
func (c *command) failed(text string) error {
	kind, message, _ := strings.Cut(text, ":")
	if kind != wire.KindNotFound && kind != wire.KindInvalid {
		kind = wire.KindFailed
	}
	c.abort(&wire.Error{Kind: kind, Message: printable.Text(message)})
	return nil
}

func (c *command) exited(text string) error {
	code, down, _ := strings.Cut(text, ":")
	n, err := strconv.Atoi(code)
	if err != nil || n < 0 || n > 0xff {
		return fmt.Errorf("not an exit status")
	}
	end := agent.End{Code: n}
	if down != "" {
		end.Err = &wire.Error{Kind: wire.KindDown, Message: "the guest is shutting down, which has ended the command"}
	}
	c.mu.Lock()
	c.end = &end
	ready := c.settled || len(c.streams) == 0
	c.mu.Unlock()
	if ready {
		c.finish(end)
	}
	return nil
}

// settle notes that all is there that the command itself wrote to standard error. The agent waits for
// standard output up to its end.
func (c *command) settle() {
	c.mu.Lock()
	c.settled = true
	end := c.end
	c.mu.Unlock()
	if end != nil {
		c.finish(*end)
	}
}

// finish notes the end, once, and reports whether this was it.
func (c *command) finish(end agent.End) bool {
	c.mu.Lock()
	first := !c.over
	if first {
		c.over = true
		close(c.gone)
		c.ended <- end
	}
	left := len(c.open) > 0
	c.mu.Unlock()
	if first && !left {
		c.shell.forget(c)
	}
	return first
}

// abort ends a command of which nothing more is to be heard. It reports whether its end was not
// known yet: of one that has ended it leaves the output open, which is not all of it.
func (c *command) abort(err error) bool {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return false
	}
	if c.pid == 0 {
		select {
		case c.started <- err:
		default:
		}
	}
	clear(c.open)
	c.mu.Unlock()
	first := c.finish(agent.End{Err: err})
	c.endStreams()
	return first
}

func (c *command) endStreams() {
	for _, s := range c.streams {
		s.end()
	}
}

// abandon is for a command that nobody waits for before it has started.
func (c *command) abandon() {
	c.mu.Lock()
	c.abandoned = true
	pid := c.pid
	c.mu.Unlock()
	c.closeFiles() // what it still writes is lost
	if pid != 0 {
		c.signal(syscall.SIGKILL)
	}
}

// signal sends a signal to the process group of the command, unless it has ended: the number
// may be another's then.
func (c *command) signal(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name := unix.SignalName(sig); !c.over && c.pid != 0 && name != "" {
		c.shell.send(request("kill", name, strconv.Itoa(c.pid)))
	}
}

// maxInput is how many bytes of a command's input go to the guest at once.
const maxInput = 96 << 10

// A commandInput is what a command reads.
type commandInput struct{ *command }

// Write blocks until the command has taken p.
func (i commandInput) Write(p []byte) (n int, err error) {
	for chunk := range slices.Chunk(p, maxInput) {
		i.shell.send(withData(request("in", i.id, encodedLen(chunk)), chunk))
		i.mu.Lock()
		i.given++
		i.mu.Unlock()
		select {
		case ok := <-i.taken:
			if !ok {
				return n, io.ErrClosedPipe
			}
		case <-i.gone:
			return n, io.ErrClosedPipe
		}
		n += len(chunk)
	}
	return n, nil
}

func (i commandInput) Close() error {
	i.closeInput()
	return nil
}

func (c *command) closeInput() {
	if c.stdin {
		c.input.Do(func() { c.shell.send(request("eof", c.id)) })
	}
}

// awaitStart waits until the shell has started the command, or says that it cannot.
func (s *shell) awaitStart(ctx context.Context, c *command) error {
	select {
	case err := <-c.started:
		return err
	case <-s.over:
		return errShellOver
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// adopt makes a command that another host has started one of ours.
func (s *shell) adopt(ctx context.Context, job string) (*agent.Command, error) {
	c, err := s.newCommand(wire.ExecRequest{Job: job}, unknown)
	if err != nil {
		return nil, err
	}
	s.send(request("adopt", job))
	go c.watch() // until nothing more is to be heard of it
	if err := s.awaitStart(ctx, c); err != nil {
		c.closeFiles()
		return nil, err
	}
	return c.public(), nil
}

// An outcome is a command of the shell's own that has ended.
type outcome struct {
	stdout, stderr []byte
	code           int
}

// run runs a script of attest's, with words as $1 and so on, to its end. input and output may
// be nil: it reads nothing, and what it writes is in the outcome.
func (s *shell) run(ctx context.Context, input io.Reader, output io.Writer, script string, words ...string) (outcome, error) {
	return s.collect(ctx, wire.ExecRequest{Argv: append([]string{"bash", "-c", script, "bash"}, words...), Stdin: input != nil}, input, output)
}

// collect runs a command to its end.
func (s *shell) collect(ctx context.Context, q wire.ExecRequest, input io.Reader, output io.Writer) (r outcome, err error) {
	c, err := s.StartCommand(ctx, q, nil)
	if err != nil {
		return r, err
	}
	stop := context.AfterFunc(ctx, func() { c.Signal(syscall.SIGKILL) })
	defer stop()
	if input != nil {
		go func() { // ends with the command at the latest, or with its reader
			io.Copy(c.Stdin, input)
			c.Stdin.Close()
		}()
	}
	var stdout, stderr bytes.Buffer
	if output == nil {
		output = &stdout
	}
	var copies sync.WaitGroup
	copies.Go(func() {
		if _, err := io.Copy(output, c.Stdout); err != nil {
			c.Signal(syscall.SIGKILL)
		}
		c.Stdout.Close()
	})
	copies.Go(func() {
		io.Copy(&stderr, io.LimitReader(c.Stderr, maxSaid))
		io.Copy(io.Discard, c.Stderr)
		c.Stderr.Close()
	})
	var end agent.End
	select {
	case end = <-c.Ended:
	case <-ctx.Done():
		c.Stdout.SetReadDeadline(longAgo)
		c.Stderr.SetReadDeadline(longAgo)
	}
	copies.Wait()
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	return outcome{stdout.Bytes(), stderr.Bytes(), end.Code}, end.Err
}
