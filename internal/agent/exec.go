package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// killGrace is the time between SIGTERM and SIGKILL.
const killGrace = time.Second

// exitTimeout is the exit code of a command that ran into its timeout, as of
// timeout(1).
const exitTimeout = 124

// A child is a command that was started. Its process group is its own.
type child struct {
	pid    int
	signal func(syscall.Signal) // nil: it is a process of this system
	stdin  io.WriteCloser       // nil: the command reads /dev/null
	stdout *os.File
	stderr *os.File
	exited chan exit // receives once
	name   string    // an Excerpt of its script or arguments
	early  []int     // of a warm shell: stdout and stderr, until somebody has to wait for them
	warm   bool
}

// exit is how the first process of a command ended.
type exit struct {
	code   int
	signal syscall.Signal // 0: none
	err    error          // the command ran, but nobody knows how it ended
}

func (c *child) kill(sig syscall.Signal) {
	if c.signal != nil {
		c.signal(sig)
		return
	}
	unix.Kill(-c.pid, sig)
}

// An output takes what a command writes; channel is wire.Stdout or wire.Stderr.
type output interface {
	Write(channel int, p []byte) (int, error)
}

// exec is the operation wire.OpExec.
func (sh *shell) exec(stream *wire.Stream, q wire.ExecRequest, script []byte) (any, error) {
	script, err := longScript(stream, q, script)
	if err != nil {
		return nil, err
	}
	if q.Detach {
		return sh.detach(q, script)
	}
	ctx := stream.Context()
	start := time.Now()
	c, err := sh.start(ctx, q, script)
	if err != nil {
		return nil, err
	}
	stream.OnSignal(c.kill)
	defer stream.OnSignal(nil) // by then its number may be another's
	c.name = commandName(q, script)
	r, err := sh.wait(ctx, c, q, stream.Reader(wire.Stdin), stream)
	r.Duration = time.Since(start)
	return r, sh.downAs(r, err)
}

// commandName tells a command from others.
func commandName(q wire.ExecRequest, script []byte) string {
	if len(q.Argv) > 0 {
		return wire.Excerpt(strings.Join(q.Argv, " "))
	}
	return wire.Excerpt(string(script))
}

// downAs is the error of a command that the end of the guest may have ended.
func (sh *shell) downAs(r wire.ExecResult, err error) error {
	if (err != nil || r.ExitCode != 0) && sh.remote == nil && initIsEnding() {
		return errorf(wire.KindDown, "the guest is shutting down, which has ended the command")
	}
	return err
}

// longScript returns the text of the command, which comes on its own channel
// when it does not fit into the request.
func longScript(stream *wire.Stream, q wire.ExecRequest, script []byte) (_ []byte, err error) {
	if q.Long {
		script, err = io.ReadAll(stream.Reader(wire.Script))
	}
	if err == nil && bytes.IndexByte(script, 0) >= 0 {
		err = errorf(wire.KindInvalid, "a command cannot contain a NUL byte")
	}
	return script, err
}

// detach starts a command and leaves it alone.
func (sh *shell) detach(q wire.ExecRequest, script []byte) (any, error) {
	q.Stdin = false // nobody writes to it
	start := sh.startCold
	if sh.remote != nil {
		start = func(q wire.ExecRequest, script []byte) (*child, error) {
			return sh.startRemote(context.Background(), q, script)
		}
	}
	c, err := start(q, script)
	if err != nil {
		return nil, err
	}
	r := wire.ExecResult{Pid: c.pid}
	sh.background.Go(func() { sh.wait(context.Background(), c, q, nil, nil) })
	return r, nil
}

