package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// A shell runs commands as the NixOS test driver does: each in a fresh bash,
// with errexit, nounset and pipefail, in /tmp, with the environment that
// /etc/profile leaves. Commands for which a forked shell is indistinguishable
// from a fresh one go to the pool.
type shell struct {
	log        func(format string, args ...any)
	background sync.WaitGroup // what outlives the operation that started it
	pool       pool
	lingering  lingering
	remote     Starter // nil: commands run here

	mu     sync.Mutex // held while the environment is found out
	root   [2]uint64  // device and inode of /, in which it was found out
	path   string     // of the shell; empty: not found out yet
	isBash bool
	env    []string
	early  bool // there was no /etc/profile yet
}

func newShell(log func(string, ...any)) *shell {
	sh := &shell{log: log}
	sh.pool.log = log
	return sh
}

// close ends the warm shells. Commands in the background are left alone.
func (sh *shell) close() { sh.pool.close() }

const profile = "/etc/profile"

// defaultPath is what a login has before /etc/profile, with the place where
// NixOS keeps its programs.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"

func defaultEnv() []string {
	return []string{"USER=root", "HOME=/root", "DISPLAY=:0.0", "PAGER=", "PATH=" + defaultPath}
}

// prepare finds the shell and the environment of commands, once. A guest whose
// init has not written /etc/profile yet is asked again when it has, and one that
// has left its initrd, whose shells systemd kills on the way.
func (sh *shell) prepare() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err == nil && sh.root != [2]uint64{st.Dev, st.Ino} {
		sh.root, sh.path = [2]uint64{st.Dev, st.Ino}, ""
	}
	if sh.path != "" && !sh.early {
		return
	}
	_, err := os.Stat(profile)
	if sh.path != "" && err != nil {
		return
	}
	sh.early = err != nil
	sh.isBash = true
	if sh.path, err = lookPath("bash", defaultEnv()); err != nil {
		sh.path, sh.isBash = "/bin/sh", false
	}
	sh.env = defaultEnv()
	if !sh.early {
		if env, err := profileEnv(sh.path); err != nil {
			sh.log("%s: %v", profile, err)
		} else {
			sh.env = env
		}
	}
	sh.pool.setShell(sh.path, sh.isBash, sh.env)
}

// renew has the next command find out the shell and the environment again: what a
// profile says, and $HOSTNAME in a bash that runs, are of the name that the guest had.
func (sh *shell) renew() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.path = ""
}

// profileEnv is the environment after /etc/profile.
func profileEnv(shell string) ([]string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		w.Close()
		return nil, err
	}
	defer null.Close()
	const script = `. ` + profile + ` >/dev/null 2>&1; export PAGER=; env -0 >&3`
	p, err := spawn(shell, []string{filepath.Base(shell), "-c", script}, &os.ProcAttr{
		Dir: workDir(), Env: defaultEnv(), Files: []*os.File{null, null, null, w},
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	w.Close()
	if err != nil {
		return nil, err
	}
	r.SetReadDeadline(time.Now().Add(30 * time.Second))
	out, readErr := io.ReadAll(r)
	if readErr != nil {
		unix.Kill(-p.Pid, unix.SIGKILL)
	}
	p.Wait()
	if readErr != nil {
		return nil, readErr
	}
	var env []string
	for v := range bytes.SplitSeq(out, []byte{0}) {
		if len(v) > 0 && !bytes.HasPrefix(v, []byte("_=")) {
			env = append(env, string(v))
		}
	}
	if len(env) == 0 {
		return nil, fmt.Errorf("left no environment")
	}
	return env, nil
}

func workDir() string {
	if fi, err := os.Stat("/tmp"); err == nil && fi.IsDir() {
		return "/tmp"
	}
	return "/"
}

// surroundings are the environment, directory and user of a command.
func (sh *shell) surroundings(q wire.ExecRequest) (env []string, dir string, cred *syscall.Credential, err error) {
	sh.mu.Lock()
	env = slices.Clone(sh.env)
	sh.mu.Unlock()
	dir = workDir()
	if q.User != "" {
		u, err := lookupUser(q.User)
		if err != nil {
			return nil, "", nil, err
		}
		if u.uid != 0 {
			cred = &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
		}
		env = setenv(env, "USER", u.name, "LOGNAME", u.name, "HOME", u.home, "SHELL", u.shell,
			"XDG_RUNTIME_DIR", fmt.Sprintf("/run/user/%d", u.uid))
		dir = u.home
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			dir = "/"
		}
	}
	for _, k := range slices.Sorted(maps.Keys(q.Env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(q.Env[k], "\x00") {
			return nil, "", nil, errorf(wire.KindInvalid, "environment variable %q cannot be set", k)
		}
		env = setenv(env, k, q.Env[k])
	}
	if q.Dir != "" {
		dir = q.Dir
		if fi, err := os.Stat(dir); err != nil {
			return nil, "", nil, err
		} else if !fi.IsDir() {
			return nil, "", nil, errorf(wire.KindInvalid, "%s is not a directory", dir)
		}
	}
	return env, dir, cred, nil
}

func setenv(env []string, pairs ...string) []string {
	for i := 0; i < len(pairs); i += 2 {
		prefix := pairs[i] + "="
		env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, prefix) })
		env = append(env, prefix+pairs[i+1])
	}
	return env
}

