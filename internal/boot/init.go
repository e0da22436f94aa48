package boot

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Init is what runs as PID 1 of a guest. It does not return: it becomes the
// guest's own init, stays as a small one, or powers the guest off with a line
// that begins with FatalPrefix.
func Init() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "attest-init: this is the first process of a guest that attest boots; on its own it does nothing")
		os.Exit(2)
	}
	defer func() {
		if r := recover(); r != nil {
			fatal(fmt.Errorf("internal error: %v\n%s", r, debug.Stack()))
		}
	}()
	b := &booting{last: time.Now()}
	fatal(b.run())
}

// booting is the state of /init until it hands over.
type booting struct {
	guest Guest
	disks map[string]string // serial → device, "/dev/vda"
	last  time.Time         // end of the previous phase
	times []string
}

// run boots the guest. It returns only if that failed.
func (b *booting) run() error {
	if err := mountAPI(); err != nil {
		return err
	}
	openConsole()
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if b.guest, err = parseCmdline(string(line)); err != nil {
		return fmt.Errorf("%w; the arguments come from boot.Guest.Cmdline on the host: %q", err, line)
	}
	if err := loadModules("boot"); err != nil {
		return err
	}
	if b.guest.Vsock {
		if err := openVsock(); err != nil {
			return err
		}
	}
	b.phase("modules")
	if b.disks, err = waitForDisks(b.guest.Serials(), b.guest.Disks, diskTimeout); err != nil {
		return err
	}
	b.phase("disks")
	if b.guest.Fill != "" {
		return b.fill()
	}
	if err := b.mountRoot(); err != nil {
		return err
	}
	b.phase("root")
	if err := enterRoot(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		warnf("%v", err)
	}
	if err := emptyTmp("/"); err != nil {
		warnf("empty /tmp: %v", err)
	}
	agent, err := startAgent()
	if err != nil {
		return err
	}
	b.phase("agent")
	if err := agent.waitReady(); err != nil {
		return err
	}
	b.phase("identity")
	path, err := findInit(b.guest.Init)
	if err != nil {
		return err
	}
	infof("ready in %s; handing over to %s", strings.Join(b.times, ", "), cmp.Or(path, "nobody: this guest has no init"))
	if path == "" {
		return stay(agent.pid)
	}
	err = unix.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ())
	return fmt.Errorf("execute the guest's init %s: %w%s", path, err, execHint(err))
}

// phase notes how long the phase that ends now took.
func (b *booting) phase(name string) {
	now := time.Now()
	b.times = append(b.times, fmt.Sprintf("%s %dms", name, now.Sub(b.last).Milliseconds()))
	b.last = now
}

func execHint(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return "; the file is there, so its dynamic loader or interpreter is missing from the image"
	case errors.Is(err, unix.ENOEXEC):
		return "; it is not a program for this machine's architecture"
	}
	return ""
}

// usualInits are where distributions have their init; the last is NixOS's.
var usualInits = []string{
	"/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/init", "/etc/init",
	"/nix/var/nix/profiles/system/init",
}

// findInit is the path of the guest's init below the root, which is entered.
// Empty: the guest has none.
func findInit(wanted string) (string, error) {
	switch wanted {
	case "none":
		return "", nil
	case "":
		for _, path := range usualInits {
			if executable(path) == nil {
				return path, nil
			}
		}
		return "", nil
	}
	if err := executable(wanted); err != nil {
		return "", fmt.Errorf("the requested init: %w", err)
	}
	return wanted, nil
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not an executable file", path)
	}
	return nil
}
