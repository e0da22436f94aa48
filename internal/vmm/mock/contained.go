package mock

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/wire"
)

// This file runs in the machine: attest's own binary as its first process, and as
// its agent.

const (
	initName  = "attest-mock"        // argv[0]
	agentName = "@attest-mock-agent" // argv[0]
	tryArg    = "try"                // argv[2] of an init that ends when it could begin, and leaves nothing
	portFD    = 3                    // the stream to the host
	diskDir   = "disk"               // of the machine's: what stays over a reboot
)

// What init is told by signals.
const (
	signalPowerOff = syscall.SIGTERM
	signalReboot   = syscall.SIGUSR2
	signalPanic    = syscall.SIGUSR1
)

// panicCode is init's exit code when the machine panics.
const panicCode = 113

// Any binary that imports this package can be them.
func init() {
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[0] {
	case initName:
		if err := first(os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", initName, err)
			os.Exit(127)
		}
		os.Exit(0)
	case agentName:
		err := serveContained(os.Args[1])
		fmt.Fprintf(os.Stderr, "%s: %v\n", initName, err)
		os.Exit(1)
	}
}

func bootID() string { return rand.Text() }

// first is the first process of a machine. It returns on error only, or when it
// was but a try.
func first(args []string) error {
	if os.Getpid() != 1 {
		return errors.New("this is not a program for people; it is started by attest")
	}
	var o initOrder
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if len(args) > 1 && args[1] == tryArg {
		return try()
	}
	if err := makeEtc(filepath.Join(o.Dir, diskDir)); err != nil {
		return err
	}
	if err := makeRoot(o.Dir); err != nil {
		return err
	}
	runtime.LockOSThread()
	// The agent then knows that no other init follows.
	if err := os.WriteFile("/proc/1/comm", []byte(wire.StayingInit), 0); err != nil {
		return err
	}
	unix.CloseOnExec(portFD)
	fmt.Fprintf(os.Stderr, "mock: %s boots\n", o.Name)
	orders := make(chan os.Signal, 4)
	signal.Notify(orders, signalPowerOff, signalReboot, signalPanic)
	exits := make(chan os.Signal, 1)
	signal.Notify(exits, syscall.SIGCHLD)
	pid, err := startAgent(o.BootID)
	for err == nil {
		select {
		case order := <-orders:
			return obey(order, pid)
		case <-exits:
		}
		if reap(pid) { // somebody has killed it
			time.Sleep(agentPause)
			pid, err = startAgent(o.BootID)
		}
	}
	return err
}

// try makes a root in memory that only this process sees, so that nothing of it stays when
// the process is killed.
func try() error {
	dir := os.TempDir()
	if err := mount("tmpfs", dir, "tmpfs", 0, "mode=700"); err != nil {
		return err
	}
	return makeRoot(dir)
}

// agentPause keeps an agent that dies at once from taking the processor.
const agentPause = 100 * time.Millisecond

func startAgent(bootID string) (int, error) {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{agentName, bootID}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Files: []uintptr{0, 1, 2, portFD}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start the agent: %w", err)
	}
	return pid, nil
}

// reap collects what has ended, and says whether the agent is among it.
func reap(agent int) (ended bool) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if pid <= 0 || err != nil {
			return ended
		}
		ended = ended || pid == agent
	}
}

// stopTimeout is how long processes have for their end when the machine ends.
const stopTimeout = time.Second

// obey ends the machine.
func obey(order os.Signal, agent int) error {
	if order == signalPanic {
		fmt.Fprintln(os.Stderr, "Kernel panic - not syncing: sysrq triggered crash")
		os.Exit(panicCode)
	}
	unix.Kill(-1, unix.SIGTERM)
	for deadline := time.Now().Add(stopTimeout); others(agent) && time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		reap(agent)
	}
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if order == signalReboot {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	return os.NewSyscallError("reboot", unix.Reboot(how))
}

// others reports whether there are processes beside init and the agent.
func others(agent int) bool {
	names, err := filepath.Glob("/proc/[0-9]*")
	for _, n := range names {
		if base := filepath.Base(n); base != "1" && base != fmt.Sprint(agent) {
			return true
		}
	}
	return err != nil
}

