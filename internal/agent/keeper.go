package agent

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Somebody in the guest may kill the agent: a test, the kernel when memory is
// short. A keeper, a fork of the agent, waits for its end and becomes the next
// agent. It has executed nothing, so that it costs a guest no time and hardly any
// memory.

// keep sees to it that there is always a keeper.
func keep(args []string, log logger) {
	pid, hold, err := startKeeper(args)
	go func() {
		for err == nil {
			if _, waitErr := unix.Wait4(pid, nil, 0, nil); waitErr != unix.EINTR {
				unix.Close(hold)
				pid, hold, err = startKeeper(args)
			}
		}
		log.printf("nobody would start this agent again: %v", err)
	}()
}

// A keeperImage is all that a keeper needs, made before the fork: afterwards
// there is no Go runtime that could allocate anything.
type keeperImage struct {
	pipe   [2]int // the agent holds its write end for as long as it lives
	path   *byte
	argv   []*byte
	envp   []*byte
	name   *byte
	mask   uint64 // the agent's signal mask
	pause  unix.Timespec
	buffer [1]byte
}

// startKeeper returns the keeper and the descriptor whose end it waits for.
func startKeeper(args []string) (pid, hold int, err error) {
	k := &keeperImage{pause: unix.Timespec{Nsec: 100e6}} // an agent that dies at once shall not take the processor
	if err := unix.Pipe2(k.pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(k.pipe[0])
	if err := k.prepare(args); err != nil {
		unix.Close(k.pipe[1])
		return 0, 0, err
	}
	// No signal must reach the keeper: its handler would be the Go runtime's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	all := ^uint64(0)
	setMask(&all, &k.mask)
	r, errno := k.fork()
	setMask(&k.mask, nil)
	if errno != 0 {
		unix.Close(k.pipe[1])
		return 0, 0, fmt.Errorf("clone: %w", errno)
	}
	return int(r), k.pipe[1], nil
}

func (k *keeperImage) prepare(args []string) (err error) {
	if k.path, err = syscall.BytePtrFromString("/proc/self/exe"); err != nil {
		return err
	}
	if k.argv, err = syscall.SlicePtrFromStrings(args); err != nil {
		return err
	}
	if k.envp, err = syscall.SlicePtrFromStrings(os.Environ()); err != nil {
		return err
	}
	k.name, err = syscall.BytePtrFromString("attest-keeper")
	return err
}

const maxFD = 1<<32 - 1

//go:nosplit
//go:norace
func setMask(set, old *uint64) {
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
}

// fork returns in the agent only.
//
//go:nosplit
//go:norace
func (k *keeperImage) fork() (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(k.name)), 0)
	// It must hold nothing open: the end of a command's output is that of its pipe.
	own := uintptr(k.pipe[0])
	if own > 3 {
		syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 3, own-1, 0)
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, own+1, maxFD, 0)
	for fd := uintptr(3); errno != 0 && fd < 4096; fd++ { // a kernel before 5.9
		if fd != own {
			syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		}
	}
	for {
		// Nobody writes: this returns when the agent is gone.
		_, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(k.pipe[0]), uintptr(unsafe.Pointer(&k.buffer)), 1)
		if errno != syscall.EINTR {
			break
		}
	}
	syscall.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&k.pause)), 0, 0)
	setMask(&k.mask, nil)
	syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(k.path)), uintptr(unsafe.Pointer(&k.argv[0])), uintptr(unsafe.Pointer(&k.envp[0])))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
