package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// apiMounts have the options that systemd gives them, which leaves them alone
// when they are there (systemd, mount-setup.c), so a guest looks the same as on
// a real machine, and commands that run before systemd see what later ones see.
var apiMounts = []struct {
	source, target, fstype string
	flags                  uintptr
	options                string
}{
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=0755"},
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_STRICTATIME, "mode=0755,size=20%,nr_inodes=800k"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_STRICTATIME, "mode=1777"},
}

// earlyMounts are what systemd mounts with a process start for each, a second
// in all when it is emulated; its units find them done. Kernels without one of
// them are fine.
var earlyMounts = []struct{ target, fstype string }{
	{"/dev/mqueue", "mqueue"},
	{"/dev/hugepages", "hugetlbfs"},
	{"/sys/kernel/debug", "debugfs"},
	{"/sys/kernel/tracing", "tracefs"},
}

// moved are the mounts that go along into the guest's root, with what is below them.
var moved = []string{"/dev", "/proc", "/sys", "/run"}

func mountAPI() error {
	for _, m := range apiMounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		// EBUSY: the kernel mounted it itself (devtmpfs.mount=1).
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w%s", m.fstype, m.target, err, mountHint(m.fstype, err))
		}
	}
	for _, m := range earlyMounts {
		os.Mkdir(m.target, 0o755)
		unix.Mount(m.fstype, m.target, m.fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func mountHint(fstype string, err error) string {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Sprintf("; the kernel has no built-in %s, and the initramfs has no module for it: use a kernel that has one, or give its modules", fstype)
	}
	return ""
}

// newRoot is where the guest's root is put together.
const newRoot = "/root"

// enterRoot makes newRoot this process's root, as switch_root(8) does. What is
// below the old one stays: the agent's executable is there.
func enterRoot() error {
	for _, dir := range moved {
		target := newRoot + dir
		if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("the guest's root: %w", err)
		}
		if err := unix.Mount(dir, target, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s into the guest's root: %w", dir, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the guest's root to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot into the guest's root: %w", err)
	}
	return os.Chdir("/")
}

// loopbackUp gives the guest 127.0.0.1 and ::1 before anybody asks for them.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
