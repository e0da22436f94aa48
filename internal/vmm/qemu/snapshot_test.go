package qemu

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/attest-vm/attest/internal/vmm"
)

// Machines that go on from a saved one, and from one that was restored itself.
func TestSnapshot(t *testing.T) {
	t.Run("blind", func(t *testing.T) { testSnapshot(t, false) })
	t.Run("with a screen", func(t *testing.T) { testSnapshot(t, true) })
}

func testSnapshot(t *testing.T, display bool) {
	config := vmm.Config{Boot: &vmm.Hardware{Display: display, Kernel: kernel().print("ready\n").count().write(t)}}
	booted := start(t, config)
	booted.expect("ready")
	booted.poll("the counter goes up", func() bool { return booted.counter() != "0x00000000" })
	first, at := booted.snapshot()
	original := memoryOf(t, first)
	booted.must(booted.Resume(t.Context()))
	booted.poll("the machine that was saved goes on", func() bool { return booted.counter() != at })

	config.Restore, config.Paused, config.AllowReboot = &first, true, true
	one, two := start(t, config), start(t, config)
	for _, clone := range []*guest{one, two} {
		if got := clone.counter(); got != at {
			t.Errorf("a clone begins at %s, want %s", got, at)
		}
		clone.must(clone.Resume(t.Context()))
		clone.poll("a clone goes on", func() bool { return clone.counter() != at })
	}
	second, later := one.snapshot()
	if !bytes.Equal(memoryOf(t, first), original) {
		t.Error("the snapshot was changed by its clones")
	}
	config.Restore = &second
	three := start(t, config)
	if got := three.counter(); got != later {
		t.Errorf("the clone of a clone begins at %s, want %s", got, later)
	}
	third, same := three.snapshot()
	if same != later || !bytes.Equal(memoryOf(t, third), memoryOf(t, second)) {
		t.Error("a clone that has not run is not what it was made of")
	}
	// The firmware is there, and the kernel.
	three.must(three.Reset(t.Context()))
	three.must(three.Resume(t.Context()))
	three.expect("ready")
}

// What is on the screen is saved, also of a machine that was restored itself.
func TestSnapshotOfScreen(t *testing.T) {
	// mov ax,0xb800; mov ds,ax; 1: inc word [0]; jmp 1b
	counting := bootSector().print("ready\n").bytes(0xb8, 0x00, 0xb8, 0x8e, 0xd8, 0xff, 0x06, 0x00, 0x00, 0xeb, 0xfa)
	config := vmm.Config{Boot: &vmm.Hardware{Display: true, Disks: []vmm.Disk{{Path: counting.writeDisk(t), ReadOnly: true}}}}
	booted := start(t, config)
	booted.expect("ready")
	first, _ := booted.snapshot()
	config.Restore, config.Paused = &first, true
	one := start(t, config)
	before := one.screen()
	if !bytes.Equal(before, booted.screen()) {
		t.Error("a clone does not show what was saved")
	}
	one.must(one.Resume(t.Context()))
	one.poll("the screen changes", func() bool { return !bytes.Equal(one.screen(), before) })
	second, _ := one.snapshot()
	config.Restore = &second
	if two := start(t, config); !bytes.Equal(two.screen(), one.screen()) {
		t.Error("the clone of a clone does not show what was saved")
	}
}

func (g *guest) screen() []byte {
	g.t.Helper()
	path := filepath.Join(g.dir(), "screen.png")
	g.must(g.Screenshot(g.t.Context(), path, vmm.PNG))
	picture, err := os.ReadFile(path)
	g.must(err)
	return picture
}

// snapshot pauses the machine and saves it.
func (g *guest) snapshot() (s vmm.State, counter string) {
	g.t.Helper()
	g.must(g.Pause(g.t.Context()))
	memory, err := vmm.MemoryFile("test")
	g.must(err)
	g.t.Cleanup(func() { memory.Close() })
	device, err := g.Save(g.t.Context(), memory)
	g.must(err)
	return vmm.State{Memory: memory, Device: device}, g.counter()
}

func memoryOf(t *testing.T, s vmm.State) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(s.Memory, 0, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is damaged is refused, and the QEMU that got it ends.
func TestRestoreOfDamage(t *testing.T) {
	config := vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().print("ready\n").halt().write(t)}}
	g := start(t, config)
	g.expect("ready")
	s, _ := g.snapshot()
	host := newHost(t)
	config.Name, config.Dir = "web", host.Supervisor.Dir()
	for name, device := range map[string][]byte{
		"nothing":   nil,
		"truncated": s.Device[:len(s.Device)-1000],
		"garbage":   append(bytes.Clone(s.Device[:4]), bytes.Repeat([]byte{0x55}, len(s.Device)-4)...),
	} {
		config.Restore = &vmm.State{Memory: s.Memory, Device: device}
		vm, err := (&backend{}).Start(t.Context(), host, config)
		if err == nil {
			vm.Kill()
			vm.Console().Close()
			t.Errorf("%s: it was restored", name)
			continue
		}
		t.Logf("%s: %v", name, err)
	}
	config.Restore, config.Boot.(*vmm.Hardware).Memory = &s, 32
	if _, err := (&backend{}).Start(t.Context(), host, config); err == nil {
		t.Error("a memory of another size was restored")
	}
}
