package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// Main is the whole life of the agent: it finds its port, of virtio or vsock, and serves. Descriptor
// 3, if it is a pipe, is where whoever started it waits for "ok\n": the first
// Identity has been applied. It does not return; an agent that is killed is
// followed by another, see keep.
func Main(args []string) int {
	keepAt(args)
	// A guest often has one CPU, and an emulated one: a second thread that
	// looks for work costs more than it finds.
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	debug.SetGCPercent(400)
	calmRuntime()
	oomScore(agentOOMScore)
	// systemd-shutdown and people send these to everybody. They are handled and
	// not ignored: what is ignored would be ignored in commands too.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	unix.Umask(0o022)
	log := openLog()
	keep(args, log)
	s := &Server{Log: log.printf, Ready: readyPipe(3)}
	serve := s.servePort
	if cmdline, _ := os.ReadFile("/proc/cmdline"); byVsock(string(cmdline)) {
		serve = s.serveVsock
	}
	for {
		log.printf("%v; trying again", serve(context.Background()))
		time.Sleep(time.Second)
	}
}

// servePort serves the host on the other end of the agent's virtio port.
func (s *Server) servePort(ctx context.Context) error {
	port, err := openPort(ctx, "/sys/class/virtio-ports", "/dev")
	if err != nil {
		return err
	}
	defer port.Close()
	return s.Serve(ctx, port)
}

// keepAt executes the agent again under a name that begins with "@" unless it
// has one: systemd-shutdown spares such processes to the end.
func keepAt(args []string) {
	if len(args) == 0 || strings.HasPrefix(args[0], "@") {
		return
	}
	argv := append([]string{"@" + filepath.Base(args[0])}, args[1:]...)
	// On failure, such as no /proc, the agent runs under the name it has.
	unix.Exec("/proc/self/exe", argv, os.Environ())
}

// calmRuntime makes the Go runtime's monitor thread sleep for a millisecond where
// it wants 20 microseconds: that is less than a system call takes under emulation,
// so that it takes the processor away from every call, and half of the guest's
// time went into it. It is the first thread that the runtime starts.
func calmRuntime() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil || len(tasks) < 2 {
		return
	}
	ids := make([]int, 0, len(tasks))
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", ids[1]), []byte("1000000"), 0)
}

// readyPipe returns what tells the parent that the guest has its identity.
func readyPipe(fd int) func() {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return func() {}
	}
	unix.CloseOnExec(fd)
	return sync.OnceFunc(func() {
		unix.Write(fd, []byte("ok\n"))
		unix.Close(fd)
	})
}

// openPort finds the virtio port by its name, and waits for it: udev or devtmpfs
// may still be busy.
func openPort(ctx context.Context, class, dev string) (*port, error) {
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		names, _ := filepath.Glob(filepath.Join(class, "*", "name"))
		for _, file := range names {
			name, err := os.ReadFile(file)
			if err != nil || strings.TrimSpace(string(name)) != wire.AgentPort {
				continue
			}
			path := filepath.Join(dev, filepath.Base(filepath.Dir(file)))
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == unix.ENOENT {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("open %s: %w", path, err)
			}
			return newPort(os.NewFile(uintptr(fd), path))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A port is a virtio serial port. As long as nobody has opened the host's end,
// the kernel answers a read with 0 bytes; that is not the end of anything.
type port struct {
	*os.File
	raw syscall.RawConn
}

func newPort(f *os.File) (*port, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &port{f, raw}, nil
}

func (p *port) Read(b []byte) (n int, err error) {
	rawErr := p.raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), b)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN, err == nil && n == 0 && len(b) > 0:
				return false // wait for the next event of the port
			default:
				return true
			}
		}
	})
	if rawErr != nil {
		return 0, rawErr
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", p.Name(), err)
	}
	return n, nil
}

// logger writes where the host will see it: the kernel's log, or standard error.
type logger struct{ w io.Writer }

func openLog() logger {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		return logger{f}
	}
	return logger{os.Stderr}
}

func (l logger) printf(format string, args ...any) {
	fmt.Fprintf(l.w, "attest-agent: "+format+"\n", args...)
}

const agentOOMScore = -1000

// oomScore sets the OOM score adjustment of this process. Failing to is harmless.
func oomScore(score int) {
	os.WriteFile("/proc/self/oom_score_adj", fmt.Append(nil, score), 0)
}

// A child inherits the agent's OOM score, so the agent takes that of ordinary
// processes while it starts one.
var spawnMu sync.Mutex

func spawn(path string, argv []string, attr *os.ProcAttr) (*os.Process, error) {
	spawnMu.Lock()
	defer spawnMu.Unlock()
	if score, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil && strings.TrimSpace(string(score)) == fmt.Sprint(agentOOMScore) {
		oomScore(0)
		defer oomScore(agentOOMScore)
	}
	return os.StartProcess(path, argv, attr)
}
