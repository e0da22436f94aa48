package attest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/vmm"
)

// diskMachine is a machine that never starts, for what it does with its disks.
func diskMachine(t *testing.T, l *Lab, name string, disks ...Disk) *own {
	t.Helper()
	config := MachineConfig{Name: name, Image: Debian{}, Disks: disks}
	if err := config.normalize(); err != nil {
		t.Fatal(err)
	}
	m := &Machine{lab: l, config: config}
	o := &own{m: m}
	m.kind = o
	if err := os.MkdirAll(m.disks(), 0o700); err != nil {
		t.Fatal(err)
	}
	// A root, of which something is kept.
	o.disk.Path, o.disk.Format = filepath.Join(m.disks(), "0"), "raw"
	if err := os.WriteFile(o.disk.Path, []byte("root"), 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

func keptParts(t *testing.T, o *own) []vmm.Backing {
	t.Helper()
	dir := t.TempDir()
	parts, err := o.keep(func(n int) string { return filepath.Join(dir, string(rune('a'+n))) })
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

// What a machine has written to its disks, which of them are pulled out, and what is
// wrong with them, is in what is kept of it.
func TestDisksAreKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file.raw")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	l := &Lab{scratch: t.TempDir()}
	o := diskMachine(t, l, "a", Disk{Size: 512, Serial: "empty"}, Disk{Path: file}, Disk{Path: file, ReadOnly: true, Serial: "ro"}, Disk{Size: 512, Shared: "san"})
	disks, err := o.slotDisks()
	if err != nil {
		t.Fatal(err)
	}
	var formats []string
	for _, d := range disks {
		formats = append(formats, d.Serial+":"+d.Format)
	}
	if got := strings.Join(formats, " "); got != "empty:raw disk2:qcow2 ro:raw disk4:raw" {
		t.Errorf("got %s", got)
	}
	if len(disks[1].Backing) != 1 || disks[1].Backing[0].Path != file || disks[2].Path != file || !disks[2].ReadOnly || !disks[3].Shared {
		t.Errorf("got %+v", disks)
	}
	for i, text := range map[int]string{0: "mine", 3: "ours"} {
		if err := os.WriteFile(disks[i].Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.plug(t.Context(), nil, Disk{Size: 1024}); err != nil {
		t.Fatal(err)
	}
	o.further[0].Slot = noSlot
	o.further[1].Fault = vmm.DiskFault{Write: "EIO"}
	parts := keptParts(t, o)

	// A fork, whose disks are others, above what was kept.
	fork := &Lab{scratch: t.TempDir()}
	a := diskMachine(t, fork, "a", o.m.config.Disks...)
	if err := a.adopt(parts); err != nil {
		t.Fatal(err)
	}
	if len(a.disk.Backing) != 1 || len(a.further) != 5 || a.further[0].Slot != noSlot || a.further[1].Fault.Write != "EIO" || a.further[4].Config.Size != 1024 {
		t.Fatalf("adopted %+v, %+v", a.disk, a.further)
	}
	forked, err := a.slotDisks()
	if err != nil || len(forked) != 4 || forked[0].Fault.Write != "EIO" || forked[0].Backing[1].Path != file || forked[3].Slot != 4 || len(forked[3].Backing) != 1 {
		t.Fatalf("got %+v, %v", forked, err)
	}
	if data, _ := os.ReadFile(forked[2].Path); string(data) != "ours" || forked[2].Path == disks[3].Path {
		t.Errorf("the shared disk has %q", data)
	}
	if data, _ := os.ReadFile(a.further[0].backing[0].Path); string(data) != "mine" {
		t.Errorf("the disk that is pulled out has %q", data)
	}

	// Another machine of the fork finds the shared disk as the first one did.
	if err := os.WriteFile(forked[2].Path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := diskMachine(t, fork, "b", o.m.config.Disks...)
	if err := b.adopt(parts); err != nil || fork.shared.made("san") != forked[2].Path {
		t.Errorf("%v", err)
	}
	fork.shared.restoring()
	if err := b.adopt(parts); err == nil {
		if data, _ := os.ReadFile(fork.shared.made("san")); string(data) != "ours" {
			t.Errorf("after a restore the shared disk has %q", data)
		}
	}

	// The file that a disk is made of has to stay as it is.
	if err := os.WriteFile(file, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := diskMachine(t, &Lab{scratch: t.TempDir()}, "c", o.m.config.Disks...)
	if err := c.adopt(parts); err == nil || !strings.Contains(err.Error(), "has changed since the machine was saved") {
		t.Errorf("got %v", err)
	}
}

func TestPlugRefusals(t *testing.T) {
	o := diskMachine(t, &Lab{scratch: t.TempDir()}, "a", Disk{Size: 512, Serial: "one"}, Disk{Size: 512, Serial: "two"})
	o.furtherDisks()[1].Slot = noSlot
	for _, test := range []struct {
		disk Disk
		want string
	}{
		{Disk{Serial: "none"}, `machine "a": disk "none": no disk of this serial was pulled out; give a new one a path or a size. Pulled out are two`},
		{Disk{Serial: "one"}, `machine "a": disk "one": it is in the machine already`},
		{Disk{Serial: "one", Size: 512}, `machine "a": disk "one": the machine has a disk of this serial; give the new one another`},
		{Disk{Size: 5}, `machine "a": disk "disk3": size=5 is not a whole number of sectors of 512 bytes`},
	} {
		if _, err := o.plug(t.Context(), nil, test.disk); err == nil || err.Error() != test.want || StatusOf(err) != Invalid {
			t.Errorf("got %v (%s), want %s", err, StatusOf(err), test.want)
		}
	}
	for _, serial := range []string{"two", "none"} {
		if _, err := o.plugged(serial); err == nil || !strings.HasSuffix(err.Error(), "its disks are one") {
			t.Errorf("got %v", err)
		}
	}
	if serial, err := o.plug(t.Context(), nil, Disk{Serial: "two"}); err != nil || serial != "two" || o.further[1].Slot != 1 {
		t.Errorf("%q, %v", serial, err)
	}
	o.nextSlot = 4
	if slot := o.freeSlot(); slot != 4 {
		t.Errorf("the next disk comes into slot %d", slot)
	}
	for range spareSlots {
		if _, err := o.plug(t.Context(), nil, Disk{Size: 512}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.plug(t.Context(), nil, Disk{Size: 512}); err == nil || !strings.Contains(err.Error(), "all 6 slots have a disk") {
		t.Errorf("got %v", err)
	}
}
