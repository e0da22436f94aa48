package cloudhypervisor

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/cloudhypervisor/fake"
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
	for _, version := range []string{"53.0", "43.0"} {
		t.Run(version, func(t *testing.T) {
			contract.Subject{
				New: func() vmm.Backend { return newBackend() },
				Install: func(t *testing.T, o contract.Options) {
					fake.Install(t, fake.Options{Version: version, Program: o.Program, NoSocket: o.NoSocket, Manners: o.Manners})
				},
				Cmdline: "console=ttyS0 reboot=k nosoftlockup attest.vsock=1 attest.root=layers:1",
				Log:     "cloud-hypervisor",
			}.Test(t)
		})
	}
}

// A machine that went on from a state is saved as one that has booted, again and again.
func TestCloneOfAClone(t *testing.T) {
	r := newRig(t, fake.Options{})
	b := r.Start(r.Config("m"))
	info, err := b.Ready(r.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		c := r.Config(name)
		c.Restore = r.Save(b)
		if strings.Contains(string(c.Restore.Device), `\"data\":[{`) {
			t.Errorf("%s: its memory is in a file of cloud-hypervisor's own: %s", name, c.Restore.Device)
		}
		b.Kill()
		b = r.Start(c)
		if got, err := b.Ready(r.Ctx); err != nil || got.Instance != info.Instance {
			t.Errorf("%s is %v, %v; want %v", name, got, err, info)
		}
		b.Runs(r.Ctx)
	}
}

// Without a file system in memory of their own, memories are in the machine's directory.
func TestMemoryOnDisk(t *testing.T) {
	r := newRig(t, fake.Options{})
	b := r.Backend.(*backend)
	b.ram.Disk = true
	m := r.Start(r.Config("m"))
	m.Runs(r.Ctx)
	c := r.Config("clone")
	c.Restore = r.Save(m)
	r.Start(c).Runs(r.Ctx)
}

