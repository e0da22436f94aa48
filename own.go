package attest

import (
	"context"
	"encoding/json"
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

// panicOnScreen has a kernel that panics stay on the screen, and say there at the end why, until somebody has looked. The machine is
// ended after panicGrace.
const panicOnScreen = "panic=0"

// own is a machine that boots an image of attest's, with attest's initramfs. What
// it writes goes to a disk of its own.
type own struct {
	m *Machine
	// What the machine writes to; guarded by m.startMu.
	disk    vmm.Disk       // the root's; without a Path until it has one
	further []*furtherDisk // the others; nil until they are asked for

	nextSlot int // where a disk is put that is plugged in, if it is free; guarded by m.startMu
}

func (o *own) knowsHosts() bool { return true }

func (o *own) plan(ctx context.Context) (plan, error) {
	p, err := o.planWith(ctx, &vmm.Hardware{}, o.media)
	p.agent = p.config.Boot.(*vmm.Hardware).Initrd
	return p, err
}

// planWith is plan for a machine of some hardware. media adds to that what the image
// gives the machine to boot from, and returns its root, if that is a disk of its own.
func (o *own) planWith(ctx context.Context, hw *vmm.Hardware, media func(context.Context, *vmm.Hardware, *image.Image) (*image.Root, error)) (plan, error) {
	m := o.m
	hw.Memory, hw.CPUs, hw.Type, hw.Display = m.config.Memory, m.config.CPUs, m.config.Type, m.config.Display
	hw.NUMA, hw.Options, hw.Slots = m.config.NUMA, m.config.BackendOptions, m.slots()
	for i, d := range m.config.Disks { // for the fingerprint, and what the backend refuses
		hw.SlotDisks = append(hw.SlotDisks, vmm.SlotDisk{Disk: vmm.Disk{Serial: d.Serial, ReadOnly: d.ReadOnly}, Slot: i, Bus: vmm.DiskBus(d.Bus), Shared: d.Shared != ""})
	}
	p := plan{config: vmm.Config{Name: m.Name(), Dir: m.dir, Boot: hw, NICs: m.cards()}}
	if err := m.config.checkHardware(ctx); err != nil {
		return p, err
	}
	if len(m.config.QEMU) > 0 {
		options, err := json.Marshal(map[string][]string{"args": m.config.QEMU})
		if err != nil {
			return p, err
		}
		hw.Options = options
	}
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
	root, err := media(ctx, hw, p.image)
	if err != nil {
		return p, err
	}
	p.base = p.image.Disk
	if root != nil {
		p.base = &root.BaseDisk
	}
	p.title = fmt.Sprintf("%s (%s, %d MiB)", m.Name(), p.image.Title, m.config.Memory)
	p.fits = map[string]string{
		"image": imageID(p.image, root),
		// They are in the fingerprint; here for an error that says it clearly.
		"amount of memory":       fmt.Sprintf("%d MiB", m.config.Memory),
		"count of CPUs":          fmt.Sprint(m.config.CPUs),
		"count of network cards": fmt.Sprint(len(m.address.Interfaces)),
	}
	for _, d := range m.config.Disks {
		if d.Path == "" {
			continue
		}
		base, stamp, err := d.open()
		if err != nil {
			return p, &ConfigError{fmt.Sprintf("machine %q: disk %s", m.Name(), d.Serial), err.Error()}
		}
		p.fits["disk "+d.Serial] = base.Format + " " + stamp
	}
	planned := *hw
	// What the machine has booted from its initramfs is in its memory; the agent may
	// be another, as long as it speaks the same protocol.
	planned.Initrd = ""
	planned.Disks = append(slices.Clone(hw.Disks), o.writableDisk(p.base))
	p.planned = p.config
	p.planned.Boot = &planned
	return p, nil
}

// imageID is the image with all that media takes besides it.
func imageID(img *image.Image, root *image.Root) string {
	kernel := ""
	if img.Kernel != nil {
		kernel = img.Kernel.ID
	}
	id := img.ID + " " + kernel
	if root != nil {
		id += " " + root.ID
	}
	return id
}

// media fills in what an image and attest's initramfs give a machine to boot
// from: the kernel, its command line, and the disks that all machines share. The
// disk that the machine writes to is added when it starts. A root with a file system
// of its own is made if it is missing.
func (o *own) media(ctx context.Context, hw *vmm.Hardware, img *image.Image) (*image.Root, error) {
	m := o.m
	if img.Disk != nil {
		if err := contentOf(img.Disk).checkRoot(); err != nil {
			return nil, &ConfigError{fmt.Sprintf("machine %q", m.Name()), err.Error()}
		}
	}
	binary, err := m.lab.host.guestBinary(ctx)
	if err != nil {
		return nil, err
	}
	kernel := img.Kernel
	if kernel == nil { // a whole disk: attest's own kernel starts what is on it
		base, err := m.lab.image(ctx, Debian{})
		if err != nil {
			return nil, err
		}
		kernel = base.Kernel
	}
	guest := boot.Guest{Args: m.cmdline()}
	if m.config.Display {
		guest.Args = append([]string{panicOnScreen}, guest.Args...)
	}
	initramfs := boot.Initramfs{Binary: binary, Drivers: m.cardDrivers()}
	var root *image.Root
	switch {
	case img.Disk != nil:
		guest.Root = boot.RootDisk
		initramfs.Optional = []string{"xfs", "btrfs"}
	case m.plainRoot():
		if root, err = m.lab.root(ctx, img, m); err != nil {
			return nil, err
		}
		guest.Root = boot.RootPlain
		if m.config.Root != "ext4" {
			initramfs.Filesystems = []string{m.config.Root}
		}
	default:
		guest.Root, guest.Layers = layersOf(img, &initramfs, hw)
	}
	if modules := kernel.Modules.Path; modules != "" {
		guest.Modules = true
		initramfs.Modules = modules
		hw.Disks = append(hw.Disks, sharedDisk(boot.SerialModules, modules))
	}
	return root, m.kernel(ctx, hw, kernel, guest, initramfs)
}

// cardDrivers are the kernel's modules for the machine's cards, which have their addresses
// before its init starts; virtio's is in every initramfs.
func (m *Machine) cardDrivers() []string {
	switch model := m.config.NIC; model {
	case "", "virtio":
		return nil
	case "rtl8139":
		return []string{"8139cp"}
	default:
		return []string{model}
	}
}

// cmdline is what the image and the machine have to say to the kernel.
func (m *Machine) cmdline() (args []string) {
	if m.config.Image != nil {
		args = append(args, m.config.Image.spec().Kernel().Cmdline)
	}
	return slices.DeleteFunc(append(args, m.config.Cmdline), func(arg string) bool { return arg == "" })
}

func sharedDisk(serial, path string) vmm.Disk {
	return vmm.Disk{Serial: serial, Path: path, Format: "raw", ReadOnly: true}
}

// layersOf adds the disks with an image's layers, and what is needed to mount them.
func layersOf(img *image.Image, initramfs *boot.Initramfs, hw *vmm.Hardware) (kind boot.Root, count int) {
	if len(img.Layers) == 1 && img.Layers[0].Format != "erofs" {
		initramfs.Filesystems = append(initramfs.Filesystems, img.Layers[0].Format)
		hw.Disks = append(hw.Disks, sharedDisk(boot.SerialImage, img.Layers[0].Path))
		return boot.RootImage, 0
	}
	for i, l := range img.Layers {
		hw.Disks = append(hw.Disks, sharedDisk(boot.SerialLayer(i), l.Path))
	}
	return boot.RootLayers, len(img.Layers)
}

// kernel fills in a kernel with its command line and initramfs.
func (m *Machine) kernel(ctx context.Context, hw *vmm.Hardware, kernel *image.Kernel, guest boot.Guest, initramfs boot.Initramfs) (err error) {
	if hw.Cmdline, err = guest.Cmdline(); err != nil {
		return &ConfigError{Subject: "machine " + m.Name(), Reason: err.Error()}
	}
	if hw.Initrd, err = initramfs.Build(ctx, m.lab.host.supervisor); err != nil {
		return &InfraError{m.Name(), "build the initramfs", err}
	}
	m.setKernel(hw, kernel)
	return nil
}

func (m *Machine) setKernel(hw *vmm.Hardware, kernel *image.Kernel) {
	hw.Kernel, hw.Vmlinux = kernel.Path, kernel.Path
	// By its PVH entry a kernel learns nothing of the screen that the firmware
	// has set up, and leaves it dark.
	if !kernel.PVH || m.config.Display && kernel.BzImage != "" {
		hw.Kernel = kernel.BzImage
	}
}

// attach gives the machine its disk, which is made at the first start and keeps
// its content over all later ones, and plugs it into its networks.
func (o *own) attach(ctx context.Context, p plan, c *vmm.Config, plugs *plugs) error {
	if o.disk.Path == "" {
		d := o.writableDisk(p.base)
		if err := o.createDisk(ctx, &d, p.base); err != nil {
			return &InfraError{o.m.Name(), "create the machine's disk", err}
		}
		o.disk = d
	}
	hw := *c.Boot.(*vmm.Hardware)
	d := o.disk
	if p.base != nil && !o.rawOnly() {
		// The lowest of all, which is never part of what is saved.
		d.Backing = append(slices.Clip(d.Backing), vmm.Backing{Path: p.base.Path, Format: p.base.Format})
	}
	hw.Disks = append(slices.Clone(hw.Disks), d)
	var err error
	if hw.SlotDisks, err = o.slotDisks(); err != nil {
		return err
	}
	c.Boot = &hw
	c.NICs = plugs.all()
	return nil
}

// writableDisk is that disk, without the file that it will have.
func (o *own) writableDisk(base *image.BaseDisk) vmm.Disk {
	d := vmm.Disk{Serial: boot.SerialWritable, Format: "raw", Backing: o.disk.Backing}
	if base != nil {
		d.Serial = boot.SerialDisk
	}
	if o.rawOnly() {
		d.Backing = nil // it is copied
		return d
	}
	if base != nil || len(d.Backing) > 0 {
		d.Format = "qcow2"
	}
	return d
}

func (o *own) createDisk(ctx context.Context, d *vmm.Disk, base *image.BaseDisk) error {
	m := o.m
	if err := os.MkdirAll(m.disks(), 0o700); err != nil {
		return err
	}
	d.Path = filepath.Join(m.disks(), "0")
	switch {
	case o.rawOnly() && len(o.disk.Backing) > 0:
		return o.copyKept(d.Path)
	case o.rawOnly() && base != nil:
		return copyFile(d.Path, base.Path)
	case len(d.Backing) > 0:
		return image.CreateOverlay(d.Path, d.Backing[0].Path, d.Backing[0].Format)
	case base != nil:
		return image.CreateOverlay(d.Path, base.Path, base.Format)
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
	kept := append([]vmm.Backing{{Path: path(0), Format: o.disk.Format}}, below...)
	if err != nil {
		return kept, err
	}
	return o.keepFurther(path, kept)
}

func (o *own) adopt(kept []vmm.Backing) (err error) {
	m := o.m
	if kept, err = o.adoptFurther(kept); err != nil {
		return err
	}
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
