package agent

import (
	"context"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// A Stage is what an agent serves that does not run in a guest of its own: its
// files and processes are real, but the system around them, such as the clock
// and the power switch, is not its to change.
type Stage interface {
	// Info changes who answers: what the agent finds is the real system's.
	Info(*wire.Info)
	// Operate does one operation, or has the agent do it by next, with the same
	// request or another.
	Operate(stream *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error)
}

// A Starter is a Stage on which commands run that are not processes of this system.
// The operations wire.OpExec, OpUntil, OpJobs and OpAdopt are the same there: the agent
// carries their bytes, keeps their time and ends them.
type Starter interface {
	Stage
	// StartCommand returns when the command runs.
	StartCommand(ctx context.Context, q wire.ExecRequest, script []byte) (*Command, error)
	// Ping has pong called as soon as the guest has shown that it is alive.
	Ping(pong func())
}

// A Command runs on a Starter.
type Command struct {
	Pid            int            // of its process group
	Stdin          io.WriteCloser // nil: it reads nothing
	Stdout, Stderr *os.File       // what it writes, up to the end; nil of one that is detached
	Ended          <-chan End     // receives once
	Signal         func(syscall.Signal)
}

// An End is how a command ended.
type End struct {
	Code int   // 128+N: of signal N
	Err  error // its exit status is unknown
}

// startRemote starts a command on the Starter.
func (sh *shell) startRemote(ctx context.Context, q wire.ExecRequest, script []byte) (*child, error) {
	command, err := sh.remote.StartCommand(ctx, q, script)
	if err != nil {
		return nil, err
	}
	return sh.remoteChild(command), nil
}

func (sh *shell) remoteChild(command *Command) *child {
	exited := make(chan exit, 1)
	sh.background.Go(func() {
		end := <-command.Ended
		e := shellExit(end.Code)
		e.err = end.Err
		exited <- e
	})
	return &child{pid: command.Pid, signal: command.Signal, stdin: command.Stdin, stdout: command.Stdout, stderr: command.Stderr, exited: exited}
}

// ping answers a host that asks whether the guest is there.
func (s *Server) ping(pong func()) {
	if s.shell.remote != nil {
		s.shell.remote.Ping(pong)
		return
	}
	pong()
}

// perform does one operation.
func (s *Server) perform(stream *wire.Stream, r wire.Request) (any, error) {
	if s.Stage == nil {
		return s.operation(stream, r)
	}
	return s.Stage.Operate(stream, r, func(r wire.Request) (any, error) { return s.operation(stream, r) })
}

// announcement is what the agent says when it starts.
func (s *Server) announcement() wire.AnnounceMessage {
	i := s.info()
	return wire.AnnounceMessage{Instance: i.Instance, BootID: i.BootID}
}

// Settle makes the guest somebody as far as its files, its name and its networks
// go: all of an Identity but entropy and time, which are the kernel's.
func Settle(id wire.Identity) error {
	id.Entropy, id.Time = nil, time.Time{}
	return applyIdentity(id, "/")
}
