package mock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

// canned is a guest that follows a Script. Its files are in a directory of the
// machine's; nothing of it is executed.
type canned struct {
	*local
	script  *Script
	dir     string
	private bool // the directory is its own, to be removed

	unitsMu sync.Mutex
	changed chan struct{} // closed and replaced when the state of a unit changes
}

// filesDir is the directory of a canned guest's files, in that of the machine.
const filesDir = "files"

func newCanned(s *local, script *Script) (*canned, error) {
	c := &canned{local: s, script: script, dir: filepath.Join(s.machine.config.Dir, filesDir), changed: make(chan struct{})}
	s.state.Used, s.state.Units = make([]int, len(script.Answers)), map[string]string{}
	if s.machine.config.Dir == "" {
		dir, err := os.MkdirTemp("", "attest-mock")
		if err != nil {
			return nil, err
		}
		c.dir, c.private = dir, true
	} else if err := os.Mkdir(c.dir, 0o700); errors.Is(err, os.ErrExist) {
		return c, nil // of an earlier start, as a disk would be
	} else if err != nil {
		return nil, err
	}
	return c, c.writeFiles()
}

func (c *canned) writeFiles() error {
	for name, content := range c.script.Files {
		path := filepath.Join(c.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (c *canned) close() error {
	err := c.local.close()
	if c.private {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	return err
}

func (c *canned) run(ctx context.Context, m *Machine) {
	c.mu.Lock()
	boots := !c.restored
	c.mu.Unlock()
	if boots {
		m.Say(c.script.Console)
	}
	c.serve(ctx, m, c)
}

// save adds the files.
func (c *canned) save(w io.Writer) (device []byte, err error) {
	if device, err = c.local.save(w); err == nil {
		_, err = tarfs.Write(w, c.dir, filesDir)
	}
	return device, err
}

func (c *canned) load(r io.Reader, device []byte) error {
	if err := c.local.load(r, device); err != nil {
		return err
	}
	if len(c.state.Used) != len(c.script.Answers) {
		return errors.New("it was saved with another script")
	}
	if c.state.Units == nil {
		c.state.Units = map[string]string{}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(c.dir))
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = tarfs.Extract(r, root, filepath.Base(c.dir), 0)
	return err
}

// Operate answers from the script.
func (c *canned) Operate(stream *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error) {
	ctx := stream.Context()
	switch r.Op {
	case wire.OpIdentity, wire.OpClock, wire.OpSettle, wire.OpPower, wire.OpSuspend, wire.OpEcho:
		return c.local.Operate(stream, r, next)
	}
	if err := pause(ctx, time.Duration(c.machine.faults.Delay)); err != nil {
		return nil, err
	}
	switch r.Op {
	case wire.OpWarm:
		return nil, nil
	case wire.OpExec:
		return decode(r, func(q wire.ExecRequest) (any, error) { return c.exec(stream, q, r.Body) })
	case wire.OpUntil:
		return decode(r, func(q wire.UntilRequest) (any, error) { return c.until(stream, q, r.Body) })
	case wire.OpWaitUnit:
		return decode(r, func(q wire.UnitRequest) (any, error) { return c.waitUnit(ctx, q) })
	case wire.OpWaitPort:
		return decode(r, func(q wire.PortRequest) (any, error) { return c.waitPort(ctx, q) })
	case wire.OpWaitSocket:
		return decode(r, func(q wire.SocketRequest) (any, error) { return c.waitSocket(ctx, q) })
	case wire.OpWaitFile:
		return decode(r, func(q wire.FileRequest) (any, error) {
			path, err := c.path(q.Path)
			if err != nil {
				return wire.Observation{}, err
			}
			q.Path = path
			return next(request(r, q))
		})
	case wire.OpPutTar, wire.OpGetTar:
		return decode(r, func(q wire.CopyRequest) (any, error) {
			path, err := c.path(string(q.Path))
			if err != nil {
				return nil, err
			}
			q.Path = []byte(path)
			return next(request(r, q))
		})
	case wire.OpLay:
		return decode(r, func(q wire.LayRequest) (any, error) {
			path, err := c.path(string(q.Path))
			if err != nil {
				return nil, err
			}
			q.Path = []byte(path)
			return next(request(r, q))
		})
	}
	return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("a machine with canned answers cannot do %q", r.Op)}
}

// path is where a file of the guest is. It may not lead out of the directory.
func (c *canned) path(name string) (string, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join("/tmp", name)
	}
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	inside := filepath.Join(".", filepath.Clean(name))
	// The nearest that exists: Root refuses links that lead outside.
	for at := inside; ; at = filepath.Dir(at) {
		_, err := root.Stat(at)
		if err == nil {
			return filepath.Join(c.dir, inside), nil
		}
		if !errors.Is(err, os.ErrNotExist) || at == "." {
			return "", err
		}
	}
}

// commandOf is what a request executes, as text.
func commandOf(stream *wire.Stream, q wire.ExecRequest, body []byte) (string, error) {
	if len(q.Argv) > 0 {
		return strings.Join(q.Argv, " "), nil
	}
	if q.Long {
		var err error
		if body, err = io.ReadAll(stream.Reader(wire.Script)); err != nil {
			return "", err
		}
	}
	return string(body), nil
}

// answer is the next one for a command.
func (c *canned) answer(command string) Answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, a := range c.script.Answers {
		if (a.Times == 0 || c.state.Used[i] < a.Times) && a.pattern.MatchString(command) {
			c.state.Used[i]++
			return a
		}
	}
	return Answer{ExitCode: notFound, Stderr: fmt.Sprintf("mock: there is no canned answer for %q\n", command)}
}

// notFound is a shell's exit code for a command that does not exist.
const notFound = 127

func (c *canned) exec(stream *wire.Stream, q wire.ExecRequest, body []byte) (any, error) {
	command, err := commandOf(stream, q, body)
	if err != nil {
		return nil, err
	}
	if q.Stdin {
		if _, err := io.Copy(io.Discard, stream.Reader(wire.Stdin)); err != nil {
			return nil, err
		}
	}
	if q.Detach {
		a := c.answer(command)
		go func() { // it goes on when the operation is over
			select {
			case <-time.After(time.Duration(a.Delay)):
				c.happen(a)
			case <-c.machine.done:
			}
		}()
		return wire.ExecResult{Pid: firstPid}, nil
	}
	return c.perform(stream, command, q.Timeout)
}

// firstPid is the process number of what runs in the background.
const firstPid = 2

// perform gives the answer to a command.
func (c *canned) perform(stream *wire.Stream, command string, limit time.Duration) (r wire.ExecResult, err error) {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	stream.OnSignal(func(s syscall.Signal) { cancel(killedBy(s)) })
	defer stream.OnSignal(nil)
	begun := time.Now()
	defer func() { r.Duration = time.Since(begun) }()
	a := c.answer(command)
	delay := time.Duration(a.Delay)
	if r.TimedOut = limit > 0 && delay >= limit; r.TimedOut {
		delay = limit
	}
	var signal killedBy
	switch err := pause(ctx, delay); {
	case errors.As(err, &signal):
		r.ExitCode, r.Signal, r.TimedOut = 128+int(signal), unix.SignalName(syscall.Signal(signal)), false
		return r, nil
	case err != nil:
		return r, err
	case r.TimedOut:
		r.ExitCode = exitTimeout
		return r, nil
	}
	if _, err := stream.Write(wire.Stdout, []byte(a.Stdout)); err != nil {
		return r, err
	}
	if _, err := stream.Write(wire.Stderr, []byte(a.Stderr)); err != nil {
		return r, err
	}
	c.happen(a)
	if a.End != "" {
		<-ctx.Done() // there is no answer
		return r, context.Cause(ctx)
	}
	r.ExitCode = a.ExitCode
	return r, nil
}

// exitTimeout is the agent's exit code for a command whose time was over.
const exitTimeout = 124

// killedBy is a signal to a command.
type killedBy syscall.Signal

func (k killedBy) Error() string { return "killed by " + unix.SignalName(syscall.Signal(k)) }

// happen does what an answer does beside answering.
func (c *canned) happen(a Answer) {
	c.machine.Say(a.Console)
	c.setUnits(a.Units)
	switch a.End {
	case "":
	case endHang:
		c.machine.Hang(true)
	default:
		go c.machine.End(vmm.ExitReason(a.End), "as the script says")
	}
}

func (c *canned) until(stream *wire.Stream, q wire.UntilRequest, body []byte) (any, error) {
	command, err := commandOf(stream, q.Exec, body)
	if err != nil {
		return nil, err
	}
	var r wire.UntilResult
	begun := time.Now()
	for wait := max(q.MinPause, time.Millisecond); ; wait = min(2*wait, max(q.MaxPause, q.MinPause)) {
		if r.Tries > 0 {
			stream.Restart(wire.Stdout)
			stream.Restart(wire.Stderr)
		}
		r.Tries++
		left := max(q.Deadline-time.Since(begun), time.Millisecond)
		limit := left
		if q.Exec.Timeout > 0 {
			limit = min(left, q.Exec.Timeout)
		}
		if r.ExecResult, err = c.perform(stream, command, limit); err != nil {
			return r, err
		}
		if code := r.ExitCode; !r.TimedOut {
			r.Ended = &code
		}
		if r.Met = (r.ExitCode != 0) == q.Fail; r.Met || q.Once || time.Since(begun)+wait >= q.Deadline {
			return r, nil
		}
		if err := pause(stream.Context(), wait); err != nil {
			return r, err
		}
	}
}

func (c *canned) setUnits(units map[string]string) {
	if len(units) == 0 {
		return
	}
	c.mu.Lock()
	for unit, state := range units {
		c.state.Units[unit] = state
	}
	c.mu.Unlock()
	c.unitsMu.Lock()
	defer c.unitsMu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
}

// unit is a unit's state now.
func (c *canned) unit(name string) (state string, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state, known = c.state.Units[name]; !known {
		state, known = c.script.Units[name]
	}
	return state, known
}

// waitUnit waits for "active". States that systemd leaves by itself, such as
// "activating", are waited out.
func (c *canned) waitUnit(ctx context.Context, q wire.UnitRequest) (any, error) {
	if !strings.Contains(q.Unit, ".") {
		q.Unit += ".service"
	}
	for {
		c.unitsMu.Lock()
		changed := c.changed
		c.unitsMu.Unlock()
		state, known := c.unit(q.Unit)
		seen := wire.UnitState{ActiveState: state, SubState: state, LoadState: "loaded"}
		switch {
		case !known:
			return wire.UnitState{ActiveState: "inactive", LoadState: "not-found"}, &wire.Error{Kind: wire.KindUnit, Message: `cannot be started: its load state is "not-found" (the mock's script has no unit of this name)`}
		case state == "active":
			return seen, nil
		case !strings.HasSuffix(state, "ing"):
			return seen, &wire.Error{Kind: wire.KindUnit, Message: hopeless(state)}
		case q.Once:
			return seen, &wire.Error{Kind: wire.KindTimeout, Message: "not yet"}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return seen, context.Cause(ctx)
		}
	}
}

// hopeless is what a wait for a unit says of a state that the unit does not leave by itself, as systemd's
// units have it said of them.
func hopeless(state string) string {
	if state == "inactive" {
		return "is inactive and there are no pending jobs"
	}
	return fmt.Sprintf("reached state %q", state)
}

// waitPort knows the script's ports, which never change.
func (c *canned) waitPort(ctx context.Context, q wire.PortRequest) (any, error) {
	return isListed(ctx, fmt.Sprintf("port %d", q.Port), slices.Contains(c.script.Ports, q.Port), q.Closed, q.Once)
}

func (c *canned) waitSocket(ctx context.Context, q wire.SocketRequest) (any, error) {
	return isListed(ctx, "socket "+q.Path, slices.Contains(c.script.Sockets, q.Path), false, q.Once)
}

// isListed waits until something is in the script, or is not: at once, or never.
func isListed(ctx context.Context, what string, listed, absent, once bool) (any, error) {
	seen := wire.Observation{Tries: 1, Seen: what + " is in the script"}
	if !listed {
		seen.Seen = what + " is not in the script"
	}
	if listed != absent {
		return seen, nil
	}
	if !once {
		<-ctx.Done()
	}
	return seen, &wire.Error{Kind: wire.KindTimeout, Message: "not yet"}
}
