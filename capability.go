package attest

import (
	"cmp"
	"context"

	"github.com/attest-vm/attest/internal/vmm"
)

// supports reports whether a machine of this configuration has a capability that
// an operation needs: nil, or an *UnsupportedError. It starts nothing. Without a
// Backend it is asked of the one that machines have where nobody says another.
func (c MachineConfig) supports(ctx context.Context, operation string, what vmm.Capability) error {
	name := cmp.Or(c.Backend, "auto")
	if name == "auto" {
		name = defaultBackend
	}
	b, ok := vmm.Lookup(name)
	if !ok {
		return nil // that has an error of its own
	}
	if what == vmm.CanCapture {
		if _, lack := c.offers(b, vmm.CanShow); lack.InGuest {
			return nil
		}
		what = vmm.CanShow
	}
	if what == vmm.CanRead {
		if err := c.supports(ctx, operation, vmm.CanShow); err != nil {
			return err
		}
		return canRead(c.Name, operation)
	}
	ok, lack := c.offers(b, what)
	if ok {
		return nil
	}
	reason := lack.Reason
	for i, s := range lack.Give {
		reason += []string{"; give it one with ", " and "}[min(i, 1)] + written(ctx, argument{s.Name, s.Value})
	}
	unsupported := &UnsupportedError{Machine: c.Name, Operation: operation, Backend: name, Reason: reason}
	unsupported.Can = backendsThat(func(b vmm.Backend) bool { ok, _ := c.offers(b, what); return ok })
	return unsupported
}

// backendsThat are the names of the backends that can do something. A mock is none of them: it
// cannot take the place of a machine.
func backendsThat(can func(vmm.Backend) bool) []string {
	var names []string
	for _, name := range vmm.Names() {
		b, _ := vmm.Lookup(name)
		if !vmm.Pretends(b) && can(b) {
			names = append(names, name)
		}
	}
	return names
}

func (c MachineConfig) offers(b vmm.Backend, what vmm.Capability) (bool, vmm.Lack) {
	o, known := b.(vmm.Offerer)
	if !known {
		return false, vmm.Lack{}
	}
	var boot vmm.Boot = &vmm.Hardware{Type: c.Type, Display: c.Display, Options: c.BackendOptions}
	switch {
	case vmm.Pretends(b):
		boot = &vmm.Mock{Script: c.MockScript}
	case c.StartCommand != "":
		boot = &vmm.Command{Line: c.StartCommand}
	}
	return o.Offers(vmm.Config{Name: c.Name, Boot: boot}, what)
}

// fits refuses a configuration that its backend cannot have, as far as that can be told before
// anything of it exists.
func (c MachineConfig) fits(ctx context.Context) error {
	b, err := c.lookupBackend()
	if err != nil {
		return err
	}
	unsupported := func(what string) error {
		return &UnsupportedError{Machine: c.Name, Operation: what, Backend: c.Backend, Can: []string{defaultBackend}}
	}
	if c.StartCommand != "" {
		return unsupported("a start command")
	}
	if c.Image != nil && c.Image.spec().Disk != nil {
		return unsupported("an image that is a disk")
	}
	if err := c.checkHardware(ctx); err != nil {
		return err
	}
	return b.Check(vmm.Config{Name: c.Name, Boot: &vmm.Hardware{Type: c.Type, Display: c.Display, CPUs: c.CPUs, Memory: c.Memory, Options: c.BackendOptions}})
}
