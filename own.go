package attest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// own is a machine that boots an image of attest's, with attest's initramfs. What
// it writes goes to a disk of its own.
type own struct {
	m    *Machine
	disk vmm.Disk // what the machine writes to; without a Path until it has one. Guarded by m.startMu
}

func (o *own) knowsHosts() bool { return true }

func (o *own) plan(ctx context.Context) (plan, error) {
	m := o.m
	hw := &vmm.Hardware{Memory: m.config.Memory, CPUs: m.config.CPUs, Type: m.config.Type, Display: m.config.Display, Options: m.config.BackendOptions}
	p := plan{config: vmm.Config{Name: m.Name(), Dir: m.dir, Boot: hw, NICs: m.cards()}}
	if err := m.backend.Check(p.config); err != nil {
		return p, err // before an image is built for nothing
	}
	var err error
	if p.image, err = m.lab.image(ctx, m.config.Image); err != nil {
		return p, err
	}
	if d := p.image.Disk; d != nil && d.Format != "raw" && o.rawOnly() {
		return p, &UnsupportedError{Machine: m.Name(), Operation: "a disk of format " + d.Format, Backend: m.config.Backend, Can: []string{"qemu"},
			Reason: "it reads raw disks only; make one: qemu-img convert -O raw OLD NEW"}
	}
	if err := o.media(ctx, hw, p.image); err != nil {
		return p, err
	}
	p.title = fmt.Sprintf("%s (%s, %d MiB)", m.Name(), p.image.Title, m.config.Memory)
	p.agent = hw.Initrd
	p.fits = map[string]string{
		"image": imageID(p.image),
		// They are in the fingerprint; here for an error that says it clearly.
		"amount of memory":       fmt.Sprintf("%d MiB", m.config.Memory),
		"count of CPUs":          fmt.Sprint(m.config.CPUs),
		"count of network cards": fmt.Sprint(len(m.address.Interfaces)),
	}
	planned := *hw
	// What the machine has booted from its initramfs is in its memory; the agent may
	// be another, as long as it speaks the same protocol.
	planned.Initrd = ""
	planned.Disks = append(slices.Clone(hw.Disks), o.writableDisk(p.image))
	p.planned = p.config
	p.planned.Boot = &planned
	return p, nil
}

// imageID is the image with all that media takes besides it.
func imageID(img *image.Image) string {
	kernel := ""
	if img.Kernel != nil {
		kernel = img.Kernel.ID
	}
	return img.ID + " " + kernel
}

// media fills in what an image and attest's initramfs give a machine to boot
// from: the kernel, its command line, and the disks that all machines share. The
// disk that the machine writes to is added when it starts.
func (o *own) media(ctx context.Context, hw *vmm.Hardware, img *image.Image) error {
	m := o.m
	binary, err := m.lab.host.guestBinary(ctx)
	if err != nil {
		return err
	}
	kernel := img.Kernel
	if kernel == nil { // a whole disk: attest's own kernel starts what is on it
		base, err := m.lab.image(ctx, Debian{})
		if err != nil {
			return err
		}
		kernel = base.Kernel
	}
	guest := boot.Guest{}
	if m.config.Cmdline != "" {
		guest.Args = []string{m.config.Cmdline}
	}
	shared := func(serial, path string) {
		hw.Disks = append(hw.Disks, vmm.Disk{Serial: serial, Path: path, Format: "raw", ReadOnly: true})
	}
	initramfs := boot.Initramfs{Binary: binary}
	switch {
	case img.Disk != nil:
		guest.Root = boot.RootDisk
		initramfs.Filesystems = []string{"xfs", "btrfs"}
	case len(img.Layers) == 1 && img.Layers[0].Format != "erofs":
		guest.Root = boot.RootImage
		initramfs.Filesystems = []string{img.Layers[0].Format}
		shared(boot.SerialImage, img.Layers[0].Path)
	default:
		guest.Root, guest.Layers = boot.RootLayers, len(img.Layers)
		for i, l := range img.Layers {
			shared(boot.SerialLayer(i), l.Path)
		}
	}
	if modules := kernel.Modules.Path; modules != "" {
		guest.Modules = true
		initramfs.Modules = modules
		shared(boot.SerialModules, modules)
	}
	if hw.Cmdline, err = guest.Cmdline(); err != nil {
		return &ConfigError{Subject: "machine " + m.Name(), Reason: err.Error()}
	}
	if hw.Initrd, err = initramfs.Build(ctx, m.lab.host.supervisor); err != nil {
		return &InfraError{m.Name(), "build the initramfs", err}
	}
	hw.Kernel, hw.Vmlinux = kernel.Path, kernel.Path
	// By its PVH entry a kernel learns nothing of the screen that the firmware
	// has set up, and leaves it dark.
	if !kernel.PVH || m.config.Display && kernel.BzImage != "" {
		hw.Kernel = kernel.BzImage
	}
	return nil
}

