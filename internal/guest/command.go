package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// DefaultLimit is how many bytes of each of a command's streams are kept.
const DefaultLimit = 64 << 20

// maxInline is how long a script may be to travel with the request.
const maxInline = 32 << 10

// A Command is what to run in the guest, as root and in /tmp unless it says otherwise.
type Command struct {
	// Script is run by bash, after "set -euo pipefail; ", in the environment
	// that /etc/profile leaves. A guest without bash runs it by sh, after "set -eu; ".
	Script string
	// Argv is run instead of Script if it is not empty; Argv[0] is looked up in PATH.
	Argv []string

	Stdin  io.Reader // nil: /dev/null
	Stdout io.Writer // nil: kept in Result.Stdout, up to Limit bytes
	Stderr io.Writer // nil: kept in Result.Stderr, up to Limit bytes
	Limit  int64     // 0: DefaultLimit

	User    string            // a name or number in the guest's /etc/passwd; empty: root
	Env     map[string]string // in addition to the usual environment
	Dir     string            // must exist; empty: /tmp, or the home of User
	Timeout time.Duration     // SIGTERM after that, SIGKILL one second later; 0: none
	Detach  bool              // return when it has started; its output is lost

	// Job, if not empty, is a name for Client.Adopt: the command goes on when another
	// client takes over the guest, as in a fork. No two commands of a guest have the
	// same one.
	Job string
}

// A Result is how a command ended.
type Result struct {
	// ExitCode is 128+N if the command died of signal N, and 124 if it ran into
	// Timeout. Signal is the name of N, such as "SIGKILL"; a shell that reports
	// 128+N for a program it ran counts as died of N, too.
	ExitCode       int
	Signal         string
	Stdout, Stderr []byte
	Duration       time.Duration // from the request to the end, as the host saw it
	TimedOut       bool
	Warm           bool // it ran on a warm shell
	Pid            int  // in the guest, if the command was detached
	// Held are the processes that kept standard output open when the command had ended,
	// and its time was over or it was given up.
	Held []wire.Process
}

// A Process is a command that runs.
type Process struct {
	call    *call
	started time.Time
	adopted *Received // what others have had of its output; nil: nothing, it is ours
	done    chan struct{}
	result  Result
	err     error
}

// Run runs a command to its end. A command that fails is not an error.
func (c *Client) Run(ctx context.Context, cmd Command) (Result, error) {
	p, err := c.Start(ctx, cmd)
	if err != nil {
		return Result{}, err
	}
	return p.Wait()
}

// Start starts a command. It ends, with its process group, when ctx does. A
// command that cannot be started is an error of Wait.
func (c *Client) Start(ctx context.Context, cmd Command) (*Process, error) {
	request, err := c.execRequest(cmd)
	if err != nil {
		return nil, err
	}
	var r wire.ExecResult
	return c.start(ctx, wire.OpExec, cmd, &request, &request, cmd.Timeout, &r, &r)
}

func (c *Client) execRequest(cmd Command) (wire.ExecRequest, error) {
	if cmd.Script != "" && len(cmd.Argv) > 0 {
		return wire.ExecRequest{}, fmt.Errorf("%s: want either a script or arguments, not both", c.name)
	}
	return wire.ExecRequest{
		Argv: cmd.Argv, Stdin: cmd.Stdin != nil, User: cmd.User, Env: cmd.Env, Dir: cmd.Dir,
		Timeout: cmd.Timeout, Detach: cmd.Detach, Job: cmd.Job,
	}, nil
}

// start opens op. exec is the part of request that describes the command, r the
// part of result that says how it ended; limit is that of the guest.
func (c *Client) start(ctx context.Context, op string, cmd Command, exec *wire.ExecRequest, request any, limit time.Duration, result any, r *wire.ExecResult) (*Process, error) {
	started := time.Now()
	body := []byte(cmd.Script)
	exec.Long = len(body) > maxInline || !wire.CanInline(body)
	if exec.Long {
		body = nil
	}
	k, err := c.open(ctx, op, request, body)
	if err != nil {
		return nil, err
	}
	k.kept = limit
	p := &Process{call: k, started: started, done: make(chan struct{})}
	go p.run(ctx, cmd, exec.Long, result, r)
	return p, nil
}

// run carries the bytes of a process until it has ended.
func (p *Process) run(ctx context.Context, cmd Command, long bool, result any, r *wire.ExecResult) {
	defer close(p.done)
	stream := p.call.stream
	if long {
		go send(stream, wire.Script, bytes.NewReader([]byte(cmd.Script)))
	}
	if cmd.Stdin != nil {
		go send(stream, wire.Stdin, cmd.Stdin) // lives until Stdin's Read returns, as with os/exec
	}
	limit := cmd.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	stdout := &sink{w: cmd.Stdout, limit: limit}
	stderr := &sink{w: cmd.Stderr, limit: limit}
	var copies sync.WaitGroup
	copies.Go(func() { p.receive(wire.Stdout, "stdout", stdout) })
	copies.Go(func() { p.receive(wire.Stderr, "stderr", stderr) })
	p.err = p.call.wait(ctx, result)
	copies.Wait()
	p.result = Result{
		ExitCode: r.ExitCode, Signal: r.Signal, TimedOut: r.TimedOut, Warm: r.Warm, Pid: r.Pid, Held: r.Held,
		Stdout: stdout.buf, Stderr: stderr.buf, Duration: time.Since(p.started),
	}
	if p.adopted != nil {
		p.result.Duration = r.Duration
	}
}

