package agent

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

const (
	// maxUnheard is how many bytes of each stream of a job are kept while nobody
	// listens: the last ones. It is a window, so that they can be sent at once.
	maxUnheard = wire.Window
	// maxEnded is how many jobs that have ended are kept.
	maxEnded = 64
)

// A job is a command that outlives the session that has started it: when another host
// takes over, it goes on, and can be adopted by its name.
type job struct {
	id     string
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended; what follows is set before
	result wire.ExecResult
	err    error

	mu      sync.Mutex
	child   *child       // nil: it is being started
	stream  *wire.Stream // of the host that listens; nil: nobody does
	unheard [wire.Stderr + 1][]byte
	written [wire.Stderr + 1]int64 // since it started, but for what stream has had

	inherited bool // nobody has listened to it here, and somebody has elsewhere
}

// jobs are those of the server, oldest first.
type jobs struct {
	mu      sync.Mutex
	closed  bool // no job starts any more
	all     []*job
	running sync.WaitGroup
}

// add notes a job, and forgets the oldest that have ended.
func (js *jobs) add(j *job) error {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.closed {
		return errorf(wire.KindDown, "the agent ends")
	}
	ended := 0
	for _, other := range js.all {
		if other.id == j.id {
			return errorf(wire.KindInvalid, "there is a job %q already", j.id)
		}
		if other.ended() {
			ended++
		}
	}
	js.all = slices.DeleteFunc(js.all, func(j *job) bool {
		old := j.ended() && ended >= maxEnded
		if old {
			ended--
		}
		return old
	})
	js.all = append(js.all, j)
	return nil
}

func (js *jobs) find(id string) (*job, error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	for _, j := range js.all {
		if j.id == id {
			return j, nil
		}
	}
	return nil, errorf(wire.KindNotFound, "there is no job %q", id)
}

func (js *jobs) remove(j *job) {
	js.mu.Lock()
	defer js.mu.Unlock()
	js.all = slices.DeleteFunc(js.all, func(other *job) bool { return other == j })
}

// list is the operation wire.OpJobs.
func (js *jobs) list() (r wire.JobsResult) {
	js.mu.Lock()
	defer js.mu.Unlock()
	for _, j := range js.all {
		r.Jobs = append(r.Jobs, j.info())
	}
	return r
}

// close ends all jobs, also those that are being started. running says when they have
// ended, once no operation starts one.
func (js *jobs) close() {
	js.mu.Lock()
	defer js.mu.Unlock()
	js.closed = true
	for _, j := range js.all {
		j.cancel()
	}
}

// startJob is the operation wire.OpExec of a command that is a job.
func (s *Server) startJob(stream *wire.Stream, q wire.ExecRequest, script []byte) (any, error) {
	script, err := longScript(stream, q, script)
	if err != nil {
		return nil, err
	}
	if q.Detach {
		return nil, errorf(wire.KindInvalid, "a job is not detached")
	}
	ctx, cancel := context.WithCancel(context.Background())
	j := &job{id: q.Job, cancel: cancel, done: make(chan struct{}), stream: stream}
	if err := s.jobs.add(j); err != nil {
		cancel()
		return nil, err
	}
	start := time.Now()
	c, err := s.shell.start(ctx, q, script)
	if err != nil {
		s.jobs.remove(j)
		cancel()
		return nil, err
	}
	c.name = commandName(q, script)
	s.follow(ctx, j, c, q, jobInput{j, stream}, start)
	return j.serve(stream)
}

// follow carries the bytes of a job until it has ended.
func (s *Server) follow(ctx context.Context, j *job, c *child, q wire.ExecRequest, input io.Reader, start time.Time) {
	j.mu.Lock()
	j.child = c
	j.mu.Unlock()
	s.jobs.running.Go(func() {
		defer j.cancel()
		r, err := s.shell.wait(ctx, c, q, input, j)
		r.Duration = time.Since(start)
		j.result, j.err = r, s.shell.downAs(r, err)
		close(j.done)
	})
}

// Adopt makes a command that runs on the Starter a job: an earlier server has started it,
// before the guest was saved. Its output is counted from what the next host has.
func (s *Server) Adopt(name string, command *Command) error {
	s.setUp()
	ctx, cancel := context.WithCancel(context.Background())
	j := &job{id: name, cancel: cancel, done: make(chan struct{}), inherited: true}
	if err := s.jobs.add(j); err != nil {
		cancel()
		return err
	}
	s.follow(ctx, j, s.shell.remoteChild(command), wire.ExecRequest{}, nil, time.Now())
	return nil
}

