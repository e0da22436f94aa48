package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
)

// A QEMU that a guest has broken out into must find nothing of the user's. So it sees
// what is named here: the programs and libraries of the system, its firmware among
// them, and its machine's own files. It inherits all connections, and connects to
// nothing.

// stores are where systems have programs of which nothing is elsewhere, scripts
// among them.
var stores = []string{"/nix/store", "/gnu/store"}

// The files of a host that a QEMU sees whatever its machine is.
var (
	// Programs, their libraries and their data, which everybody may read.
	systemFiles = append([]string{"/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache"}, stores...)
	// What libraries ask about the host.
	hostFiles = []string{"/proc/cpuinfo", "/proc/meminfo", "/proc/filesystems", "/sys/devices/system", "/sys/kernel/mm"}
	// Those that are not there for anybody's data.
	deviceFiles = []string{"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/kvm"}
)

// whyVisible returns why a QEMU has to see all files of the host; empty: it has not.
func whyVisible(path string) string {
	if !supervise.CanView() {
		return "this kernel has no Landlock (Linux 5.13, lsm=landlock)"
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path
	}
	for _, store := range stores {
		if strings.HasPrefix(real, store+"/") {
			return ""
		}
	}
	// What a program of somebody's own takes from where, nobody knows.
	if !strings.HasPrefix(real, "/usr/") {
		return real + " is not installed in /usr"
	}
	if !isELF(real) {
		return real + " is a script, which may start another QEMU"
	}
	return ""
}

func isELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	f.Read(magic[:])
	return bytes.Equal(magic[:], []byte("\x7fELF"))
}

// view is what a machine's QEMU sees.
func view(config vmm.Config, hw *vmm.Hardware) *supervise.View {
	v := &supervise.View{
		Read:  slices.Concat(systemFiles, hostFiles),
		Write: append(slices.Clone(deviceFiles), config.Dir), // for screenshots
	}
	for _, path := range []string{hw.Kernel, hw.Initrd} {
		if path != "" {
			v.Read = append(v.Read, path)
		}
	}
	disks := slices.Clone(hw.Disks)
	for _, d := range hw.SlotDisks { // those that come later, it is given open (Plug)
		disks = append(disks, d.Disk)
	}
	for _, d := range disks {
		if d.ReadOnly {
			v.Read = append(v.Read, d.Path)
		} else {
			v.Write = append(v.Write, d.Path)
		}
		for _, b := range d.Backing {
			v.Read = append(v.Read, b.Path)
		}
	}
	return v
}
