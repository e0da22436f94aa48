package supervise

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/socketpair"
)

const (
	supervisorName = "attest-supervisor" // argv[0] of the supervisor
	stateVar       = "ATTEST_STATE"      // in the environment of all that it starts: its state directory
	keepName       = "keep"              // a file of this name in a state directory keeps it
)

// Options say how to start a supervisor. The zero value works.
type Options struct {
	Root string // where the state directory is made; empty: StateRoot()
	// Scratch is where a second directory is made, for large files: a state
	// directory is often in memory. Empty: none is made.
	Scratch string
}

// Supervisor is the client's side of a supervisor process.
type Supervisor struct {
	dir     string
	scratch string
	locks   []*os.File // of both; held here too, so that Sweep stays away when only the supervisor dies
	cmd     *exec.Cmd
	conn    *net.UnixConn
	written *os.File // what it says
	done    chan struct{}

	closeOnce sync.Once
	closeErr  error

	sendMu sync.Mutex // guards out; not mu, because a send can block until run has received
	out    *sender

	mu        sync.Mutex // guards what follows
	lastID    uint64
	processes map[uint64]*Process
	copies    map[uint64]chan<- string // under way; see CopyPrivate
	owned     map[string]bool
	closing   bool
	lost      error // set once the supervisor is gone
}

