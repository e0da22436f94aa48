package attest

import (
	"fmt"

	"github.com/attest-vm/attest/internal/image"
)

// An Image is what a machine boots: a [Debian], a [Rootfs] or a [Disk]. Its String
// is a short title for people, such as "debian:bookworm+nginx".
type Image interface {
	fmt.Stringer
	spec() image.Spec
}

// Debian is an image that attest builds itself from Debian packages, and keeps in
// its cache. The zero value is Debian 12 with its cloud kernel.
type Debian struct {
	Title    string          // for people, such as in reports; empty: made of the rest. The image is the same
	Suite    string          // a code name, such as "trixie", or "stable"; empty: "bookworm"
	Packages []string        // as apt-get install takes them: "nginx", "curl=7.*", "vim-"
	Files    map[string]File // by their absolute path in the guest; written after the packages
	Run      []string        // shell lines, run with sh -e as root in the image, in order, at the end
	// Kernel, Modules, Initrd and Cmdline are as in Rootfs. A kernel package is one of Suite.
	Kernel, Modules, Initrd, Cmdline string
	// Root and RootSize are those of machines that do not say another.
	Root     string // as in MachineConfig
	RootSize int64
}

// Rootfs is a root filesystem that somebody else made. It is never modified.
type Rootfs struct {
	Title string // as in Debian
	Path  string // a directory, a tar (plain, gzip, zstd or xz), or an erofs, squashfs or ext4 image
	// Kernel is empty for Debian's cloud kernel, "debian:PACKAGE" for a kernel
	// package, or the path of a bzImage or vmlinux.
	Kernel string
	// Modules is the directory of the modules of a kernel given by path, the one
	// that holds modules.dep. Empty: lib/modules/RELEASE of Path if that is a
	// directory, otherwise the guest finds them in its own root.
	Modules string
	// Initrd is the path of an initrd that the kernel gets instead of attest's. It mounts the
	// root, which is one on a disk of its own, and the agent comes in as MachineConfig.User says.
	Initrd  string
	Cmdline string // appended to the kernel's command line, before that of the machine
	// Root and RootSize are those of machines that do not say another.
	Root     string // as in MachineConfig
	RootSize int64
}

// Disk is a whole disk. As an image it is one that somebody else made, with a system
// on it. attest's own kernel starts that, unless Boot says something else. In
// MachineConfig.Disks it is a disk beside the root. The file is never modified.
type Disk struct {
	Title  string // as in Debian
	Path   string
	Format string // "raw" or "qcow2"; empty: by the file's first bytes

	// What follows is for an image. Boot is "bios" or "uefi": a firmware starts the loader
	// that is on the disk, and that the disk's kernel, with its own command line. "kernel":
	// the one of Kernel mounts the disk by itself, or Initrd does. Empty:
	// attest's kernel, or the one that Kernel, Modules, Initrd and Cmdline say as in Rootfs,
	// starts what is on the disk.
	Boot                             string `json:",omitempty"`
	Kernel, Modules, Initrd, Cmdline string `json:",omitempty"`
	// User and Password are those of machines that do not say others.
	User, Password string `json:",omitempty"` // as in MachineConfig

	// What follows is for a disk beside the root.

	Size     int64  `json:",omitempty"` // bytes, a multiple of 512, of an empty disk without a Path
	Serial   string `json:",omitempty"` // by which the guest finds it (/dev/disk/by-id), at most 20 characters; empty: "disk1", "disk2", …
	Bus      string `json:",omitempty"` // "virtio" (default), "scsi", "nvme" or "usb"
	ReadOnly bool   `json:",omitempty"`
	// Shared is a name. All disks of a lab with this name are one: what a machine writes,
	// the others read. Empty: what a machine writes is its own.
	Shared string `json:",omitempty"`
}

// File is a file to write into a Debian image.
type File struct {
	Content string // any bytes
	Path    string // a regular file of the host to take the content from, instead of Content
	Mode    uint32 // permission bits; 0: those of Path, or 0644
}

func (d Debian) spec() image.Spec {
	files := make(map[string]image.File, len(d.Files))
	for path, f := range d.Files {
		files[path] = image.File(f)
	}
	if len(files) == 0 {
		files = nil
	}
	return image.Spec{Title: d.Title, Debian: &image.Debian{Suite: d.Suite, Packages: d.Packages, Files: files, Run: d.Run, Root: d.Root, RootSize: d.RootSize,
		Boot: image.Boot{Kernel: d.Kernel, Modules: d.Modules, Initrd: d.Initrd, Cmdline: d.Cmdline}}}
}

func (r Rootfs) spec() image.Spec {
	return image.Spec{Title: r.Title, Rootfs: &image.Rootfs{Path: r.Path, Root: r.Root, RootSize: r.RootSize,
		Boot: image.Boot{Kernel: r.Kernel, Modules: r.Modules, Initrd: r.Initrd, Cmdline: r.Cmdline}}}
}

func (d Disk) spec() image.Spec {
	return image.Spec{Title: d.Title, Disk: &image.Disk{Path: d.Path, Format: d.Format, Firmware: d.Boot, Boot: d.kernel()}}
}

// kernel is what the disk says of one.
func (d Disk) kernel() image.Boot {
	return image.Boot{Kernel: d.Kernel, Modules: d.Modules, Initrd: d.Initrd, Cmdline: d.Cmdline}
}

func (d Debian) String() string { return d.spec().String() }
func (r Rootfs) String() string { return r.spec().String() }
func (d Disk) String() string   { return d.spec().String() }

// imageOf is spec reversed.
func imageOf(s image.Spec) Image {
	switch {
	case s.Rootfs != nil:
		r := s.Rootfs
		return Rootfs{Title: s.Title, Path: r.Path, Kernel: r.Kernel, Modules: r.Modules, Initrd: r.Initrd, Cmdline: r.Cmdline, Root: r.Root, RootSize: r.RootSize}
	case s.Disk != nil:
		d := s.Disk
		return Disk{Title: s.Title, Path: d.Path, Format: d.Format, Boot: d.Firmware, Kernel: d.Kernel, Modules: d.Modules, Initrd: d.Initrd, Cmdline: d.Cmdline}
	case s.Debian == nil:
		return Debian{Title: s.Title}
	}
	from := s.Debian
	d := Debian{Title: s.Title, Suite: from.Suite, Packages: from.Packages, Run: from.Run, Kernel: from.Kernel, Modules: from.Modules, Initrd: from.Initrd, Cmdline: from.Cmdline,
		Root: from.Root, RootSize: from.RootSize}
	for path, f := range from.Files {
		if d.Files == nil {
			d.Files = map[string]File{}
		}
		d.Files[path] = File(f)
	}
	return d
}
