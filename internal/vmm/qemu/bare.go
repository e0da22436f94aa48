package qemu

import (
	"net"

	"github.com/attest-vm/attest/internal/vmm"
)

// A bare machine is one that attest lays out, and whose guest comes without its agent:
// the firmware boots what is on the disk, or the kernel has an initrd of somebody's own.
type bare struct {
	*machine
	door
}

var (
	_ vmm.VM          = (*bare)(nil)
	_ vmm.Snapshotter = (*bare)(nil)
	_ vmm.Backdoor    = (*bare)(nil)
	_ vmm.SlotOwner   = (*bare)(nil)
)

// watch is that of every machine; the backdoor ends with it.
func (m *bare) watch() {
	m.machine.watch()
	m.door.close()
}

// A door is how the host reaches a guest that has no agent: the console of its root
// shell, and a stream into it.
type door struct{ shell, upload net.Conn }

func (d door) Backdoor() (shell, upload net.Conn) { return d.shell, d.upload }

func (d door) close() {
	d.shell.Close()
	d.upload.Close()
}
