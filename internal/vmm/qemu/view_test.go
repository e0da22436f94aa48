package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/vmm"
)

// A QEMU that does what somebody else wants opens no file of the host that its machine
// was not given. The monitor stands for a guest that has broken out.
func TestQEMUSeesItsOwnFiles(t *testing.T) {
	if why := vmm.WhyVisible("/usr/bin/qemu-system-x86_64", true); why != "" {
		t.Skip(why)
	}
	secret := writeFile(t, "secret", make([]byte, 1<<20))
	given := writeFile(t, "given", make([]byte, 1<<20))
	shared := writeFile(t, "shared", make([]byte, 1<<20))
	g := start(t, vmm.Config{Boot: &vmm.Hardware{
		Kernel: kernel().print("ready\n").halt().write(t),
		Disks:  []vmm.Disk{{Path: given}, {Path: shared, ReadOnly: true}},
	}})
	g.expect("ready")
	open := func(path string, readOnly bool) error {
		const node = "another"
		err := g.monitor.Do(t.Context(), "blockdev-add", map[string]any{
			"node-name": node, "driver": "file", "filename": path, "read-only": readOnly, "locking": "off",
		}, nil)
		if err == nil {
			g.must(g.monitor.Do(t.Context(), "blockdev-del", map[string]string{"node-name": node}, nil))
		}
		return err
	}
	dump := func(path string) error {
		return g.monitor.Do(t.Context(), "pmemsave", map[string]any{"val": 0, "size": 4096, "filename": path}, nil)
	}
	own, err := filepath.EvalSymlinks("/proc/self/exe") // of this user, and not of the system
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		err error
		may bool
	}{
		"read what is not the machine's":         {open(secret, true), false},
		"write to what is not the machine's":     {open(secret, false), false},
		"read a program of the user's":           {open(own, true), false},
		"read the user's list":                   {open("/etc/passwd", true), false},
		"make a file beside what was given":      {dump(filepath.Join(filepath.Dir(given), "new")), false},
		"make a file in the user's directory":    {dump(filepath.Join(t.TempDir(), "new")), false},
		"read the machine's disk":                {open(given, true), true},
		"write to the machine's disk":            {open(given, false), true},
		"read a disk that is shared":             {open(shared, true), true},
		"write to a disk that is shared":         {open(shared, false), false},
		"read a program of the system":           {open("/usr/bin/true", true), true},
		"make a file in the machine's directory": {dump(filepath.Join(g.dir(), "new")), true},
	} {
		switch {
		case tt.may && tt.err != nil:
			t.Errorf("%s: %v", name, tt.err)
		case !tt.may && (tt.err == nil || !strings.Contains(tt.err.Error(), "ermission denied")):
			t.Errorf("%s: got %v", name, tt.err)
		}
	}
}

// dir is the machine's directory.
func (g *guest) dir() string {
	dir, err := os.Readlink(filepath.Join("/proc", itoa(g.process.Pid()), "cwd"))
	if err != nil {
		g.t.Fatal(err)
	}
	return dir
}

// A QEMU that does what somebody else wants does not change the memory from which other
// machines go on, too.
func TestQEMUChangesNoSnapshot(t *testing.T) {
	config := vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().print("ready\n").halt().write(t)}}
	g := start(t, config)
	g.expect("ready")
	saved, _ := g.snapshot()
	g.must(vmm.Seal(saved.Memory))
	original := memoryOf(t, saved)
	attack := func(memory *os.File, want string) {
		t.Helper()
		config.Restore, config.Paused = &vmm.State{Memory: memory, Device: saved.Device}, true
		clone := start(t, config)
		_, path, _ := strings.Cut(clone.arguments(), "mem-path=")
		path, _, _ = strings.Cut(path, "\x00")
		err := clone.monitor.Do(t.Context(), "pmemsave", map[string]any{"val": 0, "size": 4096, "filename": path}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("write to %s: got %v", path, err)
		}
		clone.must(clone.Resume(t.Context()))
		if !bytes.Equal(memoryOf(t, vmm.State{Memory: memory}), original) {
			t.Error("the memory has changed")
		}
	}
	attack(saved.Memory, "Operation not permitted")

	qemu, err := (&backend{}).find()
	g.must(err)
	if qemu.visible != "" || !qemu.mapsReadOnly() {
		t.Logf("QEMU %s may write to a file that it goes on from", qemu.version)
		return
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	g.must(err)
	defer file.Close()
	g.must(vmm.CopySparse(file, saved.Memory))
	attack(file, "ermission denied")
}

// arguments are those of QEMU, each with a zero after it.
func (g *guest) arguments() string {
	text, err := os.ReadFile(filepath.Join("/proc", itoa(g.process.Pid()), "cmdline"))
	g.must(err)
	return string(text)
}
