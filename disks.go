package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/vmm"
)

// spareSlots is how many disks can be plugged into a machine beside those that it is
// declared with. An empty slot costs a boot no time that could be measured.
const spareSlots = 4

// A furtherDisk is a disk that a machine has beside its root, in a slot or pulled out.
type furtherDisk struct {
	Config Disk          `json:"config"` // with a serial
	Slot   int           `json:"slot"`   // noSlot: it is pulled out
	Fault  vmm.DiskFault `json:"fault,omitzero"`
	Stamp  string        `json:"stamp,omitempty"` // identifies the file that it is made of
	Parts  int           `json:"parts"`           // of what is kept of a machine, how many files are this disk's

	path    string        // what the machine writes to; empty until it is made
	backing []vmm.Backing // below that, but for the file that it is made of
}

const noSlot = -1

// open looks at the file that a disk is made of, whose path is absolute.
func (d Disk) open() (base *image.BaseDisk, stamp string, err error) {
	if d.Path == "" {
		return nil, "", nil
	}
	return image.OpenDisk(image.Disk{Path: d.Path, Format: d.Format})
}

// declaredDisks are a machine's disks before it was ever started.
func (m *Machine) declaredDisks() []*furtherDisk {
	disks := []*furtherDisk{} // not nil: they are known
	for i, d := range m.config.Disks {
		disks = append(disks, &furtherDisk{Config: d, Slot: i})
	}
	return disks
}

// checkHardware refuses settings that only QEMU has.
func (m MachineConfig) checkHardware(ctx context.Context) error {
	if len(m.Disks) > 0 {
		if err := m.supports(ctx, "a disk beside the root", vmm.CanPlug); err != nil {
			return err
		}
	}
	for what, given := range map[string]bool{"qemu=[…]": len(m.QEMU) > 0, "a network card of model " + m.NIC: m.NIC != "", "numa": m.NUMA != 0} {
		if given && m.Backend != defaultBackend {
			return &UnsupportedError{Machine: m.Name, Operation: what, Backend: m.Backend, Can: []string{defaultBackend}}
		}
	}
	return nil
}

// slots is how many slots for disks the machine has.
func (m *Machine) slots() int {
	if m.config.supports(context.Background(), "disks", vmm.CanPlug) != nil {
		return 0
	}
	return len(m.config.Disks) + spareSlots
}

// slotDisks are the disks that are in slots, with the files that they need, which are
// made if they are missing. startMu is held.
func (o *own) slotDisks() ([]vmm.SlotDisk, error) {
	var out []vmm.SlotDisk
	for i, d := range o.furtherDisks() {
		if d.Slot == noSlot {
			continue
		}
		disk, err := o.slotDisk(i, d)
		if err != nil {
			return nil, err
		}
		out = append(out, disk)
	}
	return out, nil
}

// furtherDisks are the machine's disks beside its root. startMu is held.
func (o *own) furtherDisks() []*furtherDisk {
	if o.further == nil {
		o.further = o.m.declaredDisks()
	}
	return o.further
}

// slotDisk is the i-th of the machine's disks as its backend gets it.
func (o *own) slotDisk(i int, d *furtherDisk) (vmm.SlotDisk, error) {
	s := vmm.SlotDisk{Disk: vmm.Disk{Serial: d.Config.Serial}, Slot: d.Slot, Bus: vmm.DiskBus(d.Config.Bus), Fault: d.Fault}
	base, stamp, err := d.Config.open()
	if err != nil {
		return s, err
	}
	d.Stamp = stamp
	switch {
	case d.Config.ReadOnly:
		s.Path, s.Format, s.ReadOnly = base.Path, base.Format, true
	case d.Config.Shared != "":
		s.Shared, s.Format = true, "raw"
		s.Path, err = o.m.lab.shared.file(o.m.lab.scratch, d.Config, base)
	default:
		err = o.privateDisk(i, d, base, &s.Disk)
	}
	if err != nil {
		return s, &InfraError{o.m.Name(), "create the disk " + d.Config.Serial, err}
	}
	return s, nil
}

// privateDisk gives a disk a file of its machine's.
func (o *own) privateDisk(i int, d *furtherDisk, base *image.BaseDisk, disk *vmm.Disk) error {
	disk.Format = "raw"
	disk.Backing = slices.Clone(d.backing)
	if base != nil {
		disk.Backing = append(disk.Backing, vmm.Backing{Path: base.Path, Format: base.Format})
	}
	if len(disk.Backing) > 0 {
		disk.Format = "qcow2"
	}
	if d.path != "" {
		disk.Path = d.path
		return nil
	}
	if err := os.MkdirAll(o.m.disks(), 0o700); err != nil {
		return err
	}
	disk.Path = filepath.Join(o.m.disks(), fmt.Sprintf("disk%d", i))
	var err error
	if len(disk.Backing) > 0 {
		err = image.CreateOverlay(disk.Path, disk.Backing[0].Path, disk.Backing[0].Format)
	} else {
		err = emptyFile(disk.Path, d.Config.Size)
	}
	if err == nil {
		d.path = disk.Path
	}
	return err
}

// emptyFile makes a file of zeroes that takes no space.
func emptyFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// disksMark is the format of the part of what is kept of a machine that says which
// parts after it are which disk's.
const disksMark = "disks"

