package boot

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const consolePrefix = "attest-init: "

// console is where lines for a person go. Until /dev is mounted it is what the
// kernel gave us.
var console = os.Stderr

func openConsole() {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	console = f
	// A serial port has no width, so systemd would take it for 80 columns and cut
	// the names of units. The agent keeps the port open, and with it this size.
	unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 250})
}

// infof writes to the kernel's log: it is in dmesg and in the journal, and on
// the console of a guest that boots with Verbose.
func infof(format string, args ...any) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return // a kernel without a log
	}
	defer f.Close()
	fmt.Fprintf(f, "<6>"+consolePrefix+"%s\n", fmt.Sprintf(format, args...))
}

// warnf writes a line to the console.
func warnf(format string, args ...any) {
	fmt.Fprintln(console, consolePrefix+oneLine(fmt.Sprintf(format, args...)))
}

// fatal prints why the guest cannot boot, and powers it off. Power off, because
// it ends the VMM also where a reset would start the same boot once more.
func fatal(err error) {
	// On a line of its own, whatever was being written.
	fmt.Fprintf(console, "\n%s%s\n", FatalPrefix, oneLine(err.Error()))
	drain(console)
	powerOff()
}

func oneLine(s string) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
}

// drain waits until the serial port has sent what was written: the driver
// buffers, and power off does not wait for it.
func drain(f *os.File) {
	unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) // tcdrain(3)
}

func powerOff() {
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// No way to power off: the kernel panics when PID 1 exits, and panic=-1 resets.
	os.Exit(1)
}
