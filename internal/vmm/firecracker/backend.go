package firecracker

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// Env names a Firecracker to use instead of the one on the PATH.
const Env = "ATTEST_FIRECRACKER"

func init() { vmm.Register(newBackend()) }

func newBackend() *backend {
	return &backend{finder: microvm.Finder{
		Name: "firecracker", Env: Env, Oldest: oldest,
		Pattern: regexp.MustCompile(`(?m)^Firecracker v(\d+\.\d+\.\d+\S*)`),
		Remedy:  "install Firecracker " + oldest.String() + " or newer (a release of github.com/firecracker-microvm/firecracker, or Nix: firecracker), or name it with " + Env,
	}}
}

// A backend knows the Firecrackers of this host.
type backend struct{ finder microvm.Finder }

var (
	_ vmm.Backend       = (*backend)(nil)
	_ vmm.RawOnly       = (*backend)(nil)
	_ vmm.Doctor        = (*backend)(nil)
	_ vmm.Offerer       = (*backend)(nil)
	_ vmm.Fingerprinter = (*backend)(nil)
)

func (*backend) Name() string { return "firecracker" }

// RawOnly: no image formats at all.
func (*backend) RawOnly() {}

const (
	maxCPUs    = 32
	defaultMiB = 512
	// Firecracker src/vmm/src/arch/x86_64/layout.rs; it appends to it for each device.
	maxCmdline      = 2048
	cmdlineOfDevice = 40
)

// Check refuses what Firecracker does not have, by name. It takes configurations whose
// files do not exist yet.
func (b *backend) Check(c vmm.Config) error {
	_, _, err := b.look(c)
	if err == nil {
		err = microvm.Hardware(context.Background())
	}
	return err
}

// look is Check for a host whose processor is no question.
func (b *backend) look(c vmm.Config) (p microvm.Program, o options, err error) {
	hw, ok := c.Boot.(*vmm.Hardware)
	if !ok {
		if _, ok := c.Boot.(*vmm.Command); ok {
			return p, o, b.unsupported(c, "a start command", "attest starts it itself")
		}
		return p, o, b.unsupported(c, fmt.Sprintf("a machine of a %T", c.Boot), "")
	}
	if o, err = parseOptions(hw.Options); err != nil {
		return p, o, &OptionsError{c.Name, err}
	}
	switch {
	case hw.Type != "":
		return p, o, b.unsupported(c, fmt.Sprintf("machine type %q", hw.Type), "it has one type of machine")
	case hw.Display:
		return p, o, b.unsupported(c, "a display", "it has no screen")
	case hw.CPUs > maxCPUs:
		return p, o, b.unsupported(c, fmt.Sprintf("a machine of %d CPUs", hw.CPUs), fmt.Sprintf("the limit is %d", maxCPUs))
	}
	for _, d := range hw.Disks {
		if d.Format != "" && d.Format != "raw" || len(d.Backing) > 0 {
			return p, o, b.unsupported(c, fmt.Sprintf("disk %s of format %q", d.Serial, d.Format), "it reads raw disks only; make one: qemu-img convert -O raw OLD NEW")
		}
	}
	if p, err = b.finder.Find(o.Binary); err != nil {
		return p, o, err
	}
	since := func(what string, version microvm.Version) error {
		if !p.Version.Before(version) {
			return nil
		}
		return b.unsupported(c, what, fmt.Sprintf("it needs Firecracker %d.%d, and %s is version %s", version[0], version[1], p.Path, p.Full))
	}
	if o.PCI {
		err = since("enable_pci", pciSince)
	}
	if err == nil && o.HugePages == "Transparent" {
		err = since("huge_pages Transparent", thpSince)
	}
	if err == nil && hw.Kernel != "" && hw.Vmlinux == "" && !isELF(hw.Kernel) {
		err = since("the kernel "+hw.Kernel+", which is not an uncompressed vmlinux (ELF),", bzSince)
	}
	return p, o, err
}

func (b *backend) unsupported(c vmm.Config, operation, reason string) error {
	return &vmm.UnsupportedError{Machine: c.Name, Operation: operation, Backend: b.Name(), Reason: reason}
}

