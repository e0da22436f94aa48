package python

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/protocol"
	"github.com/attest-vm/attest/internal/repl"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/session"
	"github.com/attest-vm/attest/internal/socketpair"
	"github.com/attest-vm/attest/internal/supervise"
)

// main is the name of the one test that a script is.
const main = "main"

// A file is a script, or a test file, that was compiled.
type file struct {
	path      string
	title     string
	python    string // the program that runs it
	machines  []attest.MachineConfig
	variables map[string]attest.MachineConfig // as the script's machines are called in it
	stdout    io.Writer
	driver    *script.Driver    // nil: not as the NixOS test driver runs it
	declared  *declarations     // nil: the file is a script
	vars      map[string]string // the script finds them in its environment
	early     chan *process     // has that of the first call, and is closed; nil: it was not started before
}

func (f *file) Path() string { return f.path }

// Networks are those that a test file has declared. A script has no way to say what is
// different about one.
func (f *file) Networks() map[int]attest.NetworkConfig {
	if f.declared != nil {
		return f.declared.networks
	}
	return nil
}

func (f *file) Machines() []attest.MachineConfig { return f.machines }
func (f *file) KeepOnFailure() bool              { return f.declared != nil && f.declared.keep }

func (f *file) Setup() *script.Test {
	if f.declared == nil {
		return nil
	}
	return f.declared.setup
}

func (f *file) Tests() []script.Test {
	if f.declared != nil {
		return f.declared.tests
	}
	return []script.Test{{Name: main, Title: f.title, Position: event.Position{File: f.path, Line: 1}}}
}

