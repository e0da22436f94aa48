package agent

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// A pool keeps initialised shells, and in each of them a worker: a subshell that
// was forked ahead of need and waits for the text of one command. What a
// command costs is then an eval and an exit; the next fork happens after it.
//
// A worker's standard output and error are pipes that the agent made ahead, too.
// The shell opens them through /proc/<agent>/fd, so that nobody but the worker
// holds their write ends: their end is the end of the command's output. Its
// script pipe carries the command, and the end of that pipe starts it.
//
// The shell runs its worker in the foreground and with job control, so that the
// worker has a process group of its own, is not protected from signals, and its
// exit status is the shell's $?.
type pool struct {
	log func(format string, args ...any)

	mu        sync.Mutex
	path      string
	env       []string
	usable    bool
	closed    bool
	age       int // counts environments: shells of an older one serve nobody
	shells    int
	preparing int       // workers that are being forked
	ready     []*worker // oldest first
	waiters   []chan *worker
	failures  int // shells in a row that never got ready
	done      sync.WaitGroup
	stop      []*os.File // the control pipes of all shells
}

const (
	minShells = 2 // one runs a command while the other has the next worker ready
	maxShells = 8
	// maxFork is how long a command waits for a worker that is being forked. That
	// takes milliseconds; a cold start, some ten times as much.
	maxFork = 500 * time.Millisecond
	// maxFailures is how many shells may fail to get ready before the pool gives up.
	maxFailures = 3
)

//go:embed warm.sh
var warmSource string

// warmScript is the warm shell's program; AGENT is the agent's process id. It is one
// line, because the line numbers in the messages of a command count from the
// line of its eval. Descriptor 3 gives it twelve bytes for each worker, the
// numbers of three of the agent's pipes; 4 takes its answers:
//
//	r PID   the worker with this process id, and group, waits
//	e CODE  its command has ended; the process itself soon will
//	x CODE  it has ended without having said e
//
// What a worker reads is one digit and the command. With 1 it says "e" when it
// gets to the end of the command, after it has let go of its output: to take a
// process apart takes longer than all the rest. It exits with toldStatus then.
//
// Everything here is about doing little between a command's arrival and its
// result: under emulation each switch from one process to another costs some
// hundred microseconds, and each page that is touched for the first time, ten.
//
// Its name hides the shell from "pkill bash". It has no traps: systemd-shutdown
// would wait for a shell that survives SIGTERM.
//
// All that can be done before the command is there is done before, the eval of
// something included: the first time a process touches a page after a fork is a
// fault, and hundreds of them are slow.
var warmScript = oneLine(warmSource)

// oneLine joins the lines of a script that are not comments.
func oneLine(script string) string {
	var words []string
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			words = append(words, line)
		}
	}
	return strings.Join(words, " ")
}

// toldStatus is the exit status of a worker that has said e. A command may end
// with it, too; then the next r says so.
const toldStatus = 199

// holdsOn is in a script whose process must be gone before its end is told: it may
// hold a directory, a descriptor or a lock, or what is done after its end would show.
var holdsOn = regexp.MustCompile(`\b(cd|pushd|popd|exec|coproc|trap|set|enable|builtin|function)\b|\}[<>]`)

// A worker is a subshell that waits for a command, and then runs it.
type worker struct {
	pid    int
	ours   [3]int // script, stdout, stderr; -1 when closed or handed on
	theirs [3]int
	exited chan exit
}

// newWorker makes the pipes of a worker. They are bare descriptors: most commands
// end before anybody has to wait for their output.
func newWorker() (*worker, error) {
	w := &worker{ours: [3]int{-1, -1, -1}, theirs: [3]int{-1, -1, -1}, exited: make(chan exit, 1)}
	for i := range w.ours {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			w.close()
			return nil, fmt.Errorf("pipe: %w", err)
		}
		w.ours[i], w.theirs[i] = p[0], p[1]
	}
	w.ours[0], w.theirs[0] = w.theirs[0], w.ours[0] // the agent writes the script
	return w, nil
}

// release closes the worker's ends: it has opened them itself.
func (w *worker) release() { closeFDs(&w.theirs) }

func (w *worker) close() {
	closeFDs(&w.ours)
	closeFDs(&w.theirs)
}

func closeFDs(fds *[3]int) {
	for i, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
			fds[i] = -1
		}
	}
}

