package attest

import (
	"context"
	"os"
	"path/filepath"

	"github.com/attest-vm/attest/internal/supervise"
)

// startHelper starts a program of this host that works for the lab and is not on its
// networks, such as the interpreter of a test script. The directory is a new one for its files.
// Both end with the lab at the latest, and whatever way attest ends.
func (l *Lab) startHelper(ctx context.Context, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error) {
	dir, err := os.MkdirTemp(l.dir, "h")
	if err != nil {
		return nil, &InfraError{Action: "create a directory for a helper", Err: err}
	}
	command, err := prepare(dir)
	if err != nil {
		return nil, err
	}
	p, err := l.host.supervisor.Start(ctx, command)
	if err != nil {
		return nil, &InfraError{Action: "start " + command.Path, Err: err}
	}
	context.AfterFunc(l.ctx, func() { p.Kill() })
	return p, nil
}

// outDir is where operations put files, as an absolute path.
func (l *Lab) outDir() string {
	dir, err := filepath.Abs(l.config.OutDir)
	if err != nil {
		return l.config.OutDir
	}
	return dir
}