// networks are the numbers of all networks of the machines, in order.
func (f *file) networks() []int {
	out := []int{}
	if f.driver != nil {
		out = append(out, f.driver.Networks...)
	}
	for _, m := range f.machines {
		if m.Networks == nil {
			out = append(out, 1)
		}
		out = append(out, m.Networks...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// prompt is where somebody types instead of running the script; nil: nowhere.
func (f *file) prompt() *script.Prompt {
	if f.driver == nil {
		return nil
	}
	return f.driver.Prompt
}

// options are those of lib/main.py.
type options struct {
	Networks []int    `json:"networks"`
	Call     string   `json:"call,omitempty"`
	Machines []string `json:"machines,omitempty"`
	Driver   bool     `json:"driver,omitempty"`
	Attach   string   `json:"attach,omitempty"`
	Prompt   *string  `json:"prompt,omitempty"`
	After    bool     `json:"after,omitempty"`
	Memory   int64    `json:"memory"` // bytes that it may have (script.MemoryLimit)

	Starts  map[string]string `json:"starts"` // the start commands of machines that have one
	Seconds float64           `json:"seconds,omitempty"`
}

func (f *file) options(test string) options {
	o := options{Networks: f.networks()}
	o.Memory, _ = script.MemoryLimit() // it was checked when the file was loaded
	o.Starts = map[string]string{}
	for _, m := range f.machines {
		if m.StartCommand != "" {
			o.Starts[m.Name] = m.StartCommand
		}
	}
	if f.declared != nil {
		o.Call, o.Machines = test, f.declared.names
	}
	if f.driver != nil {
		o.Driver, o.Attach, o.Seconds = true, f.driver.Attach, f.driver.Timeout.Seconds()
	}
	if p := f.prompt(); p != nil {
		o.Prompt, o.After = &p.History, p.After
	}
	return o
}

// Call runs the script, or a function of a test file, in a new process.
func (f *file) Call(ctx context.Context, lab operation.Runner, test string) error {
	helped, ok := lab.(operation.Helped)
	if !ok {
		return &attest.InfraError{Action: "start " + program(), Err: errors.New("this lab starts no programs of the host")}
	}
	var p *process
	if f.early != nil {
		p = <-f.early
	}
	if p == nil {
		var err error
		if p, err = f.start(ctx, f.python, helped.StartHelper); err != nil {
			return err
		}
	}
	io.WriteString(p.begin, asJSON(f.options(test))) // that it does not read them shows in how it ends
	p.begin.Close()
	return p.run(ctx, helped, lab)
}

// A process is a Python that runs the script.
type process struct {
	*file
	*supervise.Process
	stream net.Conn
	begin  *os.File   // takes the options, with which the script begins
	output []*os.File // what it prints, and what it says as errors; none if it has the terminal itself
	copied sync.WaitGroup
}

// start starts a process, in which the script does not begin yet.
func (f *file) start(ctx context.Context, python string, start script.Starter) (_ *process, err error) {
	var handed []*os.File
	defer func() {
		for _, h := range handed {
			h.Close()
		}
	}()
	stream, theirs, err := socketpair.New(unix.SOCK_STREAM)
	if err != nil {
		return nil, &attest.InfraError{Action: "make a socket for " + program(), Err: err}
	}
	handed = append(handed, theirs)
	options, begin, err := os.Pipe()
	if err != nil {
		stream.Close()
		return nil, &attest.InfraError{Action: "make a pipe for " + program(), Err: err}
	}
	handed = append(handed, options)
	p := &process{file: f, stream: stream, begin: begin}
	command := supervise.Command{Path: python, ExtraFiles: []*os.File{theirs, options}, Whole: true}
	if prompt := f.prompt(); prompt != nil {
		command.Stdin, command.Stdout, command.Stderr = prompt.In, prompt.Out, prompt.Err
	} else {
		for _, end := range []**os.File{&command.Stdout, &command.Stderr} {
			out, in, pipeErr := os.Pipe()
			if pipeErr != nil {
				p.closeAll()
				return nil, &attest.InfraError{Action: "make a pipe for " + program(), Err: pipeErr}
			}
			p.output, handed = append(p.output, out), append(handed, in)
			*end = in
		}
	}
	p.Process, err = start(ctx, func(dir string) (supervise.Command, error) {
		main, err := unpack(dir)
		command.Env = os.Environ()
		for name, value := range f.vars {
			command.Env = append(command.Env, script.VarEnv+name+"="+value)
		}
		command.Args = []string{python, "-u", "-B", main, f.path}
		return command, err
	})
	if err != nil {
		p.closeAll()
		return nil, err
	}
	return p, nil
}

func (p *process) closeAll() {
	p.stream.Close()
	p.begin.Close()
	for _, out := range p.output {
		out.Close()
	}
}

// stopGrace is how long a script may take to end when it was told to, and exitGrace how long a process
// may outlive what it has said about its end.
const (
	stopGrace = 2 * time.Second
	exitGrace = 10 * time.Second
)

// run serves the script until it has ended, and waits until nothing of it is left.
func (p *process) run(ctx context.Context, helped operation.Helped, lab operation.Runner) error {
	if len(p.output) > 0 {
		p.copied.Go(func() { io.Copy(p.stdout, p.output[0]) })
		p.copied.Go(func() { logLines(ctx, p.output[1]) })
	}
	var names []string
	for _, m := range p.machines {
		names = append(names, m.Name)
	}
	server := protocol.NewServer(p.stream, protocol.Options{
		Peer: "Python", Session: session.Over(ctx, lab), Machines: names, OutDir: helped.OutDir(), Directories: helped.Directories,
	})
	// The connection outlives ctx for a moment, in which the script can clean up.
	serving, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	if prompt := p.prompt(); prompt != nil {
		serving = operation.WithTerminal(serving, lend(prompt))
		defer p.passInterrupts(ctx, prompt)()
	}
	stop := context.AfterFunc(ctx, func() {
		server.Interrupt(context.Cause(ctx))
		p.Signal(syscall.SIGINT)
		time.AfterFunc(stopGrace, func() {
			p.Kill()
			giveUp(context.Cause(ctx))
		})
	})
	defer stop()
	end, err := server.Serve(serving)
	status := p.ended()
	if ctx.Err() != nil {
		return p.at(server, context.Cause(ctx))
	}
	var late *protocol.PeerError
	switch {
	case end != nil && end.Error != nil:
		return p.failed(ctx, server, end.Error)
	case end != nil:
		return nil
	case errors.As(err, &late):
		return p.at(server, err)
	case status.Signal != 0:
		return p.at(server, &attest.InfraError{Action: "run the script", Err: fmt.Errorf("its Python was %v", status)})
	}
	return p.at(server, &protocol.ThrownError{Thrown: &protocol.Thrown{
		Message: fmt.Sprintf("Python has ended (%v) before the script came to its end: by os._exit, or by a program that took its place", status),
	}})
}

// failed is the error of what the script has ended with. As with the NixOS test driver
// sys.exit says itself whether the test has passed.
func (p *process) failed(ctx context.Context, server *protocol.Server, thrown *protocol.Thrown) error {
	if thrown.Exit == nil || p.driver == nil {
		return server.Explain(thrown)
	}
	if p.driver.Exited != nil {
		p.driver.Exited(*thrown.Exit)
	}
	if *thrown.Exit == 0 {
		event.Warnf(ctx, "%s, before its end; the test has passed as far as it came", thrown.Message)
		return nil
	}
	return server.Explain(thrown)
}

// passInterrupts gives Python each Ctrl-C, until the function that it returns is called: the
// terminal belongs to this process.
func (p *process) passInterrupts(ctx context.Context, prompt *script.Prompt) func() {
	if prompt.Hold != nil {
		prompt.Hold(true)
	}
	over := make(chan struct{})
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			select {
			case <-prompt.Interrupts:
				p.Signal(syscall.SIGINT)
			case <-over:
				return
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		close(over)
		passing.Wait()
		if prompt.Hold != nil {
			prompt.Hold(false)
		}
	}
}

// ended waits for the end of the process, and ends what is left of its group.
func (p *process) ended() supervise.Status {
	ctx, cancel := context.WithTimeout(context.Background(), exitGrace)
	defer cancel()
	if _, err := p.Wait(ctx); err != nil {
		p.Kill()
		<-p.Done()
	}
	// What the script has started and left may hold the pipe.
	for _, out := range p.output {
		out.SetReadDeadline(time.Now().Add(time.Second))
	}
	p.copied.Wait()
	p.closeAll()
	return p.Status()
}

// logLines writes what Python says on its standard error to the log of the run.
func logLines(ctx context.Context, from io.Reader) {
	r := bufio.NewReaderSize(from, 64<<10)
	for {
		line, err := r.ReadSlice('\n')
		if text := strings.TrimRight(strings.ToValidUTF8(string(line), "\uFFFD"), "\r\n"); text != "" {
			event.Warnf(ctx, "%s", text)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}

// at gives an error the place where the script was last.
func (p *process) at(server *protocol.Server, err error) error {
	at := server.LastPosition()
	e := &script.Error{Position: at, Err: err}
	if at.File == "" {
		e.Position = event.Position{File: p.path}
		return e
	}
	e.Stack = []event.Position{at}
	return e
}

// lend gives an operation the terminal of the prompt.
func lend(prompt *script.Prompt) operation.TerminalOpener {
	return func() (attest.Terminal, func(), error) { return repl.OpenTerminal(prompt.In, prompt.Out) }
}
