package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/socketpair"
	"github.com/attest-vm/attest/internal/supervise"
)

// A RAM is where the memories of machines are files with names, for a VMM that takes them
// for lasting only then: a file system in memory that is mounted nowhere. Whoever has one
// of its directories open reaches what is in it; nobody else does, and nothing of it is
// left when the last one ends. Its zero value is ready to use.
type RAM struct {
	Disk bool // have directories on the disk, as on a host that forbids better

	mu    sync.Mutex
	mount *os.File
	last  int
}

// Directory makes a directory, and returns it with what removes it. On a host that forbids
// such a file system, the directory is dir/ram, which is on a disk possibly.
func (r *RAM) Directory(ctx context.Context, s *supervise.Supervisor, dir string) (_ *os.File, remove func() error, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mount == nil && !r.Disk {
		if r.mount, err = mountRAM(ctx, s); err != nil && ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
	}
	if r.mount == nil {
		path := filepath.Join(dir, "ram")
		if err := os.RemoveAll(path); err != nil {
			return nil, nil, err
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, nil, err
		}
		f, err := os.Open(path)
		return f, func() error { return os.RemoveAll(path) }, err
	}
	r.last++
	root, err := os.OpenRoot(Inherited(int(r.mount.Fd())))
	if err != nil {
		return nil, nil, err
	}
	name := strconv.Itoa(r.last)
	if err := root.Mkdir(name, 0o700); err != nil {
		return nil, nil, errors.Join(err, root.Close())
	}
	f, err := root.Open(name)
	return f, func() error { return errors.Join(root.RemoveAll(name), root.Close()) }, err
}

// ramHelper is argv[0] of this binary when it makes a RAM's file system: the right to do so
// is had in namespaces of one's own.
const ramHelper = "attest-ram"

func init() {
	if len(os.Args) != 2 || os.Args[0] != ramHelper {
		return
	}
	if err := makeRAM(); err != nil {
		fmt.Fprintln(os.Stderr, ramHelper+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// ramSocket is the helper's end of the socket on which it sends the file system.
const ramSocket = 3

func makeRAM() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	config, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	for _, o := range [][2]string{{"mode", "0700"}, {"size", "0"}} { // 0: no limit but that of the host
		if err := unix.FsconfigSetString(config, o[0], o[1]); err != nil {
			return os.NewSyscallError("fsconfig "+o[0], err)
		}
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	return os.NewSyscallError("sendmsg", unix.Sendmsg(ramSocket, []byte{0}, unix.UnixRights(mount), nil, 0))
}

// mountRAM has the helper make the file system.
func mountRAM(ctx context.Context, s *supervise.Supervisor) (*os.File, error) {
	ours, theirs, err := socketpair.New(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	p, err := s.Start(ctx, supervise.Command{Path: "/proc/self/exe", Args: []string{ramHelper, "make"}, ExtraFiles: []*os.File{theirs}, Network: true})
	theirs.Close()
	if err != nil {
		return nil, err
	}
	defer func() {
		p.Kill()
		<-p.Done()
	}()
	defer context.AfterFunc(ctx, func() { ours.Close() })()
	return receiveFile(ours)
}

func receiveFile(conn *net.UnixConn) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return nil, errors.Join(errors.New("no file came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "ram"), nil
}
