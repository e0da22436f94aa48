package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strings"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/firecracker/jail"
	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// Env names a Firecracker to use instead of the one on the PATH.
const Env = "ATTEST_FIRECRACKER"

func init() { vmm.Register(newBackend()) }

func newBackend() *backend {
	return &backend{
		finder: microvm.Finder{
			Name: "firecracker", Env: Env, Oldest: oldest,
			Pattern: regexp.MustCompile(`(?m)^Firecracker v(\d+\.\d+\.\d+\S*)`),
			Remedy:  "install Firecracker " + oldest.String() + " or newer (a release of github.com/firecracker-microvm/firecracker, or Nix: firecracker), or name it with " + Env,
		},
		jailers: microvm.Finder{
			Name: "jailer", Oldest: oldest, Pattern: regexp.MustCompile(`(?m)^Jailer v(\d+\.\d+\.\d+\S*)`),
			Remedy: "name the jailer that was released with this Firecracker with jailer_bin, or leave that out: attest confines Firecracker itself",
		},
	}
}

// A backend knows the Firecrackers of this host, and their jailers.
type backend struct {
	finder, jailers microvm.Finder
	ram             microvm.RAM // of machines in a jail, whose files need a path
}

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
	maxCPUs = 32
	// Firecracker src/vmm/src/arch/x86_64/layout.rs; it appends to it for each device.
	maxCmdline      = 2048
	cmdlineOfDevice = 40
)

// Check refuses what Firecracker does not have, by name. It takes configurations whose
// files do not exist yet.
func (b *backend) Check(c vmm.Config) error {
	p, _, err := b.look(c)
	if err == nil {
		err = b.sound(p, c)
	}
	if err == nil {
		err = microvm.Needs(b.Name(), c)
	}
	return err
}

// sound refuses a guest whose vsock the version damages. That is not a part of look, since
// all of the kernel's file is read for it.
func (b *backend) sound(p microvm.Program, c vmm.Config) error {
	if !p.Version.Before(soundSince) {
		return nil
	}
	v := microvm.KernelVersion(microvm.Kernel(c.Boot.(*vmm.Hardware)))
	if v.Before(newerSince) {
		return nil
	}
	return b.since(p, c, fmt.Sprintf("a guest with Linux %d.%d, of whose vsock older versions lose data,", v[0], v[1]), soundSince)
}

// since refuses what versions before one do not have.
func (b *backend) since(p microvm.Program, c vmm.Config, what string, version microvm.Version) error {
	if !p.Version.Before(version) {
		return nil
	}
	return b.unsupported(c, what, fmt.Sprintf("it needs Firecracker %d.%d, and %s is version %s", version[0], version[1], p.Path, p.Full))
}

// look is Check for a host whose processor is no question.
func (b *backend) look(c vmm.Config) (p microvm.Program, o options, err error) {
	parse := func(text json.RawMessage) (err error) {
		o, err = parseOptions(text)
		return err
	}
	hw, err := microvm.Look(b.Name(), c, maxCPUs, parse)
	if err != nil {
		return p, o, err
	}
	if o.Jailer != "" {
		if why := jail.Try(); why != nil {
			return p, o, b.unsupported(c, "the jailer", fmt.Sprintf("%s (%v); %s", needsRoot, why, noJailer))
		}
	}
	if p, err = b.finder.Find(o.Binary); err != nil {
		return p, o, err
	}
	if o.Jailer != "" {
		if _, err := b.jailer(p, o); err != nil {
			return p, o, err
		}
	}
	since := func(what string, version microvm.Version) error { return b.since(p, c, what, version) }
	if o.PCI {
		err = since("enable_pci", pciSince)
	}
	if err == nil && o.HugePages == "Transparent" {
		err = since("huge_pages Transparent", thpSince)
	}
	if err == nil && len(o.Pmem) > 0 {
		err = since("pmem_image_paths", pmemSince)
	}
	// On other processors it takes what the kernel's build calls Image.
	if err == nil && runtime.GOARCH == "amd64" && hw.Kernel != "" && hw.Vmlinux == "" && !microvm.IsELF(hw.Kernel) {
		err = since("the kernel "+hw.Kernel+", which is not an uncompressed vmlinux (ELF),", bzSince)
	}
	return p, o, err
}

// needsRoot is what the jailer does that user namespaces do not allow, and noJailer what there
// is without it.
const (
	needsRoot = "it needs root, who may make device nodes and change the root directory"
	noJailer  = "run attest as root, or leave jailer_bin out: attest confines Firecracker itself (Landlock, a network namespace, no new privileges), beside Firecracker's own seccomp filters"
)

// jailer finds the jailer of a Firecracker. One of another version may not know what this one
// needs, and its documentation says so.
func (b *backend) jailer(p microvm.Program, o options) (microvm.Program, error) {
	j, err := b.jailers.Find(o.Jailer)
	if err == nil && j.Full != p.Full {
		err = &doctor.MissingError{What: j.Path, Reason: fmt.Sprintf("it is version %s, and %s is version %s", j.Full, p.Path, p.Full), Remedy: b.jailers.Remedy}
	}
	return j, err
}

func (b *backend) unsupported(c vmm.Config, operation, reason string) error {
	return microvm.Unsupported(b.Name(), c, operation, reason)
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
	case vmm.CanSave:
		if p, o, err := b.look(c); err == nil {
			why := unsavable(p, o)
			return why == "", vmm.Lack{Reason: why}
		}
		return true, vmm.Lack{}
	case vmm.CanWake:
		return false, vmm.Lack{Reason: "Firecracker cannot wake a guest that sleeps"}
	case vmm.CanPress:
		return false, vmm.Lack{Reason: "Firecracker has no power button; shutdown presses Ctrl-Alt-Del where the guest does not answer"}
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
	return microvm.Fingerprint(p, c, o.GuestOptions, append(o.pmemFingerprint(), cmdline(c.Boot.(*vmm.Hardware), o),
		fmt.Sprintf("huge pages %q, entropy %v, PCI %v, disks %q %q", o.HugePages, o.entropy(), o.PCI, o.IOEngine, o.CacheType))...)
}

// Examine says what is there, for attest doctor.
func (b *backend) Examine(ctx context.Context) doctor.Diagnosis {
	p, d := b.finder.Examine(ctx)
	if within(p.Version, deafSince, deafBefore) {
		d.Findings = append(d.Findings, doctor.Finding{Name: "pause", Detail: "refused: this version loses its guests after a pause", Remedy: "use Firecracker 1.15, or 1.17 and newer"})
	}
	if path, err := exec.LookPath(b.jailers.Name); err == nil && p.Path != "" { // nobody needs one
		d.Findings = append(d.Findings, b.examineJailer(p, path))
	}
	return d
}

func (b *backend) examineJailer(p microvm.Program, path string) doctor.Finding {
	f := doctor.Finding{Name: "jailer"}
	j, err := b.jailer(p, options{Jailer: path})
	switch missing := (*doctor.MissingError)(nil); {
	case errors.As(err, &missing):
		f.Detail, f.Remedy = missing.What+": "+missing.Reason, missing.Remedy
	case err != nil:
		f.Detail = err.Error()
	default:
		f.Detail = j.Path + ", version " + j.Full
		if err := jail.Try(); err != nil {
			f.Detail, f.Remedy = fmt.Sprintf("%s: %s (%v)", f.Detail, needsRoot, err), noJailer
		} else {
			f.OK, f.Detail = true, f.Detail+", for machines with jailer_bin"
		}
	}
	return f
}