// Start starts a supervisor with a fresh state directory. ctx is for the
// starting only; Close ends it.
func Start(ctx context.Context, o Options) (_ *Supervisor, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var root string
	if o.Root == "" {
		root, err = StateRoot()
	} else {
		root, err = prepareRoot(o.Root, "Options.Root")
	}
	if err != nil {
		return nil, err
	}
	dir, scratch := newName(root), ""
	if o.Scratch != "" {
		if err := os.MkdirAll(o.Scratch, 0o700); err != nil {
			return nil, fmt.Errorf("scratch directory: %w", err)
		}
		scratch = newName(o.Scratch)
	}
	conn, theirs, err := socketpair.New(unix.SOCK_STREAM)
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	log, err := memoryLog()
	if err != nil {
		theirs.Close()
		conn.Close()
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe",
		Args: []string{supervisorName, dir, scratch},
		Dir:  "/",
		// Under the race detector every program sleeps for a second when it ends.
		Env:        append(os.Environ(), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0"),
		Stderr:     log, // not the client's: whoever reads that until its end would wait for us
		ExtraFiles: []*os.File{theirs},
		// A session of its own: Ctrl-C on the client's terminal is for the client.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	theirs.Close() // so that a supervisor that is gone is noticed at once
	if err != nil {
		conn.Close()
		log.Close()
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	s := &Supervisor{
		dir: dir, scratch: scratch, cmd: cmd, conn: conn, written: log,
		done:      make(chan struct{}),
		out:       newSender(conn),
		processes: map[uint64]*Process{},
		copies:    map[uint64]chan<- string{},
		owned:     map[string]bool{},
	}
	// Only now is there somebody to remove the directories, whenever this process is
	// killed.
	if err := s.makeDirs(); err != nil {
		conn.Close()
		waitErr := cmd.Wait()
		s.release()
		if waitErr != nil { // somebody has killed the supervisor, which has removed nothing
			err = errors.Join(fmt.Errorf("%w (the supervisor: %w)", err, waitErr), removeDirs(dir, scratch))
		}
		return nil, err
	}
	go s.run()
	return s, nil
}

// makeDirs makes the directories, and gives the supervisor the locks on them as well.
func (s *Supervisor) makeDirs() error {
	for _, dir := range []string{s.dir, s.scratch} {
		if dir == "" {
			continue
		}
		lock, err := makeDir(dir)
		if err != nil {
			return err
		}
		s.locks = append(s.locks, lock)
	}
	if err := s.send(request{Locks: len(s.locks)}, s.locks); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	return nil
}

// release closes what stays open until the supervisor has ended.
func (s *Supervisor) release() {
	for _, lock := range s.locks {
		lock.Close()
	}
	s.written.Close()
}

// memoryLog is a file for what a supervisor says, which nobody has to remove.
func memoryLog() (*os.File, error) {
	fd, err := unix.MemfdCreate("attest-supervisor", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "log"), nil
}

// Dir returns the state directory: short, mode 0700, removed by Close.
func (s *Supervisor) Dir() string { return s.dir }

// Scratch returns the second directory, also removed by Close. It is empty if
// Options.Scratch is.
func (s *Supervisor) Scratch() string { return s.scratch }

// Done is closed when the supervisor process has ended, and with it everything
// that it started: after Close, or because it was killed.
func (s *Supervisor) Done() <-chan struct{} { return s.done }

// Keep sets whether the directories stay when the supervisor ends. Sweep leaves kept
// directories alone. The state directory then has a link to the second directory.
func (s *Supervisor) Keep(keep bool) error {
	if keep && s.scratch != "" {
		if err := os.Symlink(s.scratch, filepath.Join(s.dir, "scratch")); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for _, lock := range s.locks {
		path := filepath.Join(lock.Name(), keepName)
		err := os.Remove(path)
		if keep {
			err = os.WriteFile(path, nil, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close kills everything that was started, waits until it is gone and removes
// the state directory. It can be called more than once.
func (s *Supervisor) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Supervisor) close() error {
	defer s.release()
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.conn.CloseWrite()
	select {
	case <-s.done:
	case <-time.After(2 * killTimeout):
		s.cmd.Process.Kill()
		<-s.done
	}
	// Nothing is left to do unless the supervisor died or failed.
	s.mu.Lock()
	err := removeOwned(s.owned)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remove what a run leaves: %w", err)
	}
	if kept(s.dir) {
		return nil
	}
	if err := removeDirs(s.dir, s.scratch); err != nil {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}

// run receives the supervisor's replies until it is gone, and then fails every
// process that is waited for.
func (s *Supervisor) run() {
	defer close(s.done)
	in := newReceiver(s.conn)
	var err error
	for err == nil {
		var r reply
		if err = in.receive(&r); err == nil {
			s.deliver(r)
		}
	}
	s.conn.Close()
	werr := s.cmd.Wait()
	if werr != nil {
		// PR_SET_PDEATHSIG has killed its children, but not theirs.
		killBelonging(s.dir, killTimeout)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		s.lost = errors.New("supervisor: closed")
	case werr != nil:
		s.lost = fmt.Errorf("supervisor: %w%s", werr, s.log())
	case errors.Is(err, io.EOF):
		s.lost = errors.New("supervisor: terminated" + s.log())
	default:
		s.lost = fmt.Errorf("supervisor: %w%s", err, s.log())
	}
	for _, p := range s.processes {
		p.finish(Status{ExitCode: -1, Signal: syscall.SIGKILL, Lost: true}, s.lost)
	}
	s.processes = nil
}

// log is the end of what the supervisor wrote, for an error's text.
func (s *Supervisor) log() string {
	info, err := s.written.Stat()
	if err != nil || info.Size() == 0 {
		return ""
	}
	b := make([]byte, min(info.Size(), 2000))
	s.written.ReadAt(b, info.Size()-int64(len(b)))
	return "\n" + strings.TrimSpace(string(b))
}

func (s *Supervisor) deliver(r reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Copied {
		if answer := s.copies[r.ID]; answer != nil {
			answer <- r.Failure
		}
		return
	}
	p := s.processes[r.ID]
	if p == nil {
		return
	}
	switch {
	case r.Exit != nil:
		delete(s.processes, r.ID)
		p.finish(*r.Exit, nil)
	case r.Err != 0:
		delete(s.processes, r.ID)
		err := error(&os.PathError{Op: "start", Path: p.path, Err: r.Err})
		if r.Failure != "" {
			err = fmt.Errorf("start %s: %s", p.path, r.Failure)
		}
		p.finish(Status{ExitCode: -1}, err)
	default:
		p.pid = r.Pid
		close(p.started)
	}
}

// Start starts a process as a child of the supervisor. ctx is for the starting
// only: when it ends before that is done, the process is killed. The files of c
// stay the caller's, to be closed as soon as Start has returned. A program that
// cannot be executed is an *os.PathError.
func (s *Supervisor) Start(ctx context.Context, c Command) (*Process, error) {
	req, files, err := c.request(s.dir)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	p := &Process{supervisor: s, path: req.Path, started: make(chan struct{}), done: make(chan struct{})}
	s.mu.Lock()
	if s.lost != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("start %s: %w", c.Path, s.lost)
	}
	s.lastID++
	p.id = s.lastID
	s.processes[p.id] = p
	s.mu.Unlock()
	if err := s.send(request{ID: p.id, Start: req}, files); err != nil {
		s.mu.Lock()
		delete(s.processes, p.id)
		s.mu.Unlock()
		return nil, fmt.Errorf("start %s: supervisor: %w", c.Path, err)
	}
	select {
	case <-p.started:
		return p, nil
	case <-p.done:
		select {
		case <-p.started: // and ended already
			return p, nil
		default:
			return nil, p.err
		}
	case <-ctx.Done():
		p.signal(syscall.SIGKILL)
		return nil, fmt.Errorf("start %s: %w", c.Path, ctx.Err())
	}
}

// Own has the supervisor remove path when the client ends, in whatever way: a
// directory with all that is in it, or a lock file that nobody holds. It is to be
// called before path is made. A nil Supervisor owns nothing, and one that has ended
// nothing new.
func (s *Supervisor) Own(path string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.owned[path] = true
	s.mu.Unlock()
	s.send(request{Own: path}, nil) // fails only if the supervisor is gone
}

// Disown takes Own back, once path is removed.
func (s *Supervisor) Disown(path string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	delete(s.owned, path)
	s.mu.Unlock()
	s.send(request{Disown: path}, nil) // as above
}

func (s *Supervisor) send(r request, files []*os.File) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.out.send(r, files)
}

// newID is the name of a state directory.
func newID() string {
	var b [5]byte
	rand.Read(b[:])
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:idLength]
}

func isID(name string) bool {
	return len(name) == idLength && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

func kept(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, keepName))
	return err == nil
}

// environ returns env with the variable by which Sweep finds processes of ours. If a
// variable is there twice the last one counts, as in os/exec; the process itself
// would take the first.
func environ(env []string, dir string) []string {
	if env == nil {
		env = os.Environ()
	}
	env = append(slices.Clone(env), stateVar+"="+dir)
	last := map[string]int{}
	for i, e := range env {
		name, _, _ := strings.Cut(e, "=")
		last[name] = i
	}
	kept := env[:0]
	for i, e := range env {
		if name, _, _ := strings.Cut(e, "="); last[name] == i {
			kept = append(kept, e)
		}
	}
	return kept
}
