package attest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// bootMedia fills in what an image and attest's initramfs give a machine to
// boot from: the kernel, its command line, and the disks that all machines
// share. The disk that the machine writes to is added when it starts.
func (m *Machine) bootMedia(ctx context.Context, config *vmm.Config, img *image.Image) error {
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
		config.Disks = append(config.Disks, vmm.Disk{Serial: serial, Path: path, Format: "raw", ReadOnly: true})
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
	if config.Cmdline, err = guest.Cmdline(); err != nil {
		return &ConfigError{Subject: "machine " + m.Name(), Reason: err.Error()}
	}
	if config.Initrd, err = initramfs.Build(ctx); err != nil {
		return &InfraError{m.Name(), "build the initramfs", err}
	}
	config.Kernel = kernel.Path
	// By its PVH entry a kernel learns nothing of the screen that the firmware
	// has set up, and leaves it dark.
	if !kernel.PVH || m.config.Display && kernel.BzImage != "" {
		config.Kernel = kernel.BzImage
	}
	return nil
}

// attachAll gives the machine what exists only while it runs.
func (m *Machine) attachAll(ctx context.Context, config *vmm.Config, img *image.Image) error {
	if m.foreign() {
		return m.attachForeign(config)
	}
	if err := m.attachDisk(ctx, config, img); err != nil {
		return err
	}
	return m.attachNICs(config)
}

// attachDisk gives the machine the disk that it writes to. It is made at the
// first start and keeps its content over all later ones.
func (m *Machine) attachDisk(ctx context.Context, config *vmm.Config, img *image.Image) error {
	if m.disk.Path == "" {
		d := m.writableDisk(img)
		if err := m.createDisk(ctx, &d, img); err != nil {
			return &InfraError{m.Name(), "create the machine's disk", err}
		}
		m.disk = d
	}
	config.Disks = append(config.Disks, m.disk)
	return nil
}

// disks is the directory of the machine's disk and of what is below it.
func (m *Machine) disks() string { return filepath.Join(m.lab.scratch, m.Name()) }

// writableDisk is that disk, without the file that it will have.
func (m *Machine) writableDisk(img *image.Image) vmm.Disk {
	d := vmm.Disk{Serial: boot.SerialWritable, Format: "raw", Backing: m.disk.Backing}
	if img.Disk != nil {
		d.Serial = boot.SerialDisk
	}
	if img.Disk != nil || len(d.Backing) > 0 {
		d.Format = "qcow2"
	}
	return d
}

func (m *Machine) createDisk(ctx context.Context, d *vmm.Disk, img *image.Image) error {
	if err := os.MkdirAll(m.disks(), 0o700); err != nil {
		return err
	}
	d.Path = filepath.Join(m.disks(), "0")
	switch {
	case len(d.Backing) > 0:
		return image.CreateOverlay(d.Path, d.Backing[0].Path, d.Backing[0].Format)
	case img.Disk != nil:
		return image.CreateOverlay(d.Path, img.Disk.Path, img.Disk.Format)
	}
	return m.lab.host.images.OverlayDisk(ctx, d.Path)
}

// attachNICs plugs the machine into its networks. Ports end with the VMM, so
// each start has new ones.
func (m *Machine) attachNICs(config *vmm.Config) error {
	for _, i := range m.address.Interfaces {
		conn, err := m.attach(i)
		if err != nil {
			closeNICs(config.NICs)
			return &InfraError{m.Name(), "attach to network", err}
		}
		config.NICs = append(config.NICs, vmm.NIC{ID: i.Name, MAC: i.MAC, Conn: conn})
	}
	return nil
}

func (m *Machine) attach(i network.Interface) (*net.UnixConn, error) {
	if i.Network == outside {
		return m.attachEgress(i)
	}
	sw := m.lab.network.fabric.Switch(i.Network)
	attach := sw.Attach
	if m.lab.host.config.Packets {
		attach = sw.AttachPackets
	}
	_, conn, err := attach(m.lab.ctx, network.NIC{Machine: m.Name(), ID: i.Name, MAC: i.MAC})
	return conn, err
}

func closeNICs(nics []vmm.NIC) {
	for _, n := range nics {
		if n.Conn != nil {
			n.Conn.Close()
		}
	}
}

// identity is who the machine is: given to the guest whenever its agent starts.
// macs are the addresses that its network cards have, if they are another's.
func (m *Machine) identity(macs []string) wire.Identity {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	id := wire.Identity{
		Hostname:  m.Name(),
		MachineID: m.id,
		Time:      time.Now(),
		Entropy:   entropy,
	}
	for n, i := range m.address.Interfaces {
		id.Interfaces = append(id.Interfaces, wire.Interface{MAC: i.MAC.String(), Name: i.Name, Addresses: []netip.Prefix{i.IPv4, i.IPv6}})
		if n < len(macs) {
			id.Interfaces[n].Was = macs[n]
		}
		if i.Network == outside {
			egressIdentity(&id, &id.Interfaces[n])
		}
	}
	id.Hosts = m.hosts()
	return id
}

// hosts are the machines that this one knows by name.
func (m *Machine) hosts() []wire.Host {
	var hosts []wire.Host
	for _, h := range m.lab.hosts(m.Name()) {
		if n := len(hosts); n > 0 && hosts[n-1].Name == h.Name {
			hosts[n-1].Addresses = append(hosts[n-1].Addresses, h.Addr)
			continue
		}
		hosts = append(hosts, wire.Host{Name: h.Name, Addresses: []netip.Addr{h.Addr}})
	}
	return hosts
}

// machineID is a fresh /etc/machine-id: the same over reboots, different for
// each machine of each lab.
func machineID() string {
	var id [16]byte
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // machine-id(5): as a random UUID
	return hex.EncodeToString(id[:])
}

// linkBacking gives the files below a disk a name in dir, so that they stay as
// long as that does, numbered from first on.
func linkBacking(dir string, files []vmm.Backing, first int) ([]vmm.Backing, error) {
	var linked []vmm.Backing
	for i, b := range files {
		name := filepath.Join(dir, fmt.Sprint(first+i))
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
