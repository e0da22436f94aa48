package attest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

// An output is where a lab writes what is for the user: LabConfig.OutDir. What is
// there may come from a guest, so that nothing is written through a link.
type output struct {
	dir  string
	flat bool // LabConfig.FlatOutDir

	mu   sync.Mutex
	root *os.Root          // nil: nothing was written yet
	from map[string]string // by path below the directory: what was written there
}

// place is where something with a name goes, below the directory. What a test file
// asks for is in a directory of its test and of its machine, unless the directory is flat.
func (o *output) place(ctx context.Context, machine, name string) string {
	if scope := event.ScopeOf(ctx); scope.File != "" && !o.flat {
		return filepath.Join(scope.Name(), machine) + "/" + name
	}
	return name
}

// open returns the directory, which is made if it is missing.
func (o *output) open() (*os.Root, error) {
	if o.root != nil {
		return o.root, nil
	}
	dir := cmp.Or(o.dir, ".")
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		o.root, err = os.OpenRoot(dir)
	}
	return o.root, err
}

// claim says that something is written to a path. It is an error if something else
// was, since one of the two would be lost. In a flat directory the later one wins.
func (o *output) claim(path, what string) error {
	path = filepath.Clean(path)
	if o.flat {
		return nil
	}
	if before, ok := o.from[path]; ok && before != what {
		return &ConfigError{what, fmt.Sprintf("%s has been written already, by %s; give one of the two another name", filepath.Join(o.dir, path), before)}
	}
	if o.from == nil {
		o.from = map[string]string{}
	}
	o.from[path] = what
	return nil
}

// directory opens a directory for what (an operation of a machine) writes under a
// name there. A path that is absolute is the caller's own.
func (o *output) directory(dir, name, what string) (*os.Root, string, error) {
	if filepath.IsAbs(dir) {
		err := os.MkdirAll(dir, 0o755)
		if err != nil {
			return nil, "", err
		}
		root, err := os.OpenRoot(dir)
		return root, filepath.Join(dir, name), err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	root, err := o.open()
	if err == nil {
		err = o.claim(filepath.Join(dir, name), what)
	}
	if err != nil {
		return nil, "", err
	}
	in, err := tarfs.OpenDir(root, dir)
	return in, filepath.Join(o.dir, dir, name), err
}

// create makes a file likewise, or empties it.
func (o *output) create(name, what string) (*os.File, string, error) {
	if filepath.IsAbs(name) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, "", err
		}
		f, err := os.Create(name)
		return f, name, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	root, err := o.open()
	if err == nil {
		err = o.claim(name, what)
	}
	if err != nil {
		return nil, "", err
	}
	f, err := tarfs.Create(root, name)
	return f, filepath.Join(o.dir, name), err
}

func (o *output) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.root == nil {
		return nil
	}
	err := o.root.Close()
	o.root = nil
	return err
}