// serveContained is the agent's life.
func serveContained(bootID string) error {
	unix.CloseOnExec(portFD)
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	unix.Umask(0o022)
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	f := os.NewFile(portFD, "port")
	conn, err := net.FileConn(f)
	if err != nil {
		return err
	}
	f.Close()
	s := agent.Server{Stage: contained{bootID}, Log: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "attest-agent: "+format+"\n", args...)
	}}
	defer s.Close()
	return s.Serve(context.Background(), conn)
}

// contained is the stage of an agent in namespaces: all but the clock, the
// entropy, the disks and the power switch is its own.
type contained struct{ bootID string }

func (c contained) Info(i *wire.Info) { i.BootID = c.bootID }

func (c contained) Operate(stream *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error) {
	switch r.Op {
	case wire.OpIdentity:
		return decode(r, func(q wire.Identity) (any, error) {
			if err := agent.Settle(q); err != nil {
				return nil, err
			}
			return next(wire.Request{Op: wire.OpWarm})
		})
	case wire.OpClock: // it is the host's
		return wire.ClockResult{Time: time.Now()}, nil
	case wire.OpSettle: // would sync the host's disks, and wait for its processes
		return nil, nil
	case wire.OpPicture:
		return nil, errors.New("a machine that is processes of this host shows nothing")
	case wire.OpSuspend: // not the host
		return nil, errors.New("a machine that is processes of this host does not suspend")
	case wire.OpPower:
		return decode(r, func(q wire.PowerRequest) (any, error) {
			order := signalPowerOff
			switch {
			case q.Panic:
				order = signalPanic
			case q.Reboot:
				order = signalReboot
			}
			go func() {
				<-stream.Context().Done() // the host has its answer
				unix.Kill(1, order)
			}()
			return nil, nil
		})
	}
	return next(r)
}

// owned are the directories of the root that a machine has for itself. In those
// on its disk things stay over a reboot.
var owned = []struct {
	name string
	disk bool
	mode os.FileMode
}{
	{"etc", true, 0o755}, {"home", true, 0o755}, {"mnt", true, 0o755}, {"root", true, 0o700}, {"srv", true, 0o755}, {"var", true, 0o755},
	{"run", false, 0o755}, {"tmp", false, 0o777 | os.ModeSticky},
	{"dev", false, 0o755}, {"proc", false, 0o555}, {"sys", false, 0o555},
}

