package firecracker

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
	"github.com/attest-vm/attest/internal/vmm/microvm/contract"
)

// A Firecracker that a guest has taken over opens no file of the host that its machine
// was not given: with network cards and without, and after a restore. A command in the
// fake's guest runs with the rights of the process, and stands for that.
func TestFirecrackerSeesItsOwnFiles(t *testing.T) {
	r := newRig(t, fake.Options{Program: true})
	p, err := newBackend().finder.Find("")
	if err != nil {
		t.Fatal(err)
	}
	if why := vmm.WhyVisible(p.Path, false); why != "" {
		t.Skip(why)
	}
	if err := os.WriteFile(r.File("secret"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(b *contract.Box) {
		t.Helper()
		for script, may := range map[string]bool{
			"cat FILES/base":               true,
			"echo x >> FILES/disk-NAME":    true,
			"head -c 1 /usr/bin/true":      true,
			"echo x > DIR/new; rm DIR/new": true,
			"cat FILES/secret":             false,
			"echo x >> FILES/base":         false,
			"echo x > FILES/new":           false,
			"rm FILES/secret":              false,
			"ls FILES":                     false,
			"cat /etc/passwd":              false,
		} {
			script = strings.NewReplacer("FILES", r.Files, "DIR", b.Dir, "NAME", filepath.Base(b.Dir)).Replace(script)
			res, err := b.Run(r.Ctx, guest.Command{Script: script, Limit: 1 << 20})
			if err != nil || (res.ExitCode == 0) != may {
				t.Errorf("%s: exit code %d, %v: %s%s", script, res.ExitCode, err, res.Stdout, res.Stderr)
			}
		}
	}
	b := r.Start(r.Config("m"))
	look(b)
	memory, err := vmm.MemoryFile("test")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	s := b.VM.(vmm.Snapshotter)
	if err := s.Pause(r.Ctx); err != nil {
		t.Fatal(err)
	}
	device, err := s.Save(r.Ctx, memory)
	if err != nil {
		t.Fatal(err)
	}
	restored := r.Config("restored")
	restored.Restore = &vmm.State{Memory: memory, Device: device}
	look(r.Start(restored))

	if err := tap.Try(t.Context()); err != nil {
		t.Skip("no TAP can be made here: ", err)
	}
	wired := r.Config("wired")
	wired.NICs = []vmm.NIC{{ID: "net1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	look(r.Start(wired))
}

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
