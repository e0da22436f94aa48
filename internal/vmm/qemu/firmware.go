package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/vmm"
)

// FirmwareEnv names a directory with an OVMF, instead of the places where distributions
// have it.
const FirmwareEnv = "ATTEST_OVMF"

var _ vmm.UEFIBackend = (*backend)(nil)

// A firmware is how distributions call the two files of an OVMF without secure boot,
// which needs no SMM.
type firmware struct{ code, vars string }

var firmwares = []firmware{
	{"OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"},                 // Debian, Ubuntu, Fedora
	{"OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"},                 // Arch
	{"OVMF_CODE.fd", "OVMF_VARS.fd"},                       // older ones, Gentoo, Nix
	{"ovmf-x86_64-4m-code.bin", "ovmf-x86_64-4m-vars.bin"}, // openSUSE
	{"ovmf-x86_64-code.bin", "ovmf-x86_64-vars.bin"},       // older ones
	{"edk2-x86_64-code.fd", "edk2-i386-vars.fd"},           // QEMU's own
}

// firmwareDirs are where distributions have it.
var firmwareDirs = []string{
	"/usr/share/OVMF", "/usr/share/edk2/ovmf", "/usr/share/edk2/x64", "/usr/share/edk2-ovmf/x64", "/usr/share/edk2-ovmf", "/usr/share/edk2/OvmfX64",
	"/run/libvirt/nix-ovmf", "/run/current-system/sw/FV", "/usr/share/qemu", "/usr/local/share/qemu",
}

// UEFI finds the firmware of this host.
func (b *backend) UEFI() (vmm.UEFI, error) {
	dirs := firmwareDirs
	own := os.Getenv(FirmwareEnv)
	if own != "" {
		dirs = []string{own, filepath.Join(own, "FV")} // the latter: Nix's OVMF.fd
	} else if qemu, err := b.find(); err == nil {
		if real, err := filepath.EvalSymlinks(qemu.path); err == nil {
			dirs = append(dirs[:len(dirs):len(dirs)], filepath.Join(filepath.Dir(real), "../share/qemu"))
		}
	}
	for _, dir := range dirs {
		for _, f := range firmwares {
			u := vmm.UEFI{Code: filepath.Join(dir, f.code), Vars: filepath.Join(dir, f.vars)}
			if isFile(u.Code) && isFile(u.Vars) {
				return u, nil
			}
		}
	}
	missing := &doctor.MissingError{What: "UEFI firmware (OVMF)", Reason: "not found in " + strings.Join(dirs, ", "),
		Remedy: "install it (Debian: apt-get install ovmf; Fedora: edk2-ovmf; Nix: OVMF.fd), or name its directory in " + FirmwareEnv}
	if own != "" {
		missing.Reason = fmt.Sprintf("%s=%s has neither %s and %s nor another pair of files that attest knows", FirmwareEnv, own, firmwares[0].code, firmwares[0].vars)
	}
	return vmm.UEFI{}, missing
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// Block nodes of a UEFI firmware.
const (
	codeNode = "firmware"
	varsNode = "variables"
)

// uefi adds the flash memories of a firmware, and returns the machine's options for it.
func (c *command) uefi(u *vmm.UEFI) string {
	if u == nil {
		return ""
	}
	c.json("-blockdev", imageBlock(codeNode, vmm.Disk{Path: u.Code, ReadOnly: true}))
	c.json("-blockdev", imageBlock(varsNode, vmm.Disk{Path: u.Vars}))
	return ",pflash0=" + codeNode + ",pflash1=" + varsNode
}