// makeRoot makes the machine's root directory, below dir, and moves to it: the
// host's programs, which cannot be written to, and directories of its own.
func makeRoot(dir string) error {
	root, disk := filepath.Join(dir, "root"), filepath.Join(dir, diskDir)
	for _, d := range []string{root, disk} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	special := map[string]bool{"lost+found": true}
	for _, o := range owned {
		special[o.name] = true
		if err := makeOwned(o.name, o.mode, o.disk, root, disk); err != nil {
			return err
		}
	}
	if err := bindPrograms(root, special); err != nil {
		return err
	}
	if at := filepath.Join(root, alternatives); isDir(at) {
		if err := bindReadOnly(alternatives, at); err != nil {
			return err
		}
	}
	for _, step := range []func(string) error{makeProc, makeDev, makeSys} {
		if err := step(root); err != nil {
			return err
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	return os.Chdir("/")
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

func makeOwned(name string, mode os.FileMode, onDisk bool, root, disk string) error {
	at := filepath.Join(root, name)
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	if onDisk {
		own := filepath.Join(disk, name)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		if err := mount(own, at, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if name == "var" {
		for _, d := range []string{"cache", "lib", "log", "spool", "tmp"} {
			if err := os.MkdirAll(filepath.Join(at, d), 0o755); err != nil {
				return err
			}
		}
		if err := os.Chmod(filepath.Join(at, "tmp"), 0o777|os.ModeSticky); err != nil {
			return err
		}
		os.Symlink("../run", filepath.Join(at, "run")) // of an earlier boot it is there
	}
	return os.Chmod(at, mode)
}

// bindReadOnly shows what is on the host, to be read.
func bindReadOnly(from, at string) error {
	if err := mount(from, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	// Linux 5.12
	if err := unix.MountSetattr(unix.AT_FDCWD, at, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make %s read-only: %w", from, err)
	}
	return nil
}

// bindPrograms has what else is in the host's root, to be read.
func bindPrograms(root string, except map[string]bool) error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		from, at := filepath.Join("/", e.Name()), filepath.Join(root, e.Name())
		switch {
		case except[e.Name()]:
		case e.Type() == os.ModeSymlink:
			target, err := os.Readlink(from)
			if err == nil {
				err = os.Symlink(target, at)
			}
			if err != nil {
				return err
			}
		case e.IsDir():
			if err := os.Mkdir(at, 0o755); err != nil {
				return err
			}
			if err := bindReadOnly(from, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeEtc copies the host's /etc to the machine's disk at its first boot. In the host's
// own, files could not be written to whose owner is not in the user namespace. An overlay
// above it would need a disk whose file system takes one, and that of a container does not.
func makeEtc(disk string) error {
	own, made := filepath.Join(disk, "etc"), filepath.Join(disk, "etc-made")
	if _, err := os.Stat(made); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(own); err != nil { // of a boot that ended here
		return err
	}
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	if err := copyEtc(own); err != nil {
		return err
	}
	return os.WriteFile(made, nil, 0o600)
}

// alternatives has more links than the rest of /etc has files. They belong to the programs, which
// cannot be written to either.
const alternatives = "/etc/alternatives"

// isDir: a machine may have left anything in the place of one.
func isDir(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

// copyEtc copies what everybody may read.
func copyEtc(to string) error {
	return filepath.WalkDir("/etc", func(path string, d fs.DirEntry, err error) error {
		if err != nil && d != nil && d.IsDir() {
			return fs.SkipDir // it may not be read
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		at := filepath.Join(to, strings.TrimPrefix(path, "/etc"))
		switch mode := info.Mode(); {
		case mode.IsDir() && mode&0o005 != 0o005:
			return fs.SkipDir
		case mode.IsDir():
			err := os.MkdirAll(at, mode.Perm()|0o700)
			if err == nil && path == alternatives {
				err = fs.SkipDir
			}
			return err
		case mode.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, at)
		case mode.IsRegular() && mode&0o004 != 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(at, data, mode.Perm()|0o200)
		}
		return nil
	})
}

// makeProc mounts a /proc with nothing in it that is the host's to change: where
// attest runs as root, files of the host's root are this one's, too.
func makeProc(root string) error {
	at := filepath.Join(root, "proc")
	if err := mount("proc", at, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	readOnly := func(path, from string) error {
		if err := mount(from, path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	for _, name := range []string{"sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr"} {
		path := filepath.Join(at, name)
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		if err := readOnly(path, path); err != nil {
			return err
		}
	}
	// What is below sys/net belongs to the network namespace.
	sys := filepath.Join(at, "sys")
	aside := filepath.Join(root, "tmp", "net")
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	if err := mount(filepath.Join(sys, "net"), aside, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := readOnly(sys, sys); err != nil {
		return err
	}
	if err := mount(aside, filepath.Join(sys, "net"), "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Unmount(aside, unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Remove(aside)
}

// makeDev has the devices that are nobody's. The console, and the kernel's log, is
// what the host reads of init.
func makeDev(root string) error {
	at := filepath.Join(root, "dev")
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "net/tun"} {
		from, to := filepath.Join("/dev", name), filepath.Join(at, name)
		if _, err := os.Stat(from); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, nil, 0o666); err != nil {
			return err
		}
		if err := mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, d := range []string{"pts", "shm"} {
		if err := os.Mkdir(filepath.Join(at, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(at, "shm"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := mount("devpts", filepath.Join(at, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
		"console": "/proc/1/fd/2", "kmsg": "/proc/1/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(at, name)); err != nil {
			return err
		}
	}
	return nil
}

// makeSys mounts /sys for the network's part of it. A container may forbid it.
func makeSys(root string) error {
	err := mount("sysfs", filepath.Join(root, "sys"), "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}
