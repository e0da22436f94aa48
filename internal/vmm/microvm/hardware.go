package microvm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
)

const defaultMiB = 512

// Megabytes is a machine's memory in MiB.
func Megabytes(hw *vmm.Hardware) int { return cmp.Or(hw.Memory, defaultMiB) }

// CPUs is how many processors it has.
func CPUs(hw *vmm.Hardware) int { return max(hw.CPUs, 1) }

// Kernel is the file of its kernel: uncompressed, where there is a choice, which every
// VMM takes and nothing has to decompress.
func Kernel(hw *vmm.Hardware) string { return cmp.Or(hw.Vmlinux, hw.Kernel) }

// IsELF reports whether a file is an uncompressed kernel. It also says so of a file that
// cannot be read: the VMM has the better words.
func IsELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return true
	}
	defer f.Close()
	magic := make([]byte, 4)
	n, _ := f.Read(magic)
	return n < 4 || bytes.Equal(magic, []byte("\x7fELF"))
}

// banner is how a kernel introduces itself; its file has that, too.
var banner = regexp.MustCompile(`Linux version (\d+)\.(\d+)`)

// KernelVersion is the version of an uncompressed kernel, without its patch level; the zero
// value where the file does not say it.
func KernelVersion(path string) Version {
	content, err := os.ReadFile(path)
	if err != nil {
		return Version{} // the VMM has the better words
	}
	found := banner.FindSubmatch(content)
	if found == nil {
		return Version{}
	}
	var v Version
	for i := range v[:2] {
		v[i], _ = strconv.Atoi(string(found[i+1]))
	}
	return v
}

// refuse is what no small VMM has, as the operation and the reason of an
// *vmm.UnsupportedError; empty: there is nothing of it.
func refuse(hw *vmm.Hardware, maxCPUs int) (operation, reason string) {
	switch {
	case hw.Type != "":
		return fmt.Sprintf("machine type %q", hw.Type), "it has one type of machine"
	case hw.Display:
		return "a display", "it has no screen"
	case hw.UEFI != nil:
		return "UEFI", "it has no firmware"
	case hw.Bare && Kernel(hw) == "" && len(hw.Disks) > 0:
		return "a disk that boots by itself", "it has no firmware; give its kernel: disk(…, boot=\"kernel\", kernel=…)"
	case hw.CPUs > maxCPUs:
		return fmt.Sprintf("a machine of %d CPUs", hw.CPUs), fmt.Sprintf("the limit is %d", maxCPUs)
	}
	for _, d := range hw.Disks {
		if d.Format != "" && d.Format != "raw" || len(d.Backing) > 0 {
			return fmt.Sprintf("disk %s of format %q", d.Serial, d.Format), "attest gives it raw disks only; make one: qemu-img convert -O raw OLD NEW"
		}
	}
	return "", ""
}

// Needs refuses a machine on a host on which guests do not run in hardware: what it would
// need cannot be installed.
func Needs(backend string, c vmm.Config) error {
	err := Hardware(context.Background())
	if missing := (*doctor.MissingError)(nil); errors.As(err, &missing) {
		return Unsupported(backend, c, "a machine on this host", missing.Error())
	}
	return err
}

// withoutTAP says of a host that gives no TAPs that machines with network cards are not for it.
// What no setting forbids, as when descriptors run out, stays an error of the host.
func withoutTAP(backend string, c vmm.Config, err error) error {
	if none := (*tap.UnavailableError)(nil); errors.As(err, &none) && none.Remedy != "" {
		return Unsupported(backend, c, "a network card on this host", none.Error())
	}
	return nil
}

// Fingerprint is that of a vmm.Fingerprinter: the program, what the guest sees of the host,
// the machine, and what the backend adds.
func Fingerprint(p Program, c vmm.Config, guest GuestOptions, more ...string) (string, error) {
	hw := c.Boot.(*vmm.Hardware)
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	lines := append([]string{
		p.Path, p.Full, p.Stamp, "host " + unix.ByteSliceToString(uname.Release[:]), vmm.Processor(),
		fmt.Sprintf("%d MiB, %d CPUs", Megabytes(hw), CPUs(hw)), Kernel(hw), guest.fingerprint(),
	}, more...)
	for _, d := range hw.Disks {
		lines = append(lines, fmt.Sprintf("disk %s, read-only %v", d.Serial, d.ReadOnly))
	}
	for _, n := range c.NICs {
		lines = append(lines, "network card "+n.ID)
	}
	return strings.Join(lines, "\n"), nil
}

// Examine says what a host has of what a VMM needs, for attest doctor.
func (f *Finder) Examine(ctx context.Context) (Program, doctor.Diagnosis) {
	p, err := f.Find("")
	d := doctor.Diagnosis{Usable: err == nil, Path: p.Path, Version: p.Full}
	d.Findings = append(d.Findings, finding("program", p.Path+", version "+p.Full, err))
	if err != nil {
		return p, d // and the rest would only be noise
	}
	good := "guests run in hardware"
	if p, err := accel.Detect(ctx); err == nil {
		good = p.Reason // which may be that somebody insists
	}
	d.Findings = append(d.Findings, vmm.ViewFinding(vmm.WhyVisible(p.Path, false)))
	for _, check := range []struct {
		name, good string
		err        error
	}{
		{"KVM", good, Hardware(ctx)},
		{"TAP", "for network cards, in a network namespace", tap.Try(ctx)},
	} {
		d.Usable = d.Usable && check.err == nil
		d.Findings = append(d.Findings, finding(check.name, check.good, check.err))
	}
	return p, d
}

func finding(name, good string, err error) doctor.Finding {
	f := doctor.Finding{Name: name, OK: err == nil, Detail: good}
	switch e := err.(type) {
	case nil:
	case *doctor.MissingError:
		f.Detail, f.Remedy = e.What+": "+e.Reason, e.Remedy
	default:
		f.Detail = err.Error()
	}
	return f
}