// lookPath finds a program in the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	for dir := range strings.SplitSeq(path, ":") {
		file := filepath.Join(dir, name)
		if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", errorf(wire.KindNotFound, "%s: not found in PATH (%s)", name, path)
}

// A script that says one of these can tell a forked shell from a fresh one: by
// its process id, its parent's, its level, or by stopping itself.
var needsFresh = regexp.MustCompile(`\$\$|\$\{[#!]?\$|PPID|SHLVL|BASHPID|BASH_SUBSHELL|BASH_EXECUTION_STRING|suspend|STOP|TSTP|monitor|set\s+-[a-zA-Z]*m`)

// maxWarm is how long a script for a warm shell may be: it must fit into a
// pipe, 64 KiB, so that the agent can leave it there.
const maxWarm = 32 << 10

// start starts a command the fastest way that does it justice.
func (sh *shell) start(ctx context.Context, q wire.ExecRequest, script []byte) (*child, error) {
	if sh.remote != nil {
		return sh.startRemote(ctx, q, script)
	}
	sh.prepare()
	plain := len(q.Argv) == 0 && !q.Stdin && q.User == "" && q.Dir == "" && len(q.Env) == 0
	if plain && len(script) <= maxWarm && !needsFresh.Match(script) {
		if c := sh.pool.start(ctx, script); c != nil {
			return c, nil
		}
	}
	return sh.startCold(q, script)
}

// warm returns when a warm shell waits for a command.
func (sh *shell) warm(ctx context.Context) error {
	sh.prepare()
	return sh.pool.warm(ctx)
}

// until is the operation wire.OpUntil.
func (sh *shell) until(stream *wire.Stream, q wire.UntilRequest, script []byte) (any, error) {
	script, err := longScript(stream, q.Exec, script)
	if err != nil {
		return nil, err
	}
	var input []byte
	if q.Exec.Stdin { // each attempt reads it from the beginning
		if input, err = io.ReadAll(stream.Reader(wire.Stdin)); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(stream.Context(), q.Deadline)
	defer cancel()
	start := time.Now()
	var r wire.UntilResult
	for pause := max(q.MinPause, time.Millisecond); ; pause = min(2*pause, max(q.MaxPause, q.MinPause, time.Millisecond)) {
		if r.Tries > 0 {
			stream.Restart(wire.Stdout)
			stream.Restart(wire.Stderr)
		}
		r.Tries++
		attempt := q.Exec
		// An attempt ends with the deadline at the latest, as a timeout.
		if left := q.Deadline - time.Since(start); attempt.Timeout == 0 || left < attempt.Timeout {
			attempt.Timeout = max(left, time.Millisecond)
		}
		begun := time.Now()
		c, err := sh.start(ctx, attempt, script)
		if err == nil {
			r.ExecResult, err = sh.wait(stream.Context(), c, attempt, bytes.NewReader(input), stream)
		}
		r.Duration = time.Since(begun)
		if err != nil || stream.Context().Err() != nil {
			return r, err
		}
		if code := r.ExitCode; !r.TimedOut {
			r.Ended = &code
		}
		if r.Met = (r.ExitCode != 0) == q.Fail; r.Met || q.Once {
			return r, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return r, nil
		}
	}
}
