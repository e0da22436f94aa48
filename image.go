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
	Kernel   string          // as in Rootfs; a package is one of Suite
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
}

// Disk is a whole disk that somebody else made, with a system on it that attest's
// own kernel starts. It is never modified.
type Disk struct {
	Title  string // as in Debian
	Path   string
	Format string // "raw" or "qcow2"; empty: by the file's first bytes
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
	return image.Spec{Title: d.Title, Debian: &image.Debian{Suite: d.Suite, Packages: d.Packages, Files: files, Run: d.Run, Kernel: d.Kernel}}
}

func (r Rootfs) spec() image.Spec {
	return image.Spec{Title: r.Title, Rootfs: &image.Rootfs{Path: r.Path, Kernel: r.Kernel, Modules: r.Modules}}
}

func (d Disk) spec() image.Spec {
	return image.Spec{Title: d.Title, Disk: &image.Disk{Path: d.Path, Format: d.Format}}
}

func (d Debian) String() string { return d.spec().String() }
func (r Rootfs) String() string { return r.spec().String() }
func (d Disk) String() string   { return d.spec().String() }

// imageOf is spec reversed.
func imageOf(s image.Spec) Image {
	switch {
	case s.Rootfs != nil:
		return Rootfs{Title: s.Title, Path: s.Rootfs.Path, Kernel: s.Rootfs.Kernel, Modules: s.Rootfs.Modules}
	case s.Disk != nil:
		return Disk{Title: s.Title, Path: s.Disk.Path, Format: s.Disk.Format}
	case s.Debian == nil:
		return Debian{Title: s.Title}
	}
	d := Debian{Title: s.Title, Suite: s.Debian.Suite, Packages: s.Debian.Packages, Run: s.Debian.Run, Kernel: s.Debian.Kernel}
	for path, f := range s.Debian.Files {
		if d.Files == nil {
			d.Files = map[string]File{}
		}
		d.Files[path] = File(f)
	}
	return d
}
