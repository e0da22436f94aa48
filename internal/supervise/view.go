package supervise

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A View is what a process sees of the host, by Landlock (landlock(7)). It opens only
// the files that are named here, and again those that it has inherited as
// descriptors: not for writing if they were open for reading alone. It makes no TCP connection and accepts none (Linux 6.7), and reaches no
// process and no abstract socket that is not its own (6.12). It gets no further
// rights by executing a program.
//
// Each path stands for a file, or for a directory with all that is below it. Paths that
// do not exist, or that this user cannot reach, are left out.
type View struct {
	Read  []string // may be read and executed
	Write []string // may be read, executed, written, made and removed
}

// CanView reports whether this kernel can limit what a process sees.
func CanView() bool { return landlockVersion() > 0 }

// landlockVersion is that of the kernel's Landlock; 0: it has none, or not for us.
func landlockVersion() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// The rights of Landlock, by what they are about. A file that is not a directory can
// only have those of files.
const (
	readFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE
	readDir  = unix.LANDLOCK_ACCESS_FS_READ_DIR

	writeFile = unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	writeDir  = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
)

// rights are those that a kernel with this version of Landlock knows.
func rights(version int) (r unix.LandlockRulesetAttr) {
	r.Handled_access_fs = readFile | readDir | writeFile | writeDir
	for _, later := range []struct {
		since           int
		fs, net, scoped uint64
	}{
		{2, unix.LANDLOCK_ACCESS_FS_REFER, 0, 0},
		{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE, 0, 0},
		{4, 0, unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, 0},
		{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV, 0, 0},
		{6, 0, 0, unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL},
	} {
		if version >= later.since {
			r.Handled_access_fs |= later.fs
			r.Handled_access_net |= later.net
			r.Scoped |= later.scoped
		}
	}
	return r
}

// RestrictThread takes from the calling thread, and from all that it starts or executes,
// what is not in the view, for good. The files of fds stay within it. It is for a process
// that has to do something outside of its view first (Command.View does it by itself).
func (v *View) RestrictThread(fds []int) error {
	handled := rights(landlockVersion())
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&handled)), unsafe.Sizeof(handled), 0)
	if errno != 0 {
		return fmt.Errorf("make a ruleset of Landlock: %w", errno)
	}
	ruleset := int(fd)
	defer unix.Close(ruleset)
	read := uint64(readFile | readDir)
	for _, path := range v.Read {
		if err := allowPath(ruleset, path, read); err != nil {
			return err
		}
	}
	for _, path := range v.Write {
		if err := allowPath(ruleset, path, handled.Handled_access_fs); err != nil {
			return err
		}
	}
	for _, fd := range fds {
		access := handled.Handled_access_fs
		if onlyRead(fd) {
			access = read
		}
		// Sockets, pipes and files in memory have no place in the file system, and
		// need no rule.
		if err := allow(ruleset, fd, access); err != nil && !errors.Is(err, unix.EBADFD) {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0); errno != 0 {
		return fmt.Errorf("enter a ruleset of Landlock: %w", errno)
	}
	return nil
}

// onlyRead reports whether a file that is not a directory, which nobody opens otherwise, is
// open for reading alone.
func onlyRead(fd int) bool {
	var st unix.Stat_t
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR
}

func allowPath(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // nor can the process open it
	}
	defer unix.Close(fd)
	if err := allow(ruleset, fd, access); err != nil {
		return fmt.Errorf("show %s: %w", path, err)
	}
	return nil
}

func allow(ruleset, fd int, access uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= readFile | writeFile | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// startInView starts r with a view. ended is to be closed when the process has been
// reaped.
//
// A view belongs to a thread, and what the thread starts gets it. It cannot be taken
// back, so the thread is of no more use. It stays all the same for as long as the
// process does: the kernel sends PR_SET_PDEATHSIG when the thread that forked ends.
func startInView(r *startRequest, attr *syscall.ProcAttr, fds []int) (pid int, ended chan struct{}, err error) {
	ended = make(chan struct{})
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread() // for good: Go ends the thread with this function
		if err = r.View.RestrictThread(fds); err == nil {
			pid, err = syscall.ForkExec(r.Path, r.Args, attr)
		}
		failed := err != nil
		close(started)
		if !failed {
			<-ended
		}
	}()
	<-started
	return pid, ended, err
}
