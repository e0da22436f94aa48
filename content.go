package attest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/image"
)

// A diskContent is what is on a disk, as far as its first bytes say.
type diskContent struct {
	path    string
	volumes []boot.Volume // none: nobody can tell
}

// contentOf looks at what is on a disk. Where that cannot be told, nothing is said of it: the
// VMM has the better words.
func contentOf(d *image.BaseDisk) diskContent {
	c := diskContent{path: d.Path}
	r, err := d.Open()
	if err != nil {
		return c
	}
	defer r.Close()
	if volumes, err := boot.ReadVolumes(r, d.Size); err == nil {
		c.volumes = volumes
	}
	return c
}

// encrypted reports whether something on the disk is, so that its own loader or initrd
// possibly asks for a passphrase.
func (c diskContent) encrypted() bool { return c.has("crypto_LUKS") }

func (c diskContent) has(kind string) bool {
	return slices.ContainsFunc(c.volumes, func(v boot.Volume) bool { return v.Kind == kind })
}

// checkKernelRoot returns an error if no kernel would find a root on the disk.
func (c diskContent) checkKernelRoot() error {
	if slices.ContainsFunc(c.volumes, func(v boot.Volume) bool { return v.Kind != "" }) {
		return nil
	}
	return fmt.Errorf("%s is not a file system, nor a disk with one: a kernel finds no root there", c.path)
}

// checkRoot returns an error that says what to do if attest's init would find no root on
// the disk.
func (c diskContent) checkRoot() error {
	if len(c.volumes) == 0 || slices.ContainsFunc(c.volumes, boot.Volume.CanBeRoot) {
		return nil
	}
	var found []string
	for _, v := range c.volumes {
		found = append(found, v.String())
	}
	name := filepath.Base(c.path)
	switch {
	case c.encrypted():
		return fmt.Errorf(`the root on %s is encrypted, and attest's kernel has no passphrase for it (%s); have its own loader start it, disk(%q, boot="uefi") or boot="bios", or give it its kernel=, initrd= and cmdline=, and answer the question for the passphrase with send_console (docs/machines.md)`,
			c.path, strings.Join(found, ", "), name)
	case c.has("LVM2_member"):
		return fmt.Errorf(`the root on %s is in an LVM volume, which attest's kernel does not look into (%s); have its own loader start it: disk(%q, boot="uefi") or boot="bios"`,
			c.path, strings.Join(found, ", "), name)
	}
	return fmt.Errorf(`there is no root file system on %s that attest's kernel can start (%s); if it has a loader of its own, have that start it: disk(%q, boot="uefi") or boot="bios"`,
		c.path, strings.Join(found, ", "), name)
}
