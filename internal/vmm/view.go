package vmm

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/supervise"
)

// A VMM that a guest has broken out into must find nothing of the user's. So it sees
// what is named here: the programs and libraries of the system, firmware among
// them, and its machine's own files. It inherits its connections, or makes them in its
// machine's directory.

// stores are where systems have programs of which nothing is elsewhere, scripts
// among them.
var stores = []string{"/nix/store", "/gnu/store"}

// libraries are where systems have the libraries that programs find by their name alone.
var libraries = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/lib/*-linux-*", "/usr/lib/*-linux-*"}

// The files of a host that a VMM sees whatever its machine is.
var (
	// Programs, their libraries and their data, which everybody may read.
	systemFiles = append([]string{"/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache"}, stores...)
	// What libraries ask about the host.
	hostFiles = []string{"/proc/cpuinfo", "/proc/meminfo", "/proc/filesystems", "/sys/devices/system", "/sys/kernel/mm"}
	// Those that are not there for anybody's data.
	deviceFiles = []string{"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/kvm"}
)

// WhyVisible returns why a VMM has to see all files of the host; empty: it does not, and
// View is what it sees. One without data files, whose binary is all that it reads, need
// not be installed in the system.
func WhyVisible(program string, dataFiles bool) string {
	if !supervise.CanView() {
		return "this kernel has no Landlock (Linux 5.13, lsm=landlock)"
	}
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		real = program
	}
	for _, store := range stores {
		if strings.HasPrefix(real, store+"/") {
			return ""
		}
	}
	installed := strings.HasPrefix(real, "/usr/")
	// What a program of somebody's own takes from where, nobody knows.
	if dataFiles && !installed {
		return real + " is not installed in /usr"
	}
	f, err := elf.Open(real)
	if err != nil {
		return real + " is a script, which may start another program"
	}
	defer f.Close()
	if installed {
		return ""
	}
	return foreignLibraries(real, f)
}

// foreignLibraries returns which libraries of a program are not the system's; empty: none.
func foreignLibraries(path string, f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		loader := make([]byte, min(p.Filesz, 4096))
		p.ReadAt(loader, 0)
		if name := strings.TrimRight(string(loader), "\x00"); !strings.HasPrefix(name, "/lib") && !strings.HasPrefix(name, "/usr/") {
			return fmt.Sprintf("%s is loaded by %s, which is not the system's", path, name)
		}
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		if dirs, _ := f.DynString(tag); len(dirs) > 0 {
			return fmt.Sprintf("%s takes libraries from %s", path, strings.Join(dirs, ":"))
		}
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Sprintf("%s: %v", path, err)
	}
	for _, name := range names {
		if !slices.ContainsFunc(libraries, func(dir string) bool {
			found, _ := filepath.Glob(filepath.Join(dir, name))
			return len(found) > 0
		}) {
			return fmt.Sprintf("%s takes a library %s that is not the system's", path, name)
		}
	}
	return ""
}

// View is what the VMM of a machine sees: the system, the program itself, and the files
// of the machine. A backend adds what else its VMM opens.
func View(program string, c Config, hw *Hardware) *supervise.View {
	v := &supervise.View{
		Read:  append(slices.Concat(systemFiles, hostFiles), program),
		Write: append(slices.Clone(deviceFiles), c.Dir),
	}
	for _, path := range []string{hw.Kernel, hw.Vmlinux, hw.Initrd} {
		if path != "" {
			v.Read = append(v.Read, path)
		}
	}
	if hw.UEFI != nil {
		v.Read, v.Write = append(v.Read, hw.UEFI.Code), append(v.Write, hw.UEFI.Vars)
	}
	disks := slices.Clone(hw.Disks)
	for _, d := range hw.SlotDisks { // those that come later, it is given open (SlotOwner)
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

// ViewFinding is what attest doctor says of it. why is from WhyVisible.
func ViewFinding(why string) doctor.Finding {
	if why == "" {
		return doctor.Finding{Name: "files", OK: true, Detail: "it sees those of its machine and of the system (Landlock)"}
	}
	return doctor.Finding{Name: "files", Detail: "it sees all files of this user: " + why, Remedy: "a break-out of a guest reads and writes them; docs/security.md says more"}
}
