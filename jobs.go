package attest

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
)

// A Job is a command that runs in the background. It ends by itself, by Kill,
// or with its machine. It goes on in a fork of its lab, and after a checkpoint is
// restored ([Machine.Jobs]). Its methods can be called from any goroutine.
type Job struct {
	machine *Machine
	state   jobState     // without Received
	out     [2]io.Writer // where its output goes instead of live's; nil: there
	live    atomic.Pointer[liveJob]
}

// A liveJob is a job in one start of its machine.
type liveJob struct {
	run            *run
	process        *guest.Process
	stdout, stderr *jobOutput
}

// A jobState is a job in a snapshot.
type jobState struct {
	ID       string         `json:"id"` // in the guest
	Command  string         `json:"command"`
	Timeout  time.Duration  `json:"timeout,omitempty"`
	Received guest.Received `json:"received"` // of its output, by the host that was
}

func (j *Job) newLive(log context.Context, r *run) *liveJob {
	m := j.machine.Name()
	return &liveJob{run: r, stdout: newJobOutput(log, m, "stdout"), stderr: newJobOutput(log, m, "stderr")}
}

func (j *Job) writers(l *liveJob) (stdout, stderr io.Writer) {
	stdout, stderr = l.stdout, l.stderr
	if j.out[0] != nil {
		stdout = j.out[0]
	}
	if j.out[1] != nil {
		stderr = j.out[1]
	}
	return stdout, stderr
}

// jobStates are the jobs that run now; the machine is paused.
func (m *Machine) jobStates(r *run) []jobState {
	m.mu.Lock()
	defer m.mu.Unlock()
	var states []jobState
	for _, j := range m.jobs {
		if l := j.live.Load(); l.run == r && j.Running() {
			s := j.state
			s.Received = l.process.Received()
			states = append(states, s)
		}
	}
	return states
}

// adoptJobs goes on with the jobs of a machine that goes on from a snapshot. Nobody
// else uses its guest yet.
func (r *run) adoptJobs() {
	m := r.machine
	m.mu.Lock()
	known, inherited := m.jobs, m.inherited
	m.mu.Unlock()
	var jobs []*Job
	for _, s := range inherited {
		j := &Job{machine: m, state: s}
		if i := slices.IndexFunc(known, func(k *Job) bool { return k.state.ID == s.ID }); i >= 0 {
			j = known[i]
		}
		l := j.newLive(m.lab.ctx, r)
		a := guest.Adoption{Timeout: s.Timeout, Received: s.Received}
		a.Stdout, a.Stderr = j.writers(l)
		process, err := r.guest.Adopt(m.lab.ctx, s.ID, a)
		if err != nil {
			event.Warnf(m.lab.ctx, "%s: the job `%s` of the snapshot is lost: %v", m.Name(), s.Command, err)
			continue
		}
		l.process = process
		j.live.Store(l)
		jobs = append(jobs, j)
	}
	m.mu.Lock()
	m.jobs = jobs
	m.mu.Unlock()
}

// A jobOutput is one stream of a job: its text for waits, its lines for the log.
type jobOutput struct {
	console.Transcript
	mu  sync.Mutex
	log *console.Output
}

func newJobOutput(ctx context.Context, machine, stream string) *jobOutput {
	return &jobOutput{Transcript: console.NewTranscript(), log: newOutput(ctx, 0, machine, stream)}
}

func (o *jobOutput) Write(p []byte) (int, error) {
	o.Append(p)
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Write(p)
}

// finish is String of a process that has ended.
func (o *jobOutput) finish() string {
	o.mu.Lock()
	o.log.Finish()
	o.mu.Unlock()
	return o.String()
}

// Done is closed when the job has ended, or its machine. A job that goes on after its
// machine was restored to a checkpoint has another channel then.
func (j *Job) Done() <-chan struct{} { return j.live.Load().process.Done() }

// Running reports whether the job still runs.
func (j *Job) Running() bool {
	select {
	case <-j.Done():
		return false
	default:
		return true
	}
}

// newOutput keeps so many bytes of one stream of a command, and publishes it line by line while it
// arrives.
func newOutput(ctx context.Context, limit int, machine, stream string) *console.Output {
	return console.NewOutput(limit, func(line string) {
		event.Publish(ctx, event.Output{Machine: machine, Stream: stream, Data: line + "\n"})
	})
}