// Whatever goes wrong at a start is one error that says what, and nothing is left.
func TestStartFails(t *testing.T) {
	faults := func(f micro.Faults) fake.Options { return fake.Options{Faults: f} }
	const config = `{"config": {"memory": {"zones": [{"id": "mem0", "size": 67108864, "file": "x", "shared": true}]}}, "state": {}}`
	for _, tt := range []struct {
		name   string
		fake   fake.Options
		change func(*contract.Rig, *vmm.Config, *vmm.Hardware)
		want   string
	}{
		{"a refused request", faults(micro.Faults{Refuse: map[string]string{"PUT vm.create": "There is no memory left."}}), nil,
			"m: cloud-hypervisor did not start: PUT /vm.create: The request failed: There is no memory left. (status 500)"},
		{"a status without JSON", faults(micro.Faults{Status: map[string]int{"PUT vm.boot": 429}}), nil, "PUT /vm.boot: something went wrong (status 429)"},
		{"it ends", faults(micro.Faults{Exit: map[string]int{"PUT vm.boot": 1}}), nil, "its process ended: exit status 1\nthe fake was told to end at PUT vm.boot"},
		{"half an answer", faults(micro.Faults{Half: map[string]bool{"PUT vm.create": true}}), nil, "its process ended: exit status 1"},
		{"no kernel file", fake.Options{}, func(r *contract.Rig, _ *vmm.Config, hw *vmm.Hardware) { hw.Vmlinux = r.File("none") }, "PUT /vm.boot: The VM could not boot: Cannot open kernel file"},
		{"no disk file", fake.Options{}, func(r *contract.Rig, _ *vmm.Config, hw *vmm.Hardware) { hw.Disks[1].Path = r.File("none") }, "Cannot open disk path: I/O error (path=d1 op=open)"},
		{"not a state", fake.Options{}, func(r *contract.Rig, c *vmm.Config, _ *vmm.Hardware) { c.Restore = r.State("nonsense") }, "the saved machine is not one of cloud-hypervisor's: invalid character"},
		{"a state of another backend", fake.Options{}, func(r *contract.Rig, c *vmm.Config, _ *vmm.Hardware) { c.Restore = r.State("{}") }, "the saved machine is not one of cloud-hypervisor's: unexpected end"},
		{"a state that it does not know", fake.Options{}, func(r *contract.Rig, c *vmm.Config, _ *vmm.Hardware) { c.Restore = r.State(config) }, "PUT /vm.restore: The VM could not be restored: Cannot restore VM: Error deserialising"},
		{"memory of another size", fake.Options{}, func(r *contract.Rig, c *vmm.Config, hw *vmm.Hardware) { c.Restore, hw.Memory = r.State(config), 128 },
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

// A save that fails leaves a machine that goes on.
func TestSaveFails(t *testing.T) {
	r := newRig(t, fake.Options{Faults: micro.Faults{Refuse: map[string]string{"PUT vm.snapshot": "No space left on device (os error 28)"}}})
	r.FailsToSave("No space left on device")
}

// One that was not paused is not saved.
func TestSaveWithoutPause(t *testing.T) {
	r := newRig(t, fake.Options{})
	b := r.Start(r.Config("m"))
	b.Runs(r.Ctx)
	if _, err := b.VM.(vmm.Snapshotter).Save(r.Ctx, r.Memory()); err == nil || !strings.Contains(err.Error(), "save: m: PUT /vm.snapshot: ") {
		t.Errorf("got %v", err)
	}
	b.Runs(r.Ctx)
}

// One that dies in the middle of an operation ends the machine, and the operation.
func TestDiesWhilePausing(t *testing.T) {
	r := newRig(t, fake.Options{Faults: micro.Faults{Exit: map[string]int{"PUT vm.pause": 9}}})
	r.DiesWhilePausing("cloud-hypervisor ended: exit status 9: the fake was told to end at PUT vm.pause")
}

// Nobody connects to the guest before its driver is up, in the first boot and in the next.
func TestDriverIsAwaited(t *testing.T) {
	r := newRig(t, fake.Options{Driver: 300 * time.Millisecond})
	c := r.Config("m")
	c.AllowReboot = true
	b := r.Start(c)
	b.Runs(r.Ctx)
	info, err := b.Ready(r.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.VM.(vmm.Rebooter).Reset(r.Ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadyAgain(r.Ctx, info); err != nil {
		t.Fatal(err)
	}
	b.Runs(r.Ctx)
}

// The power button and the NMI reach the guest.
func TestButtons(t *testing.T) {
	r := newRig(t, fake.Options{})
	b := r.Start(r.Config("m"))
	if err := b.VM.(vmm.PowerButton).PressPower(r.Ctx); err != nil {
		t.Error(err)
	}
	b.Says(r.Ctx, "power button pressed", 1)
	if err := b.VM.(vmm.Interrupter).InjectNMI(r.Ctx); err != nil {
		t.Error(err)
	}
	b.Says(r.Ctx, "NMI received", 1)
}

func TestWithoutRanges(t *testing.T) {
	const state = `{"snapshots":{"memory-manager":{"snapshot_data":{"state":"{\"big\":18446744073709551615,\"memory_ranges\":{\"data\":[{\"gpa\":0,\"length\":5}]}}"}},"x":{"n":9007199254740993}}}`
	const want = `{"snapshots":{"memory-manager":{"snapshot_data":{"state":"{\"big\":18446744073709551615,\"memory_ranges\":{\"data\":[]}}"}},"x":{"n":9007199254740993}}}`
	if got, err := withoutRanges([]byte(state)); err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
	for text, want := range map[string]string{
		`{}`:                                    `no "snapshots"`,
		`{"snapshots":{"memory-manager":{}}}`:   `no "snapshot_data"`,
		`{"snapshots":{"memory-manager":null}}`: `no "snapshot_data"`,
		`[]`:                                    `cannot unmarshal array`,
		`{"snapshots":{"memory-manager":{"snapshot_data":{"state":"{}"}}}}`: `no "memory_ranges"`,
	} {
		if _, err := withoutRanges([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

func TestChain(t *testing.T) {
	for body, want := range map[string]string{
		`["Error from API","The VM could not boot","why"]`: "The VM could not boot: why",
		`["Error from API"]`: "Error from API",
		`["Not Found"]`:      "Not Found",
		"text\n":             "text",
		"":                   "it gives no reason",
	} {
		if got := chain([]byte(body)); got != want {
			t.Errorf("%q: got %q", body, got)
		}
	}
}
