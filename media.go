package attest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
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
	if !kernel.PVH {
		config.Kernel = kernel.BzImage
	}
	return nil
}

// attachDisk gives the machine the disk that it writes to. It is made at the
// first start and keeps its content over all later ones.
func (m *Machine) attachDisk(ctx context.Context, config *vmm.Config, img *image.Image) error {
	d := vmm.Disk{Serial: boot.SerialWritable, Path: filepath.Join(m.dir, "disk"), Format: "raw"}
	if img.Disk != nil {
		d.Serial, d.Format = boot.SerialDisk, "qcow2"
	}
	if _, err := os.Stat(d.Path); err != nil {
		if img.Disk != nil {
			err = image.CreateOverlay(d.Path, img.Disk.Path, img.Disk.Format)
		} else {
			err = m.lab.host.images.OverlayDisk(ctx, d.Path)
		}
		if err != nil {
			return &InfraError{m.Name(), "create the machine's disk", err}
		}
	}
	config.Disks = append(config.Disks, d)
	return nil
}

// attachNICs plugs the machine into its networks. Ports end with the VMM, so
// each start has new ones.
func (m *Machine) attachNICs(config *vmm.Config) error {
	for _, i := range m.address.Interfaces {
		sw := m.lab.fabric.Switch(i.Network)
		attach := sw.Attach
		if m.lab.host.config.Packets {
			attach = sw.AttachPackets
		}
		_, conn, err := attach(m.lab.ctx, network.NIC{Machine: m.Name(), ID: i.Name, MAC: i.MAC})
		if err != nil {
			for _, n := range config.NICs {
				n.Conn.Close()
			}
			return &InfraError{m.Name(), "attach to network", err}
		}
		config.NICs = append(config.NICs, vmm.NIC{ID: i.Name, MAC: i.MAC, Conn: conn})
	}
	return nil
}

// identity is who the machine is: given to the guest whenever its agent starts.
func (m *Machine) identity() wire.Identity {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	id := wire.Identity{
		Hostname:  m.Name(),
		MachineID: m.machineID(),
		Time:      time.Now(),
		Entropy:   entropy,
	}
	for _, i := range m.address.Interfaces {
		id.Interfaces = append(id.Interfaces, wire.Interface{MAC: i.MAC.String(), Name: i.Name, Addresses: []netip.Prefix{i.IPv4, i.IPv6}})
	}
	for _, h := range m.lab.addresses.Hosts(m.Name()) {
		if n := len(id.Hosts); n > 0 && id.Hosts[n-1].Name == h.Name {
			id.Hosts[n-1].Addresses = append(id.Hosts[n-1].Addresses, h.Addr)
			continue
		}
		id.Hosts = append(id.Hosts, wire.Host{Name: h.Name, Addresses: []netip.Addr{h.Addr}})
	}
	return id
}

// machineID is the guest's /etc/machine-id: the same over reboots, different
// for each machine of each lab.
func (m *Machine) machineID() string {
	sum := sha256.Sum256([]byte("attest machine-id\n" + m.lab.dir + "\n" + m.Name()))
	sum[6], sum[8] = sum[6]&0x0f|0x40, sum[8]&0x3f|0x80 // machine-id(5): as a random UUID
	return hex.EncodeToString(sum[:16])
}
