// This is the /init of a guest that knows nothing of attest: it loads the modules
// of its initramfs, puts the root together of the disks, and becomes systemd. The
// last disk is the one that it writes to, the one before has the kernel's modules.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := boot(); err != nil {
		fmt.Println("foreign init:", err)
		unix.IoctlSetInt(1, unix.TCSBRK, 1) // until the console has it: tcdrain(3)
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}

func boot() error {
	for _, m := range []struct{ fstype, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}} {
		if err := mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil {
			return err
		}
	}
	modules, _ := filepath.Glob("/modules/boot/*")
	for _, path := range modules {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		unix.FinitModule(int(f.Fd()), "", 0) // what the machine has no use for
		f.Close()
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if disks, _ := filepath.Glob("/dev/vd?"); len(disks) >= 3 {
			return root(disks)
		} else if time.Now().After(deadline) {
			return fmt.Errorf("there are only the disks %v", disks)
		}
	}
}

func root(disks []string) error {
	n := len(disks) - 2
	var layers []string
	for i, disk := range disks[:n] {
		dir := fmt.Sprint("/mnt/", i)
		if err := mount(disk, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
			return err
		}
		layers = append([]string{dir}, layers...)
	}
	if err := mount(disks[n+1], "/mnt/rw", "ext4", 0, ""); err != nil {
		return err
	}
	environ := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if err := overlay(layers, "/root", "upper", disks[n]); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if strings.Contains(string(line), "foreign.initrd") {
		// This root is an initrd, in the eyes of systemd; the real one is below.
		environ = append(environ, "SYSTEMD_IN_INITRD=1")
		if err := os.WriteFile("/root/etc/initrd-release", []byte("NAME=initrd\n"), 0o644); err != nil {
			return err
		}
		if err := overlay(layers, "/root/sysroot", "real", disks[n]); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run"} {
		if err := unix.Mount(dir, "/root"+dir, "", unix.MS_MOVE, ""); err != nil {
			return err
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, environ)
}

// overlay puts a root together, with the kernel's modules.
func overlay(layers []string, dir, upper, modules string) error {
	for _, d := range []string{upper, upper + ".work"} {
		os.Mkdir("/mnt/rw/"+d, 0o755)
	}
	options := fmt.Sprintf("upperdir=/mnt/rw/%[1]s,workdir=/mnt/rw/%[1]s.work,lowerdir=%[2]s", upper, strings.Join(layers, ":"))
	if err := mount("overlay", dir, "overlay", 0, options); err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	return mount(modules, dir+"/lib/modules/"+unix.ByteSliceToString(u.Release[:]), "erofs", unix.MS_RDONLY, "")
}

func mount(source, dir, fstype string, flags uintptr, options string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, dir, err)
	}
	return nil
}
