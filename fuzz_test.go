package attest

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/attest-vm/attest/internal/snapshot"
	"github.com/attest-vm/attest/internal/vmm"
)

// FuzzOpenLab: a lab that somebody made up is refused with what is wrong, or is one.
func FuzzOpenLab(f *testing.F) {
	const machine = `{"Name": "a", "Image": {"debian": {}}, "Created": false, "Started": false}`
	for _, seed := range []string{
		"", "null", `{"format": 2}`, `{"format": 1, "unknown": 1}`,
		`{"format": 1, "name": "x", "seed": 7, "machines": [` + machine + `], "networks": {"1": {}}}`,
		`{"format": 1, "machines": [` + machine + `, ` + machine + `]}`,
		`{"format": 1, "machines": [{"Name": "../a", "Started": true}]}`,
		`{"format": 1, "machines": [{"Name": "", "StartCommand": "run-b-vm"}]}`,
		`{"format": 1, "machines": [{"Name": "a", "Created": true}], "networks": {"0": {}}}`,
		`{"format": 1} {"format": 1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, labFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l, err := testHost.OpenLab(ctx, dir, LabConfig{})
		if err != nil {
			if StatusOf(err) == Failed || err.Error() == "" {
				t.Errorf("not what a snapshot's error is: %v", err)
			}
			return
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzSavedState: what a saved machine has beyond its files is refused as damage, or read.
func FuzzSavedState(f *testing.F) {
	f.Add([]byte(`{"machine_id": "0", "down": "panicked", "macs": ["x"], "jobs": [{"id": "j", "received": {"Stdout": -1}}], "booted": true}`))
	f.Add([]byte("null"))
	f.Add([]byte("[]"))
	f.Fuzz(func(t *testing.T, extra []byte) {
		if !json.Valid(extra) { // it is part of a file with a checksum
			return
		}
		dir := filepath.Join(t.TempDir(), "a")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		d, err := snapshot.NewDraft(dir, snapshot.Meta{Extra: extra})
		if err == nil {
			err = d.Finish(nil, []byte("console"))
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := openState(dir)
		if damaged := (*snapshot.DamagedError)(nil); err != nil && !errors.As(err, &damaged) {
			t.Errorf("%s: %v", extra, err)
		}
		if err == nil && string(s.console.SinceBoot()) != "console" {
			t.Errorf("the console said %q", s.console.SinceBoot())
		}
	})
}

// FuzzSavedDisks: the list of disks that was saved with a machine fits that machine, or is refused.
func FuzzSavedDisks(f *testing.F) {
	for _, seed := range []string{
		`[]`, `null`, `[null]`, `[{"config": {"Serial": "disk1", "Size": 512}, "slot": 0, "parts": 0}]`,
		`[{"config": {"Serial": "disk1", "Size": 512}, "slot": -1, "parts": 1}]`, `[{"config": {"Serial": "disk1", "Size": 512}, "slot": 0, "parts": 9}]`,
		`[{"config": {"Serial": "disk1", "Path": "/none"}, "slot": 0}]`, `[{"config": {"Serial": "disk1", "Size": 512, "Shared": "../x"}, "slot": 0, "parts": 1}]`,
		`[{"config": {"Serial": "attest-rw", "Size": 512}, "slot": 0}]`, `{`,
	} {
		f.Add([]byte(seed))
	}
	lab, err := testHost.NewLab(f.Context(), LabConfig{Machines: []MachineConfig{{Name: "m", Image: Debian{}, Disks: []Disk{{Size: 1 << 20}}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { lab.Close() })
	o := lab.Machine("m").kind.(*own)
	dir := f.TempDir()
	part := filepath.Join(dir, "part")
	if err := os.WriteFile(part, make([]byte, 512), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		path := filepath.Join(dir, "list")
		if err := os.WriteFile(path, list, 0o600); err != nil {
			t.Fatal(err)
		}
		root := vmm.Backing{Path: part, Format: "raw"}
		rest, err := o.adoptFurther([]vmm.Backing{root, {Path: path, Format: disksMark}, {Path: part, Format: "raw"}})
		if err != nil {
			if o.further != nil {
				t.Errorf("%s: the machine has %d disks of a list that was refused", list, len(o.further))
			}
			return
		}
		if len(rest) != 1 || rest[0] != root {
			t.Errorf("%s: the root has %v", list, rest)
		}
		for _, d := range o.further {
			if d.Slot >= o.m.slots() || d.Config.checkFurther() != nil {
				t.Errorf("%s: the machine has the disk %+v", list, d)
			}
			for _, b := range d.backing {
				os.Remove(b.Path)
			}
		}
	})
}
