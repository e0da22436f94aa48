package jail

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Any binary that imports this package can be the helper.
func init() {
	if len(os.Args) != 2 || os.Args[0] != helperName {
		return
	}
	runtime.LockOSThread() // namespaces are a thread's
	code, err := 1, error(nil)
	if os.Args[1] == try {
		code, err = 0, tryAll()
	} else {
		var o Order
		if err = json.Unmarshal([]byte(os.Args[1]), &o); err == nil {
			code, err = o.run()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// run starts the jailer, and returns what Firecracker has ended with.
func (o Order) run() (code int, err error) {
	unix.CloseRange(3, 1<<31, unix.CLOSE_RANGE_CLOEXEC)
	trees, err := o.memories()
	if err != nil {
		return 0, err
	}
	if err := private(); err != nil {
		return 0, err
	}
	root, err := o.layOut()
	if err != nil {
		return 0, err
	}
	for i, f := range o.Files {
		if err := o.show(root, i, f, trees[f.FD]); err != nil {
			return 0, err
		}
	}
	finish, err := o.openLog(root)
	if err != nil {
		return 0, err
	}
	// Neither the jailer nor Firecracker gains anything by executing a program.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("give up new privileges: %w", err)
	}
	args := append([]string{filepath.Base(o.Jailer), "--id", o.ID, "--exec-file", o.program(), "--uid", fmt.Sprint(o.UID), "--gid", fmt.Sprint(o.GID),
		"--chroot-base-dir", o.Dir, "--"}, o.Args...)
	pid, err := syscall.ForkExec(o.Jailer, args, &syscall.ProcAttr{Dir: "/", Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", o.Jailer, err)
	}
	ws, err := await(pid)
	unix.Kill(-1, unix.SIGKILL) // whoever else is in the namespace; the pipe has an end then
	finish()
	if err == nil && ws.Signaled() {
		fmt.Fprintf(os.Stderr, "firecracker was killed by %s\n", unix.SignalName(ws.Signal()))
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), err
}

// await waits for the end of a child, and reaps what else becomes one of this process, the first
// of its namespace.
func await(child int) (ws syscall.WaitStatus, err error) {
	for {
		switch pid, err := syscall.Wait4(-1, &ws, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return ws, os.NewSyscallError("wait4", err)
		case pid == child:
			return ws, nil
		}
	}
}

// private makes what is mounted from here on this process's alone.
func private() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make its mounts private: %w", err)
	}
	return nil
}

// memories are mounts of the files that have no path, by their descriptors. They can only
// be had in the namespace that the files are in.
func (o Order) memories() (map[int]int, error) {
	trees := map[int]int{}
	if o.Memories == 0 {
		return trees, nil
	}
	own, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the mount namespace: %w", err)
	}
	defer unix.Close(own)
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // nobody enters a mount namespace without
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(o.Memories, unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("enter the namespace of memories: %w", err)
	}
	for _, f := range o.Files {
		if f.Path == "" {
			if trees[f.FD], err = unix.OpenTree(f.FD, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
				return nil, fmt.Errorf("mount the memory %s: %w", f.Name, err)
			}
		}
	}
	if err := unix.Setns(own, unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("leave the namespace of memories: %w", err)
	}
	return trees, nil
}

// base is what the jailer calls Firecracker, whatever its file is called.
const base = "firecracker"

// program is where the jailer finds Firecracker.
func (o Order) program() string { return filepath.Join(o.Dir, "bin", base) }

// nothing are the flags of a mount on which files are only read and written.
const nothing = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// layOut puts a file system in memory over the machine's directory, and that directory where
// the jailer makes its root directory: the path of a socket is short outside, and its name is
// the same with and without a jail.
func (o Order) layOut() (root string, err error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, o.Dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", o.Dir, err)
	}
	defer unix.Close(tree)
	root = filepath.Join(o.Dir, base, o.ID, "root")
	if err := unix.Mount("jail", o.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return "", fmt.Errorf("make a file system in memory: %w", err)
	}
	for _, dir := range []string{root, filepath.Dir(o.program())} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	// Where temporary files are, programs are often not to be executed.
	if err := place(tree, root, unix.MS_NOSUID|unix.MS_NODEV); err != nil {
		return "", fmt.Errorf("mount the root directory: %w", err)
	}
	if err := bind(o.Firecracker, o.program(), unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV); err != nil {
		return "", err
	}
	dev := filepath.Join(root, "dev")
	err = os.Mkdir(dev, 0o700)
	if err == nil {
		err = unix.Mount("dev", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0700,size=64k")
	}
	if err != nil {
		return "", fmt.Errorf("make a file system for device nodes: %w", err)
	}
	return root, nil
}

// place attaches a mount to a directory or a file, with other flags.
func place(tree int, target string, flags uintptr) error {
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	return os.NewSyscallError("mount", unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""))
}

// bind makes a file and puts another one over it.
func bind(path, target string, flags uintptr) error {
	err := placeholder(target)
	if err == nil {
		err = unix.Mount(path, target, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
	}
	if err != nil {
		return fmt.Errorf("show %s in the jail: %w", path, err)
	}
	return nil
}

func placeholder(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// show puts file i into the jail.
func (o Order) show(root string, i int, f File, tree int) error {
	flags, target := uintptr(nothing), filepath.Join(root, f.Name)
	if !f.Write {
		flags |= unix.MS_RDONLY
	}
	if f.Path == "" {
		err := placeholder(target)
		if err == nil {
			err = place(tree, target, flags)
		}
		if err != nil {
			return fmt.Errorf("show the memory %s in the jail: %w", f.Name, err)
		}
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(f.Path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.Path, Err: err}
	}
	path := f.Path
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		flags &^= unix.MS_NODEV
	}
	if !f.Write && !o.reads(st) {
		var err error
		if path, err = o.lend(f.Path, i); err != nil {
			return fmt.Errorf("show %s to uid %d in the jail, who may not read it: %w; let others read it (chmod o+r), or have jailer_uid be its owner", f.Path, o.UID, err)
		}
	}
	return bind(path, target, flags)
}

// reads reports whether the jailed user may read a file by its mode.
func (o Order) reads(st unix.Stat_t) bool {
	switch {
	case int(st.Uid) == o.UID:
		return st.Mode&0o400 != 0
	case int(st.Gid) == o.GID:
		return st.Mode&0o040 != 0
	}
	return st.Mode&0o004 != 0
}

// lend returns the path at which a file belongs to the jailed user. An overlay says so, and has
// none of the content (metacopy): whoever maps the file has the same pages as without it.
func (o Order) lend(path string, i int) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	at := filepath.Join(o.Dir, fmt.Sprint("lent", i))
	dir := func(name string) string { return filepath.Join(at, name) }
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.MkdirAll(dir(name), 0o700); err != nil {
			return "", err
		}
	}
	if err := unix.Mount(filepath.Dir(path), dir("lower"), "", unix.MS_BIND, ""); err != nil {
		return "", err
	}
	if err := os.Chdir(at); err != nil { // a path of somebody's may have what separates options
		return "", err
	}
	err = unix.Mount("lent", "merged", "overlay", nothing, "lowerdir=lower,upperdir=upper,workdir=work,metacopy=on,redirect_dir=on,index=off")
	if err := cmp.Or(err, os.Chdir("/")); err != nil {
		return "", fmt.Errorf("mount an overlay: %w", err)
	}
	lent := filepath.Join(dir("merged"), filepath.Base(path))
	return lent, cmp.Or(os.Chown(lent, o.UID, o.GID), os.Chmod(lent, 0o400))
}

// openLog makes the pipe that Firecracker logs to, and passes on what comes until finish.
func (o Order) openLog(root string) (finish func(), err error) {
	path := filepath.Join(root, Log)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	if err := os.Chown(path, o.UID, o.GID); err != nil {
		return nil, err
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0) // or it would end before it begins
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(os.Stderr, r)
	}()
	return func() {
		w.Close()
		<-ended
	}, nil
}

// tryAll does what the jailer will do and a host may forbid.
func tryAll() error {
	if err := private(); err != nil {
		return err
	}
	const dir, uid = "/proc", 65534 // a directory of every host; another one is seen here alone
	if err := unix.Mount("try", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("make a file system in memory: %w", err)
	}
	node := filepath.Join(dir, "kvm")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 232))); err != nil {
		return fmt.Errorf("make a device node: %w", err)
	}
	if err := os.Chown(node, uid, uid); err != nil {
		return fmt.Errorf("give it to another user: %w", errors.Unwrap(err))
	}
	if err := cmp.Or(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("become another user: %w", err)
	}
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("open a device node: %w", errors.Unwrap(err))
	}
	if err == nil { // a host without the device is somebody else's to refuse
		f.Close()
	}
	return nil
}
