package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// InstallArg0 is argv[0] of a program that shall become the agent of a guest which
// comes without it. argv[1] is the program's SHA-256.
const InstallArg0 = "attest-install"

// Install starts the agent, unless it is there: in a session and outside of
// the unit of whoever started it, so that it lives until the machine is off. It
// returns when the agent runs.
func Install(args []string) int {
	if err := install(args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func install(args []string) error {
	if len(args) != 2 {
		return errors.New("attest starts this program; it does nothing on its own")
	}
	if err := checkSelf(args[1]); err != nil {
		return err
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	record := filepath.Join(filepath.Dir(program), "agent.pid")
	if same, err := replaceAgent(record); same || err != nil {
		return err
	}
	leaveUnit()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{wire.AgentArg0}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + defaultPath, "HOME=/root"},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	return os.WriteFile(record, fmt.Appendf(nil, "%d %s\n", pid, place()), 0o600)
}

// checkSelf returns an error if this program is not what was sent.
func checkSelf(sum string) error {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fmt.Errorf("the agent was damaged on its way into the guest: its SHA-256 is %s, want %s", got, sum)
	}
	return nil
}

// place is this boot of this root.
func place() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var root unix.Stat_t
	unix.Stat("/", &root)
	return fmt.Sprintf("%s %d:%d", strings.TrimSpace(string(boot)), root.Dev, root.Ino)
}

// replaceAgent looks for an agent that was installed since this boot. One in this
// root may stay. One in another, an initrd that was left, has seen its files go: it
// was moved at best, but not what it has started.
func replaceAgent(record string) (same bool, err error) {
	text, err := os.ReadFile(record)
	if err != nil {
		return false, nil
	}
	number, where, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	boot, _, _ := strings.Cut(where, " ")
	group, err := strconv.Atoi(number)
	if err != nil || group <= 1 || !strings.HasPrefix(place(), boot+" ") || unix.Kill(-group, 0) != nil {
		return false, nil
	}
	if where == place() {
		return true, nil
	}
	// The agent leads its session and so its group, to which its keeper belongs.
	for deadline := time.Now().Add(10 * time.Second); unix.Kill(-group, unix.SIGKILL) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false, fmt.Errorf("the agent of an earlier root (process group %d) is still running", group)
		}
	}
	return false, nil
}

// leaveUnit moves this process to where systemd puts what belongs to no unit: the
// service that started it may be stopped, and a shutdown stops it first.
func leaveUnit() {
	for _, dir := range []string{"/sys/fs/cgroup/init.scope", "/sys/fs/cgroup/unified/init.scope", "/sys/fs/cgroup/systemd/init.scope"} {
		os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
}
