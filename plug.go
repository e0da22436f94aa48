package attest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
)

// A DiskFault is what is wrong with a disk. The zero value is nothing.
type DiskFault struct {
	Read  string // the error of all reads: "EIO", "ENOSPC" or "ETIMEDOUT"; empty: they work
	Write string // the error of all writes
	// What the disk manages at most; 0: no limit.
	BytesPerSecond    int64
	RequestsPerSecond int64
}

// Plug puts a disk into the machine, and returns its serial. It is there when the
// machine's hardware has it; the guest may not have looked yet. A Disk with a Serial
// and neither Path nor Size is one that was pulled out, with all that is on it. The
// disk of a machine that is off is there when it starts again.
func (m *Machine) Plug(ctx context.Context, d Disk) (serial string, err error) {
	err = step(ctx, m.Name(), "plug", written(ctx, argument{"", d.shown()}), func(ctx context.Context) error {
		return m.changeDisks(ctx, "plug", func(ctx context.Context, r *run, o *own) error {
			serial, err = o.plug(ctx, r, d)
			return err
		})
	})
	return serial, err
}

// shown is the disk as a report names it.
func (d Disk) shown() any {
	switch {
	case d.Path != "":
		return d.Path
	case d.Serial != "":
		return d.Serial
	}
	return verbatim(fmt.Sprintf("disk of %d bytes", d.Size))
}

// unplugTimeout is for a guest that boots and does not look yet.
const unplugTimeout = 2 * time.Minute

// Unplug has the guest let go of a disk, by its serial, and takes it out of the
// machine. What is on the disk is kept for Plug.
func (m *Machine) Unplug(ctx context.Context, serial string, opts ...WaitOption) error {
	w := m.newWait("unplug", written(ctx, argument{"", serial}), collect(opts), unplugTimeout)
	return w.do(ctx, func(ctx context.Context) (*run, error) {
		err := m.changeDisks(ctx, w.operation, func(ctx context.Context, r *run, o *own) error {
			d, err := o.plugged(serial)
			if err == nil && r != nil {
				err = as[vmm.SlotOwner](r).Unplug(ctx, d.Slot)
			}
			if err == nil {
				o.nextSlot, d.Slot = d.Slot+1, noSlot
			}
			return err
		})
		return m.running(), err
	})
}

// BreakDisk makes something wrong with a disk, by its serial, in place of what was
// wrong with it before. It lasts over restarts, until HealDisk or, with
// DuringDiskFault, until the function has returned.
func (m *Machine) BreakDisk(ctx context.Context, serial string, f DiskFault, opts ...DiskFaultOption) error {
	var o diskFaultOptions
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	args := written(ctx, argument{"", serial}, unless("read", f.Read, ""), unless("write", f.Write, ""),
		unless("rate", f.BytesPerSecond, 0), unless("requests", f.RequestsPerSecond, 0))
	return step(ctx, m.Name(), "break_disk", args, func(ctx context.Context) error {
		if err := vmm.DiskFault(f).Check(); err != nil {
			return &ConfigError{"machine " + m.Name() + ": break_disk", err.Error()}
		}
		if err := m.setDiskFault(ctx, "break_disk", serial, vmm.DiskFault(f)); err != nil || o.during == nil {
			return err
		}
		err := o.during(ctx)
		return errors.Join(err, m.setDiskFault(context.WithoutCancel(ctx), "break_disk", serial, vmm.DiskFault{}))
	})
}

// HealDisk ends what is wrong with a disk.
func (m *Machine) HealDisk(ctx context.Context, serial string) error {
	return step(ctx, m.Name(), "heal_disk", written(ctx, argument{"", serial}), func(ctx context.Context) error {
		return m.setDiskFault(ctx, "heal_disk", serial, vmm.DiskFault{})
	})
}

// A DiskFaultOption is an option of [Machine.BreakDisk]: [DuringDiskFault].
type DiskFaultOption func(*diskFaultOptions)

type diskFaultOptions struct{ during func(context.Context) error }

// DuringDiskFault heals the disk when fn has returned. An error of fn is that of the
// operation.
func DuringDiskFault(fn func(context.Context) error) DiskFaultOption {
	return func(o *diskFaultOptions) { o.during = fn }
}

func (m *Machine) setDiskFault(ctx context.Context, operation, serial string, f vmm.DiskFault) error {
	return m.changeDisks(ctx, operation, func(ctx context.Context, r *run, o *own) error {
		d, err := o.plugged(serial)
		if err == nil && r != nil {
			err = as[vmm.SlotOwner](r).SetDiskFault(ctx, d.Slot, f)
		}
		if err == nil {
			d.Fault = f
		}
		return err
	})
}

