package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// terminal is the operation wire.OpTerminal: a login shell for a person, in a
// session of its own on a pseudo-terminal. When the host gives up, or goes away,
// the terminal hangs up, as a real one does.
func (sh *shell) terminal(stream *wire.Stream, q wire.TerminalRequest) (any, error) {
	sh.prepare()
	env, dir, cred, err := sh.surroundings(wire.ExecRequest{User: q.User})
	if err != nil {
		return nil, err
	}
	if q.User == "" && unix.Access("/root", unix.X_OK) == nil {
		dir = "/root"
	}
	if q.Type != "" {
		env = setenv(env, "TERM", q.Type)
	}
	master, slave, err := openPTY(q.TerminalSize)
	if err != nil {
		return nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	defer master.Close()
	start := time.Now()
	p, err := spawn(sh.path, []string{"-" + filepath.Base(sh.path)}, &os.ProcAttr{
		Dir: dir, Env: env, Files: []*os.File{slave, slave, slave},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true, Credential: cred},
	})
	slave.Close()
	if err != nil {
		return nil, err
	}
	sh.background.Go(func() { io.Copy(master, stream.Reader(wire.Stdin)) })
	sh.background.Go(func() { resizes(master, stream.Reader(wire.Resize)) })
	shown := make(chan struct{})
	sh.background.Go(func() { pump(master, stream, wire.Stdout, shown) })
	exited := make(chan exit, 1)
	sh.background.Go(func() { exited <- waitProcess(p, true) })

	var e exit
	select {
	case e = <-exited:
		settle(master, shown)
	case <-stream.Context().Done():
		master.Close() // SIGHUP to what runs in the foreground
		unix.Kill(-p.Pid, unix.SIGHUP)
		select {
		case e = <-exited:
		case <-time.After(killGrace):
			unix.Kill(-p.Pid, unix.SIGKILL)
			e = <-exited
		}
	}
	r := wire.ExecResult{ExitCode: e.code, Duration: time.Since(start)}
	if e.signal != 0 {
		r.Signal = unix.SignalName(e.signal)
	}
	return r, e.err
}

// openPTY makes a pseudo-terminal (pts(4)). Reads of the master can be ended by
// closing it.
func openPTY(size wire.TerminalSize) (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, err
	}
	var number int
	err = control(master, func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		}
		return err
	})
	if err == nil {
		err = resize(master, size)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

func resizes(master *os.File, r io.Reader) {
	for {
		var size wire.TerminalSize
		if binary.Read(r, binary.BigEndian, &size) != nil || resize(master, size) != nil {
			return
		}
	}
}

func resize(master *os.File, size wire.TerminalSize) error {
	return control(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	})
}

// control runs fn with f's descriptor and leaves f non-blocking, which Fd does not.
func control(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) { result = fn(int(fd)) }); err != nil {
		return err
	}
	return result
}
