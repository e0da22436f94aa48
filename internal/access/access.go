// Package access is the way of attest's own front ends to what package attest
// does not export, since nobody else needs it.
//
// Package attest sets the variables when it is initialised. It cannot be imported
// here, so its types are any: the comment of each variable names the one that it
// takes.
package access

import (
	"context"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
)

var (
	// Spec is an attest.Image as plain data.
	Spec func(img any) image.Spec
	// Check refuses an attest.LabConfig that no lab can be made of, with an
	// *attest.ConfigError. It starts nothing and does not look at the host.
	Check func(labConfig any) error
	// NeedsImage reports whether an attest.MachineConfig is refused by Check for want of
	// an image.
	NeedsImage func(machineConfig any) bool
	// Supports reports whether a machine of an attest.MachineConfig has a capability
	// that an operation needs: nil, or an *attest.UnsupportedError. It starts nothing.
	Supports func(ctx context.Context, machineConfig any, operation string, what vmm.Capability) error
	// Fits refuses an attest.MachineConfig that its Backend cannot have. It starts nothing.
	Fits func(ctx context.Context, machineConfig any) error
	// Failure lays out an error for a report: its kind, the machine, the operation
	// and the command, what they said, and the end of the console.
	Failure func(error) *event.Failure
	// Settle heals the faults in an *attest.Network that the test of ctx has left in
	// force, says so, and ends the captures of the test.
	Settle func(ctx context.Context, network any) error
	// AwaitBooted waits until the boots of all machines of an *attest.Lab that run are
	// over. One that does not get there is an *attest.StillBootingError.
	AwaitBooted func(ctx context.Context, lab any) error
	// StartHelper starts a program of this host that works for an *attest.Lab or an
	// *attest.Host, such as the interpreter of a test script. prepare describes it, and may
	// put files into a directory that is its own. Both end with the lab, or the host, at the latest.
	StartHelper func(ctx context.Context, of any, prepare func(dir string) (supervise.Command, error)) (*supervise.Process, error)
	// CheckFiles refuses an attest.MachineConfig whose Files, Mount, image or disks name
	// something that the host does not have, with an *attest.ConfigError.
	CheckFiles func(machineConfig any) error
	// CheckImage is CheckFiles for an attest.Image.
	CheckImage func(img any) error
	// Refresh gives later forks of an *attest.Snapshot the Files and the Mount that
	// machines, a []attest.MachineConfig, have now. It returns which of them, as
	// "MACHINE: PATH", have changed since after something in the guests had used them: what
	// runs in the snapshot does not fit the files then.
	Refresh func(ctx context.Context, snapshot, machines any) (used []string, err error)
	// Directories are those that a machine's start command knows: its own, and the one of
	// all machines of the *attest.Lab.
	Directories func(lab any, machine string) (state, shared string, running bool, err error)
	// StartOnHost starts a program of this host, which ends with the *attest.Host at the
	// latest.
	StartOnHost func(ctx context.Context, host any, c supervise.Command) (*supervise.Process, error)
	// OutDir is where the operations of an *attest.Lab put files, as an absolute path.
	OutDir func(lab any) string
	// Speed says in one line how machines run on an *attest.Host.
	Speed func(host any) string
)
