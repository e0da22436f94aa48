package firecracker

import (
	"encoding/json"
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
	"github.com/attest-vm/attest/internal/vmm/microvm/contract"
	micro "github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

func TestMain(m *testing.M) {
	fake.Main()
	goleak.VerifyTestMain(m)
}

func newRig(t *testing.T, o fake.Options) *contract.Rig {
	t.Helper()
	fake.Install(t, o)
	return contract.NewRig(t, newBackend())
}

func TestContract(t *testing.T) {
	contract.Subject{
		New: func() vmm.Backend { return newBackend() },
		Install: func(t *testing.T, o contract.Options) {
			fake.Install(t, fake.Options{Program: o.Program, NoSocket: o.NoSocket, Manners: o.Manners})
		},
		Cmdline: "console=ttyS0 reboot=k attest.vsock=1 attest.disks=attest-l0,attest-rw pci=off attest.root=layers:1",
		Log:     "Running Firecracker",
	}.Test(t)
}

// Nothing is sent to any version that it does not know: the fake refuses unknown fields.
func TestVersions(t *testing.T) {
	for _, version := range []string{"1.7.0", "1.12.1", "1.13.0", "1.15.1", "1.16.1", "1.17.0"} {
		t.Run(version, func(t *testing.T) {
			r := newRig(t, fake.Options{Version: version})
			c := r.Config("m")
			c.Boot.(*vmm.Hardware).Options = json.RawMessage(`{"io_engine": "Async", "cache_type": "Writeback", "disk_bytes_per_second": 1000000, "disk_ops_per_second": 100}`)
			m := r.Start(c)
			m.Runs(r.Ctx)
			clone := r.Config("clone")
			clone.Boot.(*vmm.Hardware).Options, clone.Restore = c.Boot.(*vmm.Hardware).Options, r.Save(m)
			r.Start(clone).Runs(r.Ctx)
		})
	}
}

// Whatever goes wrong at a start is one error that says what, and nothing is left.
func TestStartFails(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fake   fake.Options
		change func(*contract.Rig, *vmm.Config, *vmm.Hardware)
		want   string
	}{
		{"a refused request", fake.Options{Faults: micro.Faults{Refuse: map[string]string{"PUT /entropy": "There is no entropy left."}}}, nil,
			"m: firecracker did not start: PUT /entropy: There is no entropy left. (status 400)"},
		{"a status of another kind", fake.Options{Faults: micro.Faults{Status: map[string]int{"PUT /vsock": 500}}}, nil, "PUT /vsock: something went wrong (status 500)"},
		{"it ends", fake.Options{Faults: micro.Faults{Exit: map[string]int{"PUT /drives": 148}}}, nil, "its process ended: exit status 148\nthe fake was told to end at PUT /drives"},
		{"half an answer", fake.Options{Faults: micro.Faults{Half: map[string]bool{"PUT /actions": true}}}, nil, "its process ended: exit status 1"},
		{"no kernel file", fake.Options{}, func(r *contract.Rig, _ *vmm.Config, hw *vmm.Hardware) { hw.Vmlinux = r.File("none") }, "PUT /boot-source: Boot source error: The kernel file cannot be opened"},
		{"no disk file", fake.Options{}, func(r *contract.Rig, _ *vmm.Config, hw *vmm.Hardware) { hw.Disks[1].Path = r.File("none") }, "PUT /drives/d1: Drive config error"},
		{"not a state", fake.Options{}, func(r *contract.Rig, c *vmm.Config, _ *vmm.Hardware) { c.Restore = r.State("nonsense") }, "CRC64 validation failed"},
		{"another version's state", fake.Options{}, func(r *contract.Rig, c *vmm.Config, _ *vmm.Hardware) { c.Restore = r.State(`{"Format": "1.15.0"}`) }, "Invalid data version: 1.15.0"},
		{"another VMM's state", fake.Options{}, func(r *contract.Rig, c *vmm.Config, _ *vmm.Hardware) {
			c.Restore = r.State(`{"Config": "e30=", "State": "e30="}`)
		}, "Magic value does not match arch"},
		{"memory of another size", fake.Options{}, func(r *contract.Rig, c *vmm.Config, hw *vmm.Hardware) { c.Restore, hw.Memory = r.State(""), 128 },
			"the saved memory has 67108864 bytes, and the machine has 134217728"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.fake)
			c := r.Config("m")
			if tt.change != nil {
				tt.change(r, &c, c.Boot.(*vmm.Hardware))
			}
			r.FailsToStart(c, tt.want)
		})
	}
}

// Ctrl-Alt-Del ends a machine that may not reboot, as its guest answers by a reset. Other versions
// than these know the action, too, and the real ones refuse it before the start.
func TestCtrlAltDel(t *testing.T) {
	for _, reboot := range []bool{false, true} {
		t.Run(fmt.Sprintf("allow reboot %v", reboot), func(t *testing.T) {
			r := newRig(t, fake.Options{})
			c := r.Config("m")
			c.AllowReboot = reboot
			b := r.Start(c)
			info, err := b.Ready(r.Ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.VM.(vmm.CtrlAltDel).PressCtrlAltDel(r.Ctx); err != nil {
				t.Fatal(err)
			}
			if !reboot {
				b.Exits(r.Ctx, vmm.Reset)
			} else if _, err := b.ReadyAgain(r.Ctx, info); err != nil {
				t.Error(err)
			}
		})
	}
}

// A save that fails leaves a machine that goes on.
func TestSaveFails(t *testing.T) {
	r := newRig(t, fake.Options{Faults: micro.Faults{Refuse: map[string]string{"PUT /snapshot/create": "Create snapshot error: Cannot dump memory: No space left on device (os error 28)"}}})
	r.FailsToSave("save: m: PUT /snapshot/create: Create snapshot error: Cannot dump memory: No space left on device")
}

// A Firecracker that dies in the middle of an operation ends the machine, and the
// operation.
func TestDiesWhilePausing(t *testing.T) {
	r := newRig(t, fake.Options{Faults: micro.Faults{Exit: map[string]int{"PATCH /vm": 149}}})
	r.DiesWhilePausing("firecracker ended: exit status 149: the fake was told to end at PATCH /vm")
}
