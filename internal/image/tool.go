package image

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/supervise"
)

// A runner runs a command to its end and returns its exit code. When ctx ends,
// the command and all its children are killed.
type runner interface {
	run(ctx context.Context, c supervise.Command) (code int, err error)
}

// supervised runs commands below a supervisor: they end with this process,
// however it ends.
type supervised struct{ s *supervise.Supervisor }

func (r supervised) run(ctx context.Context, c supervise.Command) (int, error) {
	if r.s == nil {
		return -1, errors.New("image: the store was opened without a supervisor and cannot build")
	}
	p, err := r.s.Start(ctx, c)
	if err != nil {
		return -1, err
	}
	status, err := p.Wait(ctx)
	if err != nil {
		p.Kill()
		<-p.Done()
		return -1, cmp.Or(context.Cause(ctx), err)
	}
	if status.Signal != 0 {
		return 128 + int(status.Signal), nil
	}
	return status.ExitCode, nil
}

// tools are the programs that builds need, and where Debian has them.
var tools = []struct{ name, pkg, use string }{
	{"mmdebstrap", "mmdebstrap", "builds Debian images"},
	{"apt-get", "apt", "downloads packages for mmdebstrap"},
	{"tar", "tar", "unpacks the base image"},
	{"mkfs.ext4", "e2fsprogs", "makes the writable disks of machines"},
}

// rootTools are those that only machines with such a root need.
var rootTools = map[string]string{"mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs"}

// lookTool finds a program, also where only root has it on PATH.
func lookTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(dir + "/" + name); err == nil {
			return path, nil
		}
	}
	missing := &doctor.MissingError{What: name, Reason: "not found on PATH (" + os.Getenv("PATH") + ")"}
	if pkg := rootTools[name]; pkg != "" {
		missing.Remedy = "apt-get install " + pkg
	}
	for _, t := range tools {
		if t.name == name {
			missing.Remedy = "apt-get install " + t.pkg
		}
	}
	return "", missing
}

// toolEnv is the environment of a tool: the user's, English messages, the
// administrator's directories on PATH.
func toolEnv(extra ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "LANGUAGE" || strings.HasPrefix(name, "LC_") || name == "APT_CONFIG" || name == "TAR_OPTIONS" || name == "SOURCE_DATE_EPOCH"
	})
	env = append(env, "LC_ALL=C.UTF-8", "PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	return append(env, extra...)
}

// transcript is what a tool wrote, as far as it matters afterwards.
type transcript struct {
	errors []string // lines that begin with "E: " and the like
	tail   []string // the last lines
	phase  string   // what mmdebstrap or apt did last
	run    string   // derive.sh's line about a run line that failed
	over   bool     // what follows is mmdebstrap repeating its hook
}

const (
	tailLines = 25
	maxLine   = 64 << 10
)

// read follows a tool's output to its end, line by line.
func (t *transcript) read(r io.Reader, line func(string)) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		b, err := in.ReadSlice('\n')
		for _, s := range strings.FieldsFunc(string(bytes.ToValidUTF8(b, nil)), func(r rune) bool { return r == '\n' || r == '\r' }) {
			t.add(s)
			line(s)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (t *transcript) add(line string) {
	if t.over = t.over || strings.Contains(line, "E: command failed: "); t.over {
		return
	}
	if runFailed.MatchString(line) {
		t.run = line
		return
	}
	t.tail = append(t.tail, line)
	if len(t.tail) > tailLines {
		t.tail = t.tail[1:]
	}
	for _, prefix := range []string{"E: ", "dpkg: error", "tar: ", "Err:"} {
		if strings.HasPrefix(line, prefix) && len(t.errors) < 100 {
			t.errors = append(t.errors, line)
		}
	}
}

func (t *transcript) String() string { return strings.Join(t.tail, "\n") }

// runTool runs a program without input, and returns the end of its output with an error.
func (s *Store) runTool(ctx context.Context, name string, args ...string) error {
	path, err := lookTool(name)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	var t transcript
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.read(r, func(string) {})
	}()
	code, err := s.run.run(ctx, supervise.Command{Path: path, Args: append([]string{name}, args...), Env: toolEnv(), Stdout: w, Stderr: w})
	w.Close()
	<-done
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if code != 0 {
		return fmt.Errorf("%s: exit code %d%s", name, code, indented(t.String()))
	}
	return nil
}