// adopt is the operation wire.OpAdopt.
func (s *Server) adopt(stream *wire.Stream, q wire.AdoptRequest) (any, error) {
	j, err := s.jobs.find(q.Job)
	if err != nil {
		return nil, err
	}
	if err := j.attach(stream, q); err != nil {
		return nil, err
	}
	return j.serve(stream)
}

// serve lets a host that listens to the job signal it, give it up, and have its
// result. A host that goes away leaves it alone.
func (j *job) serve(stream *wire.Stream) (any, error) {
	stream.OnSignal(j.kill)
	defer stream.OnSignal(nil)
	select {
	case <-j.done:
	case <-stream.Context().Done():
		if err := stream.Err(); errors.Is(err, errSessionOver) {
			j.mu.Lock()
			j.abandon(stream)
			j.mu.Unlock()
			return nil, err
		}
		j.cancel()
		<-j.done
	}
	return j.result, j.err
}

// kill sends a signal, unless the job has ended: its number may be another's then.
func (j *job) kill(sig syscall.Signal) {
	j.mu.Lock()
	c := j.child
	j.mu.Unlock()
	if c != nil && !j.ended() {
		c.kill(sig)
	}
}

func (j *job) ended() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

func (j *job) info() wire.Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := wire.Job{ID: j.id, Ended: j.ended()}
	if j.child != nil {
		i.Pid = j.child.pid
	}
	if j.stream != nil && j.stream.Context().Err() != nil {
		j.abandon(j.stream)
	}
	i.Stdout, i.Stderr = j.begins(wire.Stdout), j.begins(wire.Stderr)
	return i
}

// begins is where output begins that somebody can still have. Called with mu held.
func (j *job) begins(channel int) int64 {
	if j.stream != nil {
		return j.written[channel] + j.stream.Sent(channel)
	}
	return j.written[channel] - int64(len(j.unheard[channel]))
}

// Write passes on what the job says to who listens, or keeps it.
func (j *job) Write(channel int, p []byte) (int, error) {
	for left := p; len(left) > 0; {
		j.mu.Lock()
		stream := j.stream
		if stream == nil {
			j.keep(channel, left)
			j.written[channel] += int64(len(left))
			j.mu.Unlock()
			return len(p), nil
		}
		j.mu.Unlock()
		n, err := stream.Write(channel, left)
		if left = left[n:]; err != nil {
			j.mu.Lock()
			j.abandon(stream)
			j.mu.Unlock()
		}
	}
	return len(p), nil
}

// keep adds to what is unheard. Called with mu held.
func (j *job) keep(channel int, p []byte) {
	kept := append(j.unheard[channel], p...)
	if more := len(kept) - maxUnheard; more > 0 {
		kept = slices.Clone(kept[more:])
	}
	j.unheard[channel] = kept
}

// abandon keeps what the host of a stream that is over may not have had. Called with mu
// held.
func (j *job) abandon(stream *wire.Stream) {
	if j.stream != stream {
		return
	}
	j.stream = nil
	for _, channel := range []int{wire.Stdout, wire.Stderr} {
		j.written[channel] += stream.Sent(channel)
		j.keep(channel, stream.Unacked(channel))
	}
}

// attach gives the job's output to another stream, from where the host has it.
func (j *job) attach(stream *wire.Stream, q wire.AdoptRequest) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stream != nil {
		if j.stream.Context().Err() == nil {
			return errorf(wire.KindInvalid, "job %q is in use", j.id)
		}
		j.abandon(j.stream)
	}
	for channel, has := range map[int]int64{wire.Stdout: q.Stdout, wire.Stderr: q.Stderr} {
		if j.inherited {
			j.written[channel] += has
		}
		if _, err := stream.Write(channel, missing(j.unheard[channel], j.begins(channel), has)); err != nil { // there is credit for all of it
			return err
		}
	}
	for channel := range j.written {
		j.written[channel] -= stream.Sent(channel) // which counts again from here
	}
	clear(j.unheard[:])
	j.stream, j.inherited = stream, false
	return nil
}

// missing is what a host lacks of output that begins at a byte of the stream, if it has
// so many bytes already.
func missing(unheard []byte, begins, has int64) []byte {
	if has <= begins {
		return unheard
	}
	return unheard[min(has-begins, int64(len(unheard))):]
}

// jobInput is what a job reads. When its host goes away it is as if nothing were typed
// any more: it has not ended.
type jobInput struct {
	job    *job
	stream *wire.Stream
}

func (i jobInput) Read(p []byte) (int, error) {
	n, err := i.stream.Read(wire.Stdin, p)
	if errors.Is(err, errSessionOver) {
		<-i.job.done
		err = io.EOF
	}
	return n, err
}
