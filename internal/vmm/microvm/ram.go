package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
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
	// namespace is the mount namespace in which it is mounted, for processes that mount a
	// file of it elsewhere: nobody mounts what is in no namespace.
	namespace *os.File
	files     []string // their paths
	last      int
}

// Directory makes a directory, and returns it with what removes it. On a host that forbids
// such a file system, the directory is dir/ram, which is on a disk possibly.
func (r *RAM) Directory(ctx context.Context, s *supervise.Supervisor, dir string) (_ *os.File, remove func() error, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.Disk {
		if err = r.make(ctx, s); err != nil && ctx.Err() != nil {
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

// File makes a file that everybody may read and write who reaches it, and returns it with
// the mount namespace in which processes can mount it somewhere else; the namespace stays the
// RAM's. Nobody reaches the file but by these two. It is removed when nobody has it open or
// mapped any more, by a later File or Sweep.
func (r *RAM) File(ctx context.Context, s *supervise.Supervisor) (f, namespace *os.File, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.make(ctx, s); err != nil {
		return nil, nil, fmt.Errorf("a file system in memory: %w", err)
	}
	r.sweep()
	r.last++
	// It needs a name: without one the kernel mounts it nowhere.
	path := filepath.Join(Inherited(int(r.mount.Fd())), fmt.Sprint("file", r.last))
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := f.Chmod(0o666); err != nil {
		return nil, nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	r.files = append(r.files, path)
	return f, r.namespace, nil
}

// Sweep removes the files that nobody has any more.
func (r *RAM) Sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep()
}

func (r *RAM) sweep() {
	r.files = slices.DeleteFunc(r.files, func(path string) bool { return removeUnused(path) == nil })
}

// removeUnused removes a file that no process has open or mapped: nobody else gets such a lease.
func removeUnused(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	return os.Remove(path)
}

// Has reports whether a file is one of File's.
func (r *RAM) Has(f *os.File) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var its, ours unix.Stat_t
	return r.mount != nil && unix.Fstat(int(f.Fd()), &its) == nil && unix.Fstat(int(r.mount.Fd()), &ours) == nil && its.Dev == ours.Dev
}

// make makes the file system, once. mu is held.
func (r *RAM) make(ctx context.Context, s *supervise.Supervisor) (err error) {
	if r.mount == nil {
		r.mount, r.namespace, err = mountRAM(ctx, s)
	}
	return err
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
	// Where mounts are shared, which systemd has them be, the host would see it otherwise.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("make mounts private", err)
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
	// Over its working directory, which is only a place: nobody else sees it there.
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, ".", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	namespace, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open the mount namespace", err)
	}
	return os.NewSyscallError("sendmsg", unix.Sendmsg(ramSocket, []byte{0}, unix.UnixRights(mount, namespace), nil, 0))
}

// mountRAM has the helper make the file system.
func mountRAM(ctx context.Context, s *supervise.Supervisor) (mount, namespace *os.File, err error) {
	ours, theirs, err := socketpair.New(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, nil, err
	}
	defer ours.Close()
	p, err := s.Start(ctx, supervise.Command{Path: "/proc/self/exe", Args: []string{ramHelper, "make"}, Dir: s.Dir(), ExtraFiles: []*os.File{theirs}, Network: true})
	theirs.Close()
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		p.Kill()
		<-p.Done()
	}()
	defer context.AfterFunc(ctx, func() { ours.Close() })()
	files, err := receiveFiles(ours)
	if err == nil && len(files) != 2 {
		err = fmt.Errorf("%d files came", len(files))
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, nil, err
	}
	return files[0], files[1], nil
}

func receiveFiles(conn *net.UnixConn) (files []*os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(2*4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return nil, errors.Join(errors.New("no file came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "ram"))
	}
	return files, err
}