// keepFurther adds the machine's disks beside its root to what is kept of it.
func (o *own) keepFurther(path func(int) string, kept []vmm.Backing) ([]vmm.Backing, error) {
	if o.further == nil || len(o.further)+len(o.m.config.Disks) == 0 {
		return kept, nil
	}
	mark := len(kept)
	kept = append(kept, vmm.Backing{Path: path(mark), Format: disksMark})
	for _, d := range o.further {
		before := len(kept)
		file, format := d.path, "raw"
		if d.Config.Shared != "" {
			file = o.m.lab.shared.made(d.Config.Shared)
		} else if len(d.backing) > 0 || d.Config.Path != "" {
			format = "qcow2"
		}
		if file != "" {
			part := path(before)
			if err := copyFile(part, file); err != nil {
				return kept, err
			}
			below, err := linkBacking(path, d.backing, before+1)
			kept = append(append(kept, vmm.Backing{Path: part, Format: format}), below...)
			if err != nil {
				return kept, err
			}
		}
		d.Parts = len(kept) - before
	}
	data, err := json.Marshal(o.further)
	if err != nil {
		return kept, err
	}
	return kept, os.WriteFile(path(mark), data, 0o600)
}

// adoptFurther takes over what was kept of the disks beside the root; it returns what
// is the root's.
func (o *own) adoptFurther(kept []vmm.Backing) (root []vmm.Backing, err error) {
	o.further = nil
	mark := slices.IndexFunc(kept, func(b vmm.Backing) bool { return b.Format == disksMark })
	if mark < 0 {
		return kept, nil
	}
	data, err := os.ReadFile(kept[mark].Path)
	if err != nil {
		return nil, err
	}
	var disks []*furtherDisk
	if err := json.Unmarshal(data, &disks); err != nil {
		return nil, fmt.Errorf("the saved list of disks: %w", err)
	}
	rest := kept[mark+1:]
	for i, d := range disks {
		if d == nil || d.Parts < 0 || d.Parts > len(rest) || d.Slot < noSlot || d.Slot >= o.m.slots() || d.Fault.Check() != nil {
			return nil, errors.New("the saved list of disks does not fit the machine")
		}
		if err := d.Config.checkFurther(); err != nil {
			return nil, fmt.Errorf("the saved disk %d: %w", i, err)
		}
		if err := d.unchanged(); err != nil {
			return nil, err
		}
		own := rest[:d.Parts]
		rest = rest[d.Parts:]
		switch {
		case len(own) == 0:
		case d.Config.Shared != "":
			err = o.m.lab.shared.adopt(o.m.lab.scratch, d.Config.Shared, own[0].Path)
		default:
			d.backing, err = linkBacking(func(n int) string { return filepath.Join(o.m.disks(), fmt.Sprintf("disk%d-%d", i, n)) }, own, 1)
		}
		if err != nil {
			return nil, err
		}
	}
	o.further = disks
	return kept[:mark], nil
}

// unchanged returns an error if the file that a saved disk is made of is another now.
func (d *furtherDisk) unchanged() error {
	_, stamp, err := d.Config.open()
	if err == nil && d.Stamp != "" && stamp != d.Stamp {
		err = fmt.Errorf("%s has changed since the machine was saved", d.Config.Path)
	}
	if err != nil {
		return &ConfigError{"disk " + d.Config.Serial, err.Error()}
	}
	return nil
}

// sharedDisks are the disks that several machines of a lab write to, by name.
type sharedDisks struct {
	mu    sync.Mutex
	files map[string]sharedFile
	round int // of restoring: each file is taken back once in one
	count int // of files that were made
}

type sharedFile struct {
	path  string
	round int
}

// file is the file of a shared disk, made if it is missing.
func (s *sharedDisks) file(dir string, config Disk, base *image.BaseDisk) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.files[config.Shared]; ok {
		return f.path, nil
	}
	path := s.next(dir)
	var err error
	switch {
	case base == nil:
		err = emptyFile(path, config.Size)
	case base.Format != "raw":
		err = fmt.Errorf("%s is a qcow2 image, and two machines cannot write to one; convert it: qemu-img convert -O raw", config.Path)
	default:
		err = copyFile(path, base.Path)
	}
	if err == nil {
		s.put(config.Shared, path)
	}
	return path, err
}

// next is a path for another file. No machine's directory has such a name.
func (s *sharedDisks) next(dir string) string {
	s.count++
	return filepath.Join(dir, fmt.Sprintf(".shared-%d", s.count))
}

func (s *sharedDisks) put(name, path string) {
	if s.files == nil {
		s.files = map[string]sharedFile{}
	}
	s.files[name] = sharedFile{path, s.round}
}

// made is the file of a shared disk; empty if there is none yet.
func (s *sharedDisks) made(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[name].path
}

// restoring begins a round in which shared disks are taken back.
func (s *sharedDisks) restoring() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.round++
}

// adopt makes a shared disk what a machine has kept of it. All machines kept the
// same, at the same moment; the first one counts.
func (s *sharedDisks) adopt(dir, name, kept string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[name]
	if ok && f.round == s.round {
		return nil
	}
	path := s.next(dir)
	if err := copyFile(path, kept); err != nil {
		return err
	}
	if ok {
		os.Remove(f.path)
	}
	s.put(name, path)
	return nil
}
