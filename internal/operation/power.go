package operation

import (
	"context"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/vmm"
)

var minuteParam = Param{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; 1 minute unless given"}

var powerTable = []*Operation{
	{
		Name: "start", Subject: "Power", Result: None,
		Params: []Param{{Name: "allow_reboot", Type: Bool, Default: false, Doc: "let the guest reboot by itself; otherwise its reset ends the machine"}},
		Doc: "Starts the machine if it is off. It does not wait for the guest to boot; the next operation does.\n\n" +
			"A machine that was never started also starts with its first operation.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			if a.Bool("allow_reboot") {
				return nil, t.machine.Start(ctx, attest.AllowReboot())
			}
			return nil, t.machine.Start(ctx)
		},
	},
	{
		Name: "shutdown", Subject: "Power", Result: None,
		Doc: "Powers the guest off in an orderly way and waits until it is off.\n\n" +
			"The agent asks the guest's init. When the agent does not answer, the machine's power button is pressed, or Ctrl-Alt-Del on a Firecracker.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Shutdown(ctx) },
	},
	{
		Name: "wait_for_shutdown", Subject: "Power", Result: None,
		Params: []Param{{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; 5 minutes unless given"}},
		Doc:    "Waits until the guest has powered itself off, without asking it to.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForShutdown(ctx, a.limit())
		},
	},
	{
		Name: "press_power_button", Subject: "Power", Result: None, Needs: vmm.CanPress,
		Doc: "Presses the machine's power button, as a person would, and does not wait for what the guest makes of it.\n\n" +
			"A guest with systemd-logind or acpid shuts down, and `wait_for_shutdown` waits for that. One in which nobody listens ignores it. The guest's agent is not needed.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.PressPowerButton(ctx) },
	},
	{
		Name: "reboot", Subject: "Power", Result: None, Needs: vmm.CanReset,
		Doc:  "Restarts the guest in an orderly way and waits until it answers again.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Reboot(ctx) },
	},
	{
		Name: "wait_for_reboot", Subject: "Power", Result: None, Needs: vmm.CanReset,
		Params: []Param{{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; 5 minutes unless given"}},
		Doc: "Waits until the guest has rebooted by itself and answers again.\n\n" +
			"A reboot that has come already, and that no call has waited for, counts; one by `reboot` does not. The machine needs `allow_reboot`. Other waits go on in the next boot.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForReboot(ctx, a.limit())
		},
	},
	{
		Name: "crash", Subject: "Power", Result: None,
		Doc: "Ends the machine as if its plug were pulled: what the guest had synced stays on its disk, the rest is lost.\n\n" +
			"`start` boots it again.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Crash(ctx) },
	},
	{
		Name: "kernel_panic", Subject: "Power", Result: None,
		Params: []Param{minuteParam},
		Doc: "Makes the guest's kernel panic, and waits until the machine is off.\n\n" +
			"The agent triggers the panic (SysRq). A guest that does not answer gets a non-maskable interrupt. `start` boots it again, from the disk as the panic left it.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.KernelPanic(ctx, a.limit())
		},
	},
	{
		Name: "pause", Subject: "Power", Result: None, Needs: vmm.CanPause,
		Doc: "Stops the machine's processors, as if it had frozen, until `resume`.\n\n" +
			"Waits in progress go on, until their own limits. Operations that need the guest of a paused machine fail at once. The guest's clocks stand still.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Pause(ctx) },
	},
	{
		Name: "resume", Subject: "Power", Result: None, Needs: vmm.CanPause,
		Doc:  "Continues a paused machine.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.machine.Resume(ctx) },
	},
	{
		Name: "suspend", Subject: "Power", Result: None, Needs: vmm.CanWake,
		Params: []Param{minuteParam},
		Doc: "Has the guest suspend the machine, and waits until it sleeps ([machines.md](machines.md#suspend-and-wake)).\n\n" +
			"systemd does it as by `systemctl suspend`; in a guest without systemd it is the kernel alone. Until `wake` the guest does nothing. Commands and waits under way keep their limits; operations that need the guest fail at once.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Suspend(ctx, a.limit())
		},
	},
	{
		Name: "wake", Subject: "Power", Result: None, Needs: vmm.CanWake,
		Params: []Param{minuteParam},
		Doc: "Wakes a machine that sleeps, and waits until its guest answers.\n\n" +
			"A guest that is awake is waited for until it sleeps, as after `systemctl suspend` in a test, unless something else, such as a key, has woken it since `suspend`. The guest's clock has the host's time afterwards.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Wake(ctx, a.limit())
		},
	},
	{
		Name: "switch_root", Subject: "Power", Result: None,
		Params: []Param{limitParam},
		Doc: "Leaves the initrd: waits for `initrd.target`, has systemd switch to the root file system, and waits until it has.\n\n" +
			"It is for guests whose systemd runs in an initrd. attest's own images boot straight into their root, so the operation is refused there.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.SwitchRoot(ctx, a.limit())
		},
	},
	{
		Name: "is_up", Subject: "Power", Result: Bool,
		Doc:  "Reports whether the machine runs and its guest has answered.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.machine.IsUp(), nil },
	},
}