// laidOut is a kind of machine whose disks are attest's: its own, and bare ones.
type laidOut interface{ layout() *own }

func (o *own) layout() *own { return o }

// changeDisks calls fn while nothing else happens to the machine's disks. A machine
// that was never started is started; of one that is off, r is nil.
func (m *Machine) changeDisks(ctx context.Context, operation string, fn func(context.Context, *run, *own) error) error {
	if err := m.config.supports(ctx, operation, vmm.CanPlug); err != nil {
		return err
	}
	kind, ok := m.kind.(laidOut)
	if !ok {
		return &UnsupportedError{Machine: m.Name(), Operation: operation, Backend: m.config.Backend, Reason: "its start command says what disks it has"}
	}
	o := kind.layout()
	m.mu.Lock()
	off := m.booted && m.current == nil
	m.mu.Unlock()
	if !off {
		if _, err := m.use(ctx, operation); err != nil {
			return err
		}
	}
	m.startMu.Lock()
	defer m.startMu.Unlock()
	r := m.running()
	if r == nil {
		return fn(ctx, nil, o)
	}
	return r.explain(ctx, operation, r.whenGone(fn(ctx, r, o)))
}

// plugged is a disk that is in a slot. startMu is held.
func (o *own) plugged(serial string) (*furtherDisk, error) {
	i := slices.IndexFunc(o.furtherDisks(), func(d *furtherDisk) bool { return d.Config.Serial == serial })
	if i >= 0 && o.further[i].Slot != noSlot {
		return o.further[i], nil
	}
	reason := "it has no such disk"
	if i >= 0 {
		reason = "it is pulled out"
	}
	return nil, o.diskError(serial, reason+"; its disks are "+o.serials(func(d *furtherDisk) bool { return d.Slot != noSlot }))
}

func (o *own) diskError(serial, reason string) error {
	return &ConfigError{fmt.Sprintf("machine %q: disk %q", o.m.Name(), serial), reason}
}

func (o *own) serials(which func(*furtherDisk) bool) string {
	var out []string
	for _, d := range o.further {
		if which(d) {
			out = append(out, d.Config.Serial)
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

// freeSlot is a slot without a disk. The one that was emptied last comes last: a guest
// that is still busy with that does not notice what is put in there.
func (o *own) freeSlot() int {
	for i, n := 0, o.m.slots(); i < n; i++ {
		slot := (o.nextSlot + i) % n
		if !slices.ContainsFunc(o.further, func(d *furtherDisk) bool { return d.Slot == slot }) {
			return slot
		}
	}
	return noSlot
}

// plug puts a disk into a slot that is free.
func (o *own) plug(ctx context.Context, r *run, config Disk) (string, error) {
	disks := o.furtherDisks()
	again := config == Disk{Serial: config.Serial} && config.Serial != ""
	if config.Serial == "" {
		config.Serial = fmt.Sprintf("disk%d", len(disks)+1)
	}
	i := slices.IndexFunc(disks, func(d *furtherDisk) bool { return d.Config.Serial == config.Serial })
	switch {
	case again && i < 0:
		return "", o.diskError(config.Serial, "no disk of this serial was pulled out; give a new one a path or a size. Pulled out are "+
			o.serials(func(d *furtherDisk) bool { return d.Slot == noSlot }))
	case again && disks[i].Slot != noSlot:
		return "", o.diskError(config.Serial, "it is in the machine already")
	case !again && i >= 0:
		return "", o.diskError(config.Serial, "the machine has a disk of this serial; give the new one another")
	}
	if !again {
		err := config.checkFurther()
		if err == nil && config.Path != "" {
			config.Path, err = filepath.Abs(config.Path)
		}
		if err != nil {
			return "", o.diskError(config.Serial, err.Error())
		}
	}
	slot := o.freeSlot()
	if slot == noSlot {
		return "", o.diskError(config.Serial, fmt.Sprintf("all %d slots have a disk; unplug one, or declare this one with the machine (disks=[…])", o.m.slots()))
	}
	var d *furtherDisk
	if again {
		d = disks[i]
	} else {
		i, d = len(disks), &furtherDisk{Config: config}
		o.further = append(disks, d)
	}
	d.Slot = slot
	disk, err := o.slotDisk(i, d)
	if err == nil && r != nil {
		err = as[vmm.SlotOwner](r).Plug(ctx, disk)
	}
	if err != nil {
		d.Slot = noSlot
		if !again {
			os.Remove(d.path)
			o.further = o.further[:i]
		}
	}
	return config.Serial, err
}