// wait carries the command's bytes until it has ended and its standard output
// too, or until its time is up.
func (sh *shell) wait(ctx context.Context, c *child, q wire.ExecRequest, stdin io.Reader, out output) (wire.ExecResult, error) {
	if c.stdin != nil {
		sh.background.Go(func() {
			io.Copy(c.stdin, stdin) // ends with the stream at the latest
			c.stdin.Close()
		})
	}
	if c.early != nil {
		if r, ok := c.quick(ctx, out); ok {
			return r, nil
		}
	}
	stdoutDone := make(chan struct{})
	stderrDone := make(chan struct{})
	if c.stdout != nil {
		sh.background.Go(func() { pump(c.stdout, out, wire.Stdout, stdoutDone) })
		sh.background.Go(func() { pump(c.stderr, out, wire.Stderr, stderrDone) })
	} else {
		close(stdoutDone)
		close(stderrDone)
	}

	var (
		r        = wire.ExecResult{Warm: c.warm}
		e        exit
		exited   = c.exited
		canceled = ctx.Done()
		next     = syscall.SIGTERM // what to send when timer fires
		timer    <-chan time.Time
		waiting  = stdoutDone
	)
	if q.Timeout > 0 {
		t := time.NewTimer(q.Timeout)
		defer t.Stop()
		timer = t.C
	}
	killed := func() bool { return next != syscall.SIGTERM }
	for exited != nil || waiting != nil {
		select {
		case e = <-exited:
			exited = nil
			if waiting != nil {
				sh.lingering.add(c)
				defer sh.lingering.remove(c)
			}
			if killed() || e.err != nil {
				c.kill(syscall.SIGKILL) // the others of the group had their chance
			}
		case <-waiting:
			waiting = nil
		case <-canceled:
			canceled = nil
			if killed() {
				continue
			}
			if exited == nil {
				r.Held = c.holders()
			}
			c.kill(syscall.SIGTERM)
			c.kill(syscall.SIGCONT)
			next, timer = syscall.SIGKILL, time.After(killGrace)
		case <-timer:
			if next == syscall.SIGKILL && exited == nil {
				// Somebody who left the process group holds standard output.
				waiting = nil
			}
			if next == syscall.SIGTERM {
				r.TimedOut = true
				if exited == nil {
					r.Held = c.holders()
				}
			}
			c.kill(next)
			c.kill(syscall.SIGCONT) // one that is stopped dies, too
			next, timer = syscall.SIGKILL, time.After(killGrace)
		}
	}
	settle(c.stdout, stdoutDone)
	settle(c.stderr, stderrDone)
	r.ExitCode = e.code
	if e.signal != 0 {
		r.Signal = unix.SignalName(e.signal)
	}
	if r.TimedOut {
		r.ExitCode, r.Signal, e.err = exitTimeout, "", nil
	}
	return r, e.err
}

// quickTime is how long a command on a warm shell may take before its output is
// waited for. One that ends before wakes the agent once, by its end.
const quickTime = 5 * time.Millisecond

// quick is wait for a command that ends soon and leaves nothing behind. ok is
// false if it does not; then nothing has happened yet but that some of its
// output has been passed on.
func (c *child) quick(ctx context.Context, out output) (r wire.ExecResult, ok bool) {
	timer := time.NewTimer(quickTime)
	defer timer.Stop()
	select {
	case e := <-c.exited:
		if e.err == nil && drainFD(c.early[0], out, wire.Stdout) {
			if drainFD(c.early[1], out, wire.Stderr) {
				unix.Close(c.early[0])
				unix.Close(c.early[1])
				r.ExitCode, r.Warm = e.code, true
				if e.signal != 0 {
					r.Signal = unix.SignalName(e.signal)
				}
				return r, true
			}
		}
		c.exited <- e
	case <-timer.C:
	case <-ctx.Done():
	}
	c.stdout = os.NewFile(uintptr(c.early[0]), "stdout")
	c.stderr = os.NewFile(uintptr(c.early[1]), "stderr")
	return r, false
}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// drainFD passes on what can be read without waiting, and says whether that was all.
func drainFD(fd int, out output, channel int) bool {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := unix.Read(fd, buf[:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false
		case n == 0:
			return true
		}
		if _, err := out.Write(channel, buf[:n]); err != nil {
			return false
		}
	}
}

// pump copies what the command writes until the end of the pipe. When settle
// asks for it, it passes on what is there at that moment, closes done, and
// reads on: a process that stays in the background must not die of SIGPIPE.
func pump(f *os.File, out output, channel int, done chan<- struct{}) {
	defer f.Close()
	b := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(b)
	buf := b[:]
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if _, werr := out.Write(channel, buf[:n]); werr != nil {
				break // nobody listens any more; the context says why
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			drain(f, buf, out, channel)
			break
		}
		if err != nil {
			close(done)
			return
		}
	}
	close(done)
	f.SetReadDeadline(time.Time{})
	io.Copy(io.Discard, f)
}

// settle waits until pump has passed on what there is.
func settle(f *os.File, done <-chan struct{}) {
	select {
	case <-done:
		return
	default:
	}
	f.SetReadDeadline(time.Unix(0, 1))
	<-done
}

// drain passes on what can be read without waiting.
func drain(f *os.File, buf []byte, out output, channel int) {
	f.SetReadDeadline(time.Time{})
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	for {
		n := 0
		raw.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), buf)
			return true
		})
		if n <= 0 || err != nil {
			return
		}
		if _, err := out.Write(channel, buf[:n]); err != nil {
			return
		}
	}
}

