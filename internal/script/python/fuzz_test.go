package python

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

// FuzzDeclared: whatever a Python says that a file has declared, it is a list of machines and networks that can
// be, or errors that say what is wrong.
func FuzzDeclared(f *testing.F) {
	for _, seed := range []string{
		`{"machines": [{"settings": {"name": "a", "backend": "mock"}, "variable": "a"}, {"settings": {"name": "A", "backend": "mock"}}]}`,
		`{"machines": [{"settings": {"image": {"debian": {"packages": ["x"]}}, "memory": -1}, "variable": ""}]}`,
		`{"machines": [{"settings": {"start_command": "run-b-vm", "nonsense": null}}, {}]}`,
		`{"networks": [{"number": 1, "dhcp": true, "dns": false, "ra": true}, {"number": 256}, {"number": "x"}, {}]}`,
		`{"error": {"type": "ValueError", "message": "x"}}`, `{"machines": null}`, `null`, `[]`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var d declared
		if json.Unmarshal(text, &d) != nil {
			return
		}
		got := &file{path: "x.py", variables: map[string]attest.MachineConfig{}, declared: &declarations{networks: map[int]attest.NetworkConfig{}}}
		errs := append(got.declareMachines(&d, ""), got.declareNetworks(&d)...)
		for _, err := range errs {
			if err.Err == nil || err.Err.Error() == "" {
				t.Errorf("%s: an error without a text: %+v", text, err)
			}
		}
		if len(errs) > 0 {
			return
		}
		names := map[string]bool{}
		for _, m := range got.machines {
			if name := strings.ToLower(m.Name); name == "" || names[name] {
				t.Errorf("%s: a machine has the name %q", text, m.Name)
			}
			names[strings.ToLower(m.Name)] = true
		}
		for n := range got.declared.networks {
			if n < 1 || n > 255 {
				t.Errorf("%s: network %d", text, n)
			}
		}
	})
}
