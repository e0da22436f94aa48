package boot

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount points below the initramfs, out of the guest's sight later.
const (
	layersDir   = "/mnt/layers"
	writableDir = "/mnt/rw"
	probeDir    = "/mnt/probe"
)

// mountRoot puts the guest's root together at newRoot.
func (b *booting) mountRoot() error {
	var err error
	switch b.guest.Root {
	case RootDisk:
		err = mountDiskRoot(b.disks[SerialDisk])
	case RootPlain:
		err = mountPlain(b.disks[SerialDisk], newRoot, 0)
	default:
		err = b.mountOverlayRoot()
	}
	if err != nil {
		return err
	}
	if b.guest.Modules {
		return b.mountModules()
	}
	return nil
}

func (b *booting) mountOverlayRoot() error {
	lower, err := b.mountLayers()
	if err != nil {
		return err
	}
	if err := b.mountWritable(); err != nil {
		return err
	}
	if err := mountOverlay(lower, "", newRoot); err != nil {
		return fmt.Errorf("the guest's root: %w", err)
	}
	return nil
}

// mountLayers mounts what the root is made of, and returns where, the uppermost
// first as overlayfs wants them.
func (b *booting) mountLayers() ([]string, error) {
	serials := []string{SerialImage}
	if b.guest.Root == RootLayers {
		serials = nil
		for i := range b.guest.Layers {
			serials = append(serials, SerialLayer(i))
		}
	}
	var lower []string
	for _, serial := range serials {
		dir := filepath.Join(layersDir, serial)
		if err := mountReadOnly(b.disks[serial], dir); err != nil {
			return nil, fmt.Errorf("disk %s: %w", serial, err)
		}
		lower = append(lower, dir)
	}
	slices.Reverse(lower)
	return lower, nil
}

// mountWritable mounts the disk that takes what the guest writes. It has to
// have a file system already: one that is formatted here could be one with data.
func (b *booting) mountWritable() error {
	if err := os.MkdirAll(writableDir, 0o755); err != nil {
		return err
	}
	if b.guest.Volatile {
		if err := unix.Mount("tmpfs", writableDir, "tmpfs", 0, "mode=0755,size=80%"); err != nil {
			return fmt.Errorf("mount a tmpfs for what the guest writes: %w", err)
		}
		return nil
	}
	device := b.disks[SerialWritable]
	fstype, err := probeDevice(device)
	if err != nil {
		return fmt.Errorf("disk %s: %w", SerialWritable, err)
	}
	if fstype != "ext4" {
		return fmt.Errorf("disk %s (%s) holds %s instead of ext4; the host has to format it (mkfs.ext4) before the first boot", SerialWritable, device, cmp.Or(fstype, "nothing known"))
	}
	// noinit_itable: the inode tables of a fresh sparse disk read as zeroes
	// anyway, and writing them in the background would fill it.
	if err := unix.Mount(device, writableDir, "ext4", 0, "noinit_itable"); err != nil {
		return fmt.Errorf("mount disk %s (%s): %w%s", SerialWritable, device, err, mountHint("ext4", err))
	}
	return nil
}

// mountOverlay stacks writableDir/<name>upper on the lower directories.
func mountOverlay(lower []string, name, target string) error {
	upper, work := filepath.Join(writableDir, name+"upper"), filepath.Join(writableDir, name+"work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + upper + ",workdir=" + work
	// xino: files have the st_dev of their directory, as on one file system, or
	// find -xdev and tar --one-file-system leave them out. redirect_dir:
	// directories of the image can be renamed.
	err := unix.Mount("overlay", target, "overlay", 0, options+",xino=on,redirect_dir=on")
	if errors.Is(err, unix.EINVAL) { // a kernel before 4.17 does not know them
		err = unix.Mount("overlay", target, "overlay", 0, options)
	}
	if err != nil {
		return fmt.Errorf("mount overlay on %s: %w%s", target, err, mountHint("overlay", err))
	}
	return nil
}

// mountReadOnly mounts the file system on a device, whichever it is.
func mountReadOnly(device, dir string) error {
	fstype, err := probeDevice(device)
	if err != nil {
		return err
	}
	if !rootFilesystems[fstype] {
		return fmt.Errorf("%s holds %s, which cannot be a root file system", device, cmp.Or(fstype, "nothing known"))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := loadModules(fstype); err != nil {
		return err
	}
	if err := unix.Mount(device, dir, fstype, unix.MS_RDONLY, readOnlyOptions[fstype]); err != nil {
		return fmt.Errorf("mount %s (%s) read-only: %w%s", device, fstype, err, mountHint(fstype, err))
	}
	return nil
}

func probeDevice(device string) (string, error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return ProbeFilesystem(f)
}

// mountModules puts the kernel's modules to where modprobe and udev look for
// them. In the overlay's case they can be added to (depmod, DKMS).
func (b *booting) mountModules() error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	source := filepath.Join(layersDir, SerialModules)
	if err := mountReadOnly(b.disks[SerialModules], source); err != nil {
		return fmt.Errorf("disk %s: %w", SerialModules, err)
	}
	target, closeTarget, err := makeInRoot(newRoot, "lib", "modules", release)
	if err != nil {
		return fmt.Errorf("a place for the kernel's modules in the guest's root: %w", err)
	}
	defer closeTarget()
	if b.guest.direct() {
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind the kernel's modules into the guest's root: %w", err)
		}
		return nil
	}
	if err := mountOverlay([]string{source}, "modules-", target); err != nil {
		return fmt.Errorf("the kernel's modules: %w", err)
	}
	return nil
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// makeInRoot makes a directory below root, one name after the other, where
// symbolic links (lib → usr/lib, or → /usr/lib) mean what they will mean inside.
// The path is one of this process's descriptors, good until close.
func makeInRoot(root string, names ...string) (path string, close func() error, err error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", root, err)
	}
	inside := ""
	for _, name := range names {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			unix.Close(fd)
			return "", nil, fmt.Errorf("make /%s/%s: %w", inside, name, err)
		}
		unix.Close(fd)
		inside = filepath.Join(inside, name)
		if fd, err = openInRoot(root, inside); err != nil {
			return "", nil, fmt.Errorf("open /%s: %w", inside, err)
		}
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() error { return unix.Close(fd) }, nil
}

func openInRoot(root, path string) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT,
	})
	if errors.Is(err, unix.ENOSYS) { // before 5.6; absolute links then lead astray
		return unix.Openat(dir, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	return fd, err
}
