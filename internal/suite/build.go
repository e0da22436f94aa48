package suite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/atomicfile"
	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/tree"
)

// A Commander is a Host that runs commands of the host beside machines: they end with it,
// whatever way that ends.
type Commander interface {
	Host
	Command(context.Context, supervise.Command) (*supervise.Process, error)
}

func (h realHost) Command(ctx context.Context, c supervise.Command) (*supervise.Process, error) {
	return access.StartOnHost(ctx, h.Host, c)
}

// A BuildError is a command of the host that was to make what a file tests, and did not.
type BuildError struct {
	script.Build
	Ended  string // "exit code 1"
	Killed bool   // by a signal that attest did not send
	Output string // the end of what it wrote
}

func (e *BuildError) Error() string { return fmt.Sprintf("build %q failed (%s)", e.Command, e.Ended) }

// Status is that of a mistake in what is built: no test has run. A command that was
// killed says nothing of it, and something of the host.
func (e *BuildError) Status() event.Status {
	if e.Killed {
		return event.Infra
	}
	return event.Invalid
}

// builds are the commands of a run, each of which runs once.
type builds struct {
	mu   sync.Mutex
	done map[string]func() error
}

// build runs what a file has to be built with, and looks for what its machines get.
func (r *run) build(ctx context.Context, f *file) error {
	if b, ok := f.script.(script.Builder); ok && !r.opts.NoBuild {
		for _, b := range b.Builds() {
			if err := r.builds.once(b, func() error { return r.command(ctx, b) }); err != nil {
				return placed(b.Place, err)
			}
		}
	}
	err := f.checkFiles()
	for _, m := range f.script.Machines() {
		for _, path := range sourcesOf(m) {
			r.opts.Standing.follow(path)
		}
	}
	return err
}

// once runs a command unless it has run.
func (b *builds) once(of script.Build, run func() error) error {
	key := of.Dir + "\x00" + of.Command
	b.mu.Lock()
	if b.done == nil {
		b.done = map[string]func() error{}
	}
	if b.done[key] == nil {
		b.done[key] = sync.OnceValue(run)
	}
	do := b.done[key]
	b.mu.Unlock()
	return do()
}

// needsBuild reports whether files of the machines may have to be built first.
func (r *run) needsBuild(f *file) bool {
	b, ok := f.script.(script.Builder)
	return ok && len(b.Builds()) > 0 && !r.opts.NoBuild
}

// checkFiles refuses files of machines that the host does not have.
func (f *file) checkFiles() error {
	for _, m := range f.script.Machines() {
		err := access.CheckFiles(m)
		if err == nil {
			continue
		}
		l, ok := f.script.(script.Locator)
		if !ok {
			return err
		}
		return placed(l.Declared(m.Name), err)
	}
	return nil
}

// placed is an error with the place that is to blame; nil if none is known.
func placed(at *script.Error, err error) error {
	if at == nil {
		return err
	}
	e := *at
	e.Err = err
	return &e
}

// sourcesOf are the files and trees of the host that a machine is made of.
func sourcesOf(m attest.MachineConfig) []string {
	var out []string
	for _, path := range m.Mount {
		out = append(out, path)
	}
	for _, f := range m.Files {
		if f.Path != "" {
			out = append(out, f.Path)
		}
	}
	if d, ok := m.Image.(attest.Debian); ok {
		for _, f := range d.Files {
			if f.Path != "" {
				out = append(out, f.Path)
			}
		}
	}
	return out
}

// A stamp is what a command has read and made when it succeeded last.
type stamp struct {
	Inputs, Outputs map[string]tree.Tree
}

// command runs one command, unless nothing has changed since it succeeded last.
func (r *run) command(ctx context.Context, b script.Build) error {
	var now stamp
	path, old := lastStamp(b)
	var err error
	if now.Inputs, err = listPaths(b.Dir, b.Inputs, old.Inputs); err != nil {
		return refusef(event.Invalid, "build: input %v", err)
	}
	for path := range now.Inputs {
		r.opts.Standing.follow(path)
	}
	if len(b.Inputs) == 0 {
		r.opts.Standing.unfollowed(b.Command)
	}
	if len(b.Outputs) > 0 && same(now.Inputs, old.Inputs) {
		if made, err := listPaths(b.Dir, b.Outputs, old.Outputs); err == nil && same(made, old.Outputs) {
			return nil
		}
	}
	if err := r.execute(ctx, b); err != nil || len(b.Outputs) == 0 {
		return err
	}
	if now.Outputs, err = listPaths(b.Dir, b.Outputs, nil); err != nil {
		return refusef(event.Invalid, "build %q succeeded, and did not make its output %v", b.Command, err)
	}
	if err := writeStamp(path, now); err != nil {
		event.Warnf(ctx, "build %q will run again next time: %v", b.Command, err)
	}
	return nil
}

