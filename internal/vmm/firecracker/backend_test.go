package firecracker

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
)

func check(c vmm.Config) error { return newBackend().Check(c) }

// What Firecracker, or this version of it, does not have is refused by name before
// anything starts.
func TestCheck(t *testing.T) {
	bz := filepath.Join(t.TempDir(), "bzImage")
	if err := os.WriteFile(bz, []byte("MZ and so on"), 0o600); err != nil {
		t.Fatal(err)
	}
	kernel := func(release string) *vmm.Hardware {
		path := filepath.Join(t.TempDir(), "vmlinux")
		if err := os.WriteFile(path, []byte("\x7fELF and so on, Linux version "+release+" (gcc)"), 0o600); err != nil {
			t.Fatal(err)
		}
		return &vmm.Hardware{Vmlinux: path}
	}
	options := func(text string) *vmm.Hardware { return &vmm.Hardware{Options: json.RawMessage(text)} }
	for _, tt := range []struct {
		name, version string
		boot          vmm.Boot
		want          string // empty: it is fine
		status        event.Status
	}{
		{"nothing special", "1.7.0", &vmm.Hardware{}, "", ""},
		{"all options", "1.17.0-dev", options(`{"huge_pages": "Transparent", "entropy": false, "enable_pci": true, "io_engine": "Async", "cache_type": "Writeback"}`), "", ""},
		{"too old", "1.6.3", &vmm.Hardware{}, "version 1.6.3 is too old, attest needs 1.7", event.Infra},
		{"a machine type", "", &vmm.Hardware{Type: "q35"}, `m: machine type "q35" is not supported by backend firecracker`, event.Unsupported},
		{"a screen", "", &vmm.Hardware{Display: true}, "m: a display is not supported by backend firecracker: it has no screen", event.Unsupported},
		{"many CPUs", "", &vmm.Hardware{CPUs: 33}, "a machine of 33 CPUs is not supported by backend firecracker: the limit is 32", event.Unsupported},
		{"a start command", "", &vmm.Command{Line: "x"}, "a start command is not supported by backend firecracker", event.Unsupported},
		{"a mock", "", &vmm.Mock{}, "a machine of a *vmm.Mock is not supported", event.Unsupported},
		{"qcow2", "", &vmm.Hardware{Disks: []vmm.Disk{{Serial: "x", Format: "qcow2"}}}, "qemu-img convert -O raw OLD NEW", event.Unsupported},
		{"PCI of old", "1.12.1", options(`{"enable_pci": true}`), "enable_pci is not supported by backend firecracker: it needs Firecracker 1.13, and ", event.Unsupported},
		{"huge pages of old", "1.16.1", options(`{"huge_pages": "Transparent"}`), "huge_pages Transparent is not supported by backend firecracker: it needs Firecracker 1.17", event.Unsupported},
		{"a bzImage", "1.16.1", &vmm.Hardware{Kernel: bz}, "bzImage, which is not an uncompressed vmlinux (ELF), is not supported by backend firecracker: it needs Firecracker 1.17", event.Unsupported},
		{"a bzImage of now", "1.17.0", &vmm.Hardware{Kernel: bz}, "", ""},
		{"persistent memory", "1.14.0", options(`{"pmem_image_paths": ["` + bz + `"]}`), "", ""},
		{"persistent memory of old", "1.13.1", options(`{"pmem_image_paths": ["` + bz + `"]}`), "pmem_image_paths is not supported by backend firecracker: it needs Firecracker 1.14", event.Unsupported},
		{"persistent memory of nothing", "", options(`{"pmem_image_paths": ["/nonexistent"]}`), "pmem_image_paths: stat /nonexistent: no such file", event.Invalid},
		{"persistent memory of a directory", "", options(`{"pmem_image_paths": ["/"]}`), "pmem_image_paths: / is not a file with something in it", event.Invalid},
		{"a new kernel", "1.13.1", kernel("6.17.2"), "m: a guest with Linux 6.17, of whose vsock older versions lose data, is not supported by backend firecracker: it needs Firecracker 1.14, and ", event.Unsupported},
		{"a new kernel of a new version", "1.14.0", kernel("7.0.9"), "", ""},
		{"an old kernel", "1.7.0", kernel("6.12.48-amd64"), "", ""},
		{"an unknown option", "", options(`{"hugepages": "2M"}`), `unknown field "hugepages"`, event.Invalid},
		{"a value", "", options(`{"io_engine": "Fast"}`), `io_engine="Fast": want Sync or Async`, event.Invalid},
		{"a disk that boots", "", &vmm.Hardware{Bare: true, Disks: []vmm.Disk{{Serial: "x"}}}, "a disk that boots by itself is not supported by backend firecracker: it has no firmware", event.Unsupported},
		{"a root shell", "", &vmm.Hardware{Bare: true, Vmlinux: "/k", Disks: []vmm.Disk{{Serial: "x"}}, Options: json.RawMessage(`{"vsock_cid": 4, "vsock_port": 99}`)}, "", ""},
		{"the agent's port", "", options(`{"vsock_port": 1024}`), "vsock_port=1024: want a positive number that is not 1024", event.Invalid},
		{"no binary", "", options(`{"firecracker_bin": "/nonexistent/firecracker"}`), "/nonexistent/firecracker: no such file or directory; install Firecracker 1.7.0", event.Infra},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fake.Install(t, fake.Options{Version: tt.version})
			err := check(vmm.Config{Name: "m", Boot: tt.boot})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var status interface{ Status() event.Status }
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.status != "" && (!errors.As(err, &status) || status.Status() != tt.status) {
				t.Errorf("got %v, want %q (%s)", err, tt.want, tt.status)
			}
		})
	}
}

