package attest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/vmm/mock"
)

// A guest whose agent does not answer is asked to end by the power button.
func TestShutdownOfSilentGuest(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	prints(t, m, "echo out", "out\n")
	s.started(t, 1).Hang(true)
	if err := m.Shutdown(limited(t), Timeout(2*time.Second)); err != nil {
		t.Fatal(err)
	}
	if m.IsUp() {
		t.Error("it is up")
	}
}

// A machine without a power button goes on, and the error says of what it was waited for.
func TestShutdownWithoutButton(t *testing.T) {
	s := newStage(t, mock.Options{Without: []mock.Group{mock.Power}})
	m := s.lab(t, "a").Machine("a")
	prints(t, m, "echo out", "out\n")
	s.started(t, 1).Hang(true)
	err := m.Shutdown(limited(t), Timeout(100*time.Millisecond))
	var we *WaitError
	if !errors.As(err, &we) || !strings.Contains(we.LastSeen, "the machine still runs") {
		t.Errorf("got %v", err)
	}
	if err := m.PressPowerButton(limited(t)); StatusOf(err) != Unsupported {
		t.Errorf("press_power_button: %v", err)
	}
}

func TestPressPowerButton(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	var down *DownError
	if err := m.PressPowerButton(limited(t)); !errors.As(err, &down) || down.Reason != "it is off" {
		t.Errorf("of a machine that is off: %v", err)
	}
	prints(t, m, "echo out", "out\n")
	if err := m.Pause(limited(t)); err != nil {
		t.Fatal(err)
	}
	var paused *PausedError
	if err := m.PressPowerButton(limited(t)); !errors.As(err, &paused) {
		t.Errorf("of a paused machine: %v", err)
	}
	if err := m.Resume(limited(t)); err != nil {
		t.Fatal(err)
	}
	s.started(t, 1).Hang(true) // the guest's agent is not needed
	if err := m.PressPowerButton(limited(t)); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitForShutdown(limited(t)); err != nil {
		t.Error(err)
	}
}