// shellExit is the exit of a shell. Like the shell itself it says 128+N for a
// command that died of signal N, so the name is that of the code.
func shellExit(code int) exit {
	e := exit{code: code}
	if n := syscall.Signal(code - 128); code > 128 && unix.SignalName(n) != "" {
		e.signal = n
	}
	return e
}

// coldArgs is how a script is run when no warm shell can do it. Without bash it
// is sh, which knows no pipefail.
func (sh *shell) coldArgs(script []byte) (argv []string, extra *os.File, err error) {
	const maxArg = 128<<10 - 64 // MAX_ARG_STRLEN: one argument of execve(2)
	name, options := "bash", "set -euo pipefail; "
	if !sh.isBash {
		name, options = "sh", "set -eu; "
	}
	if len(script) < maxArg {
		return []string{name, "-c", options + string(script)}, nil, nil
	}
	if !sh.isBash {
		return nil, nil, errorf(wire.KindInvalid, "a command of %d bytes needs bash in the guest", len(script))
	}
	if extra, err = memfd(script); err != nil {
		return nil, nil, err
	}
	return []string{name, "-c", `eval "exec 3<&-; ` + options + `$(</proc/self/fd/3)"`}, extra, nil
}

// memfd is a file in memory that can be read from its start.
func memfd(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("script", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "script")
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// startCold starts a command as a process of its own.
func (sh *shell) startCold(q wire.ExecRequest, script []byte) (*child, error) {
	sh.prepare()
	argv, path := q.Argv, ""
	var extra *os.File
	var err error
	env, dir, cred, err := sh.surroundings(q)
	if err != nil {
		return nil, err
	}
	if len(argv) == 0 {
		path = sh.path
		if argv, extra, err = sh.coldArgs(script); err != nil {
			return nil, err
		}
		defer extra.Close() // a nil file is fine
	} else if path, err = lookPath(argv[0], env); err != nil {
		return nil, err
	}

	files, c, err := childFiles(q)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	given := files
	if extra != nil {
		given = append(given[:3:3], extra)
	}
	p, err := spawn(path, argv, &os.ProcAttr{
		Dir: dir, Env: env, Files: given,
		Sys: &syscall.SysProcAttr{Setpgid: true, Credential: cred},
	})
	if err != nil {
		if c.stdin != nil {
			c.stdin.Close()
		}
		closeAll([]*os.File{c.stdout, c.stderr})
		return nil, err
	}
	exited := make(chan exit, 1)
	c.pid, c.exited = p.Pid, exited
	isScript := len(q.Argv) == 0
	sh.background.Go(func() { exited <- waitProcess(p, isScript) })
	return c, nil
}

func waitProcess(p *os.Process, isScript bool) exit {
	state, err := p.Wait()
	if err != nil {
		return exit{err: errorf(wire.KindLost, "the exit status of the command is unknown: %v", err)}
	}
	ws := state.Sys().(syscall.WaitStatus)
	switch {
	case ws.Signaled():
		return exit{code: 128 + int(ws.Signal()), signal: ws.Signal()}
	case isScript:
		return shellExit(ws.ExitStatus())
	}
	return exit{code: ws.ExitStatus()}
}

// childFiles makes the three files of a command, and the child with the agent's ends.
func childFiles(q wire.ExecRequest) (files []*os.File, c *child, err error) {
	files, c = make([]*os.File, 3), &child{}
	var stdin *os.File
	defer func() {
		if err != nil {
			closeAll(append(files, stdin, c.stdout, c.stderr))
		}
	}()
	if q.Stdin {
		if files[0], stdin, err = os.Pipe(); err == nil {
			c.stdin = stdin
		}
	} else {
		files[0], err = os.Open("/dev/null")
	}
	if err != nil {
		return files, c, err
	}
	if q.Detach {
		// Nobody reads what it says; errors go to the console, where they are seen.
		if files[1], err = os.OpenFile("/dev/null", os.O_WRONLY, 0); err != nil {
			return files, c, err
		}
		if files[2], err = os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0); err != nil {
			files[2], err = os.OpenFile("/dev/null", os.O_WRONLY, 0)
		}
		return files, c, err
	}
	if c.stdout, files[1], err = os.Pipe(); err != nil {
		return files, c, err
	}
	c.stderr, files[2], err = os.Pipe()
	return files, c, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() // a nil file is fine
	}
}
