package qemu

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// A machineType is what differs between QEMU's machines: how virtio devices
// are called, and the machine's own options.
type machineType struct {
	option string
	blind  string // further ones where there is no screen
	suffix string // of virtio devices: on PCI or memory-mapped
	net    string // further properties of network cards

	further []string // arguments
}

// None has graphics=off: the firmware would then clear the serial console, and
// write to it.
var machineTypes = map[string]machineType{
	"": q35, "q35": q35,
	"microvm": {
		// The firmware of a microvm can load a kernel only through fw_cfg.
		option: "microvm,acpi=on,pcie=off,rtc=on,usb=off",
		suffix: "-device",
	},
}

var q35 = machineType{
	// What an integration test has no use for costs boot time: each device is
	// probed by the firmware and by the kernel.
	// Without SMM a QEMU since 9.1 does not give the guest the memory by which it
	// writes text to the screen.
	option: "q35,usb=off,vmport=off,sata=off,hpet=off",
	blind:  ",smm=off",
	suffix: "-pci",
	net:    ",romfile=", // no firmware that boots from the network
	// A wakeup from memory is a reset, at which QEMU copies an ELF kernel into the memory
	// again, over the one that sleeps there. A guest that cannot suspend to memory
	// suspends to idle instead.
	further: []string{"-global", "ICH9-LPC.disable_s3=1"},
}

// A command collects QEMU's command line and the files that go with it.
type command struct {
	typ   machineType
	args  []string
	files []*os.File // inherited from descriptor 3 on
	saved saved
}

func (c *command) add(args ...string) { c.args = append(c.args, args...) }

// fd adds a file and returns its descriptor in the QEMU process.
func (c *command) fd(f *os.File) int {
	c.files = append(c.files, f)
	return 2 + len(c.files)
}

// virtio adds a virtio device.
func (c *command) virtio(kind, properties string) {
	c.add("-device", "virtio-"+kind+c.typ.suffix+properties)
}

// socket adds a character device over a connected socket.
func (c *command) socket(id string, f *os.File) {
	c.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d", id, c.fd(f)))
}

// defaultMemory, in MiB, is what a configuration without a size gets.
const defaultMemory = 512

// An invocation is all that a QEMU is started with.
type invocation struct {
	config              vmm.Config
	hw                  *vmm.Hardware // that of config
	accel               string
	qmp, console, agent *os.File
	door                []*os.File // of a machine that is bare: its shell, and the stream into it
	nics                []*os.File // in the order of config.NICs; nil: without a cable
	saved               saved
	srat                *os.File // of a machine with NUMA nodes
	readsMemory         bool     // a memory that is shared is open for reading alone
}

func (h invocation) command() command {
	c := command{typ: machineTypes[h.hw.Type]}
	c.add("-name", "guest="+escape(h.config.Name)+",process=attest-qemu")
	// No file of the host's changes what a machine is.
	c.add("-no-user-config", "-nodefaults", "-display", "none")
	machine := c.typ.option
	if !h.hw.Display {
		machine += c.typ.blind
	}
	machine += c.uefi(h.hw.UEFI)
	c.add("-machine", machine+",memory-backend=ram,suppress-vmdesc=on")
	c.accelerator(h.accel)
	c.add(c.typ.further...)
	c.add("-m", itoa(megabytes(h.hw)), "-smp", processors(h.hw))
	c.nodes(h)
	c.add("-S") // until attest listens to the events
	c.add("-action", "reboot="+onReset(h.config.AllowReboot))
	if h.hw.Display && !h.hw.Bare { // the kernel says that it panics on the console, and then its screen is looked at
		c.add("-action", "panic=none")
	}
	c.socket("qmp", h.qmp)
	c.add("-mon", "chardev=qmp,mode=control")
	c.memory(h, "ram", h.ram())
	c.socket("console", h.console)
	c.add("-serial", "chardev:console")
	c.add("-device", "pvpanic") // tells a panic, if the guest has its driver
	if h.hw.Display {
		c.add("-device", "VGA")
		c.virtio("tablet", "")
	}
	c.boot(h.hw, h.accel)
	for i, d := range h.hw.Disks {
		c.disk(i, d, h.hw.Kernel == "" && i == 0)
	}
	c.virtio("serial", ",id="+serialBus)
	c.socket("agent", h.agent)
	c.add("-device", "virtserialport,id="+agentPort+",chardev=agent,name="+wire.AgentPort)
	if h.hw.Bare {
		c.socket("shell", h.door[0])
		c.add("-device", "virtconsole,id="+shellPort+",chardev=shell")
		c.socket("upload", h.door[1])
		c.add("-device", "virtserialport,chardev=upload,name="+wire.UploadPort)
	}
	c.virtio("rng", "")
	for i, n := range h.config.NICs {
		c.nic(n, h.nics[i])
	}
	c.slots(h.hw) // the last, so that they change no other device's place
	c.add(options(h.hw).Args...)
	return c
}

// Options are what only this backend has, in vmm.Hardware.Options.
type Options struct {
	Args []string `json:"args"` // appended to QEMU's own
}

// options are those of hw, which Check has seen.
func options(hw *vmm.Hardware) (o Options) {
	if len(hw.Options) > 0 {
		json.Unmarshal(hw.Options, &o)
	}
	return o
}

// megabytes is the size of the guest's memory.
func megabytes(hw *vmm.Hardware) int { return cmp.Or(hw.Memory, defaultMemory) }

// ram is the memory that the machine has.
func (h invocation) ram() memory {
	return memory{int64(megabytes(h.hw)) << 20, shares(h.config, h.hw), h.readsMemory}
}