// setShell says which shell to keep warm; the ones of an older environment end.
func (p *pool) setShell(path string, isBash bool, env []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.path, p.env, p.usable = path, env, isBash
	p.age++
	p.retire()
}

// retire lets all shells end that have no command. Called with mu held.
func (p *pool) retire() {
	for _, f := range p.stop {
		f.Close()
	}
	p.stop = nil
	for _, w := range p.ready {
		w.close()
	}
	p.ready = nil
}

// close ends the pool and waits for its shells, those with a command excepted:
// the caller has ended the commands.
func (p *pool) close() {
	p.mu.Lock()
	p.closed, p.usable = true, false
	p.retire()
	p.release()
	p.mu.Unlock()
	p.done.Wait()
}

// release ends all waits for a worker.
func (p *pool) release() {
	for _, c := range p.waiters {
		close(c)
	}
	p.waiters = nil
}

// start runs script on a worker, or returns nil if there is none soon.
func (p *pool) start(ctx context.Context, script []byte) *child {
	w := p.take(ctx)
	if w == nil {
		return nil
	}
	mode := byte('1')
	if holdsOn.Match(script) {
		mode = '0'
	}
	unix.Write(w.ours[0], append([]byte{mode}, script...)) // fits into the pipe; a worker that was killed says so by its exit
	unix.Close(w.ours[0])
	return &child{pid: w.pid, early: w.ours[1:], exited: w.exited, warm: true}
}

// take returns a worker that is ready, or will be in a moment.
func (p *pool) take(ctx context.Context) *worker {
	p.mu.Lock()
	if !p.usable {
		p.mu.Unlock()
		return nil
	}
	if len(p.ready) > 0 {
		w := p.ready[0]
		p.ready = p.ready[1:]
		p.grow()
		p.mu.Unlock()
		return w
	}
	if p.preparing <= len(p.waiters) {
		p.grow()
		p.mu.Unlock()
		return nil // a new shell takes as long as a cold command
	}
	c := make(chan *worker, 1)
	p.waiters = append(p.waiters, c)
	p.mu.Unlock()
	select {
	case w := <-c:
		return w
	case <-time.After(maxFork): // somebody has stopped the shell
	case <-ctx.Done():
	}
	p.forget(c)
	return nil
}

// forget gives up waiting on c.
func (p *pool) forget(c chan *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiters, c); i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
		return
	}
	if w := <-c; w != nil { // it came at the same moment
		p.ready = append(p.ready, w)
	}
}

// grow starts shells until there is one that can take the next command. Called
// with mu held.
func (p *pool) grow() {
	for p.usable && p.shells < maxShells && (p.shells < minShells || len(p.ready)+p.preparing == 0) {
		p.shells++
		p.preparing++
		path, env, age := p.path, p.env, p.age
		p.done.Go(func() { p.run(path, env, age) })
	}
}

