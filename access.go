package attest

import (
	"context"

	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
)

// What attest's own front ends need and nobody else does is not exported.
func init() {
	access.Spec = func(img any) image.Spec { return img.(Image).spec() }
	access.Check = func(c any) error { return c.(LabConfig).check() }
	access.NeedsImage = func(c any) bool { return c.(MachineConfig).needsImage() }
	access.Supports = func(ctx context.Context, c any, operation string, what vmm.Capability) error {
		return c.(MachineConfig).supports(ctx, operation, what)
	}
	access.Fits = func(ctx context.Context, c any) error { return c.(MachineConfig).fits(ctx) }
	access.Failure = func(err error) *event.Failure { return failureOf(err, "", "") }
	access.Settle = func(ctx context.Context, n any) error { return n.(*Network).settle(ctx) }
	access.AwaitBooted = func(ctx context.Context, l any) error { return l.(*Lab).settle(ctx) }
	access.StartHelper = func(ctx context.Context, of any, prepare func(string) (supervise.Command, error)) (*supervise.Process, error) {
		if h, ok := of.(*Host); ok {
			return h.startHelper(ctx, h.StateDir(), prepare)
		}
		return of.(*Lab).startHelper(ctx, prepare)
	}
	access.CheckFiles = func(c any) error { return c.(MachineConfig).checkFiles() }
	access.CheckImage = func(img any) error { return checkImageFiles(img.(Image)) }
	access.Refresh = func(ctx context.Context, s, machines any) ([]string, error) {
		return s.(*Snapshot).refresh(ctx, machines.([]MachineConfig))
	}
	access.Directories = func(l any, machine string) (string, string, bool, error) { return l.(*Lab).directories(machine) }
	access.StartOnHost = func(ctx context.Context, h any, c supervise.Command) (*supervise.Process, error) {
		return h.(*Host).supervisor.Start(ctx, c)
	}
	access.OutDir = func(l any) string { return l.(*Lab).outDir() }
	access.Speed = func(h any) string { return h.(*Host).speed() }
}
