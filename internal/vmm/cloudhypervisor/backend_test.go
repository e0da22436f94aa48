package cloudhypervisor

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/cloudhypervisor/fake"
)

// What cloud-hypervisor does not have is refused by name before anything starts.
func TestCheck(t *testing.T) {
	options := func(text string) *vmm.Hardware { return &vmm.Hardware{Options: json.RawMessage(text)} }
	for _, tt := range []struct {
		name, version string
		boot          vmm.Boot
		want          string // empty: it is fine
		status        event.Status
	}{
		{"nothing special", "43.0", &vmm.Hardware{}, "", ""},
		{"a version of a commit", "53.0-246-gae44c2971-dirty", &vmm.Hardware{}, "", ""},
		{"too old", "42.0", &vmm.Hardware{}, "version 42.0 is too old, attest needs 43.0", event.Infra},
		{"a machine type", "", &vmm.Hardware{Type: "q35"}, `m: machine type "q35" is not supported by backend cloud-hypervisor`, event.Unsupported},
		{"a screen", "", &vmm.Hardware{Display: true}, "m: a display is not supported by backend cloud-hypervisor: it has no screen", event.Unsupported},
		{"many CPUs", "", &vmm.Hardware{CPUs: 255}, "a machine of 255 CPUs is not supported by backend cloud-hypervisor: the limit is 254", event.Unsupported},
		{"a start command", "", &vmm.Command{Line: "x"}, "a start command is not supported by backend cloud-hypervisor", event.Unsupported},
		{"a mock", "", &vmm.Mock{}, "a machine of a *vmm.Mock is not supported", event.Unsupported},
		{"qcow2", "", &vmm.Hardware{Disks: []vmm.Disk{{Serial: "x", Format: "qcow2"}}}, "qemu-img convert -O raw OLD NEW", event.Unsupported},
		{"an unknown option", "", options(`{"huge_pages": "2M"}`), `machine "m": options of backend cloud-hypervisor: json: unknown field "huge_pages"`, event.Invalid},
		{"a disk that boots", "", &vmm.Hardware{Bare: true, Disks: []vmm.Disk{{Serial: "x"}}}, "a disk that boots by itself is not supported by backend cloud-hypervisor: it has no firmware", event.Unsupported},
		{"a root shell", "", &vmm.Hardware{Bare: true, Kernel: "/k", Vmlinux: "/k", Disks: []vmm.Disk{{Serial: "x"}}, Options: json.RawMessage(`{"vsock_cid": 4, "vsock_port": 99}`)}, "", ""},
		{"an address of the host", "", options(`{"vsock_cid": 2}`), "vsock_cid=2: the numbers below 3 are the host's", event.Invalid},
		{"the agent's port", "", options(`{"vsock_port": 1024}`), "vsock_port=1024: want a positive number that is not 1024", event.Invalid},
		{"no store", "", options(`{"store_image_path": "/nonexistent"}`), "store_image_path: stat /nonexistent: no such file", event.Invalid},
		{"no binary", "", options(`{"cloud_hypervisor_bin": "/nonexistent/ch"}`), "/nonexistent/ch: no such file or directory; install cloud-hypervisor 43", event.Infra},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fake.Install(t, fake.Options{Version: tt.version})
			err := newBackend().Check(vmm.Config{Name: "m", Boot: tt.boot})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var status interface{ Status() event.Status }
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.As(err, &status) || status.Status() != tt.status {
				t.Errorf("got %v, want %q (%s)", err, tt.want, tt.status)
			}
		})
	}
}

func TestNoKVM(t *testing.T) {
	fake.Install(t, fake.Options{})
	t.Setenv("ATTEST_ACCEL", "tcg")
	var unsupported *vmm.UnsupportedError
	if err := newBackend().Check(vmm.Config{Name: "m", Boot: &vmm.Hardware{}}); !errors.As(err, &unsupported) {
		t.Errorf("got %v", err)
	}
	if d := newBackend().Examine(t.Context()); d.Usable || d.Version != "53.0" || len(d.Findings) != 4 || !d.Findings[0].OK || d.Findings[2].OK {
		t.Errorf("got %+v", d)
	}
}

func TestOffers(t *testing.T) {
	for what, want := range map[vmm.Capability]bool{vmm.CanPause: true, vmm.CanReset: true, vmm.CanListen: true, vmm.CanShow: false, vmm.CanType: false, vmm.CanInteract: false} {
		if got, _ := newBackend().Offers(vmm.Config{Boot: &vmm.Hardware{}}, what); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
