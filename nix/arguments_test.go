package nix

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// effects are what one sees of each argument of makeTest in a test to which it is given, and
// not in the same test without it. Of containers one sees a refusal (TestRefused).
var effects = map[string]func(e evaluated) bool{
	"name":       func(e evaluated) bool { return e.Name == "vm-test-run-another" },
	"nodes":      func(e evaluated) bool { return len(e.Config.Machines) == 1 && len(e.Machines) == 1 },
	"testScript": func(e evaluated) bool { return e.Text == "pass # another\n" && strings.Contains(e.Driver, "test.py") },
	"test": func(e evaluated) bool {
		return e.Text == "def test_another(): pass" && strings.Contains(e.Driver, "test.star")
	},
	"backend": func(e evaluated) bool { return e.says(`"backend":"firecracker"`, 3) },
	"vlans": func(e evaluated) bool {
		return slices.Equal(e.Config.VLANs, []int{1, 2, 3, 4}) && len(e.Machines["server"].Interfaces) == 2
	},
	"globalTimeout": func(e evaluated) bool { return e.Config.GlobalTimeout == 61 },
	"memorySize":    func(e evaluated) bool { return e.Machines["server"].Memory == 700 },
	"vcpus":         func(e evaluated) bool { return e.Machines["server"].Cores == 3 },
	"hugePages":     func(e evaluated) bool { return e.says(`"huge_pages":"2M"`, 3) },
	"entropy":       func(e evaluated) bool { return e.says(`"entropy":false`, 3) },
	"splitStore":    func(e evaluated) bool { return e.says(`-attest-store-t/store.erofs"`, 3) },
	"enableNetwork": func(e evaluated) bool { return len(e.Config.VLANs) == 0 && len(e.Machines["client-1"].Interfaces) == 0 },
	"extraPackages": func(e evaluated) bool { return strings.Contains(e.Driver, "/nix/store/a-program/bin") },
	"enableOCR":     func(e evaluated) bool { return strings.Contains(e.Driver, "/nix/store/tesseract/bin") },
	"skipCheck":     func(e evaluated) bool { return !strings.Contains(e.Driver, "/bin/attest check ") },
	"preScript":     func(e evaluated) bool { return strings.Contains(e.Script, "export ATTEST_BOOT=cold\n") },
	"passthru":      func(e evaluated) bool { return e.Mine == "mine" },
	"meta":          func(e evaluated) bool { return e.Meta.Description == "a test" },
	"defaults":      func(e evaluated) bool { return e.Machines["server"].Firewall && e.Machines["alone"].Firewall },
	"specialArgs":   func(e evaluated) bool { return slices.Contains(e.Machines["server"].KernelParams, "a-parameter") },
	"debugBoot": func(e evaluated) bool {
		return slices.Contains(e.Machines["server"].KernelParams, "systemd.log_level=debug")
	},
	"extraDriverArgs": func(e evaluated) bool {
		return strings.Contains(e.Driver, "--add-flags '--seed=7'") || strings.Contains(e.Driver, "--add-flags --seed=7")
	},
	"extraPythonPackages":  func(e evaluated) bool { return strings.Contains(e.Driver, "/nix/store/python3-with-yaml/bin") },
	"usePrebuiltSnapshots": func(e evaluated) bool { return e.says(`-attest-snapshot-server/server"`, 1) },
	"firecrackerPackage":   func(e evaluated) bool { return e.says(`"firecracker_bin":"/nix/store/another-vmm/bin/firecracker"`, 3) },
	"cloudHypervisorPackage": func(e evaluated) bool {
		return e.says(`"cloud_hypervisor_bin":"/nix/store/another-vmm/bin/cloud-hypervisor"`, 3)
	},
}

// says reports whether the configurations of so many machines have a text.
func (e evaluated) says(text string, machines int) bool {
	n := 0
	for _, m := range e.Config.Machines {
		if strings.Contains(string(m), text) {
			n++
		}
	}
	return n == machines
}

