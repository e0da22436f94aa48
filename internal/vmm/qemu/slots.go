package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/qemu/qmp"
)

// A slot is a PCI Express root port with room for one device, which is how a q35
// lets devices come and go: a disk of virtio or NVMe itself, or a controller of its
// own with the disk on it. So each kind of disk is pulled in the same way.
//
// Below the device are block nodes, from the image up: the image, what makes
// requests fail (blkdebug) while they are to, and what limits them (throttle). The
// device keeps the uppermost; the middle one comes and goes below it.

// slotsPerPlace is how many root ports share a place on the bus, as its functions.
const slotsPerPlace = 8

// firstSlotPlace is the place of the first root ports, above those that QEMU gives to
// the other devices from 1 on; the highest is the chipset's own.
const firstSlotPlace = 0x18

// maxSlots is as many as there are places for.
const maxSlots = (0x1e - firstSlotPlace) * slotsPerPlace

func slotName(slot int) string  { return fmt.Sprintf("slot%d", slot) }
func imageNode(slot int) string { return slotName(slot) + "-image" }
func errorNode(slot int) string { return slotName(slot) + "-errors" }
func topNode(slot int) string   { return slotName(slot) + "-disk" }
func groupName(slot int) string { return slotName(slot) + "-limits" }

// slots adds the slots, and the disks that are in them.
func (c *command) slots(hw *vmm.Hardware) {
	for n := range hw.Slots {
		c.json("-device", map[string]any{
			"driver": "pcie-root-port", "id": slotName(n), "bus": "pcie.0", "chassis": n + 1, "slot": n + 1,
			"addr": fmt.Sprintf("%#x.%d", firstSlotPlace+n/slotsPerPlace, n%slotsPerPlace), "multifunction": n%slotsPerPlace == 0,
		})
	}
	for _, d := range hw.SlotDisks {
		c.json("-object", limitGroup(d.Slot, d.Fault))
		for _, node := range slotNodes(d) {
			c.json("-blockdev", node)
		}
		for _, device := range slotDevices(d, c.typ) {
			c.json("-device", device)
		}
	}
}

// slotNodes are the block nodes of a disk, the lowest first.
func slotNodes(d vmm.SlotDisk) []map[string]any {
	nodes := []map[string]any{imageBlock(imageNode(d.Slot), d.Disk)}
	below := imageNode(d.Slot)
	if errors := injections(d.Fault); errors != nil {
		below = errorNode(d.Slot)
		nodes = append(nodes, failingNode(d, errors))
	}
	return append(nodes, limitNode(d, below))
}

// failingNode passes on what does not fail.
func failingNode(d vmm.SlotDisk, errors []any) map[string]any {
	return map[string]any{"driver": "blkdebug", "node-name": errorNode(d.Slot), "image": imageNode(d.Slot), "inject-error": errors, "read-only": d.ReadOnly}
}

// injections are the rules by which requests fail; nil: none do.
func injections(f vmm.DiskFault) []any {
	var rules []any
	fail := func(kind, name string) {
		if name != "" {
			rules = append(rules, map[string]any{"event": "none", "iotype": kind, "errno": vmm.Errno(name)})
		}
	}
	fail("read", f.Read)
	// Not "flush": QEMU flushes before it takes the node out, and would not take it out.
	for _, kind := range []string{"write", "write-zeroes", "discard"} {
		fail(kind, f.Write)
	}
	return rules
}

func limitNode(d vmm.SlotDisk, below string) map[string]any {
	return map[string]any{"driver": "throttle", "node-name": topNode(d.Slot), "throttle-group": groupName(d.Slot), "file": below, "read-only": d.ReadOnly}
}

// limits are those of a group (QEMU qapi/block-core.json, ThrottleLimits). A group
// without limits lets everything pass.
func limits(f vmm.DiskFault) map[string]any {
	return map[string]any{"bps-total": f.BytesPerSecond, "iops-total": f.RequestsPerSecond}
}

func limitGroup(slot int, f vmm.DiskFault) map[string]any {
	return map[string]any{"qom-type": "throttle-group", "id": groupName(slot), "limits": limits(f)}
}

