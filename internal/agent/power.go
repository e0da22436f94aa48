package agent

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// power asks the guest's init system to end the machine or to start it again.
// Where there is none that could be asked, it is reboot(2), after sync.
func (s *Server) power(ctx context.Context, q wire.PowerRequest) error {
	if q.Panic {
		return s.panic()
	}
	what, number := "poweroff", unix.LINUX_REBOOT_CMD_POWER_OFF
	if q.Reboot {
		what, number = "reboot", unix.LINUX_REBOOT_CMD_RESTART
	}
	if asked, err := s.askInit(ctx, what); asked || err != nil {
		return err
	}
	s.background(func() {
		// The host hears the answer first.
		time.Sleep(20 * time.Millisecond)
		unix.Sync()
		s.keepInit()
		if err := unix.Reboot(number); err != nil {
			s.Log("%s: %v", what, err)
		}
	})
	return nil
}

// keepInit reads into memory what process 1 executes. Before the kernel takes the
// power off it takes the disks away, and an init that misses a page of its program
// by then dies, which is a panic.
func (s *Server) keepInit() {
	const mapped = "/proc/1/map_files" // proc(5)
	ranges, err := os.ReadDir(mapped)
	if err != nil {
		s.Log("what process 1 executes: %v", err)
	}
	read := map[string]bool{}
	for _, r := range ranges {
		path := filepath.Join(mapped, r.Name())
		target, err := os.Readlink(path)
		if st, statErr := os.Stat(path); err != nil || statErr != nil || !st.Mode().IsRegular() || read[target] {
			continue
		}
		read[target] = true
		if f, err := os.Open(path); err == nil {
			io.Copy(io.Discard, f)
			f.Close()
		}
	}
}

// panic has the kernel panic as soon as the host has the answer. Root may do that
// whatever kernel.sysrq says.
func (s *Server) panic() error {
	f, err := os.OpenFile("/proc/sysrq-trigger", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	s.background(func() {
		defer f.Close()
		time.Sleep(20 * time.Millisecond)
		if _, err := f.WriteString("c"); err != nil {
			s.Log("panic: %v", err)
		}
	})
	return nil
}

// background runs fn outside of the session.
func (s *Server) background(fn func()) { s.shell.background.Go(fn) }

// askInit asks process 1, in its own way.
func (s *Server) askInit(ctx context.Context, what string) (asked bool, err error) {
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil {
		return false, nil
	}
	switch strings.TrimSpace(string(comm)) {
	case "systemd":
		// SIGRTMIN+4 starts poweroff.target, SIGRTMIN+5 reboot.target, irreversibly:
		// systemd(1), "Signals". No program and no bus has to work.
		sig := unix.Signal(34 + 4)
		if what == "reboot" {
			sig = 34 + 5
		}
		return true, unix.Kill(1, sig)
	case wire.StayingInit, "sh", "bash":
		return false, nil // nothing that would take the system down
	}
	// sysvinit, OpenRC, runit, busybox, s6: their commands.
	path, err := lookPath(what, nil)
	if err != nil {
		return false, nil
	}
	s.shell.prepare()
	c, err := s.shell.startCold(wire.ExecRequest{Argv: []string{path}, Detach: true}, nil)
	if err != nil {
		return false, nil
	}
	select {
	case e := <-c.exited:
		return e.code == 0 && e.err == nil, nil
	case <-time.After(5 * time.Second): // it waits for the end, as some do
		return true, nil
	case <-ctx.Done():
		return true, ctx.Err()
	}
}
