package mock

import (
	"bytes"
	"testing"

	"github.com/attest-vm/attest/internal/vmm"
)

// FuzzLoad: a saved guest that somebody made up is refused, or goes on as one that
// answers.
func FuzzLoad(f *testing.F) {
	f.Add([]byte("n"), []byte(`{"Nonce": "n", "Used": [1], "Units": {"a.service": "active"}}`))
	f.Add([]byte{}, []byte(`{"Used": [-1], "Units": null}`))
	f.Add([]byte("n"), []byte(`{"Nonce": "no"}`))
	f.Add([]byte("n"), []byte("null"))
	script, err := ParseScript([]byte(`{"answers": [{"match": ".*", "times": 2, "units": {"b.service": "active"}}], "files": {"/a": "b"}}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, memory, device []byte) {
		c, err := newCanned(&local{machine: &Machine{config: vmm.Config{Dir: t.TempDir()}}}, script)
		if err != nil {
			t.Fatal(err)
		}
		if c.load(bytes.NewReader(memory), device) != nil {
			return
		}
		c.setUnits(c.answer("x").Units)
		c.unit("b.service")
		if _, err := c.local.save(new(bytes.Buffer)); err != nil {
			t.Errorf("it cannot be saved again: %v", err)
		}
	})
}
