package attest

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// bare is a machine that attest lays out as its own, and whose guest boots without
// attest's initramfs: a firmware starts the loader that is on its disk, or its kernel
// gets an initrd of the user's. Who it is, is in its guest, and the agent comes in as
// into a foreign one: by a root shell, or by a login on the serial console.
type bare struct {
	own
	firmware  vmm.UEFI // of this host, if the machine boots by UEFI
	variables string   // the machine's own variables of that; empty until it has some; guarded by m.startMu
}

func (b *bare) knowsHosts() bool { return false }

func (b *bare) plan(ctx context.Context) (p plan, err error) {
	m, hw := b.m, &vmm.Hardware{Bare: true}
	if err := b.checkLogin(); err != nil {
		return p, err
	}
	if m.config.firmware() == "uefi" {
		backend, ok := m.backend.(vmm.UEFIBackend)
		if !ok {
			return p, &UnsupportedError{Machine: m.Name(), Operation: "boot=\"uefi\"", Backend: m.config.Backend, Can: []string{defaultBackend}}
		}
		if b.firmware, err = backend.UEFI(); err != nil {
			return p, fmt.Errorf("%s: %w", m.Name(), err)
		}
		hw.UEFI = &vmm.UEFI{Code: b.firmware.Code}
	}
	if p, err = b.planWith(ctx, hw, b.media); err != nil {
		return p, err
	}
	if d := p.image.Disk; d != nil {
		p.asks = contentOf(d).encrypted()
	}
	p.agent, err = m.doorAgent(ctx)
	return p, err
}

// checkLogin refuses a login on the serial console where the shell behind it has no
// console of its own.
func (b *bare) checkLogin() error {
	if b.m.config.User == "" || !b.rawOnly() {
		return nil
	}
	return &UnsupportedError{Machine: b.m.Name(), Operation: "a login on the serial console (user=)", Backend: b.m.config.Backend, Can: []string{defaultBackend},
		Reason: "the guest's root shell has to be on a port of its vsock"}
}

// media fills in what starts the machine.
func (b *bare) media(ctx context.Context, hw *vmm.Hardware, img *image.Image) (root *image.Root, err error) {
	m := b.m
	if m.config.firmware() != "" {
		return nil, nil // all that it needs is on the disk
	}
	args, where := m.cmdline(), ""
	switch {
	case img.Disk == nil:
		if root, err = m.lab.root(ctx, img, m); err != nil {
			return nil, err
		}
		where = "root=LABEL=" + image.RootLabel
	case m.config.ownKernel():
		if err := contentOf(img.Disk).checkKernelRoot(); err != nil {
			return nil, &ConfigError{fmt.Sprintf("machine %q", m.Name()), err.Error()}
		}
		where = "root=/dev/vda" // it is the first disk
	}
	if where != "" && !slices.ContainsFunc(strings.Fields(strings.Join(args, " ")), func(arg string) bool { return strings.HasPrefix(arg, "root=") }) {
		args = append(args, where, "rw")
	}
	if err := boot.CheckArguments(args); err != nil {
		return nil, &ConfigError{Subject: "machine " + m.Name(), Reason: err.Error()}
	}
	hw.Cmdline, hw.Initrd = strings.Join(args, " "), img.Initrd
	m.setKernel(hw, img.Kernel)
	return root, nil
}

// attach is own's, with the variables of the machine's firmware: a copy of those of a
// new machine, made at the first start.
func (b *bare) attach(ctx context.Context, p plan, c *vmm.Config, plugs *plugs) error {
	if err := b.own.attach(ctx, p, c, plugs); err != nil {
		return err
	}
	hw := c.Boot.(*vmm.Hardware)
	if hw.UEFI == nil {
		return nil
	}
	if b.variables == "" {
		path := b.variablesPath()
		if err := copyFile(path, b.firmware.Vars); err != nil {
			return &InfraError{b.m.Name(), "create the variables of its firmware", err}
		}
		b.variables = path
	}
	hw.UEFI = &vmm.UEFI{Code: b.firmware.Code, Vars: b.variables}
	return nil
}

func (b *bare) variablesPath() string { return filepath.Join(b.m.disks(), "uefi-variables") }

// identity contains only what the guest lacks, as with a foreign one.
func (b *bare) identity(r *run, _ bool) wire.Identity { return foreignIdentity(r) }

// variablesMark is the format of the part of what is kept of a machine that has the
// variables of its firmware. It is the last.
const variablesMark = "uefi-variables"

func (b *bare) keep(path func(int) string) ([]vmm.Backing, error) {
	kept, err := b.own.keep(path)
	if err != nil || b.variables == "" {
		return kept, err
	}
	last := path(len(kept))
	return append(kept, vmm.Backing{Path: last, Format: variablesMark}), copyFile(last, b.variables)
}

func (b *bare) adopt(kept []vmm.Backing) error {
	b.variables = ""
	if n := len(kept) - 1; n >= 0 && kept[n].Format == variablesMark {
		path := b.variablesPath()
		if err := copyFile(path, kept[n].Path); err != nil {
			return err
		}
		b.variables, kept = path, kept[:n]
	}
	return b.own.adopt(kept)
}