// send sends what r has. The other side may not want all of it.
func send(stream *wire.Stream, channel int, r io.Reader) {
	io.Copy(stream.Writer(channel), r)
	stream.CloseWrite(channel)
}

// receive passes a channel on to where the caller wants it.
func (p *Process) receive(channel int, name string, to *sink) {
	buf := make([]byte, 16<<10)
	for {
		n, err := p.call.stream.Read(channel, buf)
		switch {
		case errors.Is(err, wire.ErrRestart):
			to.restart()
			continue
		case err != nil:
			return
		}
		err = to.write(buf[:n])
		if errors.Is(err, errLimit) {
			err = &OutputLimitError{Machine: p.call.c.name, Stream: name, Limit: to.limit}
		} else if err != nil {
			err = fmt.Errorf("%s: %s of the command: %w", p.call.c.name, name, err)
		}
		if err != nil {
			p.call.stream.Cancel(err)
			return
		}
	}
}

// Wait waits for the end of the process, which is also that of the context it
// was started with. It can be called more than once.
func (p *Process) Wait() (Result, error) {
	<-p.done
	return p.result, p.err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process group of the command.
func (p *Process) Signal(sig syscall.Signal) { p.call.stream.Signal(sig) }

// A sink takes one output stream of a command.
type sink struct {
	w     io.Writer // nil: keep it in buf
	buf   []byte
	limit int64
}

var errLimit = errors.New("too much output")

func (s *sink) write(b []byte) error {
	if s.w != nil {
		_, err := s.w.Write(b)
		return err
	}
	if int64(len(s.buf)+len(b)) > s.limit {
		return errLimit
	}
	s.buf = append(s.buf, b...)
	return nil
}

// restart forgets what an earlier attempt wrote. A writer of the caller that
// has a method Restart is told.
func (s *sink) restart() {
	s.buf = nil
	if w, ok := s.w.(interface{ Restart() }); ok {
		w.Restart()
	}
}

// UntilOptions say when RunUntil is satisfied.
type UntilOptions struct {
	Fail     bool          // wait for a failure; otherwise for success
	Once     bool          // one attempt
	Timeout  time.Duration // 0: until ctx ends
	MinPause time.Duration // between the first attempts; doubles. 0: 10 ms
	MaxPause time.Duration // 0: 250 ms
}

// UntilResult is the last attempt of a command.
type UntilResult struct {
	Result
	Tries int
	Met   bool // the last attempt ended as wanted; otherwise the time is up
	Ended *int // exit code of the last attempt that ended by itself; nil: none did
}

// RunUntil repeats a command, inside of the guest, until it ends as wanted or
// the time is up. The attempt that is under way then is ended. Each attempt
// reads all of Stdin. When ctx ends first the result is that of the last
// attempt, too.
func (c *Client) RunUntil(ctx context.Context, cmd Command, opt UntilOptions) (UntilResult, error) {
	exec, err := c.execRequest(cmd)
	if err != nil {
		return UntilResult{}, err
	}
	if cmd.Detach || cmd.Job != "" {
		return UntilResult{}, fmt.Errorf("%s: a repeated command is neither detached nor a job", c.name)
	}
	request := wire.UntilRequest{Exec: exec, Fail: opt.Fail, Once: opt.Once, Deadline: opt.Timeout, MinPause: opt.MinPause, MaxPause: opt.MaxPause}
	if request.Deadline <= 0 {
		request.Deadline = 365 * 24 * time.Hour // ctx decides
	}
	if request.MinPause <= 0 {
		request.MinPause = 10 * time.Millisecond
	}
	if request.MaxPause <= 0 {
		request.MaxPause = 250 * time.Millisecond
	}
	if opt.Timeout > 0 {
		var stop func()
		ctx, stop = grace(ctx, c.opt.LastWords)
		defer stop()
	}
	var r wire.UntilResult
	p, err := c.start(ctx, wire.OpUntil, cmd, &request.Exec, &request, opt.Timeout, &r, &r.ExecResult)
	if err != nil {
		return UntilResult{}, err
	}
	result, err := p.Wait()
	return UntilResult{Result: result, Tries: r.Tries, Met: r.Met, Ended: r.Ended}, err
}

// grace is a context that lasts a little longer than the deadline of ctx, for an
// operation whose deadline the guest keeps itself: what it says then is complete.
func grace(ctx context.Context, lastWords time.Duration) (context.Context, func()) {
	longer, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	end := func() { cancel(context.Cause(ctx)) }
	stop := context.AfterFunc(ctx, func() {
		if ctx.Err() == context.DeadlineExceeded {
			time.AfterFunc(lastWords, end)
		} else {
			end()
		}
	})
	return longer, func() { stop(); cancel(nil) }
}

// Warm returns when a warm shell waits for the next command, or when the guest
// has none.
func (c *Client) Warm(ctx context.Context) error {
	return c.prompt(ctx, wire.OpWarm, struct{}{}, nil)
}