// memory gives the machine a file as its memory: one of its own, or a private
// view of the one that it goes on from.
func (c *command) memory(h invocation, id string, mem memory) {
	how := "share=on"
	switch {
	case mem.shared && mem.readOnly:
		how = "share=off,readonly=on,rom=off"
	case mem.shared:
		how = "share=off"
	}
	c.saved = h.saved
	if h.config.Restore != nil {
		c.saved.restoreFD = c.fd(h.saved.restore)
		c.add("-incoming", "defer")
	}
	c.saved.devicesFD = c.fd(h.saved.devices)
	c.add("-object", fmt.Sprintf("memory-backend-file,id=%s,size=%d,%s,mem-path=/proc/self/fd/%d", id, mem.size, how, c.fd(h.saved.memory)))
}

// onReset is QEMU's word for what a reset of the machine does.
func onReset(allowReboot bool) string {
	if allowReboot {
		return "reset"
	}
	return "shutdown"
}

func (c *command) accelerator(kind string) {
	if kind == accel.KVM {
		c.add("-accel", "kvm", "-cpu", "host")
		return
	}
	// One thread for each vCPU. la57: page tables of five levels make every
	// walk of the emulated MMU longer. erms, fsrm: with them Linux copies and clears
	// memory by "rep movsb" and "rep stosb", which the emulator does byte by byte; by
	// words it is seven times as fast.
	c.add("-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max,la57=off,erms=off,fsrm=off")
}

func (c *command) boot(hw *vmm.Hardware, kind string) {
	if hw.Kernel == "" {
		return
	}
	c.add("-kernel", hw.Kernel)
	if hw.Initrd != "" {
		c.add("-initrd", hw.Initrd)
	}
	cmdline := []string{"console=ttyS0"}
	if hw.Display { // a person sees there what goes wrong; the last one is /dev/console
		cmdline = []string{"console=tty0", "console=ttyS0"}
	}
	if kind == accel.TCG {
		cmdline = append(cmdline, accel.ClockParameters()...)
	}
	c.add("-append", strings.Join(append(cmdline, hw.Cmdline), " "))
}

// disk adds a block device. Its caches are the host's, and a flush of the
// guest's reaches the host's page cache but not its disks: what the guest
// synced outlives the VMM, and nobody waits for a disk.
func (c *command) disk(i int, d vmm.Disk, boots bool) {
	node := fmt.Sprintf("disk%d", i)
	c.json("-blockdev", imageBlock(node, d))
	order := ""
	if boots {
		order = ",bootindex=0" // before whatever a firmware finds by itself
	}
	c.virtio("blk", fmt.Sprintf(",drive=%s,serial=%s%s", node, escape(d.Serial), order))
}

// json adds an option whose value is JSON.
func (c *command) json(option string, value map[string]any) {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings, numbers and booleans
	}
	c.add(option, string(data))
}

// imageBlock is the block device of a disk image.
func imageBlock(node string, d vmm.Disk) map[string]any {
	cache := map[string]any{"direct": false, "no-flush": true}
	file := map[string]any{
		"driver": "file", "filename": d.Path, "cache": cache,
		"read-only": d.ReadOnly, "auto-read-only": false,
	}
	format := map[string]any{
		"node-name": node, "driver": cmp.Or(d.Format, "raw"), "file": file, "cache": cache,
		"read-only": d.ReadOnly, "auto-read-only": false,
	}
	if !d.ReadOnly {
		file["discard"], format["discard"] = "unmap", "unmap"
	}
	// A qcow2 image names what is below it and what format that has; a guest's raw
	// disk may begin like an image. Nothing of that counts: each node says which driver
	// it has and what it reads from, and the lowest reads from nothing.
	upper := format
	for _, b := range d.Backing {
		lower := map[string]any{
			"driver": b.Format, "cache": cache, "read-only": true, "auto-read-only": false,
			"file": map[string]any{"driver": "file", "filename": b.Path, "cache": cache, "read-only": true, "auto-read-only": false},
		}
		upper["backing"], upper = lower, lower
	}
	if upper["driver"] == "qcow2" {
		upper["backing"] = nil
	}
	return format
}

// escape keeps a value in one piece where QEMU splits at commas.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// virtioCard is the model that a network card has by default; the others are devices
// by these names.
const virtioCard = "virtio"

var cardModels = []string{virtioCard, "e1000", "e1000e", "rtl8139", "vmxnet3"}

// nic adds a network card whose frames go over a connected socket, or nowhere.
func (c *command) nic(n vmm.NIC, f *os.File) {
	cable := ""
	if f != nil {
		c.add("-netdev", link(f, c.fd(f))+",id="+n.ID+"-link")
		cable = ",netdev=" + n.ID + "-link"
	}
	properties := fmt.Sprintf(",id=%s%s,mac=%s%s", n.ID, cable, n.MAC, c.typ.net)
	if n.Model == "" || n.Model == virtioCard {
		// Without them the guest's driver says that it does not know its speed, and a bond
		// that balances by it does not take the card.
		c.virtio("net", properties+",speed=10000,duplex=full")
	} else {
		c.add("-device", n.Model+properties)
	}
}

// link is the backend of a network card for a socket that QEMU has as fd: in a
// stream each frame comes after its length, in packets each is one.
func link(f *os.File, fd int) string {
	if typ, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE); err == nil && typ != unix.SOCK_STREAM {
		return fmt.Sprintf("dgram,local.type=fd,local.str=%d", fd)
	}
	return fmt.Sprintf("stream,server=off,addr.type=fd,addr.str=%d", fd)
}
