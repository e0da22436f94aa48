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
	if err := os.WriteFile(r.file("secret"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(b *box) {
		t.Helper()
		for script, may := range map[string]bool{
			"cat FILES/base":               true,
			"echo x >> FILES/disk":         true,
			"head -c 1 /usr/bin/true":      true,
			"echo x > DIR/new; rm DIR/new": true,
			"cat FILES/secret":             false,
			"echo x >> FILES/base":         false,
			"echo x > FILES/new":           false,
			"rm FILES/secret":              false,
			"ls FILES":                     false,
			"cat /etc/passwd":              false,
		} {
			script = strings.NewReplacer("FILES", r.files, "DIR", b.dir).Replace(script)
			res, err := b.Run(r.ctx, guest.Command{Script: script, Limit: 1 << 20})
			if err != nil || (res.ExitCode == 0) != may {
				t.Errorf("%s: exit code %d, %v: %s%s", script, res.ExitCode, err, res.Stdout, res.Stderr)
			}
		}
	}
	b := r.start(r.config("m"))
	look(b)
	memory, err := vmm.MemoryFile("test")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	s := b.VM.(vmm.Snapshotter)
	if err := s.Pause(r.ctx); err != nil {
		t.Fatal(err)
	}
	device, err := s.Save(r.ctx, memory)
	if err != nil {
		t.Fatal(err)
	}
	restored := r.config("restored")
	restored.Restore = &vmm.State{Memory: memory, Device: device}
	look(r.start(restored))

	if err := tap.Try(t.Context()); err != nil {
		t.Skip("no TAP can be made here: ", err)
	}
	wired := r.config("wired")
	wired.NICs = []vmm.NIC{{ID: "net1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	look(r.start(wired))
}

// A Firecracker that starts through a script sees all files, as one of which nobody knows
// what it needs.
func TestScriptSeesAllFiles(t *testing.T) {
	r := newRig(t, fake.Options{})
	b := r.start(r.config("m"))
	res, err := b.Run(r.ctx, guest.Command{Script: "cat " + filepath.Join(r.files, "base"), Limit: 1 << 20})
	if err != nil || string(res.Stdout) != "base" {
		t.Errorf("got %q, %v", res.Stdout, err)
	}
}
