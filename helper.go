package attest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
)

// startHelper starts a program of this host that works for the lab and is not on its
// networks, such as the interpreter of a test script. The directory is a new one for its files.
// Both end with the lab at the latest, and whatever way attest ends.
func (l *Lab) startHelper(ctx context.Context, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error) {
	p, err := l.host.startHelper(ctx, l.dir, prepare)
	if err == nil {
		context.AfterFunc(l.ctx, func() { p.Kill() })
	}
	return p, err
}

// startHelper is that of a lab, whose directory is below dir.
func (h *Host) startHelper(ctx context.Context, dir string, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error) {
	dir, err := os.MkdirTemp(dir, "h")
	if err != nil {
		return nil, &InfraError{Action: "create a directory for a helper", Err: err}
	}
	command, err := prepare(dir)
	if err != nil {
		return nil, err
	}
	p, err := h.supervisor.Start(ctx, command)
	if err != nil {
		return nil, &InfraError{Action: "start " + command.Path, Err: err}
	}
	return p, nil
}

// runProgram runs a program of this host that works for the lab: from its standard input to its
// standard output, of which at most maxOutput bytes count. The program ends with ctx.
func (l *Lab) runProgram(ctx context.Context, c supervise.Command, input []byte) ([]byte, error) {
	var files [3]*os.File
	for i, name := range []string{"input", "output", "messages"} {
		f, err := vmm.MemoryFile("attest-" + name)
		if err != nil {
			return nil, &InfraError{Action: "start " + c.Path, Err: err}
		}
		defer f.Close()
		files[i] = f
	}
	if _, err := files[0].WriteAt(input, 0); err != nil {
		return nil, &InfraError{Action: "start " + c.Path, Err: err}
	}
	c.Stdin, c.Stdout, c.Stderr, c.Whole = files[0], files[1], files[2], true
	p, err := l.host.supervisor.Start(ctx, c)
	if err != nil {
		return nil, &InfraError{Action: "start " + c.Path, Err: err}
	}
	stop := context.AfterFunc(ctx, func() { p.Kill() })
	defer stop()
	status, err := p.Wait(context.WithoutCancel(ctx))
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil && !status.Success():
		said, _ := io.ReadAll(io.NewSectionReader(files[2], 0, maxOutput))
		err = fmt.Errorf("%v%s", status, lastLine(string(said)))
	}
	if err != nil {
		return nil, &InfraError{Action: "run " + c.Path, Err: err}
	}
	return io.ReadAll(io.NewSectionReader(files[1], 0, maxOutput))
}

// maxOutput bounds what is read of a program's output.
const maxOutput = 16 << 20

// directories are those of this host that the start command of a machine knows: its own,
// and the one of all machines. They are made if they are missing, so that files can be put
// there before the first start. running is whether the machine is on.
func (l *Lab) directories(machine string) (state, shared string, running bool, err error) {
	m := l.Machine(machine)
	if m == nil {
		return "", "", false, fmt.Errorf("the lab has no machine %q", machine)
	}
	state, shared = m.dir, filepath.Join(l.scratch, sharedDir)
	if f, ok := m.kind.(*foreign); ok {
		state = m.disks()
		err = f.makeDirectories(shared)
	}
	return state, shared, m.running() != nil, err
}

// outDir is where operations put files, as an absolute path.
func (l *Lab) outDir() string {
	dir, err := filepath.Abs(l.config.OutDir)
	if err != nil {
		return l.config.OutDir
	}
	return dir
}