// warm returns when as many workers are ready as the pool keeps in peace.
func (p *pool) warm(ctx context.Context) error {
	for {
		p.mu.Lock()
		if !p.usable {
			p.mu.Unlock()
			return nil // nothing to warm: every command starts a shell of its own
		}
		p.grow()
		if len(p.ready) >= minShells || p.preparing == 0 {
			p.mu.Unlock()
			return nil
		}
		p.mu.Unlock()
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run is the life of one shell.
func (p *pool) run(path string, env []string, age int) {
	served, err := p.serve(path, env, age)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shells--
	if served > 0 || age != p.age {
		p.failures = 0
	} else if p.failures++; p.failures >= maxFailures && p.usable {
		p.usable = false
		p.release()
		p.log("no warm shell: %v", err)
	}
	if p.preparing < len(p.waiters) { // somebody waited for this one
		c := p.waiters[0]
		p.waiters = p.waiters[1:]
		close(c)
	}
}

// serve starts a shell and gives it one worker after the other to fork. It is
// called with one worker counted as preparing, and says how many there were.
func (p *pool) serve(path string, env []string, age int) (served int, err error) {
	z, err := startShell(path, env)
	if err == nil {
		defer z.close()
		if !p.adopt(z, age) {
			err = errRetired
		} else {
			defer p.forgetControl(z.control)
		}
	}
	var next *worker
	if err == nil {
		next, err = z.order()
	}
	if err != nil {
		p.count(-1)
		return 0, err
	}
	var now *worker // the one that waits or works
	over := true    // its end has been told, or there is none
	defer func() {
		if next != nil {
			next.close()
		}
		if !over {
			p.drop(now)
			now.exited <- exit{err: errorf(wire.KindLost, "the exit status of the command is unknown: the shell that ran it was killed (%v)", err)}
		} else {
			p.count(-1)
		}
	}()
	for {
		var kind byte
		var number int
		kind, number, err = z.answer()
		if err != nil {
			return served, err
		}
		switch {
		case kind == 'r':
			if !over {
				p.count(+1)
				now.exited <- shellExit(toldStatus)
			}
			served++
			now, over = next, false
			now.pid = number
			now.release()
			p.deliver(now, age)
			if next, err = z.order(); err != nil {
				return served, err
			}
		case (kind == 'e' || kind == 'x') && !over:
			// The next worker counts before anybody hears of this one's end, so
			// that whoever asks next knows to wait for it.
			p.count(+1)
			over = true
			if kind == 'x' {
				p.drop(now)
			}
			now.exited <- shellExit(number)
		default:
			return served, fmt.Errorf("unexpected %q from the warm shell", kind)
		}
	}
}

var errRetired = errors.New("the pool is closed, or has another environment")

// adopt notes a new shell, unless there shall be none of its age.
func (p *pool) adopt(z *warmShell, age int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := p.usable && age == p.age
	if wanted {
		p.stop = append(p.stop, z.control)
	}
	return wanted
}

// count changes how many workers are being forked.
func (p *pool) count(n int) {
	p.mu.Lock()
	p.preparing += n
	p.mu.Unlock()
}

// forgetControl takes the control pipe of a shell that ends off the list.
func (p *pool) forgetControl(f *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop = slices.DeleteFunc(p.stop, func(x *os.File) bool { return x == f })
}

// deliver hands a worker that was being forked to the longest waiter, unless its shell
// is too old.
func (p *pool) deliver(w *worker, age int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.preparing--
	switch {
	case !p.usable || age != p.age:
		w.close()
	case len(p.waiters) > 0:
		p.waiters[0] <- w
		p.waiters = p.waiters[1:]
	default:
		p.ready = append(p.ready, w)
	}
}

// drop takes a worker that was killed while it waited out of the ready ones.
func (p *pool) drop(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.ready, w); i >= 0 {
		p.ready = slices.Delete(p.ready, i, i+1)
		w.close()
	}
}

// A warmShell is the process that forks workers.
type warmShell struct {
	process *os.Process
	control *os.File
	answers *os.File
	lines   *bufio.Reader
}

func startShell(path string, env []string) (z *warmShell, err error) {
	controlR, controlW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer controlR.Close()
	answersR, answersW, err := os.Pipe()
	if err != nil {
		controlW.Close()
		return nil, err
	}
	defer answersW.Close()
	null, err := os.Open("/dev/null")
	if err == nil {
		defer null.Close()
		z = &warmShell{control: controlW, answers: answersR, lines: bufio.NewReader(answersR)}
		z.process, err = spawn(path, []string{"bash", "--norc", "-c", strings.ReplaceAll(warmScript, "AGENT", strconv.Itoa(os.Getpid()))}, &os.ProcAttr{
			Dir: workDir(), Env: env, Files: []*os.File{null, nil, nil, controlR, answersW},
			Sys: &syscall.SysProcAttr{Setpgid: true},
		})
	}
	if err != nil {
		controlW.Close()
		answersR.Close()
		return nil, err
	}
	return z, nil
}

// close ends the shell. It may have a worker that runs a command; that one goes on.
func (z *warmShell) close() {
	z.control.Close()
	z.answers.Close()
	z.process.Signal(unix.SIGKILL)
	z.process.Wait()
}

// order has the shell fork a worker as soon as it has none.
func (z *warmShell) order() (*worker, error) {
	w, err := newWorker()
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(z.control, "%4d%4d%4d", w.theirs[0], w.theirs[1], w.theirs[2]); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// answer reads a line of the shell.
func (z *warmShell) answer() (kind byte, number int, err error) {
	line, err := z.lines.ReadString('\n')
	if err != nil {
		return 0, 0, fmt.Errorf("the warm shell is gone: %w", err)
	}
	if len(line) < 3 || line[1] != ' ' {
		return 0, 0, fmt.Errorf("the warm shell says %q", line)
	}
	number, err = strconv.Atoi(strings.TrimSpace(line[2:]))
	return line[0], number, err
}
