package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command is a process to start.
type Command struct {
	Path string   // a name without a slash is looked up on the client's PATH
	Args []string // argv with argv[0]; empty: just Path
	Env  []string // nil: the client's; of a variable that is there twice the last one counts
	Dir  string   // empty: the client's

	Stdin, Stdout, Stderr *os.File   // nil: /dev/null
	ExtraFiles            []*os.File // descriptors from 3 on

	// Isolate gives the process a mount and a PID namespace of its own when
	// the supervisor runs as root: when the process ends, everything that it started
	// and mounted ends with it. A process that dies of a
	// signal then has the exit code 128+n, as in a shell. With Network, for which it then
	// takes a root that needs no user namespace, the process itself is the first of its PID
	// namespace.
	Isolate bool

	// Whole ends the whole process group when the process ends: its children too,
	// unless they have left the group.
	Whole bool

	// Network gives the process a network namespace of its own, in which it is
	// root. It is also in a user namespace, unless the supervisor runs as a root that
	// needs none. On a host that forbids it, Start returns an *os.PathError.
	Network bool

	// Contained makes the process the first of a user, mount, PID, UTS, IPC and
	// network namespace of its own, in which it is root. A host that forbids it is an
	// *os.PathError.
	Contained bool

	// View limits what the process sees of the host; nil: it sees what the client
	// does. It is not for one in namespaces of its own (package tap does that), and takes a
	// kernel that can (CanView).
	View *View
}

func (c *Command) request(stateDir string) (*startRequest, []*os.File, error) {
	r := &startRequest{
		Path: c.Path, Args: c.Args, Dir: c.Dir,
		Env:     environ(c.Env, stateDir),
		Extra:   len(c.ExtraFiles),
		Isolate: c.Isolate,
		Whole:   c.Whole,
		Network: c.Network,

		Contained: c.Contained,
		View:      c.View,
	}
	var err error
	if !strings.Contains(r.Path, "/") {
		if r.Path, err = exec.LookPath(r.Path); err != nil {
			return nil, nil, err
		}
	}
	if len(r.Args) == 0 {
		r.Args = []string{c.Path}
	}
	if r.Dir == "" {
		if r.Dir, err = os.Getwd(); err != nil {
			return nil, nil, err
		}
	}
	var files []*os.File
	for i, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if r.Null[i] = f == nil; f != nil {
			files = append(files, f)
		}
	}
	files = append(files, c.ExtraFiles...)
	if len(files) > maxFiles {
		return nil, nil, fmt.Errorf("start %s: %d files, and at most %d can be handed over", c.Path, len(files), maxFiles)
	}
	return r, files, nil
}

// Process is a process that a supervisor started. It leads a process group.
// What it leaves behind when it ends lives until the supervisor ends.
type Process struct {
	supervisor *Supervisor
	id         uint64
	path       string
	started    chan struct{}
	done       chan struct{}

	pid    int    // set before started is closed
	status Status // set before done is closed
	err    error  // likewise
}

// Status is how a process ended.
type Status struct {
	ExitCode int            // 0 to 255; -1 if it did not exit by itself
	Signal   syscall.Signal // what killed it, or 0
	Lost     bool           // it was killed because the supervisor died
}

// Success reports whether the process exited with 0.
func (s Status) Success() bool { return s.ExitCode == 0 && s.Signal == 0 }

func (s Status) String() string {
	switch {
	case s.Lost:
		return "lost with its supervisor"
	case s.Signal != 0:
		return "killed by " + unix.SignalName(s.Signal)
	default:
		return fmt.Sprintf("exit status %d", s.ExitCode)
	}
}

// Pid is the process id, also of the process group.
func (p *Process) Pid() int { return p.pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status returns how the process ended, or the zero Status while it runs.
func (p *Process) Status() Status {
	select {
	case <-p.done:
		return p.status
	default:
		return Status{}
	}
}

// Wait blocks until the process ends. The error is ctx's, or the supervisor's
// if the process was lost with it.
func (p *Process) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.done:
		return p.status, p.err
	default:
	}
	select {
	case <-p.done:
		return p.status, p.err
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
}

// Signal sends sig to the whole process group. A process that has ended is
// os.ErrProcessDone.
func (p *Process) Signal(sig syscall.Signal) error {
	if sig <= 0 {
		return fmt.Errorf("signal %s: %w", p.path, syscall.EINVAL)
	}
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
	}
	if err := p.signal(sig); err != nil {
		// The supervisor is gone or going, and the process with it.
		<-p.done
		return os.ErrProcessDone
	}
	return nil
}

// Kill sends SIGKILL to the whole process group. It is not an error if the process
// has ended. It does not wait.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (p *Process) signal(sig syscall.Signal) error {
	return p.supervisor.send(request{ID: p.id, Signal: sig}, nil)
}

// finish is called once, with the supervisor's mutex held.
func (p *Process) finish(status Status, err error) {
	p.status, p.err = status, err
	close(p.done)
}
