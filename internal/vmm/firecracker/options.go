package firecracker

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// options are what only Firecracker has (vmm.Hardware.Options).
type options struct {
	Binary    string `json:"firecracker_bin"` // a path, or a name on PATH; empty: see Env
	HugePages string `json:"huge_pages"`      // "None", "2M", "Transparent"
	Entropy   *bool  `json:"entropy"`         // a virtio random number generator; nil: yes
	PCI       bool   `json:"enable_pci"`      // devices on a PCI bus instead of memory-mapped
	IOEngine  string `json:"io_engine"`       // of disks: "Sync", "Async"
	CacheType string `json:"cache_type"`      // of disks: "Unsafe", "Writeback"
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
	return o, nil
}

func (o options) entropy() bool { return o.Entropy == nil || *o.Entropy }
