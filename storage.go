package attest

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/vmm"
)

// This file is what a configuration says of the disks of a machine: of its root, and of
// those beside it.

// maxDisks is as many as there is room for.
const maxDisks = 40

var (
	diskSerial = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,19}$`)
	sharedName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
)

const (
	rootOverlay = "overlay"

	defaultRootSize = image.OverlaySize
	minRootSize     = 64 << 20
	maxRootSize     = 16 << 40 // that of ext4 with blocks of 4 KiB
)

// Roots are the values of MachineConfig.Root.
func Roots() []string { return append([]string{rootOverlay}, image.RootFilesystems()...) }

// normalizeRoot takes the root from the image where the machine does not say it.
func (m *MachineConfig) normalizeRoot(bad func(string, ...any) error) error {
	root, size := "", int64(0)
	switch img := m.Image.(type) {
	case Debian:
		root, size = img.Root, img.RootSize
	case Rootfs:
		root, size = img.Root, img.RootSize
	case Disk:
		if m.Root != "" || m.RootSize != 0 {
			return bad("the root of a disk(…) is the one on the disk; leave out root and root_size")
		}
	}
	if m.Root == "" {
		m.Root = root
		if m.RootSize == 0 {
			m.RootSize = size
		}
	}
	if _, disk := m.Image.(Disk); !disk && m.initrd() != "" {
		if m.Root == rootOverlay {
			return bad("an initrd of your own cannot mount an overlay of the image's layers; give the machine a root of its own: root=%q", "ext4")
		}
		m.Root = cmp.Or(m.Root, "ext4")
	}
	switch {
	case m.Root != "" && !slices.Contains(Roots(), m.Root):
		return bad("root=%q is not a file system that a root can have; want one of %s", m.Root, strings.Join(Roots(), ", "))
	case !m.plainRoot() && m.RootSize != 0:
		return bad("root_size goes with a root of its own: root=%q, for example", "ext4")
	case m.plainRoot() && m.RootSize == 0:
		m.RootSize = defaultRootSize
	}
	if m.plainRoot() && (m.RootSize < minRootSize || m.RootSize > maxRootSize) {
		return bad("root_size=%d bytes is out of range; want 64 MiB to 16 TiB", m.RootSize)
	}
	return nil
}

// plainRoot reports whether the machine has a root of its own.
func (m MachineConfig) plainRoot() bool { return m.Root != "" && m.Root != rootOverlay }

// normalizeDisks fills in serials: disk1, disk2 and so on.
func (m *MachineConfig) normalizeDisks(bad func(string, ...any) error) error {
	if len(m.Disks) > maxDisks {
		return bad("it has %d disks; the limit is %d", len(m.Disks), maxDisks)
	}
	m.Disks = slices.Clone(m.Disks)
	for i := range m.Disks {
		d := &m.Disks[i]
		if d.Serial == "" {
			d.Serial = fmt.Sprintf("disk%d", i+1)
		}
		if err := d.checkFurther(); err != nil {
			return bad("disks[%d]: %v", i, err)
		}
		if d.Path != "" {
			path, err := filepath.Abs(d.Path)
			if err != nil {
				return bad("disks[%d]: %v", i, err)
			}
			d.Path = path
		}
		if slices.ContainsFunc(m.Disks[:i], func(o Disk) bool { return o.Serial == d.Serial }) {
			return bad("disks[%d]: another disk has the serial %q", i, d.Serial)
		}
	}
	if d, ok := m.Image.(Disk); ok {
		if err := d.checkImage(); err != nil {
			return bad("image: %v", err)
		}
	}
	return nil
}

// checkFurther refuses a disk that cannot be one beside a root.
func (d Disk) checkFurther() error {
	switch {
	case !diskSerial.MatchString(d.Serial) || strings.HasPrefix(d.Serial, "attest-"):
		return fmt.Errorf("serial %q: want letters, digits, ., - and _, at most 20, and not attest- at the beginning", d.Serial)
	case d.Boot+d.User+d.Password != "" || d.kernel() != (image.Boot{}):
		return errors.New("boot, kernel, modules, initrd, cmdline, user and password are for a disk that is a machine's image")
	case d.Bus != "" && !slices.Contains(vmm.DiskBuses(), vmm.DiskBus(d.Bus)):
		return fmt.Errorf("bus %q is not one that a disk can be on; want one of %v", d.Bus, vmm.DiskBuses())
	case d.Path == "" && d.Size == 0:
		return errors.New("it has neither a path nor a size; give it a file, or the size of an empty disk")
	case d.Path != "" && d.Size != 0:
		return errors.New("it has both a path and a size; the file has a size of its own")
	case d.Size < 0 || d.Size%512 != 0:
		return fmt.Errorf("size=%d is not a whole number of sectors of 512 bytes", d.Size)
	case d.ReadOnly && d.Path == "":
		return errors.New("an empty disk that is read-only is of no use; give it a path, or leave out read_only")
	case d.Shared != "" && d.ReadOnly:
		return errors.New("a read-only disk is the same for all machines anyway; leave out shared")
	case d.Shared != "" && !sharedName.MatchString(d.Shared):
		return fmt.Errorf("shared=%q: want a name of letters, digits, - and _", d.Shared)
	case d.Shared != "" && d.Format == "qcow2":
		return errors.New("two machines cannot write to one qcow2 image; convert it: qemu-img convert -O raw")
	}
	return nil
}

// checkImage refuses an image with settings of a further disk.
func (d Disk) checkImage() error {
	for _, setting := range []struct {
		name  string
		given bool
	}{{"size", d.Size != 0}, {"serial", d.Serial != ""}, {"bus", d.Bus != ""}, {"read_only", d.ReadOnly}, {"shared", d.Shared != ""}} {
		if setting.given {
			return fmt.Errorf("%s is for a disk in disks=[…]; an image has none", setting.name)
		}
	}
	return nil
}
