package suite

import (
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	chfake "github.com/attest-vm/attest/internal/vmm/cloudhypervisor/fake"
	fcfake "github.com/attest-vm/attest/internal/vmm/firecracker/fake"
)

// A file that names no backend gets the cheapest that this host has and that can do what
// the file asks for.
func TestCheapestBackend(t *testing.T) {
	const test = "def test_a(): m.succeed('x')\n"
	for name, tt := range map[string]struct {
		fc, ch string // versions; empty: it is not there
		text   string
		on     string
		said   string
	}{
		"the first":              {"1.17.0", "53.0", machine + test, "m firecracker", "backend auto: firecracker, since it can do what the file asks for"},
		"the one that is there":  {"", "53.0", machine + test, "m cloud-hypervisor", "since it can do what the file asks for; not firecracker: firecracker: not found on PATH"},
		"none is there":          {"", "", machine + test, "m auto", ""},
		"a screen":               {"1.17.0", "", "m = machine(image = debian(), display = True)\ndef test_a(): m.screenshot('x')\n", "m auto", "a display is not supported by backend firecracker"},
		"a call by its name":     {"1.17.0", "", machine + "def test_a(): getattr(m, 'send_key')('a')\n", "m auto", "send_key is not supported by backend firecracker"},
		"a pause that loses":     {"1.16.1", "53.0", machine + "def test_a(): m.pause()\n", "m cloud-hypervisor", "nobody reaches a guest any more after a pause"},
		"a cable":                {"1.17.0", "", machine + "def test_a(): m.block()\n", "m auto", "a guest there does not see that its link is down"},
		"nodes":                  {"1.17.0", "53.0", "m = machine(image = debian(), cpus = 2, numa = 2)\n" + test, "m auto", "numa is not supported"},
		"hardware of QEMU's":     {"1.17.0", "53.0", "m = machine(image = debian(), nic = 'e1000')\n" + test, "m auto", "a network card of model e1000 is not supported"},
		"a machine type":         {"1.17.0", "53.0", "m = machine(image = debian(), type = 'q35')\n" + test, "m auto", `machine type "q35" is not supported`},
		"all machines name one":  {"1.17.0", "", "m = machine(image = debian(), backend = 'qemu')\n" + test, "m qemu", ""},
		"some machines name one": {"1.17.0", "", machine + "q = machine(image = debian(), backend = 'qemu')\n" + test, "m firecracker, q qemu", "backend auto: firecracker"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", "/bin:/usr/bin")
			if tt.fc != "" {
				fcfake.Install(t, fcfake.Options{Version: tt.fc})
			}
			if tt.ch != "" {
				chfake.Install(t, chfake.Options{Version: tt.ch})
			}
			o := runFiles(t, t.Context(), Options{Host: attest.HostConfig{Backend: "auto"}}, &fakeHost{}, "a.star", tt.text)
			if got := o.host.on(); got != tt.on {
				t.Errorf("labs had machines on %s, want %s", got, tt.on)
			}
			said := ""
			for _, r := range o.seq {
				if l, ok := r.Event.(event.Log); ok {
					said += l.Text + "\n"
				}
			}
			if !strings.Contains(said, tt.said) || tt.said == "" && said != "" {
				t.Errorf("it said %q, want %q", said, tt.said)
			}
		})
	}
}