func TestNoKVM(t *testing.T) {
	fake.Install(t, fake.Options{})
	t.Setenv("ATTEST_ACCEL", "tcg")
	err := check(vmm.Config{Name: "m", Boot: &vmm.Hardware{}})
	var unsupported *vmm.UnsupportedError
	if !errors.As(err, &unsupported) || !strings.Contains(unsupported.Reason, "hardware virtualisation (KVM): ") || !strings.Contains(unsupported.Reason, "qemu") && !strings.Contains(unsupported.Reason, "kvm") {
		t.Errorf("got %v", err)
	}
	if d := newBackend().Examine(t.Context()); d.Usable || len(d.Findings) != 4 || !d.Findings[0].OK || d.Findings[2].OK {
		t.Errorf("got %+v", d)
	}
}

func TestNoProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv(Env, "")
	if err := check(vmm.Config{Boot: &vmm.Hardware{}}); err == nil || !strings.Contains(err.Error(), "firecracker: not found on PATH") {
		t.Errorf("got %v", err)
	}
	t.Setenv(Env, "/nonexistent")
	if err := check(vmm.Config{Boot: &vmm.Hardware{}}); err == nil || !strings.Contains(err.Error(), "see the environment variable "+Env) {
		t.Errorf("got %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(Env, self+"x")
	if d := newBackend().Examine(t.Context()); d.Usable || len(d.Findings) != 1 || d.Findings[0].OK {
		t.Errorf("got %+v", d)
	}
}

// Pause and snapshots are refused where they would lose the guest.
func TestVersionsThatLoseGuests(t *testing.T) {
	for version, want := range map[string]struct{ pause, save bool }{
		"1.15.1": {true, true}, "1.16.0": {false, false}, "1.16.1": {false, true}, "1.17.0-dev": {true, true},
	} {
		t.Run(version, func(t *testing.T) {
			r := newRig(t, fake.Options{Version: version})
			c := r.Config("m")
			ok, lack := newBackend().Offers(c, vmm.CanPause)
			if ok != want.pause || !ok && !strings.Contains(lack.Reason, version) {
				t.Errorf("pause: %v, %v", ok, lack)
			}
			err := r.Start(c).VM.(vmm.Doubtful).WillSave()
			offered, _ := newBackend().Offers(c, vmm.CanSave)
			if (err == nil) != want.save || offered != want.save {
				t.Errorf("save: %v", err)
			}
		})
	}
}

// Nothing is saved that could not be restored.
func TestHugePagesAreNotSaved(t *testing.T) {
	for pages, saved := range map[string]bool{"None": true, "Transparent": true, "2M": false} {
		r := newRig(t, fake.Options{Version: "1.17.0"})
		c := r.Config("m")
		c.Boot.(*vmm.Hardware).Options = json.RawMessage(`{"huge_pages": "` + pages + `"}`)
		m := r.Start(c)
		for _, err := range []error{m.VM.(vmm.Doubtful).WillSave(), m.VM.(vmm.Doubtful).CanSave(r.Ctx)} {
			if (err == nil) != saved || err != nil && !strings.Contains(err.Error(), `snapshot is not supported by backend firecracker: Firecracker cannot map a saved memory with huge_pages "2M"`) {
				t.Errorf("%s: %v", pages, err)
			}
		}
	}
}

func TestOffers(t *testing.T) {
	fake.Install(t, fake.Options{})
	for what, want := range map[vmm.Capability]bool{vmm.CanReset: true, vmm.CanListen: true, vmm.CanShow: false, vmm.CanType: false, vmm.CanInteract: false, vmm.CanTell: false} {
		if got, _ := newBackend().Offers(vmm.Config{Boot: &vmm.Hardware{}}, what); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

// pmemOf are options with a file as persistent memory.
func pmemOf(t *testing.T) json.RawMessage {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pmem.img")
	if err := os.WriteFile(path, []byte("persistent"), 0o600); err != nil {
		t.Fatal(err)
	}
	return json.RawMessage(`{"pmem_image_paths": ["` + path + `"]}`)
}

// Persistent memory is told to versions that know it, and goes with a machine that is saved.
func TestPmem(t *testing.T) {
	r := newRig(t, fake.Options{Version: "1.14.0"})
	c := r.Config("m")
	c.Boot.(*vmm.Hardware).Options = pmemOf(t)
	m := r.Start(c)
	m.Says(r.Ctx, "persistent memory pmem0, read-only: true", 1)
	m.Runs(r.Ctx)
	clone := r.Config("clone")
	clone.Boot.(*vmm.Hardware).Options = c.Boot.(*vmm.Hardware).Options
	clone.Restore = r.Save(m)
	r.Start(clone).Runs(r.Ctx)
}

// The fingerprint has what a saved machine depends on, and nothing of one machine.
func TestFingerprint(t *testing.T) {
	r := newRig(t, fake.Options{})
	print := func(c vmm.Config) string {
		t.Helper()
		text, err := newBackend().Fingerprint(r.Host, c)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	base := print(r.Config("a"))
	other := r.Config("b")
	other.Boot.(*vmm.Hardware).Disks[1].Path = "/elsewhere"
	if print(other) != base {
		was, is := vmm.Difference(base, print(other))
		t.Errorf("another machine of the same kind differs: %q, %q", was, is)
	}
	for name, change := range map[string]func(*vmm.Config, *vmm.Hardware){
		"memory":  func(_ *vmm.Config, hw *vmm.Hardware) { hw.Memory = 128 },
		"CPUs":    func(_ *vmm.Config, hw *vmm.Hardware) { hw.CPUs = 2 },
		"cmdline": func(_ *vmm.Config, hw *vmm.Hardware) { hw.Cmdline = "quiet" },
		"disks":   func(_ *vmm.Config, hw *vmm.Hardware) { hw.Disks = hw.Disks[:1] },
		"cards":   func(c *vmm.Config, _ *vmm.Hardware) { c.NICs = []vmm.NIC{{ID: "net1"}} },
		"pmem":    func(_ *vmm.Config, hw *vmm.Hardware) { hw.Options = pmemOf(t) },
		"options": func(_ *vmm.Config, hw *vmm.Hardware) { hw.Options = json.RawMessage(`{"entropy": false}`) },
	} {
		c := r.Config("c")
		change(&c, c.Boot.(*vmm.Hardware))
		if print(c) == base {
			t.Errorf("another %s makes no difference", name)
		}
	}
	fake.Install(t, fake.Options{Version: "1.15.1"})
	if print(r.Config("d")) == base {
		t.Error("another version makes no difference")
	}
}
