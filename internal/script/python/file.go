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
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/session"
	"github.com/attest-vm/attest/internal/socketpair"
	"github.com/attest-vm/attest/internal/supervise"
)

// main is the name of the one test that a script is.
const main = "main"

// file is a script that was compiled.
type file struct {
	path     string
	title    string
	machines []attest.MachineConfig
	stdout   io.Writer
}

func (f *file) Path() string { return f.path }

// Networks are none: a script has no way to say what is different about them.
func (f *file) Networks() map[int]attest.NetworkConfig { return nil }

func (f *file) Machines() []attest.MachineConfig { return f.machines }
func (f *file) Setup() *script.Test              { return nil }
func (f *file) KeepOnFailure() bool              { return false }

func (f *file) Tests() []script.Test {
	return []script.Test{{Name: main, Title: f.title, Position: event.Position{File: f.path, Line: 1}}}
}

// networks are the numbers of all networks of the machines, in order.
func (f *file) networks() []int {
	out := []int{}
	for _, m := range f.machines {
		if m.Networks == nil {
			out = append(out, 1)
		}
		out = append(out, m.Networks...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Call runs the script in a new process.
func (f *file) Call(ctx context.Context, lab operation.Runner, _ string) error {
	helped, ok := lab.(operation.Helped)
	if !ok {
		return &attest.InfraError{Action: "start " + program(), Err: errors.New("this lab starts no programs of the host")}
	}
	p, err := f.start(ctx, helped)
	if err != nil {
		return err
	}
	return p.run(ctx, lab)
}

// A process is a Python that runs the script.
type process struct {
	*file
	*supervise.Process
	stream net.Conn
	output []*os.File // what it prints, and what it says as errors
	copied sync.WaitGroup
}

func (f *file) start(ctx context.Context, helped operation.Helped) (_ *process, err error) {
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
	p := &process{file: f, stream: stream}
	for range 2 {
		out, in, pipeErr := os.Pipe()
		if pipeErr != nil {
			p.closeAll()
			return nil, &attest.InfraError{Action: "make a pipe for " + program(), Err: pipeErr}
		}
		p.output, handed = append(p.output, out), append(handed, in)
	}
	p.Process, err = helped.StartHelper(ctx, func(dir string) (supervise.Command, error) {
		start, err := unpack(dir)
		return supervise.Command{
			Path: program(), Args: []string{program(), "-u", "-B", start, f.path, asJSON(f.networks())},
			Stdout: handed[1], Stderr: handed[2], ExtraFiles: []*os.File{theirs}, Whole: true,
		}, err
	})
	if err != nil {
		p.closeAll()
		return nil, err
	}
	return p, nil
}

func (p *process) closeAll() {
	p.stream.Close()
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
func (p *process) run(ctx context.Context, lab operation.Runner) error {
	p.copied.Go(func() { io.Copy(p.stdout, p.output[0]) })
	p.copied.Go(func() { logLines(ctx, p.output[1]) })
	var names []string
	for _, m := range p.machines {
		names = append(names, m.Name)
	}
	server := protocol.NewServer(p.stream, protocol.Options{Peer: "Python", Session: session.Over(ctx, lab), Machines: names, OutDir: lab.(operation.Helped).OutDir()})
	// The connection outlives ctx for a moment, in which the script can clean up.
	serving, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
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
		return server.Explain(end.Error)
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
