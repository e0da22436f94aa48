package suite

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/attest-vm/attest/internal/supervise"
)

// An early starts one program on the host while files are read: the interpreter of the first
// test, say. It ends with the run at the latest.
type early struct {
	opened func() (Host, error)

	mu      sync.Mutex
	over    bool // it starts nothing any more
	dir     string
	process *supervise.Process
}

// start is a script.Starter.
func (e *early) start(ctx context.Context, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error) {
	host, err := e.opened()
	if err != nil {
		return nil, err
	}
	commander, ok := host.(interface {
		Commander
		StateDir() string
	})
	if !ok {
		return nil, errors.New("this host starts nothing early")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return nil, errors.New("nothing more is started early")
	}
	e.over = true
	if e.dir, err = os.MkdirTemp(commander.StateDir(), "h"); err != nil {
		return nil, err
	}
	command, err := prepare(e.dir)
	if err != nil {
		return nil, err
	}
	e.process, err = commander.Command(ctx, command)
	return e.process, err
}

// end ends what was started, and removes its files.
func (e *early) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	if e.process != nil {
		e.process.Kill()
		<-e.process.Done()
	}
	if e.dir != "" {
		os.RemoveAll(e.dir)
	}
}
