// Command guest is all that runs in the guests of boot_test.go: /init, an
// agent that does as the kernel argument test.agent says, and /sbin/init. What
// it says on the console begins with "guest: ".
package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/boot"
)

func main() {
	switch os.Args[0] {
	case boot.InitArg0:
		boot.Init()
	case boot.AgentArg0:
		agent()
	case "orphan-maker":
		makeOrphan()
	case "orphan":
		orphan()
	case "service":
		service()
	default:
		check(initProcess())
	}
}

func say(format string, args ...any) { fmt.Printf("guest: "+format+"\n", args...) }

// check ends the guest's init, and so the guest, on an error.
func check(err error) {
	if err != nil {
		say("error: %v", err)
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}

// initProcess looks at what it was given, writes something, resets, and looks
// whether it is still there.
func initProcess() error {
	say("init is process %d, called as %s", os.Getpid(), os.Args[0])
	for _, name := range []string{"/etc/lower", "/etc/both"} {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		say("%s is of %s", name, data)
	}
	say("%d processes are the agent", agents())
	if err := checkModules(); err != nil {
		return err
	}
	data, err := os.ReadFile("/data/file")
	if err == nil {
		say("after the reset: %s", data)
		if _, err := os.Stat("/etc/lower-moved/x"); err != nil {
			return err
		}
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	if err := write(); err != nil {
		return err
	}
	say("written")
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// write does what is special on an overlay: it renames a directory of the
// lower layer, writes to one, and syncs.
func write() error {
	if err := os.Rename("/etc/lower-dir", "/etc/lower-moved"); err != nil {
		return err
	}
	if err := os.MkdirAll("/data", 0o755); err != nil {
		return err
	}
	f, err := os.Create("/data/file")
	if err != nil {
		return err
	}
	if _, err := f.WriteString("it survived"); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	var dir, file unix.Stat_t
	if err := unix.Stat("/etc", &dir); err != nil {
		return err
	}
	if err := unix.Stat("/etc/lower", &file); err != nil {
		return err
	}
	say("files and directories are on one device: %v", dir.Dev == file.Dev)
	unix.Sync()
	return nil
}

// agents counts the processes that are called as the agent.
func agents() (n int) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(data), boot.AgentArg0+"\x00") {
			n++
		}
	}
	return n
}

func checkModules() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	dir := "/lib/modules/" + unix.ByteSliceToString(u.Release[:])
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.Contains(path, ".ko") {
			n++
		}
		return err
	})
	say("more than 100 modules: %v", n > 100)
	return err
}

func agent() {
	ready := os.NewFile(3, "ready")
	line, err := os.ReadFile("/proc/cmdline")
	check(err)
	say("agent is called %s", os.Args[0])
	switch {
	case strings.Contains(string(line), "test.agent=die"):
		os.Exit(3)
	case strings.Contains(string(line), "test.agent=babble"):
		ready.WriteString("yes, of course\n")
	default:
		ready.WriteString("ok\n")
	}
	ready.Close()
	if strings.Contains(string(line), "test.agent=poweroff") {
		check(orphanIsReaped())
		check(startService())
		// As systemd's poweroff does.
		check(unix.Kill(1, syscall.Signal(34+4)))
	}
	if strings.Contains(string(line), "test.agent=leave") {
		os.Exit(4)
	}
	for { // until the machine ends
		unix.Pause()
	}
}

// orphanIsReaped leaves a process without a parent and waits until it is gone.
func orphanIsReaped() error {
	maker := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"orphan-maker"}}
	out, err := maker.Output()
	if err != nil {
		return err
	}
	dir := "/proc/" + strings.TrimSpace(string(out))
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := os.Stat(dir); os.IsNotExist(err) {
			say("the orphan was reaped")
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is still there", dir)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// makeOrphan starts a process and ends before it.
func makeOrphan() {
	child := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"orphan"}}
	check(child.Start())
	fmt.Println(child.Process.Pid)
}

// orphan ends when it is one.
func orphan() {
	for os.Getppid() != 1 {
		time.Sleep(10 * time.Millisecond)
	}
}

// startService starts a process that says when it is told to end.
func startService() error {
	child := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"service"}, Stderr: os.Stdout}
	out, err := child.StdoutPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	_, err = out.Read(make([]byte, 1)) // it listens
	return err
}

func service() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM)
	fmt.Println("ready")
	fmt.Fprintf(os.Stderr, "guest: service got %v\n", <-signals)
}