// slotDevices are what is plugged into a slot: the first is in it, and the others
// are on the first.
func slotDevices(d vmm.SlotDisk, typ machineType) []map[string]any {
	id := slotName(d.Slot) + "-device"
	disk := map[string]any{"drive": topNode(d.Slot), "serial": d.Serial}
	if d.Shared {
		disk["share-rw"] = true
	}
	in := map[string]any{"id": id, "bus": slotName(d.Slot)}
	on := func(controller string) []map[string]any {
		in["driver"] = controller
		disk["bus"], disk["id"] = id+".0", id+"-disk"
		return []map[string]any{in, disk}
	}
	if d.Bus != vmm.BusNVMe {
		// Also when the host has no space: the event tells, and the machine ends.
		disk["werror"], disk["rerror"] = "report", "report"
	}
	switch d.Bus {
	case vmm.BusSCSI:
		disk["driver"] = "scsi-hd"
		return on("virtio-scsi" + typ.suffix)
	case vmm.BusUSB:
		disk["driver"] = "usb-storage"
		return on("qemu-xhci")
	case vmm.BusNVMe:
		disk["driver"] = "nvme"
	default:
		disk["driver"] = "virtio-blk" + typ.suffix
	}
	disk["id"], disk["bus"] = id, slotName(d.Slot)
	return []map[string]any{disk}
}

// CanSave refuses what QEMU cannot save: it has no format for the state of an NVMe
// controller (hw/nvme/ctrl.c, unmigratable), and ends when it is asked for it.
func (m *machine) CanSave(context.Context) error { return m.WillSave() }

func (m *machine) WillSave() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.slots.disks {
		if d.Bus == vmm.BusNVMe {
			return &vmm.UnsupportedError{Machine: m.name, Operation: "snapshot", Backend: "qemu",
				Reason: fmt.Sprintf("QEMU cannot save an NVMe controller, and the disk %s has one; put it on another bus, or unplug it first", d.Serial)}
		}
	}
	return nil
}

// slotState is what a machine knows of its slots.
type slotState struct {
	mu     sync.Mutex           // one change at a time
	disks  map[int]vmm.SlotDisk // guarded by machine.mu
	sets   int                  // of descriptors that were given so far
	bySlot map[int][]int        // those of disks that were plugged in
}

// fill notes what is in the slots at the start.
func (s *slotState) fill(disks []vmm.SlotDisk) {
	s.disks, s.bySlot = map[int]vmm.SlotDisk{}, map[int][]int{}
	for _, d := range disks {
		s.disks[d.Slot] = d
	}
}

// undoTimeout is for taking back what was begun: each step takes milliseconds.
const undoTimeout = 10 * time.Second

// Plug adds the block nodes of a disk, and the devices.
func (m *machine) Plug(ctx context.Context, d vmm.SlotDisk) error {
	if err := checkDisks(m.name, []vmm.Disk{d.Disk}); err != nil {
		return err
	}
	m.slots.mu.Lock()
	defer m.slots.mu.Unlock()
	given, err := m.giveFiles(ctx, d)
	if err == nil {
		err = m.do(ctx, "object-add", limitGroup(d.Slot, d.Fault))
	}
	for _, node := range slotNodes(given) {
		if err == nil {
			err = m.do(ctx, "blockdev-add", node)
		}
	}
	for _, device := range slotDevices(d, q35) {
		if err == nil {
			err = m.do(ctx, "device_add", device)
		}
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		m.removeNodes(undo, d.Slot)
		return err
	}
	m.setSlot(d.Slot, &d)
	return nil
}

// giveFiles gives QEMU the files of a disk open, and returns the disk with the paths by
// which QEMU has them: it may open none that it was not started with (view).
func (m *machine) giveFiles(ctx context.Context, d vmm.SlotDisk) (vmm.SlotDisk, error) {
	give := func(path *string, flags int) error {
		f, err := os.OpenFile(*path, flags, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		m.slots.sets++
		if err := m.monitor.AddFD(ctx, m.slots.sets, f); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		m.slots.bySlot[d.Slot] = append(m.slots.bySlot[d.Slot], m.slots.sets)
		*path = fmt.Sprintf("/dev/fdset/%d", m.slots.sets)
		return nil
	}
	flags := os.O_RDWR
	if d.ReadOnly {
		flags = os.O_RDONLY
	}
	d.Backing = slices.Clone(d.Backing)
	err := give(&d.Path, flags)
	for i := range d.Backing {
		if err == nil {
			err = give(&d.Backing[i].Path, os.O_RDONLY)
		}
	}
	return d, err
}

func (m *machine) setSlot(slot int, d *vmm.SlotDisk) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d == nil {
		delete(m.slots.disks, slot)
	} else {
		m.slots.disks[slot] = *d
	}
}

