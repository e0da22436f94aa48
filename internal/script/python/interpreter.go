package python

import (
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/attest-vm/attest"
)

//go:embed lib/main.py lib/test_driver/*.py
var library embed.FS

// oldestMinor is of the oldest Python that runs scripts: 3.9.
const oldestMinor = 9

// startLimit is how long Python may take to start, or to compile a script.
const startLimit = time.Minute

// program is the Python to run.
func program() string { return cmp.Or(os.Getenv("ATTEST_PYTHON"), "python3") }

// resolve is the Python behind program(), as that says itself: a shim such as pyenv's takes longer to find
// it than it takes to start. A wrapper that sets what Python and the linker look at has to be started each time.
func resolve(executable string, environ map[string]string) string {
	own := map[string]string{}
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "PYTHON") || strings.HasPrefix(name, "LD_") {
			own[name] = value
		}
	}
	if !filepath.IsAbs(executable) || !maps.Equal(own, environ) {
		return program()
	}
	return executable
}

// isolated keeps Python from everything but its own library. What a host adds to each start (site) may take
// longer than all else.
var isolated = []string{"-I", "-S", "-B"}

// A brief is a Python that runs for a moment, with a program of a few lines.
type brief struct {
	stdin io.WriteCloser
	fed   chan struct{} // the beginning of its input was written
	end   context.CancelFunc
	done  chan struct{}
	out   []byte
	err   error
}

// begin starts Python, with the beginning of its input. Nothing that it has started stays when
// it has ended, unless that has left its process group.
func begin(ctx context.Context, python string, flags []string, code string, input []byte, args ...string) (*brief, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("%s has not ended within %v", program(), startLimit))
	cmd := exec.CommandContext(ctx, python, slices.Concat(flags, []string{"-c", code}, args)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, &attest.InfraError{Action: "make a pipe for " + program(), Err: err}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	killAll := func() error {
		if cmd.Process == nil {
			return nil
		}
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	cmd.Cancel = killAll
	b := &brief{stdin: stdin, fed: make(chan struct{}), end: cancel, done: make(chan struct{})}
	started := make(chan struct{}) // the one that is begun first is needed first
	go func() {
		defer close(b.fed)
		stdin.Write(input) // that it does not read all shows in how it ends
	}()
	go func() {
		defer close(b.done)
		defer cancel()
		defer stdin.Close()
		runtime.LockOSThread() // the signal comes when the thread ends that has started it
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		close(started)
		if err == nil {
			err = cmd.Wait()
		}
		killAll()
		switch {
		case err == nil:
			b.out = stdout.Bytes()
		case context.Cause(ctx) != nil:
			b.err = context.Cause(ctx)
		case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
			b.err = missing("there is none on this host")
		default:
			b.err = &attest.InfraError{Action: "run " + program(), Err: fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))}
		}
	}()
	<-started
	return b, nil
}

// finish gives Python the rest of its input, and returns what it wrote.
func (b *brief) finish(input string) ([]byte, error) {
	<-b.fed
	io.WriteString(b.stdin, input)
	b.stdin.Close()
	<-b.done
	return b.out, b.err
}

// drop ends a Python that nobody needs.
func (b *brief) drop() {
	if b == nil {
		return
	}
	b.end()
	<-b.done
}

// direct reports whether program() is a Python itself, as far as that shows: a shim that is a
// script takes longer than what can be saved by starting it early.
func direct() bool {
	path, err := exec.LookPath(program())
	if err != nil {
		return false
	}
	f, err := elf.Open(path)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// missing is a Python that cannot be used.
func missing(found string) error {
	return &attest.MissingError{
		What:   fmt.Sprintf("Python 3.%d or newer, which runs .py files", oldestMinor),
		Reason: program() + ": " + found,
		Remedy: "install python3, or name another one in ATTEST_PYTHON",
	}
}

// checkVersion refuses a Python that is too old. what is its version: "3.8.18".
func checkVersion(what string) error {
	major, rest, _ := strings.Cut(what, ".")
	minor, _, _ := strings.Cut(rest, ".")
	if n, err := strconv.Atoi(minor); major != "3" || err != nil || n < oldestMinor {
		return missing("it is Python " + what)
	}
	return nil
}

// unpack writes the library to a directory, and returns the path of what Python runs.
func unpack(dir string) (string, error) {
	lib, err := fs.Sub(library, "lib")
	if err == nil {
		err = os.CopyFS(dir, lib)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, imagesModule), []byte(imagesSource()), 0o600)
	}
	if err != nil {
		return "", &attest.InfraError{Action: "unpack the Python library", Err: err}
	}
	return filepath.Join(dir, "main.py"), nil
}
