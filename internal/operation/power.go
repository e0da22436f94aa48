package operation

import (
	"context"

	"github.com/attest-vm/attest"
)

var powerTable = []*Operation{
	{
		Name: "start", Subject: "Power", Result: None,
		Params: []Param{{Name: "allow_reboot", Type: Bool, Default: false, Doc: "let the guest reboot by itself; otherwise its reset ends the machine"}},
		Doc: "Starts the machine if it is off. It does not wait for the guest to boot; the next operation does.\n\n" +
			"A machine that was never started also starts with its first operation.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Start(ctx, attest.StartOptions{AllowReboot: a.Bool("allow_reboot")})
		},
	},
	{
		Name: "shutdown", Subject: "Power", Result: None,
		Doc:  "Powers the guest off in an orderly way and waits until it is off.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Shutdown(ctx) },
	},
	{
		Name: "wait_for_shutdown", Subject: "Power", Result: None,
		Params: []Param{{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; 5 minutes unless given"}},
		Doc:    "Waits until the guest has powered itself off, without asking it to.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForShutdown(ctx, a.limit()...)
		},
	},
	{
		Name: "reboot", Subject: "Power", Result: None,
		Doc:  "Restarts the guest in an orderly way and waits until it answers again.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Reboot(ctx) },
	},
	{
		Name: "crash", Subject: "Power", Result: None,
		Doc: "Ends the machine as if its plug were pulled: what the guest had synced stays on its disk, the rest is lost.\n\n" +
			"`start` boots it again.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Crash(ctx) },
	},
	{
		Name: "is_up", Subject: "Power", Result: Bool,
		Doc:  "Says whether the machine runs and its guest has answered.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.machine.IsUp(), nil },
	},
}
