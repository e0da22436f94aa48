package guest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// Received is how many bytes of each stream of a command have come to the host.
type Received struct{ Stdout, Stderr int64 }

// Received is what has come of the process's output so far, with what its writers have
// not taken yet and what earlier hosts have had. After the guest was paused, this is
// where its output goes on in a fork.
func (p *Process) Received() Received {
	stream := p.call.stream
	r := Received{stream.Received(wire.Stdout), stream.Received(wire.Stderr)}
	if p.adopted != nil {
		r.Stdout += p.adopted.Stdout
		r.Stderr += p.adopted.Stderr
	}
	return r
}

// Jobs lists the commands with a name (Command.Job) that run in the guest, and the last
// ones that have ended, oldest first, whichever client has started them.
func (c *Client) Jobs(ctx context.Context) ([]wire.Job, error) {
	var r wire.JobsResult
	err := c.prompt(ctx, wire.OpJobs, struct{}{}, &r)
	return r.Jobs, err
}

// An Adoption is how to go on with a job.
type Adoption struct {
	Stdout  io.Writer     // nil: kept in Result.Stdout, up to Limit bytes
	Stderr  io.Writer     // nil: kept in Result.Stderr, up to Limit bytes
	Limit   int64         // 0: DefaultLimit
	Timeout time.Duration // the Command.Timeout that it was started with

	// Received is what the host before has had: output begins behind that. It may begin
	// later when more was written while nobody listened than the agent keeps, 256 KiB
	// of each stream.
	Received Received
}

// Adopt goes on with a job that another client has started, as the one in whose guest
// a snapshot was taken: with its output, its signals and its end, or its result if it
// has ended. From then on it ends with ctx. An OpError of kind wire.KindNotFound is a
// guest without that job.
func (c *Client) Adopt(ctx context.Context, job string, a Adoption) (*Process, error) {
	known, err := c.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(known, func(j wire.Job) bool { return j.ID == job })
	if i < 0 {
		return nil, &OpError{Machine: c.name, Operation: wire.OpAdopt, Kind: wire.KindNotFound, Message: fmt.Sprintf("there is no job %q", job)}
	}
	from := Received{max(a.Received.Stdout, known[i].Stdout), max(a.Received.Stderr, known[i].Stderr)}
	started := time.Now()
	k, err := c.open(ctx, wire.OpAdopt, wire.AdoptRequest{Job: job, Stdout: from.Stdout, Stderr: from.Stderr}, nil)
	if err != nil {
		return nil, err
	}
	k.kept = a.Timeout
	p := &Process{call: k, started: started, adopted: &from, done: make(chan struct{})}
	var r wire.ExecResult
	go p.run(ctx, Command{Stdout: a.Stdout, Stderr: a.Stderr, Limit: a.Limit}, false, &r, &r)
	return p, nil
}
