package supervise

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killTimeout is how long killing goes on before the rest is given up: only a
// process that hangs in the kernel outlives its SIGKILL that long.
const killTimeout = 4 * time.Second

// Any binary that imports this package can be a supervisor.
func init() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case supervisorName:
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, supervisorName+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	case isolateName:
		os.Exit(isolate())
	}
}

// server is the supervisor process. One goroutine owns its state: the one that
// serve was called on, which never leaves the process's main thread.
type server struct {
	dir      string
	scratch  string // may be empty
	conn     *net.UnixConn
	out      *sender
	null     *os.File
	children map[int]uint64        // pid → the client's number
	whole    map[int]bool          // of these, those whose group ends with them
	viewed   map[int]chan struct{} // of these, those with a view: closed at their end
	copied   chan reply            // copyings that have ended
	owned    map[string]bool
}

// incoming is a request with its descriptors.
type incoming struct {
	request
	fds []int
}

func serve() error {
	if len(os.Args) != 3 {
		return errors.New("attest starts this program; it does nothing on its own")
	}
	// PR_SET_PDEATHSIG fires when the thread that forked ends (golang/go#27505).
	// The main thread does not end before the process, and init runs on it.
	runtime.LockOSThread()
	s := &server{dir: os.Args[1], scratch: os.Args[2], children: map[int]uint64{}, whole: map[int]bool{}, viewed: map[int]chan struct{}{}, copied: make(chan reply), owned: map[string]bool{}}
	control := os.NewFile(3, "control")
	unix.CloseOnExec(3)
	// What the client inherited, such as make's pipes, is not for the children
	// either. Kernels before 5.11 do not know the flag; there they get it.
	unix.CloseRange(4, 1<<31, unix.CLOSE_RANGE_CLOEXEC)
	var err error
	if s.conn, err = unixConn(control); err != nil {
		return err
	}
	if s.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		return err
	}
	// A process that loses its parent, such as a daemon, becomes a child of ours instead of init's.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	client, _ := unix.PidfdOpen(os.Getppid(), 0) // where that is refused, poll waits for -1 in vain
	s.out = newSender(s.conn)
	s.loop()
	left := killDescendants(killTimeout)
	if len(s.owned) > 0 {
		awaitEnd(client, endTimeout)
	}
	left = errors.Join(left, removeOwned(s.owned))
	if kept(s.dir) {
		return left
	}
	return errors.Join(left, removeDirs(s.dir, s.scratch))
}

// endTimeout is how long a client that leaves something may take to end when it has no
// connection any more. One that has closed its supervisor does not end.
const endTimeout = 2 * time.Second

// awaitEnd waits until a process has ended, and reports whether it has. The kernel closes
// the files of one that is killed one after the other: our connection may be gone while it
// still holds its locks.
func awaitEnd(pidfd int, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n == 1
		}
	}
}

// loop serves the client until it is gone, or until SIGTERM.
func (s *server) loop() {
	// Caught, not ignored: children would inherit that a signal is ignored.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	exits := make(chan os.Signal, 1)
	signal.Notify(exits, syscall.SIGCHLD)

	requests := make(chan incoming)
	go s.read(requests)
	for {
		select {
		case in, ok := <-requests:
			if !ok {
				return
			}
			s.handle(in)
		case <-exits:
			s.reap()
		case r := <-s.copied:
			s.reply(r)
		case <-signals:
			return
		}
	}
}

// read ends with the process: after the client's last message it has nothing
// more to do, and before that the process may only end by a signal.
func (s *server) read(requests chan<- incoming) {
	defer close(requests)
	r := newReceiver(s.conn)
	for {
		var in incoming
		if err := r.receive(&in.request); err != nil {
			return
		}
		var err error
		if in.fds, err = r.take(in.files()); err != nil {
			fmt.Fprintln(os.Stderr, supervisorName+":", err)
			return
		}
		requests <- in
	}
}

func (s *server) handle(in incoming) {
	if in.Copy != nil {
		of := 0
		for pid, id := range s.children {
			if id == in.Copy.Process {
				of = pid
			}
		}
		go s.copy(in.ID, of, in.fds)
		return
	}
	if in.Locks > 0 {
		return // the descriptors end with this process, and nobody inherits them
	}
	if in.Own != "" {
		s.owned[in.Own] = true
		return
	}
	if in.Disown != "" {
		delete(s.owned, in.Disown)
		return
	}
	if in.Start == nil {
		for pid, id := range s.children {
			if id == in.ID {
				syscall.Kill(-pid, in.Signal) // not yet reaped, so the number is still its own
			}
		}
		return
	}
	pid, err := s.start(in.Start, in.fds)
	for _, fd := range in.fds {
		syscall.Close(fd)
	}
	if err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			errno = syscall.EINVAL
		}
		r := reply{ID: in.ID, Err: errno}
		if in.Start.View != nil && err != error(errno) {
			r.Failure = err.Error()
		}
		s.reply(r)
		return
	}
	s.children[pid] = in.ID
	if in.Start.Whole {
		s.whole[pid] = true
	}
	s.reply(reply{ID: in.ID, Pid: pid})
}

// reply ignores errors: they mean that the client is gone, which read notices.
func (s *server) reply(r reply) { s.out.send(r, nil) }

func (s *server) start(r *startRequest, fds []int) (int, error) {
	attr := &syscall.ProcAttr{Dir: r.Dir, Env: r.Env, Sys: &syscall.SysProcAttr{
		Setpgid:   true,
		Pdeathsig: syscall.SIGKILL,
	}}
	inherited := fds
	for _, null := range r.Null {
		if null {
			attr.Files = append(attr.Files, s.null.Fd())
		} else {
			attr.Files = append(attr.Files, uintptr(fds[0]))
			fds = fds[1:]
		}
	}
	for _, fd := range fds {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	if r.View != nil {
		pid, ended, err := startInView(r, attr, inherited)
		if err == nil {
			s.viewed[pid] = ended
		}
		return pid, err
	}
	if r.Contained {
		return startAsRoot(r, attr, syscall.CLONE_NEWNS|syscall.CLONE_NEWPID|syscall.CLONE_NEWUTS|syscall.CLONE_NEWIPC|syscall.CLONE_NEWNET)
	}
	if r.Network {
		return startNetworked(r, attr)
	}
	if r.Isolate && os.Geteuid() == 0 {
		pid, err := startIsolated(r, attr)
		if !errors.Is(err, syscall.EPERM) {
			return pid, err
		}
		// A root without CAP_SYS_ADMIN cannot mount anything either.
	}
	return syscall.ForkExec(r.Path, r.Args, attr)
}

// reap collects every child that has ended, ours and adopted ones.
func (s *server) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if pid <= 0 || err != nil {
			return
		}
		id, ours := s.children[pid]
		if !ours {
			continue
		}
		delete(s.children, pid)
		if ended := s.viewed[pid]; ended != nil {
			delete(s.viewed, pid)
			close(ended)
		}
		if s.whole[pid] {
			delete(s.whole, pid)
			syscall.Kill(-pid, syscall.SIGKILL) // as long as somebody is in it, the number is the group's
		}
		st := Status{ExitCode: ws.ExitStatus()}
		if ws.Signaled() {
			st.Signal = ws.Signal()
		}
		s.reply(reply{ID: id, Exit: &st})
	}
}
