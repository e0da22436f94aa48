package boot

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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
// ended, without which nobody can reach the guest.
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
	for {
		if err := reap(agent); err != nil {
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

// reap collects all children that have ended.
func reap(agent int) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || pid == 0: // no children, or none that has ended
			return nil
		case pid == agent:
			return fmt.Errorf("the agent ended (%s), so nobody can reach this guest any more", describeStatus(status))
		}
	}
}

// endMachine ends all processes, writes what is in memory to the disks and
// gives the machine back.
func endMachine(cmd int, signals <-chan os.Signal) {
	unix.Kill(-1, unix.SIGTERM)
	unix.Kill(-1, unix.SIGCONT) // a stopped process does not hear SIGTERM
	waitChildren(signals, termGrace)
	unix.Kill(-1, unix.SIGKILL)
	waitChildren(signals, termGrace)
	drain(console)
	unix.Sync()
	unix.Reboot(cmd)
	os.Exit(1) // see powerOff
}

// waitChildren reaps until there are no children left, or for the time given.
func waitChildren(signals <-chan os.Signal, limit time.Duration) {
	timeout := time.After(limit)
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return
		case pid > 0 || errors.Is(err, unix.EINTR):
			continue
		}
		select {
		case <-signals:
		case <-timeout:
			return
		}
	}
}