// attach gives the machine its disk, which is made at the first start and keeps
// its content over all later ones, and plugs it into its networks.
func (o *own) attach(ctx context.Context, p plan, c *vmm.Config, plugs *plugs) error {
	if o.disk.Path == "" {
		d := o.writableDisk(p.image)
		if err := o.createDisk(ctx, &d, p.image); err != nil {
			return &InfraError{o.m.Name(), "create the machine's disk", err}
		}
		o.disk = d
	}
	hw := *c.Boot.(*vmm.Hardware)
	d := o.disk
	if img := p.image; img.Disk != nil && !o.rawOnly() {
		// The lowest of all, which is never part of what is saved.
		d.Backing = append(slices.Clip(d.Backing), vmm.Backing{Path: img.Disk.Path, Format: img.Disk.Format})
	}
	hw.Disks = append(slices.Clone(hw.Disks), d)
	c.Boot = &hw
	c.NICs = plugs.all()
	return nil
}

// writableDisk is that disk, without the file that it will have.
func (o *own) writableDisk(img *image.Image) vmm.Disk {
	d := vmm.Disk{Serial: boot.SerialWritable, Format: "raw", Backing: o.disk.Backing}
	if img.Disk != nil {
		d.Serial = boot.SerialDisk
	}
	if o.rawOnly() {
		d.Backing = nil // it is copied
		return d
	}
	if img.Disk != nil || len(d.Backing) > 0 {
		d.Format = "qcow2"
	}
	return d
}

func (o *own) createDisk(ctx context.Context, d *vmm.Disk, img *image.Image) error {
	m := o.m
	if err := os.MkdirAll(m.disks(), 0o700); err != nil {
		return err
	}
	d.Path = filepath.Join(m.disks(), "0")
	switch {
	case o.rawOnly() && len(o.disk.Backing) > 0:
		return o.copyKept(d.Path)
	case o.rawOnly() && img.Disk != nil:
		return copyFile(d.Path, img.Disk.Path)
	case len(d.Backing) > 0:
		return image.CreateOverlay(d.Path, d.Backing[0].Path, d.Backing[0].Format)
	case img.Disk != nil:
		return image.CreateOverlay(d.Path, img.Disk.Path, img.Disk.Format)
	}
	return m.lab.host.images.OverlayDisk(ctx, d.Path)
}

// rawOnly reports whether the machine's disk has to be one file, without others below.
func (o *own) rawOnly() bool {
	_, raw := o.m.backend.(vmm.RawOnly)
	return raw
}

// copyKept makes the disk a copy of what the machine goes on from, by reference where the
// file system can.
func (o *own) copyKept(path string) error {
	if err := copyFile(path, o.disk.Backing[0].Path); err != nil {
		return err
	}
	var errs []error
	for _, b := range o.disk.Backing {
		errs = append(errs, os.Remove(b.Path)) // the machine's own name of it
	}
	return errors.Join(errs...)
}

// identity is who the machine is. A guest that was restored as itself keeps what
// its test has made of it; one that was restored from a template has its name and
// addresses already.
func (o *own) identity(r *run, again bool) wire.Identity {
	m := o.m
	if !again {
		var macs []string
		if r.origin != nil {
			macs = r.origin.macs
		}
		return m.identity(macs)
	}
	id := renewal()
	if r.origin.slot != nil {
		id.MachineID = m.id
	}
	if r.newHosts || r.origin.slot != nil {
		id.Hosts = m.hosts()
	}
	return id
}

// keep copies the disk; what is below that nobody writes to.
func (o *own) keep(path func(int) string) ([]vmm.Backing, error) {
	if o.disk.Path == "" {
		return nil, nil
	}
	if err := copyFile(path(0), o.disk.Path); err != nil {
		return nil, err
	}
	below, err := linkBacking(path, o.disk.Backing, 1)
	return append([]vmm.Backing{{Path: path(0), Format: o.disk.Format}}, below...), err
}

func (o *own) adopt(kept []vmm.Backing) (err error) {
	m := o.m
	o.disk = vmm.Disk{}
	o.disk.Backing, err = linkBacking(func(n int) string { return filepath.Join(m.disks(), fmt.Sprint(n)) }, kept, 1)
	return err
}

// disks is the directory of what the machine writes, and of what is below that.
func (m *Machine) disks() string {
	if m.kept != nil {
		return m.kept.dir
	}
	return filepath.Join(m.lab.scratch, m.Name())
}

// linkBacking gives the files below a disk further names, so that they stay as
// long as those do: path(first) and so on.
func linkBacking(path func(int) string, files []vmm.Backing, first int) ([]vmm.Backing, error) {
	var linked []vmm.Backing
	for i, b := range files {
		name := path(first + i)
		if err := os.Link(b.Path, name); err != nil { // another file system
			if err := copyFile(name, b.Path); err != nil {
				return nil, err
			}
		}
		linked = append(linked, vmm.Backing{Path: name, Format: b.Format})
	}
	return linked, nil
}

func copyFile(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(vmm.CopySparse(target, source), target.Close())
}
