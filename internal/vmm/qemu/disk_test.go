package qemu

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/vmm"
)

// hostileDisk is a qcow2 image of a MiB without contents that names a file of the
// host to read from.
func hostileDisk(t *testing.T, backing string) string {
	t.Helper()
	be := binary.BigEndian
	const cluster = 1 << 16
	b := make([]byte, 4*cluster)
	copy(b, vmm.Qcow2Magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], 1<<20)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], 3*cluster)
	be.PutUint64(b[48:], cluster)
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	be.PutUint32(b[104:], 0xe2792aca)
	be.PutUint32(b[108:], 3)
	copy(b[112:], "raw")
	be.PutUint64(b[8:], 512)
	be.PutUint32(b[16:], uint32(copy(b[512:], backing)))
	be.PutUint64(b[cluster:], 2*cluster)
	for i := range 4 {
		be.PutUint16(b[2*cluster+2*i:], 1)
	}
	return writeFile(t, "hostile.qcow2", b)
}

// files are those that a machine's QEMU has open.
func (g *guest) files() (paths []string) {
	links, _ := filepath.Glob("/proc/" + strconv.Itoa(g.process.Pid()) + "/fd/*")
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

// What an image says of other files opens none of them: as the disk of a machine, as
// what one reads from, and as the contents of a raw disk, such as one to which a guest
// has written it.
func TestHostileDisks(t *testing.T) {
	secret := writeFile(t, "secret", make([]byte, 1<<20))
	hostile := hostileDisk(t, secret)
	overlay := hostileDisk(t, hostile)
	run := kernel().print("ready\n").halt().write(t)
	for name, d := range map[string]vmm.Disk{
		"the disk":  {Path: hostile, Format: "qcow2"},
		"below it":  {Path: overlay, Format: "qcow2", Backing: []vmm.Backing{{Path: hostile, Format: "qcow2"}}},
		"read-only": {Path: hostile, Format: "qcow2", ReadOnly: true},
		"raw":       {Path: hostile, Format: "raw"},
		"no format": {Path: hostile},
		"raw below": {Path: overlay, Format: "qcow2", Backing: []vmm.Backing{{Path: hostile, Format: "raw"}}},
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: run, Disks: []vmm.Disk{d}}})
			g.expect("ready")
			files := g.files()
			if slices.Contains(files, secret) || !slices.Contains(files, d.Path) {
				t.Errorf("QEMU has open: %q", files)
			}
			var nodes []blockNode
			g.must(g.monitor.Do(t.Context(), "query-named-block-nodes", map[string]any{"flat": true}, &nodes))
			want := 2 + 2*len(d.Backing) // of each file its contents and itself
			if len(nodes) != want {
				t.Errorf("%d block nodes, want %d: %+v", len(nodes), want, nodes)
			}
		})
	}
}

// QEMU has no option against an external data file, so such an image is not started.
func TestExternalDataFile(t *testing.T) {
	path := hostileDisk(t, "x")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[79] |= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []vmm.Disk{{Path: path, Format: "qcow2"}, {Path: hostileDisk(t, path), Format: "qcow2", Backing: []vmm.Backing{{Path: path, Format: "qcow2"}}}} {
		_, err := (&backend{}).Start(t.Context(), newHost(t), vmm.Config{Name: "web", Boot: &vmm.Hardware{Disks: []vmm.Disk{d}}})
		var refused *vmm.DiskError
		if !errors.As(err, &refused) || refused.Path != path || !strings.HasPrefix(err.Error(), "web: ") {
			t.Errorf("got %v", err)
		}
	}
}

// A QEMU that knows the sandbox runs in it, and another one without.
func TestSandbox(t *testing.T) {
	g := startHalted(t)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(g.process.Pid()) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if !hasSeccomp() {
		t.Skip("the kernel has no seccomp")
	}
	if !strings.Contains(string(status), "\nSeccomp:\t2\n") {
		t.Errorf("QEMU has no filter:\n%s", status)
	}
	fake(t, `case "$*" in *-sandbox*) exit 1;; *--version*) echo "QEMU emulator version 7.2.0";; esac`)
	if p, err := (&backend{}).find(); err != nil || p.sandbox || p.version != "7.2.0" {
		t.Errorf("%+v, %v", p, err)
	}
	if f := sandboxFinding(installed{}); f.OK || f.Remedy == "" {
		t.Errorf("%+v", f)
	}
}
