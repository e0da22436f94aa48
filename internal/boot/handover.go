package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// agentProcess is the agent as a child of this process.
type agentProcess struct {
	pid   int
	ready *os.File // read end of its pipe
}

// startAgent starts the agent in the guest's root, which is entered already.
func startAgent() (*agentProcess, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	defer w.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	defer null.Close()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{AgentArg0}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Files: []uintptr{null.Fd(), console.Fd(), console.Fd(), w.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true}, // the console must not become its terminal
	})
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	return &agentProcess{pid, r}, nil
}

// waitReady waits until the agent says "ok": the host has given the guest its
// identity. How long that may take is the host's to judge, which sees all of it.
func (a *agentProcess) waitReady() error {
	defer a.ready.Close()
	said, err := io.ReadAll(io.LimitReader(a.ready, 3))
	if err != nil {
		return fmt.Errorf("wait for the agent: %w", err)
	}
	if string(said) == "ok\n" {
		return nil
	}
	if len(said) > 0 {
		return fmt.Errorf("the agent said %q instead of ok; agent and init are of different versions", said)
	}
	return fmt.Errorf("the agent ended before the host had given this guest its identity (%s); its own message is above", waitStatus(a.pid))
}

// waitStatus reaps a process and says how it ended.
func waitStatus(pid int) string {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Sprintf("no status: %v", err)
		}
		return describeStatus(status)
	}
}

func describeStatus(s unix.WaitStatus) string {
	if s.Signaled() {
		return "killed by " + unix.SignalName(s.Signal())
	}
	return fmt.Sprintf("exit code %d", s.ExitStatus())
}