func lastStamp(b script.Build) (path string, s stamp) {
	root, err := cache.Root()
	if err != nil {
		return "", s
	}
	key, err := json.Marshal([]any{b.Dir, b.Command, b.Inputs, b.Outputs})
	if err != nil {
		return "", s
	}
	sum := sha256.Sum256(key)
	path = filepath.Join(root, "build", hex.EncodeToString(sum[:16])+".json")
	if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &s) != nil {
		s = stamp{}
	}
	return path, s
}

func writeStamp(path string, s stamp) error {
	if path == "" {
		return errors.New("there is no cache directory")
	}
	data, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err != nil {
		return err
	}
	f, err := atomicfile.Create(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer f.Discard()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit(path)
}

// listPaths is what is at paths, by absolute paths. One that is not there is an error, and so is
// a pattern that nothing matches.
func listPaths(dir string, paths []string, before map[string]tree.Tree) (map[string]tree.Tree, error) {
	out := map[string]tree.Tree{}
	for _, p := range paths {
		full := p
		if !filepath.IsAbs(p) {
			full = filepath.Join(dir, p)
		}
		found := []string{full}
		if strings.ContainsAny(p, `*?[\`) {
			found, _ = filepath.Glob(full) // a bad pattern was refused when the file was read
			if len(found) == 0 {
				return nil, fmt.Errorf("%q: nothing matches it in %s", p, dir)
			}
		}
		for _, f := range found {
			t, err := tree.Scan(f, before[f])
			if err != nil {
				var path *os.PathError
				if errors.As(err, &path) {
					err = path.Err
				}
				return nil, fmt.Errorf("%q: %s: %w", p, f, err)
			}
			out[f] = t
		}
	}
	return out, nil
}

func same(a, b map[string]tree.Tree) bool {
	if len(a) != len(b) {
		return false
	}
	for path, t := range a {
		old, ok := b[path]
		if !ok || !t.Since(old).Empty() {
			return false
		}
	}
	return true
}

// maxBuildOutput is how much of the end of a command's output is shown.
const maxBuildOutput = 16 << 10

// execute runs a command to its end.
func (r *run) execute(ctx context.Context, b script.Build) (err error) {
	host, ok := r.host.(Commander)
	if !ok {
		return refusef(event.Unsupported, "build %q: this host runs no commands", b.Command)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return asInfra("make a pipe for a build", err)
	}
	defer out.Close()
	work := event.NewWork(ctx, "build: "+b.Command)
	work.Say("running")
	defer func() { work.Done(err) }()
	p, err := host.Command(ctx, supervise.Command{Path: "/bin/sh", Args: []string{"sh", "-c", b.Command}, Dir: b.Dir, Stdout: in, Stderr: in, Whole: true})
	in.Close()
	if err != nil {
		return asInfra("start a build", err)
	}
	stop := context.AfterFunc(ctx, func() { p.Kill() })
	defer stop()
	var tail lastBytes
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(&tail, out)
	}()
	<-p.Done()
	// Its group is gone; what has left that may hold the pipe.
	out.SetReadDeadline(time.Now().Add(time.Second))
	<-read
	status := p.Status()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case status.Success():
		return nil
	}
	failed := &BuildError{Build: b, Ended: fmt.Sprintf("exit code %d", status.ExitCode), Output: tail.String()}
	if status.Signal != 0 || status.ExitCode == 128+int(syscall.SIGKILL) {
		failed.Ended, failed.Killed = status.String(), true
	}
	return failed
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	kept []byte
	more bool
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.kept = append(l.kept, p...)
	if n := len(l.kept) - maxBuildOutput; n > 0 {
		l.more = true
		l.kept = append(l.kept[:0], l.kept[n:]...)
	}
	return len(p), nil
}

func (l *lastBytes) String() string {
	kept := l.kept
	if l.more {
		_, kept, _ = bytes.Cut(kept, []byte("\n"))
		return "…\n" + string(kept)
	}
	return string(kept)
}
