package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// byVsock reports whether the kernel's command line says that the host comes by vsock.
func byVsock(cmdline string) bool {
	return slices.Contains(strings.Fields(cmdline), wire.VsockArgument)
}

// A socketListener accepts connections of a socket that net does not know, such as one of
// AF_VSOCK.
type socketListener struct {
	file *os.File
	raw  syscall.RawConn
}

var _ Listener = (*socketListener)(nil)

// listenVsock listens on the agent's port of vsock, whatever the address of this guest
// is: a guest that is restored may have another.
func listenVsock() (*socketListener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("vsock: socket", err)
	}
	return listenOn(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: wire.VsockPort})
}

// listenOn binds a non-blocking socket, which belongs to the listener also on error.
func listenOn(fd int, addr unix.Sockaddr) (_ *socketListener, err error) {
	l := &socketListener{file: os.NewFile(uintptr(fd), "listener")}
	defer func() {
		if err != nil {
			l.file.Close()
		}
	}()
	if err := unix.Bind(fd, addr); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, MaxGhosts); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	l.raw, err = l.file.SyscallConn()
	return l, err
}

// Accept blocks until a host connects. A connection that is gone before it is accepted
// is skipped.
func (l *socketListener) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	stop := context.AfterFunc(ctx, func() { l.file.Close() })
	defer stop()
	var conn int
	var err error
	waitErr := l.raw.Read(func(fd uintptr) bool {
		for {
			conn, _, err = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			switch err {
			case unix.EINTR, unix.ECONNABORTED:
			case unix.EAGAIN:
				return false
			default:
				return true
			}
		}
	})
	switch {
	case ctx.Err() != nil:
		if waitErr == nil && err == nil {
			unix.Close(conn)
		}
		return nil, context.Cause(ctx)
	case waitErr != nil:
		return nil, waitErr
	case err != nil:
		return nil, os.NewSyscallError("accept", err)
	}
	return os.NewFile(uintptr(conn), "connection"), nil
}

// serveVsock serves the hosts that come by vsock. It does not return before something
// is wrong.
func (s *Server) serveVsock(ctx context.Context) error {
	l, err := listenVsock()
	if err != nil {
		if errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("this kernel has no vsock: %w", err)
		}
		return err
	}
	defer l.file.Close()
	return s.ServeListener(ctx, l)
}
