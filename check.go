package attest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/vmm"
)

// Check refuses a configuration that no lab can be made of, with a
// *ConfigError. It starts nothing and does not look at the host.
func (c LabConfig) Check() error {
	c.Machines = slices.Clone(c.Machines)
	if err := c.normalize(); err != nil {
		return err
	}
	for _, m := range c.Machines {
		if m.Backend == "" || m.Backend == "auto" {
			continue
		}
		if _, ok := vmm.Lookup(m.Backend); !ok {
			return &ConfigError{fmt.Sprintf("machine %q", m.Name), fmt.Sprintf("unknown backend %q; this attest has %s", m.Backend, strings.Join(vmm.Names(), ", "))}
		}
	}
	return nil
}
