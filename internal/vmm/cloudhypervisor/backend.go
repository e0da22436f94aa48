package cloudhypervisor

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// Env names a cloud-hypervisor to use instead of the one on the PATH.
const Env = "ATTEST_CLOUD_HYPERVISOR"

func init() { vmm.Register(newBackend()) }

var (
	oldest     = microvm.Version{43, 0, 0} // that attest was written for
	readsSince = microvm.Version{51, 0, 0} // opens a memory that is mapped privately for reading (#7674)
)

func newBackend() *backend {
	return &backend{finder: microvm.Finder{
		Name: "cloud-hypervisor", Env: Env, Oldest: oldest,
		Pattern: regexp.MustCompile(`(?m)^cloud-hypervisor v(\d+\.\d+\S*)`),
		Remedy:  "install cloud-hypervisor 43 or newer (a release of github.com/cloud-hypervisor/cloud-hypervisor, or Nix: cloud-hypervisor), or name it with " + Env,
	}}
}

// options are what only cloud-hypervisor has (vmm.Hardware.Options).
type options struct {
	Binary string `json:"cloud_hypervisor_bin"` // a path, or a name on PATH; empty: see Env
	microvm.GuestOptions
}

// A backend knows the cloud-hypervisors of this host.
type backend struct {
	finder microvm.Finder
	ram    microvm.RAM
}

var (
	_ vmm.Backend       = (*backend)(nil)
	_ vmm.RawOnly       = (*backend)(nil)
	_ vmm.Doctor        = (*backend)(nil)
	_ vmm.Offerer       = (*backend)(nil)
	_ vmm.Fingerprinter = (*backend)(nil)
)

func (*backend) Name() string { return "cloud-hypervisor" }

// RawOnly: it would read qcow2, but a saved machine has the names of its disks in it, and
// a clone's overlays have others.
func (*backend) RawOnly() {}

const (
	maxCPUs    = 254
	maxCmdline = 65536 // its arch/src/x86_64/layout.rs
)

// Check refuses what cloud-hypervisor does not have, by name. It takes configurations
// whose files do not exist yet.
func (b *backend) Check(c vmm.Config) error {
	_, _, err := b.look(c)
	if err == nil {
		err = microvm.Needs(b.Name(), c)
	}
	return err
}

// look is Check for a host whose processor is no question.
func (b *backend) look(c vmm.Config) (p microvm.Program, o options, err error) {
	parse := func(text json.RawMessage) error { return microvm.ParseOptions(text, &o, &o.GuestOptions) }
	if _, err := microvm.Look(b.Name(), c, maxCPUs, parse); err != nil {
		return p, o, err
	}
	p, err = b.finder.Find(o.Binary)
	return p, o, err
}

func (b *backend) unsupported(c vmm.Config, operation, reason string) error {
	return microvm.Unsupported(b.Name(), c, operation, reason)
}

// Offers says what machines can do.
func (b *backend) Offers(_ vmm.Config, what vmm.Capability) (bool, vmm.Lack) {
	switch what {
	case vmm.CanReset, vmm.CanListen, vmm.CanPause, vmm.CanSave, vmm.CanPress:
		return true, vmm.Lack{}
	case vmm.CanWake:
		return false, vmm.Lack{Reason: "cloud-hypervisor cannot wake a guest that sleeps"}
	case vmm.CanShow, vmm.CanType:
		return false, vmm.Lack{Reason: "cloud-hypervisor has no keyboard and no screen", InGuest: what == vmm.CanShow}
	}
	return false, vmm.Lack{}
}

// cmdline is the kernel's command line.
func cmdline(hw *vmm.Hardware) string {
	// The clocks of a restored guest jump over the time for which it was saved: it would
	// find that its processors were stuck for so long.
	return strings.Join([]string{"console=ttyS0", "reboot=k", "nosoftlockup", microvm.VsockArgument, hw.Cmdline}, " ")
}

// Fingerprint is the cloud-hypervisor, what the guest sees of the host, and the machine.
func (b *backend) Fingerprint(_ vmm.Host, c vmm.Config) (string, error) {
	p, o, err := b.look(c)
	if err != nil {
		return "", err
	}
	return microvm.Fingerprint(p, c, o.GuestOptions, cmdline(c.Boot.(*vmm.Hardware)))
}

// Examine says what is there, for attest doctor.
func (b *backend) Examine(ctx context.Context) doctor.Diagnosis {
	_, d := b.finder.Examine(ctx)
	return d
}
