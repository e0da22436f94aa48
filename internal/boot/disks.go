package boot

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// diskTimeout is generous: a driver has found its disks when its module has
// been loaded, so waiting is for machines that plug in late.
const diskTimeout = 10 * time.Second

// waitForDisks waits until there is a disk for each serial, and returns the
// devices by serial. order are the serials of vda, vdb, …; nil: the disks have them.
func waitForDisks(serials, order []string, timeout time.Duration) (map[string]string, error) {
	events, err := openUevents() // before the first look, so that nothing is missed
	if err != nil {
		return nil, err
	}
	defer unix.Close(events)
	deadline := time.Now().Add(timeout)
	for {
		disks, err := disksBySerial("/sys/block")
		if order != nil {
			disks, err = disksByOrder("/sys/block", order)
		}
		if err != nil {
			return nil, err
		}
		missing := missingDisks(serials, disks)
		if len(missing) == 0 {
			return disks, nil
		}
		if left := time.Until(deadline); left <= 0 {
			return nil, missingDisksError(missing, disks, timeout)
		} else if err := waitUevent(events, left); err != nil {
			return nil, err
		}
	}
}

func missingDisks(serials []string, disks map[string]string) []string {
	return slices.DeleteFunc(slices.Clone(serials), func(s string) bool { return disks[s] != "" })
}

func missingDisksError(missing []string, disks map[string]string, waited time.Duration) error {
	have := "none with a serial"
	if len(disks) > 0 {
		have = strings.Join(slices.Sorted(maps.Keys(disks)), ", ")
	}
	return fmt.Errorf("no disk with the serial %s appeared within %v (found: %s); the VMM must provide it as virtio-blk with that serial, or name it in "+wire.DisksArgument+", and the kernel needs virtio_blk with virtio_pci or virtio_mmio",
		strings.Join(missing, ", "), waited, have)
}

// disksBySerial reads the serials that virtio-blk disks have in sysfs.
func disksBySerial(sysBlock string) (map[string]string, error) {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return nil, err
	}
	disks := map[string]string{}
	for _, e := range entries {
		serial, err := os.ReadFile(filepath.Join(sysBlock, e.Name(), "serial"))
		if err != nil {
			continue // loop and the like have none
		}
		if s := strings.TrimSpace(string(serial)); s != "" {
			disks[s] = "/dev/" + e.Name()
		}
	}
	return disks, nil
}

// disksByOrder are the disks that serials belong to by the order of both.
func disksByOrder(sysBlock string, serials []string) (map[string]string, error) {
	disks := map[string]string{}
	for i, serial := range serials {
		name := virtioDisk(i)
		switch _, err := os.Stat(filepath.Join(sysBlock, name)); {
		case err == nil:
			disks[serial] = "/dev/" + name
		case !errors.Is(err, os.ErrNotExist):
			return nil, err
		}
	}
	return disks, nil
}

// virtioDisk is the name that the kernel gives virtio disk i: vda to vdz, vdaa, …
func virtioDisk(i int) string {
	suffix := ""
	for ; i >= 0; i = i/26 - 1 {
		suffix = string(rune('a'+i%26)) + suffix
	}
	return "vd" + suffix
}

// openUevents subscribes to the kernel's device events.
func openUevents() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, fmt.Errorf("device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("device events: %w", err)
	}
	return fd, nil
}

// waitUevent waits for a device event and drops all that have come: what
// happened is read from sysfs.
func waitUevent(fd int, timeout time.Duration) error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(timeout.Milliseconds())+1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("device events: %w", err)
	}
	buf := make([]byte, 8192)
	for {
		switch _, _, err := unix.Recvfrom(fd, buf, 0); {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("device events: %w", err)
		}
	}
}

// loadModules loads the modules of a set (see moduleRoot) in the order of their
// names, and gives their memory back. A set that is not there is built in.
func loadModules(set string) error {
	dir := filepath.Join("/", moduleRoot, set)
	entries, err := os.ReadDir(dir) // sorted
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if err := loadModule(path); err != nil {
			// Not the end: if it was needed, what comes next says for what.
			warnf("load module %s: %v", e.Name(), err)
		}
		os.Remove(path)
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	// EEXIST: it is loaded, or built in. ENODEV: a driver (crc32c_intel) whose
	// hardware this machine does not have.
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
