package operation

import (
	"context"
	"fmt"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/supervise"
)

// A Runner runs operations on a lab. Front ends know a lab only by this, so
// that they can be tried without virtual machines.
type Runner interface {
	// Invoke runs one operation on an object: a MachineName, a Handle, or nil
	// for the lab and for a kind's global object. What is returned has the Go
	// type of the operation's result: nil, string, bool, int, float64, []string,
	// map[string]string, MachineName, []MachineName, Handle or Result.
	Invoke(ctx context.Context, object any, o *Operation, args Args) (any, error)
	// Close ends the lab.
	Close() error
}

// A Settler is a Runner in which tests leave things behind that end with them,
// such as faults of the network.
type Settler interface {
	// Settle ends what the test that ctx belongs to has left, and says so.
	Settle(ctx context.Context) error
}

// A Snapshotter is a Runner whose lab can be forked.
type Snapshotter interface {
	Snapshot(ctx context.Context) (Snapshot, error)
}

// A Booter is a Runner that knows whether its machines have booted.
type Booter interface {
	// AwaitBooted waits until the boots of all machines that run are over.
	AwaitBooted(ctx context.Context) error
}

// A Saver is a Runner whose lab can be written to a directory, to be opened again.
type Saver interface {
	Save(ctx context.Context, dir string) error
}

// A Snapshot is the state of a lab. It outlives the lab.
type Snapshot interface {
	// Fork makes a lab of its own that goes on from here. Any number of forks
	// can be made, also at once.
	Fork(ctx context.Context) (Runner, error)
	// Close gives the state up. Labs that were made of it live on.
	Close() error
}

// A Refresher is a Snapshot that stays of use when files of the host change.
type Refresher interface {
	// Refresh gives later forks the files and mounts that machines have now. It returns
	// what of them has changed after something in the guests had used it, if anything has:
	// what runs in the snapshot does not fit the files then.
	Refresh(ctx context.Context, machines []attest.MachineConfig) (used []string, err error)
}

// A Capturer is a Runner whose network can be captured.
type Capturer interface {
	// Capture writes all frames to a pcapng file until the test that ctx belongs
	// to is settled.
	Capture(ctx context.Context, path string) error
}

// A Helped is a Runner that starts programs of this host for a front end: they end with the lab.
type Helped interface {
	// StartHelper starts the program that prepare describes, which may put files into
	// a directory of its own.
	StartHelper(ctx context.Context, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error)
	// OutDir is where operations put files, as an absolute path.
	OutDir() string
	// Directories are those of this host that a machine's start command knows: its own,
	// and the one of all machines.
	Directories(machine string) (state, shared string, running bool, err error)
}

// Of returns the Runner of a lab.
func Of(lab *attest.Lab) Runner { return runner{lab} }

type runner struct{ *attest.Lab }

func (r runner) Capture(ctx context.Context, path string) error {
	_, err := r.Network().Capture(ctx, path)
	return err
}

func (r runner) StartHelper(ctx context.Context, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error) {
	return access.StartHelper(ctx, r.Lab, prepare)
}

func (r runner) OutDir() string { return access.OutDir(r.Lab) }

func (r runner) Directories(machine string) (state, shared string, running bool, err error) {
	return access.Directories(r.Lab, machine)
}

func (r runner) Settle(ctx context.Context) error { return access.Settle(ctx, r.Network()) }

func (r runner) AwaitBooted(ctx context.Context) error { return access.AwaitBooted(ctx, r.Lab) }

func (r runner) Snapshot(ctx context.Context) (Snapshot, error) {
	s, err := r.Lab.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return StateOf(s), nil
}

// StateOf is a snapshot for Runners.
func StateOf(s *attest.Snapshot) Snapshot { return snapshot{s} }

type snapshot struct{ *attest.Snapshot }

func (s snapshot) Fork(ctx context.Context) (Runner, error) {
	lab, err := s.Snapshot.Fork(ctx)
	if err != nil {
		return nil, err
	}
	return Of(lab), nil
}

func (s snapshot) Refresh(ctx context.Context, machines []attest.MachineConfig) ([]string, error) {
	return access.Refresh(ctx, s.Snapshot, machines)
}

func (r runner) Invoke(ctx context.Context, object any, o *Operation, args Args) (any, error) {
	ctx = In(ctx)
	t := target{lab: r.Lab}
	switch object := object.(type) {
	case MachineName:
		if t.machine = r.Machine(string(object)); t.machine == nil {
			return nil, fmt.Errorf("the lab has no machine %q", object)
		}
	case Handle:
		t.object = object.Value
	}
	result, err := o.call(ctx, t, args)
	switch r := result.(type) {
	case string:
		result = Text(ctx, object, o, r)
	}
	return result, err
}

// Error adds to an operation's error where it comes from; its text stays the same.
type Error struct {
	Machine   string // empty for operations of the lab
	Operation string
	Err       error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }
