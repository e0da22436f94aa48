package supervise

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const isolateName = "attest-isolate" // argv[0] of the first process of a PID namespace

// startIsolated starts r in new mount and PID namespaces, below isolate.
func startIsolated(r *startRequest, attr *syscall.ProcAttr) (int, error) {
	path := r.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(r.Dir, path)
	}
	// Later than this only isolate could say that there is nothing to execute.
	if fi, err := os.Stat(path); err != nil {
		return 0, err
	} else if fi.IsDir() || fi.Mode().Perm()&0o111 == 0 {
		return 0, syscall.EACCES
	}
	sys := *attr.Sys
	sys.Cloneflags = syscall.CLONE_NEWPID
	sys.Unshareflags = syscall.CLONE_NEWNS // this way Go also makes all mounts private
	isolated := *attr
	isolated.Sys = &sys
	args := append([]string{isolateName, strconv.Itoa(len(attr.Files)), r.Path}, r.Args...)
	return syscall.ForkExec("/proc/self/exe", args, &isolated)
}

// startNetworked starts r in a new network namespace.
func startNetworked(r *startRequest, attr *syscall.ProcAttr) (int, error) {
	attr.Sys.Cloneflags = syscall.CLONE_NEWNET
	if r.Isolate {
		attr.Sys.Cloneflags |= syscall.CLONE_NEWPID
		attr.Sys.Unshareflags = syscall.CLONE_NEWNS // see startIsolated
		return syscall.ForkExec(r.Path, r.Args, attr)
	}
	if os.Geteuid() == 0 {
		pid, err := syscall.ForkExec(r.Path, r.Args, attr)
		if !errors.Is(err, syscall.EPERM) {
			return pid, err
		}
		// A root without CAP_SYS_ADMIN needs a user namespace too.
	}
	return startAsRoot(r, attr, syscall.CLONE_NEWNET)
}

// startAsRoot starts r in new namespaces, as the root of a user namespace.
func startAsRoot(r *startRequest, attr *syscall.ProcAttr, namespaces uintptr) (int, error) {
	attr.Sys.Cloneflags = syscall.CLONE_NEWUSER | namespaces
	attr.Sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.Sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	return syscall.ForkExec(r.Path, r.Args, attr)
}

// isolate is process 1 of a PID namespace: it runs one command and ends with
// it, upon which the kernel kills what is left in the namespace. A command that
// were process 1 itself would ignore signals that it does not handle, and
// inherit children that it does not know.
func isolate() int {
	n, err := strconv.Atoi(os.Args[1])
	if err != nil || len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, isolateName+": attest starts this program; it does nothing on its own")
		return 127
	}
	files := make([]uintptr, n)
	for i := range files {
		files[i] = uintptr(i)
	}
	// Without it the command would see the processes of the outer namespace
	// under their outer numbers. A container may forbid it; what needs /proc
	// then says so.
	unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	// The command is in the same group and gets the same signals. Its end ends us.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	command, err := syscall.ForkExec(os.Args[2], os.Args[3:], &syscall.ProcAttr{Env: os.Environ(), Files: files})
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: start %s: %v\n", isolateName, os.Args[2], err)
		return 127
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 127
		case pid == command && ws.Signaled():
			return 128 + int(ws.Signal())
		case pid == command:
			return ws.ExitStatus()
		}
	}
}
