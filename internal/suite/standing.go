package suite

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/tree"
	"github.com/attest-vm/attest/internal/watch"
)

// A Standing is what outlives a run so that the next one begins with it: the host, and
// the states that setups have left. A run that has one follows what it depends on, and
// Await waits until some of that changes. The zero value is ready to use; Close ends it.
type Standing struct {
	mu     sync.Mutex
	host   Host
	states map[string]*standingState // by file and way to start
	set    *watch.Set                // what the run depends on
	last   *watch.Set                // what the run before did
	files  []string                  // as Options.Files
	found  []string                  // what they stood for
	blind  []string                  // commands whose inputs are not known
}

// A standingState is what a setup has left.
type standingState struct {
	operation.Snapshot
	key string // of all that setup depends on, but for the machines' files
}

// follow adds a path to what the run depends on, as it is now. A nil Standing follows
// nothing.
func (s *Standing) follow(path string) {
	if s == nil {
		return
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set.Add(path, s.last)
}

// unfollowed notes a command that does not say what it reads.
func (s *Standing) unfollowed(command string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.blind, command) {
		s.blind = append(s.blind, command)
	}
}

// begin begins a run.
func (s *Standing) begin(files []string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.set = s.set, &watch.Set{}
	s.files, s.blind = files, nil
	s.found, _ = discover(files) // the run itself says why not
}

// keepOld goes on with what the run before depended on, when a run did not come to know
// what it depends on itself.
func (s *Standing) keepOld() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		for _, path := range s.last.Paths() {
			s.set.Add(path, s.last)
		}
	}
	for _, path := range s.files {
		if abs, err := filepath.Abs(path); err == nil && len(s.found) == 0 {
			s.set.Add(abs, s.last)
		}
	}
}

// Following says what Await waits for: how many files and directories, and which
// commands do not say what they read.
func (s *Standing) Following() (paths []string, blind []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set.Paths(), s.blind
}

// Await blocks until something has changed that the last run depends on, and returns
// what. What changed while the run went on counts, too.
func (s *Standing) Await(ctx context.Context) ([]string, error) {
	return s.set.Await(ctx, func() []string {
		var appeared []string
		if now, err := discover(s.files); err == nil {
			for _, path := range now {
				if !slices.Contains(s.found, path) {
					appeared = append(appeared, path)
				}
			}
		}
		return appeared
	})
}

// open opens the host, the first time.
func (s *Standing) open(ctx context.Context, open Opener) (Host, error) {
	if s == nil {
		return open(ctx)
	}
	if s.host == nil {
		host, err := open(ctx)
		if err != nil {
			return nil, err
		}
		s.host = host
	}
	return s.host, nil
}

// Close gives up all states, and closes the host.
func (s *Standing) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, state := range s.states {
		errs = append(errs, state.Close())
	}
	s.states = nil
	if s.host != nil {
		errs = append(errs, s.host.Close())
	}
	s.host = nil
	return errors.Join(errs...)
}

// drop gives up the state of a pass.
func (s *Standing) drop(name string) error {
	s.mu.Lock()
	state := s.states[name]
	delete(s.states, name)
	s.mu.Unlock()
	if state == nil {
		return nil
	}
	return state.Close()
}

// A lent state is not closed by who uses it.
type lent struct{ operation.Snapshot }

func (lent) Close() error { return nil }

// standing is the state that the setup of an earlier run has left, if a setup now would
// leave the same.
func (p *pass) standing(ctx context.Context) (operation.Snapshot, error) {
	s := p.suite.opts.Standing
	if s == nil {
		return nil, nil
	}
	name := p.file.path + "\x00" + p.label
	s.mu.Lock()
	state := s.states[name]
	s.mu.Unlock()
	if state == nil {
		return nil, nil
	}
	why := "setup, a machine or what they depend on has changed"
	if state.key == p.setupKey() {
		used, err := state.Snapshot.(operation.Refresher).Refresh(ctx, p.config().Machines)
		switch {
		case err == nil && len(used) == 0:
			return lent{state.Snapshot}, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			why = err.Error()
		default:
			why = "it had used what has changed (" + used[0]
			if n := len(used) - 1; n > 0 {
				why += " and more"
			}
			why += ")"
		}
	}
	if p.file.script.Setup() != nil {
		event.Logf(ctx, "setup runs again: %s", why)
	}
	return nil, asInfra("give up the state that setup left", s.drop(name))
}

// stand keeps a state for later runs, if it can be used again.
func (p *pass) stand(state operation.Snapshot) operation.Snapshot {
	s := p.suite.opts.Standing
	if _, ok := state.(operation.Refresher); s == nil || !ok {
		return state
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.states == nil {
		s.states = map[string]*standingState{}
	}
	s.states[p.file.path+"\x00"+p.label] = &standingState{state, p.setupKey()}
	return lent{state}
}

// setupKey is another one when setup may leave another state. Files and mounts of the
// machines are left out: they are looked at by themselves.
func (p *pass) setupKey() string {
	c := p.config()
	key := map[string]any{"networks": c.Networks, "out": c.OutDir, "dir": c.SourceDir}
	if f, ok := p.file.script.(script.Comparer); ok {
		key["file"] = f.SetupKey()
	}
	var machines []any
	for _, m := range c.Machines {
		m.Files, m.Mount = nil, nil
		machines = append(machines, m, imageKey(m.Image))
	}
	key["machines"] = machines
	data, err := json.Marshal(key)
	if err != nil {
		return "" // plain data; and no key is the same as none
	}
	return string(data)
}

// imageKey is another one when an image may be another one.
func imageKey(img attest.Image) any {
	if img == nil {
		return nil
	}
	spec := access.Spec(img)
	key, err := image.Key(spec)
	if err != nil {
		return err.Error()
	}
	paths := map[string]bool{}
	switch {
	case spec.Rootfs != nil:
		paths[spec.Rootfs.Path] = true
	case spec.Disk != nil:
		paths[spec.Disk.Path] = true
	case spec.Debian != nil:
		for _, f := range spec.Debian.Files {
			paths[f.Path] = true
		}
	}
	delete(paths, "")
	trees := map[string]tree.Tree{}
	for path := range maps.Keys(paths) {
		trees[path], _ = tree.Scan(path, nil) // what cannot be read is not built either
	}
	return []any{key, trees}
}

// Names are paths as a person reads them: the first few, relative to the current directory.
func Names(paths []string) string {
	const most = 3
	var names []string
	wd, err := filepath.Abs(".")
	for _, p := range paths {
		if rel, relErr := filepath.Rel(wd, p); err == nil && relErr == nil && filepath.IsLocal(rel) {
			p = rel
		}
		names = append(names, p)
	}
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return strings.Join(names, ", ")
}
