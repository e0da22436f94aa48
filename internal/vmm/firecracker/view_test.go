package firecracker

import (
	"path/filepath"
	"testing"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
)

// A Firecracker that starts through a script sees all files, as one of which nobody knows
// what it needs.
func TestScriptSeesAllFiles(t *testing.T) {
	r := newRig(t, fake.Options{})
	b := r.Start(r.Config("m"))
	res, err := b.Run(r.Ctx, guest.Command{Script: "cat " + filepath.Join(r.Files, "base"), Limit: 1 << 20})
	if err != nil || string(res.Stdout) != "base" {
		t.Errorf("got %q, %v", res.Stdout, err)
	}
}
