package attest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/vmm/mock"
)

func TestSuspendAndWake(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	for range 3 {
		if err := m.Suspend(limited(t)); err != nil {
			t.Fatal(err)
		}
		for name, op := range map[string]func() error{
			"succeed":  func() error { _, err := m.Succeed(limited(t), "true"); return err },
			"suspend":  func() error { return m.Suspend(limited(t)) },
			"reboot":   func() error { return m.Reboot(limited(t)) },
			"shutdown": func() error { return m.Shutdown(limited(t)) },
			"snapshot": func() error { _, err := m.lab.Snapshot(limited(t)); return err },
		} {
			var asleep *SuspendedError
			if err := op(); !errors.As(err, &asleep) || asleep.Machine != "a" || asleep.Operation != name || StatusOf(err) != Failed {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if err := m.SendKey(limited(t), "shift"); err != nil { // that is how a person wakes one
			t.Error(err)
		}
		if err := m.Wake(limited(t)); err != nil {
			t.Fatal(err)
		}
		prints(t, m, "echo awake", "awake\n")
	}
	var we *WaitError
	if err := m.Wake(limited(t), Timeout(100*time.Millisecond)); !errors.As(err, &we) || we.LastSeen != "the guest is awake" {
		t.Errorf("got %v", err)
	}
}

// A guest may suspend by itself, and wake by itself.
func TestSleepByItself(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	prints(t, m, "echo awake", "awake\n")
	vm := s.started(t, 1)
	woken := make(chan error, 1)
	go func() { woken <- m.Wake(limited(t)) }()
	vm.Suspend(true)
	if err := <-woken; err != nil {
		t.Error(err)
	}
	if err := m.Suspend(limited(t)); err != nil {
		t.Fatal(err)
	}
	vm.Suspend(false)
	prints(t, m, "echo awake", "awake\n")
	if err := m.Wake(limited(t)); err != nil { // does not wait for another sleep
		t.Error(err)
	}
	if err := m.Suspend(limited(t)); err != nil {
		t.Fatal(err)
	}
	vm.Suspend(false)
	if err := m.Wake(limited(t)); err != nil {
		t.Error(err)
	}
}

func TestSuspendIsRefused(t *testing.T) {
	for _, c := range []struct {
		config MachineConfig
		want   string
	}{
		{MachineConfig{Backend: "qemu", Type: "microvm"}, "no keyboard, whose key wakes others; give it one with type=\"q35\""},
		{MachineConfig{Backend: "firecracker"}, "Firecracker cannot wake a guest that sleeps (backends that can: qemu)"},
		{MachineConfig{Backend: "cloud-hypervisor"}, "cloud-hypervisor cannot wake a guest that sleeps (backends that can: qemu)"},
		{MachineConfig{Backend: "mock"}, "processes of this host"},
	} {
		c.config.Name, c.config.Image = "m", Debian{}
		m := &Machine{config: c.config, lab: &Lab{host: &Host{}}}
		for name, err := range map[string]error{"suspend": m.Suspend(t.Context()), "wake": m.Wake(t.Context())} {
			if err == nil || StatusOf(err) != Unsupported || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v (%s), want %q", name, err, StatusOf(err), c.want)
			}
		}
	}
}
