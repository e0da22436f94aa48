package boot

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// termGrace is how long processes have between SIGTERM and SIGKILL at the end.
const termGrace = 3 * time.Second

// rtmin is the C library's SIGRTMIN, in which systemd's signals count.
const rtmin = 34

// powerSignals are what the tools of sysvinit, busybox and systemd send to PID 1.
var powerSignals = map[os.Signal]int{
	unix.SIGINT:                unix.LINUX_REBOOT_CMD_RESTART, // Ctrl-Alt-Del, from the kernel
	unix.SIGTERM:               unix.LINUX_REBOOT_CMD_RESTART, // busybox reboot
	unix.SIGUSR2:               unix.LINUX_REBOOT_CMD_POWER_OFF,
	unix.SIGPWR:                unix.LINUX_REBOOT_CMD_POWER_OFF,
	syscall.Signal(rtmin + 4):  unix.LINUX_REBOOT_CMD_POWER_OFF, // systemd's: in order
	syscall.Signal(rtmin + 5):  unix.LINUX_REBOOT_CMD_RESTART,
	syscall.Signal(rtmin + 14): unix.LINUX_REBOOT_CMD_POWER_OFF, // systemd's: at once
	syscall.Signal(rtmin + 15): unix.LINUX_REBOOT_CMD_RESTART,
	unix.SIGUSR1:               unix.LINUX_REBOOT_CMD_HALT,
	syscall.Signal(rtmin + 3):  unix.LINUX_REBOOT_CMD_HALT,
	syscall.Signal(rtmin + 13): unix.LINUX_REBOOT_CMD_HALT,
}

// stay is the init of a guest that has none: it reaps what others leave
// behind, and ends the machine when it is told to. It returns only if the agent
// ended and no other follows it: then the guest can no longer be reached.
func stay(agent int) error {
	signals := make(chan os.Signal, 64)
	watched := []os.Signal{unix.SIGCHLD}
	for s := range powerSignals {
		watched = append(watched, s)
	}
	signal.Notify(signals, watched...)
	// Ctrl-Alt-Del becomes SIGINT instead of a reset without a sync.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		warnf("ctrl-alt-del: %v", err)
	}
	mountCgroups()
	// The file, not prctl(2): that names the calling thread, which may be another.
	if err := os.WriteFile("/proc/1/comm", []byte(wire.StayingInit), 0); err != nil {
		warnf("call this process %s: %v", wire.StayingInit, err)
	}
	for {
		if err := reap(&agent); err != nil {
			return err
		}
		if cmd, ok := powerSignals[<-signals]; ok {
			endMachine(cmd, signals)
		}
	}
}

func mountCgroups() {
	err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, "nsdelegate,memory_recursiveprot")
	if err != nil {
		infof("no cgroups: %v", err)
	}
}

// reap collects all children that have ended. If the agent is one, its keeper is
// about to become the next.
func reap(agent *int) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || pid == 0: // no children, or none that has ended
			return nil
		case pid == *agent:
			left, _ := processes()
			if len(left) == 0 {
				return fmt.Errorf("the agent ended (%s): this guest can no longer be reached", describeStatus(status))
			}
			*agent = left[0]
		}
	}
}

// endMachine ends all processes but the agent, through which the host listens
// to the end, writes what is in memory to the disks and gives the machine back.
func endMachine(cmd int, signals <-chan os.Signal) {
	os.WriteFile("/proc/1/comm", []byte(wire.EndingInit), 0) // the agent looks at it
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		for _, pid := range others() {
			unix.Kill(pid, s)
			unix.Kill(pid, unix.SIGCONT) // a stopped process does not hear SIGTERM
		}
		waitOthers(signals, termGrace)
	}
	drain(console)
	unix.Sync()
	unix.Reboot(cmd)
	os.Exit(1) // see powerOff
}

// processes are those besides this one: the agent and its keeper, whose name
// begins with "@", and the others. Kernel threads and zombies have no executable.
func processes() (agents, others []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if _, err := os.Readlink("/proc/" + e.Name() + "/exe"); err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.HasPrefix(string(line), "@") {
			agents = append(agents, pid)
		} else {
			others = append(others, pid)
		}
	}
	return agents, others
}

func others() []int {
	_, others := processes()
	return others
}

// waitOthers waits until there are no other processes, or for the time given.
// It looks again from time to time, because it is the agent that hears of the end
// of its own children.
func waitOthers(signals <-chan os.Signal, limit time.Duration) {
	timeout := time.After(limit)
	for len(others()) > 0 {
		select {
		case <-signals:
		case <-time.After(20 * time.Millisecond):
		case <-timeout:
			return
		}
	}
}
