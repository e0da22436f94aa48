package suite

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/supervise"
)

// A helpedHost is a Host that starts programs for front ends, as operation.Helped: they end with it.
type helpedHost interface {
	StartHelper(ctx context.Context, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error)
}

func (h realHost) StartHelper(ctx context.Context, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error) {
	return access.StartHelper(ctx, h.Host, prepare)
}

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
	helped, ok := host.(helpedHost)
	if !ok {
		return nil, errors.New("this host starts nothing early")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return nil, errors.New("nothing more is started early")
	}
	e.over = true
	e.process, err = helped.StartHelper(ctx, func(dir string) (supervise.Command, error) {
		e.dir = dir
		return prepare(dir)
	})
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
