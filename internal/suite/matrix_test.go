package suite

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
)

// on are the backends of the labs that were made, each once.
func (h *fakeHost) on() string {
	var names []string
	for _, l := range h.labs {
		for _, m := range l.Machines {
			names = append(names, m.Name+" "+m.Backend)
		}
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

// With several backends each test runs on each, and is reported apart.
func TestSeveralBackends(t *testing.T) {
	const tests = machine + "q = machine(image = debian(), backend = \"qemu\")\nprint('once')\ndef setup(): pass\ndef test_a(): pass\ndef test_b(): pass\n"
	for name, tt := range map[string]struct {
		option, text string
		boot         string
		labels, on   string
	}{
		"by an option":      {"qemu,mock", tests, "", "qemu mock", "m mock, m qemu, q qemu"},
		"by the file":       {"auto", "backends = [\"mock\", 'qemu']  # both\n" + tests, "", "mock qemu", "m mock, m qemu, q qemu"},
		"the option wins":   {"qemu", "backends = [\"mock\"]\n" + tests, "", "", "m qemu, q qemu"},
		"one, by the file":  {"", "backends = [\n  \"mock\",\n]\n" + tests, "", "", "m mock, q qemu"},
		"and ways to start": {"qemu,mock", tests, "both", "qemu-cold qemu-warm mock-cold mock-warm", "m mock, m qemu, q qemu"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			o := runFiles(t, t.Context(), Options{Host: attest.HostConfig{Backend: tt.option}, Boot: tt.boot, Stdout: &out}, &fakeHost{}, "a.star", tt.text)
			var want []string
			for _, test := range []string{"setup", "test_a", "test_b"} {
				for _, label := range strings.Fields(tt.labels) {
					want = append(want, fmt.Sprintf("a.star:%s[%s] passed", test, label))
				}
				if tt.labels == "" {
					want = append(want, "a.star:"+test+" passed")
				}
			}
			o.expect(t, event.Passed, 0, append(want, "a.star passed")...)
			if got := o.host.on(); got != tt.on {
				t.Errorf("labs had machines on %s, want %s", got, tt.on)
			}
			if out.String() != "once\n" {
				t.Errorf("the file said %q", out.String())
			}
		})
	}
}

// A list of backends that makes no sense is refused, and what one of them cannot do too,
// before anything starts.
func TestSeveralBackendsThatCannot(t *testing.T) {
	const keys = "def setup(): m.send_key(\"a\")\n"
	for name, tt := range map[string]struct {
		option, text string
		status       event.Status
		want         string
	}{
		"an unknown one":      {"qemu,vmware", "", event.Invalid, `--backend: unknown backend "vmware"; this attest has `},
		"twice the same":      {"qemu,qemu", "", event.Invalid, `--backend: "qemu" is there twice`},
		"nothing":             {"qemu,", "", event.Invalid, `--backend: unknown backend ""`},
		"unknown to the file": {"", "x = 1\nbackends = [\"vmware\"]\n", event.Invalid, `a.star:2:1: backends: unknown backend "vmware"; this attest has `},
		"not written out":     {"", "names = [\"qemu\"]\nbackends = names + [\"mock\"]\n", event.Invalid, `a.star:2:1: backends: want the names of backends as a list that is written out`},
		"none":                {"", "backends = []\n", event.Invalid, "a.star:1:1: backends: want the names"},
		"what one cannot do":  {"qemu,firecracker", machine + keys, event.Unsupported, "send_key is not supported by backend firecracker"},
		"a state of both":     {"qemu,mock", machine + "def setup(): pass\n", event.Invalid, "a state is of machines on one backend, and these are on 2; choose one by --backend"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := Options{Host: attest.HostConfig{Backend: tt.option}}
			if strings.HasPrefix(name, "a state") {
				opts.SaveTo = "state"
			}
			o := runFiles(t, t.Context(), opts, &fakeHost{}, "a.star", tt.text+"def main(): pass\n")
			said := fmt.Sprint(o.err)
			for _, f := range o.fails {
				said += "\n" + f.Position.String() + ": " + f.Message
			}
			if o.Status != tt.status || !strings.Contains(said, tt.want) || len(o.host.labs) > 0 {
				t.Errorf("got %s: %s\nwant %s: %s", o.Status, said, tt.status, tt.want)
			}
		})
	}
}
