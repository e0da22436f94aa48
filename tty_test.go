package attest

import (
	"context"
	"errors"
	"image"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// waitTTY waits for what tty1 shows, and returns when that is under way.
func (s *stage) waitTTY(t *testing.T, m *Machine, pattern string) <-chan error {
	t.Helper()
	waited := make(chan error, 1)
	begun := func(r event.Record) bool {
		e, ok := r.Event.(event.StepStarted)
		return ok && e.Operation == "wait_until_tty_matches" && strings.Contains(e.Args, pattern)
	}
	go func() { waited <- m.WaitUntilTTYMatches(s.context(t), "1", pattern) }()
	s.await(t, "the wait has begun", func() bool { return slices.ContainsFunc(s.records, begun) })
	return waited
}

// silentStage is a stage whose guests never answer.
func silentStage(t *testing.T) *stage {
	return newStage(t, mock.Options{Starting: func(context.Context, vmm.Config) (mock.Faults, error) { return mock.Faults{Silent: true}, nil }})
}

// Before a guest has answered, tty1 is what a console on the screen shows.
func TestTTYBeforeTheGuestAnswers(t *testing.T) {
	s := silentStage(t)
	c := screentest.VGA(consoleFont(t))
	m, vm := s.shows(t, c.Draw("GNU GRUB  version 2.06\n\n *Debian GNU/Linux"))
	if err := m.WaitUntilTTYMatches(limited(t), "1", `^ \*Debian GNU/Linux {60,}$`); err != nil { // as wide as a terminal
		t.Error(err)
	}
	waited := s.waitTTY(t, m, "initramfs. +$")
	vm.Show(desktop(image.Pt(9, 9))) // no console
	vm.Show(c.Draw("ALERT! the root is not there\n(initramfs)"))
	if err := <-waited; err != nil {
		t.Error(err)
	}
	waited = s.waitTTY(t, m, "never shown")
	vm.End(vmm.Killed, "by the test")
	var down *DownError
	var boot *BootError
	if err := <-waited; !errors.As(err, &down) && !errors.As(err, &boot) {
		t.Errorf("got %v", err)
	}
}

// Other terminals are not on the screen, and an empty one is none.
func TestTTYNotOnScreen(t *testing.T) {
	s := silentStage(t)
	config := MachineConfig{Name: "m", Backend: s.backend, Memory: minMemory, Boot: BootCold, BootTimeout: 500 * time.Millisecond}
	m := s.open(t, LabConfig{OutDir: t.TempDir(), Machines: []MachineConfig{config}}).Machine("m")
	var boot *BootError
	if err := m.WaitUntilTTYMatches(limited(t), "1", ""); !errors.As(err, &boot) {
		t.Errorf("got %v", err)
	}
	s.started(t, 1).Show(screentest.VGA(consoleFont(t)).Draw("login:"))
	if err := m.WaitUntilTTYMatches(limited(t), "2", "login"); !errors.As(err, &boot) {
		t.Errorf("got %v", err)
	}
	if err := m.WaitUntilTTYMatches(limited(t), "1", "login", Timeout(0)); err != nil { // one look
		t.Error(err)
	}
}

// A guest that answers is asked, whatever its screen shows.
func TestTTYOfGuestThatAnswers(t *testing.T) {
	s := newStage(t, mock.Options{})
	m, _ := s.shows(t, screentest.VGA(consoleFont(t)).Draw("only on the screen"))
	if _, err := m.Succeed(limited(t), "true"); err != nil {
		t.Fatal(err)
	}
	var we *WaitError
	if err := m.WaitUntilTTYMatches(limited(t), "1", "only on the screen", Timeout(300*time.Millisecond)); !errors.As(err, &we) || !we.Timeout() {
		t.Errorf("got %v", err)
	}
}

// One that does not answer any more has its screen left.
func TestTTYOfGuestThatHangs(t *testing.T) {
	s := newStage(t, mock.Options{})
	c := screentest.VGA(consoleFont(t))
	m, vm := s.shows(t, c.Draw("m login:"))
	if _, err := m.Succeed(limited(t), "true"); err != nil {
		t.Fatal(err)
	}
	vm.Hang(true)
	waited := s.waitTTY(t, m, "Killed process 1 ")
	vm.Show(c.Draw("Out of memory: Killed process 1 (systemd)"))
	if err := <-waited; err != nil {
		t.Error(err)
	}
	var we *WaitError
	err := m.WaitUntilTTYMatches(limited(t), "1", "never shown", Timeout(300*time.Millisecond))
	if !errors.As(err, &we) || we.LastSeen != "Out of memory: Killed process 1 (systemd)" {
		t.Errorf("got %+v", err)
	}
	vm.Hang(false)
}

// What a kernel has written when it panicked can be waited for, also when the machine is off.
func TestTTYOfPanic(t *testing.T) {
	s := newStage(t, mock.Options{})
	c := screentest.VGA(consoleFont(t))
	m, vm := s.shows(t, c.Draw("booting"))
	if _, err := m.Succeed(limited(t), "true"); err != nil {
		t.Fatal(err)
	}
	waited := s.waitTTY(t, m, "Fatal exception")
	vm.Show(c.Draw("Kernel panic - not syncing: Fatal exception"))
	vm.Say("Kernel panic - not syncing: Fatal exception\n")
	if err := <-waited; err != nil {
		t.Error(err)
	}
	var down *DownError
	if err := m.WaitForShutdown(limited(t)); !errors.As(err, &down) {
		t.Errorf("got %v", err)
	}
	if err := m.WaitUntilTTYMatches(limited(t), "1", "^Kernel panic"); err != nil {
		t.Error(err)
	}
	if err := m.WaitUntilTTYMatches(limited(t), "1", "login: "); !errors.As(err, &down) {
		t.Errorf("got %v", err)
	}
}
