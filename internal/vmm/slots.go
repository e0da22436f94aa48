package vmm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A SlotDisk is a further disk of a machine: one that can be pulled out and put in
// while the machine runs, and fail.
type SlotDisk struct {
	Disk
	Slot   int     // from 0 to below Hardware.Slots; no other disk has it
	Bus    DiskBus // empty: BusVirtio
	Shared bool    // another machine writes to the same file
	Fault  DiskFault
}

// A DiskBus is how a disk is attached.
type DiskBus string

const (
	BusVirtio DiskBus = "virtio"
	BusSCSI   DiskBus = "scsi"
	BusNVMe   DiskBus = "nvme"
	BusUSB    DiskBus = "usb"
)

// DiskBuses are all of them.
func DiskBuses() []DiskBus { return []DiskBus{BusVirtio, BusSCSI, BusNVMe, BusUSB} }

// A DiskFault is what is wrong with a disk. The zero value is nothing.
type DiskFault struct {
	Read  string `json:"read,omitempty"`  // the error of all reads, one of DiskErrors; empty: they work
	Write string `json:"write,omitempty"` // the error of all writes
	// What it manages at most; 0: no limit.
	BytesPerSecond    int64 `json:"bytes_per_second,omitempty"`
	RequestsPerSecond int64 `json:"requests_per_second,omitempty"`
}

// diskErrors are what disks can fail with (errno(3)).
var diskErrors = map[string]int{"EIO": 5, "ENOSPC": 28, "ETIMEDOUT": 110}

// DiskErrors are the names of errors that a DiskFault can have.
func DiskErrors() []string { return slices.Sorted(maps.Keys(diskErrors)) }

// Errno is the number of an error of DiskErrors.
func Errno(name string) int { return diskErrors[name] }

// Check returns an error if f makes no sense.
func (f DiskFault) Check() error {
	for _, name := range []string{f.Read, f.Write} {
		if _, ok := diskErrors[name]; name != "" && !ok {
			return fmt.Errorf("%q is not an error that a disk can have; want one of %s", name, strings.Join(DiskErrors(), ", "))
		}
	}
	if f.BytesPerSecond < 0 || f.RequestsPerSecond < 0 {
		return fmt.Errorf("a limit of %d bytes and %d requests a second is negative", f.BytesPerSecond, f.RequestsPerSecond)
	}
	return nil
}

// SlotOwner is a VM whose SlotDisks can change while it runs.
type SlotOwner interface {
	// Plug puts a disk into its slot, which is empty.
	Plug(context.Context, SlotDisk) error
	// Unplug has the guest let go of the disk in a slot, and takes it out. The disk
	// is in the slot as before if the guest does not let go until ctx ends.
	Unplug(ctx context.Context, slot int) error
	// SetDiskFault replaces what is wrong with the disk in a slot.
	SetDiskFault(ctx context.Context, slot int, f DiskFault) error
}
