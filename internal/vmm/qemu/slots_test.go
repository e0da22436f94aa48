package qemu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/vmm"
)

// slotArgs are the arguments about slots, decoded.
func slotArgs(t *testing.T, hw *vmm.Hardware) (devices, nodes, objects []map[string]any) {
	t.Helper()
	c := command{typ: q35}
	c.slots(hw)
	for i := 0; i < len(c.args); i += 2 {
		var v map[string]any
		if err := json.Unmarshal([]byte(c.args[i+1]), &v); err != nil {
			t.Fatal(err)
		}
		switch c.args[i] {
		case "-device":
			devices = append(devices, v)
		case "-blockdev":
			nodes = append(nodes, v)
		case "-object":
			objects = append(objects, v)
		}
	}
	return devices, nodes, objects
}

// names are the values of a key.
func names(list []map[string]any, key string) string {
	var out []string
	for _, v := range list {
		s, _ := v[key].(string)
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestSlotArguments(t *testing.T) {
	devices, nodes, objects := slotArgs(t, &vmm.Hardware{Slots: 10})
	if names(devices, "id") != "slot0 slot1 slot2 slot3 slot4 slot5 slot6 slot7 slot8 slot9" || nodes != nil || objects != nil {
		t.Errorf("empty slots: %v, %v, %v", devices, nodes, objects)
	}
	if addr := names(devices, "addr"); addr != "0x18.0 0x18.1 0x18.2 0x18.3 0x18.4 0x18.5 0x18.6 0x18.7 0x19.0 0x19.1" {
		t.Errorf("at %s", addr)
	}
	for bus, want := range map[vmm.DiskBus]string{
		"": "virtio-blk-pci", vmm.BusVirtio: "virtio-blk-pci", vmm.BusNVMe: "nvme", vmm.BusSCSI: "virtio-scsi-pci scsi-hd", vmm.BusUSB: "qemu-xhci usb-storage",
	} {
		devices, nodes, objects := slotArgs(t, &vmm.Hardware{Slots: 1, SlotDisks: []vmm.SlotDisk{{Disk: vmm.Disk{Serial: "s", Path: "/p"}, Bus: bus}}})
		if got := names(devices[1:], "driver"); got != want || names(nodes, "node-name") != "slot0-image slot0-disk" || names(objects, "id") != "slot0-limits" {
			t.Errorf("%s: %v, %v, %v", bus, devices, nodes, objects)
		}
		first, last := devices[1], devices[len(devices)-1]
		if first["bus"] != "slot0" || first["id"] != "slot0-device" || last["drive"] != "slot0-disk" || last["serial"] != "s" || last["share-rw"] != nil {
			t.Errorf("%s: %v", bus, devices)
		}
	}
	devices, nodes, objects = slotArgs(t, &vmm.Hardware{Slots: 1, SlotDisks: []vmm.SlotDisk{{
		Disk: vmm.Disk{Path: "/p"}, Shared: true, Fault: vmm.DiskFault{Read: "EIO", Write: "ENOSPC", BytesPerSecond: 7, RequestsPerSecond: 8},
	}}})
	rules, _ := json.Marshal(nodes[1]["inject-error"])
	const want = `[{"errno":5,"event":"none","iotype":"read"},{"errno":28,"event":"none","iotype":"write"},{"errno":28,"event":"none","iotype":"write-zeroes"},` +
		`{"errno":28,"event":"none","iotype":"discard"}]`
	if names(nodes, "node-name") != "slot0-image slot0-errors slot0-disk" || nodes[2]["file"] != "slot0-errors" || string(rules) != want || devices[1]["share-rw"] != true {
		t.Errorf("with faults: %v, %v", devices, nodes)
	}
	if limits, _ := json.Marshal(objects[0]["limits"]); string(limits) != `{"bps-total":7,"iops-total":8}` {
		t.Errorf("limits %s", limits)
	}
}

// What the user adds comes last, and a card of another model keeps its place.
func TestArgumentsOfTheUser(t *testing.T) {
	h := invocation{config: vmm.Config{NICs: []vmm.NIC{{ID: "eth1", Model: "e1000"}, {ID: "eth2"}}}, hw: &vmm.Hardware{Options: []byte(`{"args":["-rtc","base=utc"]}`)}, nics: make([]*os.File, 2)}
	args := h.command().args
	if got := strings.Join(args[len(args)-2:], " "); got != "-rtc base=utc" {
		t.Errorf("the last arguments are %s", got)
	}
	line := strings.Join(args, " ")
	if e1000, virtio := strings.Index(line, "-device e1000,id=eth1,mac="), strings.Index(line, "-device virtio-net-pci,id=eth2,"); e1000 < 0 || virtio < e1000 {
		t.Errorf("no cards in %s", line)
	}
}

func TestSlotsRefused(t *testing.T) {
	for want, hw := range map[string]*vmm.Hardware{
		"a further disk of a microvm":                    {Type: "microvm", Slots: 1},
		"slots for disks (at most 48)":                   {Slots: 49},
		"a disk in slot 1 of 1":                          {Slots: 1, SlotDisks: []vmm.SlotDisk{{Slot: 1}}},
		`a disk of bus "ide"`:                            {Slots: 1, SlotDisks: []vmm.SlotDisk{{Bus: "ide"}}},
		"a disk serial of more than 20 bytes: \"xxxxxxx": {Slots: 1, SlotDisks: []vmm.SlotDisk{{Disk: vmm.Disk{Serial: strings.Repeat("x", 21)}}}},
	} {
		if err := (&backend{}).Check(vmm.Config{Boot: hw}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A QEMU takes disks on every bus while it runs, and has them fail.
func TestPlug(t *testing.T) {
	m := start(t, vmm.Config{Boot: &vmm.Hardware{Slots: 5}, Paused: true}).machine
	for slot, bus := range vmm.DiskBuses() {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		d := vmm.SlotDisk{Disk: vmm.Disk{Serial: "s", Path: path, Format: "raw"}, Slot: slot, Bus: bus, Fault: vmm.DiskFault{Read: "EIO"}}
		if err := m.Plug(t.Context(), d); err != nil {
			t.Fatalf("%s: %v", bus, err)
		}
		for _, f := range []vmm.DiskFault{{}, {Write: "EIO"}, {Read: "EIO", RequestsPerSecond: 4}, {BytesPerSecond: 1 << 20}, {}} {
			if err := m.SetDiskFault(t.Context(), slot, f); err != nil {
				t.Errorf("%s: %+v: %v", bus, f, err)
			}
		}
		if err := m.Plug(t.Context(), d); err == nil || !strings.Contains(err.Error(), "slot") {
			t.Errorf("%s: two disks in a slot: %v", bus, err)
		}
	}
	if err := m.Plug(t.Context(), vmm.SlotDisk{Disk: vmm.Disk{Path: "/nowhere"}, Slot: 4}); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("got %v", err)
	}
	// What was begun is taken back: the same slot takes another.
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Plug(t.Context(), vmm.SlotDisk{Disk: vmm.Disk{Path: path}, Slot: 4}); err != nil {
		t.Error(err)
	}
	if err := m.SetDiskFault(t.Context(), 9, vmm.DiskFault{}); err == nil || !strings.Contains(err.Error(), "no disk in slot 9") {
		t.Errorf("got %v", err)
	}
}

// QEMU ends when it has to save an NVMe controller.
func TestNVMeIsNotSaved(t *testing.T) {
	m := &machine{name: "web"}
	m.slots.fill([]vmm.SlotDisk{{Bus: vmm.BusSCSI}})
	if err := m.CanSave(t.Context()); err != nil {
		t.Error(err)
	}
	m.slots.fill([]vmm.SlotDisk{{Disk: vmm.Disk{Serial: "fast"}, Bus: vmm.BusNVMe}})
	if err := m.CanSave(t.Context()); err == nil || !strings.Contains(err.Error(), "web: snapshot is not supported by backend qemu: QEMU cannot save an NVMe controller, and the disk fast has one") {
		t.Errorf("got %v", err)
	}
}

// An error of the host's is told from one that was wanted.
func TestHostIsFull(t *testing.T) {
	m := &machine{}
	m.slots.fill([]vmm.SlotDisk{{Slot: 0}, {Slot: 1, Fault: vmm.DiskFault{Write: "ENOSPC"}}})
	if !m.hostIsFull("slot0-disk", true) || m.hostIsFull("slot0-disk", false) || m.hostIsFull("slot1-disk", true) || m.hostIsFull("disk0", true) {
		t.Error("the host is to blame where a disk has no space and shall have some")
	}
	if !slices.Contains(vmm.DiskErrors(), "ENOSPC") {
		t.Error("no ENOSPC")
	}
}