// Each argument of makeTest has its effect, and docs/nix.md names it.
func (e evaluation) arguments(t *testing.T) {
	page, err := os.ReadFile("../docs/nix.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range e.Arguments.Names {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/nix.md does not name the argument %s", name)
		}
		has := effects[name]
		if has == nil {
			if name != "containers" {
				t.Errorf("no effect of the argument %s is known", name)
			}
			continue
		}
		with, ok := e.Arguments.Given[name]
		if !ok || !has(with) {
			t.Errorf("a test with the argument %s (%v) is as one without: %+v", name, ok, with)
		}
		if has(e.Arguments.Without) || name != "backend" && has(e.Arguments.WithoutOnMicroVM) {
			t.Errorf("a test without the argument %s is as one with it", name)
		}
	}
	for name := range effects {
		if !slices.Contains(e.Arguments.Names, name) {
			t.Errorf("makeTest has no argument %s", name)
		}
	}
	if m := e.Arguments.Given["debugBootOnMicroVM"]; !m.says("systemd.log_level=debug", 3) || e.Arguments.WithoutOnMicroVM.says("systemd.log_level", 3) {
		t.Errorf("the kernels of microVMs are told\n%s", m.Config.Machines)
	}

	for name, n := range e.OfANode.Machines {
		if n.Memory != 900 || n.Cores != 4 {
			t.Errorf("%s has %d MiB and %d processors, and says itself 900 and 4", name, n.Memory, n.Cores)
		}
	}
	if got := e.OfANode.Config.GlobalTimeout; got != 62 || len(e.OfANode.Machines) != 3 {
		t.Errorf("a test of another one with 62 seconds has %d seconds and %d machines", got, len(e.OfANode.Machines))
	}
	if f := read(t, e.Starlark.Config); f.GlobalTimeout != time.Minute || len(f.VLANs) != 0 {
		t.Errorf("a test of a minute without networks has %v and networks %v", f.GlobalTimeout, f.VLANs)
	}
}

// What nodes set of the instrumentation's options counts.
func (e evaluation) options(t *testing.T) {
	for option, units := range map[string][]string{"agent": {"backdoor"}, "backdoor": {}, "vsockBackdoor": {"attest-agent", "backdoor", "vsock-backdoor"}, "vsockPort": {"vsock-backdoor"}} {
		test := e.Options[option]
		for name, n := range test.Machines {
			var got []string
			for _, unit := range []string{"attest-agent", "backdoor", "vsock-backdoor"} {
				if _, ok := n.Units[unit]; ok {
					got = append(got, unit)
				}
			}
			if !slices.Equal(got, units) || slices.Contains(n.Packages, "/nonexistent") == (option == "agent") {
				t.Errorf("%s, of which %s is set, has the units %v and the programs %v", name, option, got, n.Packages)
			}
			if exec := n.Units["vsock-backdoor"].Exec; option == "vsockPort" && !strings.Contains(exec, "/socat VSOCK-LISTEN:77,") {
				t.Errorf("%s: its backdoor on vsock is %s", name, exec)
			}
		}
		if len(test.Machines) != 3 {
			t.Errorf("%d machines of a test of %s", len(test.Machines), option)
		}
	}
	if !e.Options["vsockPort"].says(`"vsock_port":77`, 3) {
		t.Errorf("the port of the backdoor is not in %s", e.Options["vsockPort"].Config.Machines)
	}
}

// Which arguments make another snapshot.
func (e evaluation) snapshots(t *testing.T) {
	another := map[string]bool{"script": false, "budget": false, "memory": true, "node": true, "vmm": true, "attest": true}
	for what, want := range another {
		if got := e.SnapshotKeys[what] != e.SnapshotKeys["base"]; got != want || e.SnapshotKeys[what] == "" {
			t.Errorf("with another %s another snapshot is made: %v (%s)", what, got, e.SnapshotKeys[what])
		}
	}
	if len(e.SnapshotKeys) != len(another)+1 {
		t.Errorf("there are %d snapshots", len(e.SnapshotKeys))
	}
}
