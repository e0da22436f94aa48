// Package socketpair connects this process with a child.
package socketpair

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// New returns two connected unix sockets of a type (unix.SOCK_STREAM, …): ours for
// Go, theirs for a child to inherit. Both are closed on exec; exec.Cmd.ExtraFiles
// hands a duplicate on.
func New(typ int) (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "socketpair")
	defer f.Close() // FileConn has a duplicate
	theirs = os.NewFile(uintptr(fds[1]), "socketpair")
	conn, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}
