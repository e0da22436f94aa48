package firecracker

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// options are what only Firecracker has (vmm.Hardware.Options).
type options struct {
	Binary    string   `json:"firecracker_bin"`  // a path, or a name on PATH; empty: see Env
	HugePages string   `json:"huge_pages"`       // "None", "2M", "Transparent"
	Entropy   *bool    `json:"entropy"`          // a virtio random number generator; nil: yes
	PCI       bool     `json:"enable_pci"`       // devices on a PCI bus instead of memory-mapped
	IOEngine  string   `json:"io_engine"`        // of disks: "Sync", "Async"
	CacheType string   `json:"cache_type"`       // of disks: "Unsafe", "Writeback"
	Pmem      []string `json:"pmem_image_paths"` // files that the guest has as persistent memory, read-only
	Jailer    string   `json:"jailer_bin"`       // Firecracker's own way to confine it: a path, or a name on PATH; empty: attest's way
	JailerUID *int     `json:"jailer_uid"`       // whom Firecracker becomes there; nil: nobody
	JailerGID *int     `json:"jailer_gid"`
	microvm.GuestOptions
}

func parseOptions(text json.RawMessage) (o options, err error) {
	if err := microvm.ParseOptions(text, &o, &o.GuestOptions); err != nil {
		return o, err
	}
	for _, c := range []struct {
		key, value string
		want       []string
	}{
		{"huge_pages", o.HugePages, []string{"None", "2M", "Transparent"}},
		{"io_engine", o.IOEngine, []string{"Sync", "Async"}},
		{"cache_type", o.CacheType, []string{"Unsafe", "Writeback"}},
	} {
		if c.value != "" && !slices.Contains(c.want, c.value) {
			return o, fmt.Errorf("%s=%q: want %s", c.key, c.value, strings.Join(c.want, " or "))
		}
	}
	for key, id := range map[string]*int{"jailer_uid": o.JailerUID, "jailer_gid": o.JailerGID} {
		switch {
		case id == nil:
		case o.Jailer == "":
			return o, fmt.Errorf("%s=%d: there is no jailer_bin", key, *id)
		case *id < 1 || *id > maxID:
			return o, fmt.Errorf("%s=%d: want a number from 1 to %d; with root's the jail would not hold", key, *id, maxID)
		}
	}
	for _, path := range o.Pmem {
		if st, err := os.Stat(path); err != nil {
			return o, fmt.Errorf("pmem_image_paths: %w", err)
		} else if !st.Mode().IsRegular() || st.Size() == 0 {
			return o, fmt.Errorf("pmem_image_paths: %s is not a file with something in it", path)
		}
	}
	return o, nil
}

// Of users and groups: the last number but one means none, and nobody is who has nothing.
const (
	maxID  = 1<<32 - 2
	nobody = 65534
)

// jailed are the user and the group that Firecracker becomes.
func (o options) jailed() (uid, gid int) {
	uid, gid = nobody, nobody
	if o.JailerUID != nil {
		uid = *o.JailerUID
	}
	if o.JailerGID != nil {
		gid = *o.JailerGID
	}
	return uid, gid
}

// pmemFingerprint is what a guest can have read of its persistent memory.
func (o options) pmemFingerprint() (lines []string) {
	for i, path := range o.Pmem {
		if st, err := os.Stat(path); err == nil {
			lines = append(lines, fmt.Sprintf("%s %s %d %d", pmemID(i), path, st.Size(), st.ModTime().UnixNano()))
		}
	}
	return lines
}

func (o options) entropy() bool { return o.Entropy == nil || *o.Entropy }