// isELF also says so of a file that cannot be read: Firecracker has the better words.
func isELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return true
	}
	defer f.Close()
	magic := make([]byte, 4)
	n, _ := f.Read(magic)
	return n < 4 || bytes.Equal(magic, []byte("\x7fELF"))
}

// Offers says what machines can do.
func (b *backend) Offers(c vmm.Config, what vmm.Capability) (bool, vmm.Lack) {
	switch what {
	case vmm.CanReset, vmm.CanListen:
		return true, vmm.Lack{}
	case vmm.CanPause:
		if p, _, err := b.look(c); err == nil && within(p.Version, deafSince, deafBefore) {
			return false, vmm.Lack{Reason: "with Firecracker " + p.Full + " nobody reaches a guest any more after a pause; 1.15 and 1.17 do not have that bug"}
		}
		return true, vmm.Lack{}
	case vmm.CanShow, vmm.CanType:
		return false, vmm.Lack{Reason: "Firecracker has no keyboard and no screen", InGuest: what == vmm.CanShow}
	}
	return false, vmm.Lack{}
}

// cmdline is the kernel's command line. Firecracker adds to it where the devices are.
func cmdline(hw *vmm.Hardware, o options) string {
	// reboot=k: a reset ends Firecracker when it comes by the keyboard's controller.
	args := []string{"console=ttyS0", "reboot=k", microvm.VsockArgument, microvm.DisksArgument(hw.Disks)}
	if !o.PCI {
		args = append(args, "pci=off")
	}
	return strings.Join(append(args, hw.Cmdline), " ")
}

// Fingerprint is the Firecracker, what the guest sees of the host, and the machine.
func (b *backend) Fingerprint(_ vmm.Host, c vmm.Config) (string, error) {
	p, o, err := b.look(c)
	if err != nil {
		return "", err
	}
	hw := c.Boot.(*vmm.Hardware)
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	lines := []string{
		p.Path, p.Full, p.Stamp, "host " + unix.ByteSliceToString(uname.Release[:]), vmm.Processor(),
		fmt.Sprintf("%d MiB, %d CPUs", megabytes(hw), cpus(hw)), kernel(hw), cmdline(hw, o),
		fmt.Sprintf("huge pages %q, entropy %v, PCI %v, disks %q %q", o.HugePages, o.entropy(), o.PCI, o.IOEngine, o.CacheType),
	}
	for _, d := range hw.Disks {
		lines = append(lines, fmt.Sprintf("disk %s, read-only %v", d.Serial, d.ReadOnly))
	}
	for _, n := range c.NICs {
		lines = append(lines, "network card "+n.ID)
	}
	return strings.Join(lines, "\n"), nil
}

func megabytes(hw *vmm.Hardware) int { return cmp.Or(hw.Memory, defaultMiB) }
func cpus(hw *vmm.Hardware) int      { return max(hw.CPUs, 1) }
func kernel(hw *vmm.Hardware) string { return cmp.Or(hw.Vmlinux, hw.Kernel) }

// Examine says what is there, for attest doctor.
func (b *backend) Examine(ctx context.Context) doctor.Diagnosis {
	p, err := b.finder.Find("")
	d := doctor.Diagnosis{Usable: err == nil, Path: p.Path, Version: p.Full}
	d.Findings = append(d.Findings, finding("program", p.Path+", version "+p.Full, err))
	if err != nil {
		return d // and the rest would only be noise
	}
	d.Findings = append(d.Findings, vmm.ViewFinding(vmm.WhyVisible(p.Path, false)))
	for _, check := range []struct {
		name, good string
		err        error
	}{
		{"KVM", "guests run in hardware", microvm.Hardware(ctx)},
		{"TAP", "for network cards, in a network namespace", tap.Try(ctx)},
	} {
		d.Usable = d.Usable && check.err == nil
		d.Findings = append(d.Findings, finding(check.name, check.good, check.err))
	}
	if within(p.Version, deafSince, deafBefore) {
		d.Findings = append(d.Findings, doctor.Finding{Name: "pause", Detail: "refused: this version loses its guests after a pause", Remedy: "use Firecracker 1.15, or 1.17 and newer"})
	}
	return d
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
