package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"

	"os"
	"path/filepath"
	"time"

	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
)

// A Spec is what a VMM is started with.
type Spec struct {
	Path  string
	Args  []string // without argv[0]
	Dir   string   // of its own: what is there is removed before, and all of it at the end
	Files []*os.File
	NICs  []vmm.NIC       // with a TAP each, called TAPName
	View  *supervise.View // what it sees of the host; nil: what this process does
	Links map[string]string

	// Argv is what the program is started with, if it is not its name and Args.
	Argv []string
	// First makes it the first process of a PID and mount namespace (supervise.Command.Isolate),
	// in a network namespace of its own also without network cards.
	First bool
}

// View is what the VMM of a machine sees of the host; nil: all of it (vmm.WhyVisible).
func View(p Program, c vmm.Config) *supervise.View {
	if vmm.WhyVisible(p.Path, false) != "" {
		return nil
	}
	v := vmm.View(p.Path, c, c.Boot.(*vmm.Hardware))
	if len(c.NICs) > 0 {
		v.Write = append(v.Write, "/dev/net/tun") // it opens its TAPs by their names
	}
	return v
}

// TAPName is the name of network card i's TAP in the VMM's namespace.
func TAPName(i int) string { return fmt.Sprintf("tap%d", i) }

// Inherit gives the VMM a copy of an open file, and returns the number of its descriptor.
func (s *Spec) Inherit(f *os.File) (fd int) {
	s.Files = append(s.Files, f)
	return 2 + len(s.Files)
}

// Inherited is the path by which a VMM opens a file that it has inherited.
func Inherited(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// CheckMemory compares the memory of a state with that of the machine, in MiB.
func CheckMemory(s *vmm.State, megabytes int) error {
	st, err := s.Memory.Stat()
	if err != nil {
		return err
	}
	if want := int64(megabytes) << 20; st.Size() != want {
		return fmt.Errorf("the saved memory has %d bytes, and the machine has %d", st.Size(), want)
	}
	return nil
}

// A Process is one VMM that runs.
type Process struct {
	*supervise.Process
	dir    string
	stdin  *os.File
	stdout *os.File
	Output *vmm.Tail // what it says of itself
	unused []*os.File
}

// Start starts a VMM in its directory. With network cards it is in a network namespace
// of its own, with a TAP for each: attest's side of the TAP is plugged into the card's
// cable. On error nothing is left.
func Start(ctx context.Context, host vmm.Host, s Spec) (_ *Process, err error) {
	p := &Process{dir: s.Dir}
	defer func() {
		if err != nil {
			p.Abandon()
		}
	}()
	if err := os.RemoveAll(s.Dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		return nil, err
	}
	for name, target := range s.Links {
		if err := os.Symlink(target, filepath.Join(s.Dir, name)); err != nil {
			return nil, err
		}
	}
	c := supervise.Command{Path: s.Path, Args: s.Argv, Dir: s.Dir, ExtraFiles: s.Files, View: s.View, Isolate: s.First}
	if c.Args == nil {
		c.Args = append([]string{filepath.Base(s.Path)}, s.Args...)
	}
	closeTheirs, err := p.pipes(&c)
	if err != nil {
		return nil, err
	}
	defer closeTheirs()
	if len(s.NICs) == 0 && !s.First {
		p.Process, err = host.Supervisor.Start(ctx, c)
		return p, err
	}
	links := make([]tap.Link, len(s.NICs))
	for i := range s.NICs {
		links[i] = tap.Link{Name: TAPName(i), ForVMM: true}
	}
	var taps []*os.File
	if p.Process, taps, err = tap.Start(ctx, host.Supervisor, c, links); err != nil {
		return nil, err
	}
	for i, f := range taps {
		if s.NICs[i].Link == nil {
			p.unused = append(p.unused, f)
		} else if plugErr := s.NICs[i].Link.TAP(f); plugErr != nil {
			err = errors.Join(err, plugErr)
		}
	}
	return p, err
}

// pipes makes the pipes to and from the VMM: the serial line, and what it says of itself.
func (p *Process) pipes(c *supervise.Command) (closeTheirs func(), err error) {
	var theirs []*os.File
	closeTheirs = func() {
		for _, f := range theirs {
			f.Close()
		}
	}
	pipe := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		r, w, err = os.Pipe()
		return r, w
	}
	c.Stdin, p.stdin = pipe()
	p.stdout, c.Stdout = pipe()
	stderr, w := pipe()
	c.Stderr = w
	for _, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if f != nil {
			theirs = append(theirs, f)
		}
	}
	if err != nil {
		if stderr != nil {
			stderr.Close()
		}
		closeTheirs()
		return nil, err
	}
	p.Output = vmm.NewTail(stderr)
	return closeTheirs, nil
}

// Stdout is the VMM's standard output. It ends with the VMM.
func (p *Process) Stdout() io.Reader { return p.stdout }

// Type writes to the VMM's standard input, until ctx ends.
func (p *Process) Type(ctx context.Context, text []byte) error { return Write(ctx, p.stdin, text) }

// Write writes to a pipe or a socket, until ctx ends.
func Write(ctx context.Context, w interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}, text []byte) error {
	stop := context.AfterFunc(ctx, func() { w.SetWriteDeadline(longAgo) })
	defer stop()
	_, err := w.Write(text)
	if ctx.Err() != nil {
		w.SetWriteDeadline(never)
		return context.Cause(ctx)
	}
	return err
}

// Abandon ends the VMM, if it runs, and removes what there is of it.
func (p *Process) Abandon() {
	if p.Process != nil {
		p.Kill()
		<-p.Done()
	}
	p.Finish()
}

// Finish releases what belongs to a VMM that has ended, and removes its directory. Its
// standard output has been read to its end, or nobody wants to.
func (p *Process) Finish() error {
	for _, f := range append(p.unused, p.stdin, p.stdout) {
		if f != nil {
			f.Close()
		}
	}
	p.Output.Finish()
	return os.RemoveAll(p.dir)
}

// Deadlines that interrupt at once, and never.
var longAgo, never = time.Unix(1, 0), time.Time{}