// removeNodes removes what there is of a slot's block nodes, the uppermost first.
func (m *machine) removeNodes(ctx context.Context, slot int) error {
	err := m.do(ctx, "blockdev-del", map[string]string{"node-name": topNode(slot)})
	m.do(ctx, "blockdev-del", map[string]string{"node-name": errorNode(slot)}) // there is one while requests fail
	m.do(ctx, "blockdev-del", map[string]string{"node-name": imageNode(slot)})
	m.do(ctx, "object-del", map[string]string{"id": groupName(slot)})
	for _, set := range m.slots.bySlot[slot] {
		m.do(ctx, "remove-fd", map[string]int{"fdset-id": set})
	}
	delete(m.slots.bySlot, slot)
	return err
}

// Unplug presses the slot's attention button, in effect: the guest's kernel gives the
// device up, and QEMU says that it is gone. A guest that boots does not look, so the
// request is made again from time to time.
func (m *machine) Unplug(ctx context.Context, slot int) error {
	m.slots.mu.Lock()
	defer m.slots.mu.Unlock()
	id := slotName(slot) + "-device"
	gone, refused := make(chan struct{}), make(chan struct{}, 1)
	defer m.monitor.Subscribe(func(e qmp.Event) {
		var data struct{ Device string }
		if json.Unmarshal(e.Data, &data) != nil || data.Device != id {
			return
		}
		switch e.Name {
		case "DEVICE_DELETED":
			close(gone)
		case "DEVICE_UNPLUG_GUEST_ERROR":
			select {
			case refused <- struct{}{}:
			default:
			}
		}
	})()
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for {
		err := m.do(ctx, "device_del", map[string]string{"id": id})
		var refusal *qmp.Error
		switch {
		case errors.As(err, &refusal) && refusal.Class == "DeviceNotFound": // an earlier wait was too short
			return m.emptied(ctx, slot)
		case err != nil && refusal == nil:
			return err // another refusal is that it is under way
		}
		select {
		case <-gone:
			return m.emptied(ctx, slot)
		case <-refused:
			return fmt.Errorf("%s: the guest refuses to give up the disk in slot %d", m.name, slot)
		case <-again.C:
		case <-m.done:
			return fmt.Errorf("%s: QEMU ended", m.name)
		case <-ctx.Done():
			return fmt.Errorf("%s: the guest has not given up the disk in slot %d: %w", m.name, slot, context.Cause(ctx))
		}
	}
}

// emptied removes what is left of a disk that the guest has given up.
func (m *machine) emptied(ctx context.Context, slot int) error {
	m.setSlot(slot, nil)
	return m.removeNodes(ctx, slot)
}

// askAgain is how often a guest is asked to give up a disk.
const askAgain = 5 * time.Second

// SetDiskFault puts the node that makes requests fail between the disk's others, or
// takes it out, and sets the limits.
func (m *machine) SetDiskFault(ctx context.Context, slot int, f vmm.DiskFault) error {
	m.slots.mu.Lock()
	defer m.slots.mu.Unlock()
	m.mu.Lock()
	d, ok := m.slots.disks[slot]
	m.mu.Unlock()
	if !ok {
		return fmt.Errorf("%s: there is no disk in slot %d", m.name, slot)
	}
	reopen := func(below string) error {
		return m.do(ctx, "blockdev-reopen", map[string]any{"options": []any{limitNode(d, below)}})
	}
	was := d
	d.Fault = f
	m.setSlot(slot, &d) // first: its errors are not the host's
	err := reopen(imageNode(slot))
	if err == nil && injections(was.Fault) != nil {
		err = m.do(ctx, "blockdev-del", map[string]string{"node-name": errorNode(slot)})
	}
	if errors := injections(f); err == nil && errors != nil {
		if err = m.do(ctx, "blockdev-add", failingNode(d, errors)); err == nil {
			err = reopen(errorNode(slot))
		}
	}
	if err == nil {
		err = m.do(ctx, "qom-set", map[string]any{"path": "/objects/" + groupName(slot), "property": "limits", "value": limits(f)})
	}
	return err
}

// hostIsFull reports whether an error of a disk that was reported to the guest is the
// host's: it says that there is no space, and nobody wanted that.
func (m *machine) hostIsFull(node string, noSpace bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for slot, d := range m.slots.disks {
		if node == topNode(slot) {
			return noSpace && d.Fault.Write != "ENOSPC" && d.Fault.Read != "ENOSPC"
		}
	}
	return false
}
