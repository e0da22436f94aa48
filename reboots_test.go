package attest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
	"github.com/attest-vm/attest/internal/wire"
)

// A wait that the guest's reboot interrupts goes on in the next boot, where the guest
// may reboot by itself.
func TestWaitsGoOnOverReboots(t *testing.T) {
	resets := make(chan struct{}, 1)
	s := newStage(t, mock.Options{Operating: func(ctx context.Context, m *mock.Machine, op string) {
		if op != wire.OpUntil {
			return
		}
		select {
		case <-resets:
			go m.End(vmm.Reset, "")
			<-ctx.Done()
		default:
		}
	}})
	path := filepath.Join(t.TempDir(), "file")
	m := s.lab(t, "a").Machine("a")
	if err := m.Start(limited(t), AllowReboot()); err != nil {
		t.Fatal(err)
	}
	resets <- struct{}{}
	if out, err := m.WaitUntilSucceeds(limited(t), "echo yes > "+path+"; echo done"); err != nil || out != "done\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := os.Stat(path); err != nil || s.started(t, 1).Boots() != 2 {
		t.Errorf("%d boots, %v", s.started(t, 1).Boots(), err)
	}

	// A reboot that has come counts, once.
	if err := m.WaitForReboot(limited(t)); err != nil {
		t.Error(err)
	}
	var we *WaitError
	if err := m.WaitForReboot(limited(t), Timeout(100*time.Millisecond)); !errors.As(err, &we) || we.LastSeen != "the guest has not rebooted" {
		t.Errorf("got %v", err)
	}
	go s.started(t, 1).End(vmm.Reset, "")
	if err := m.WaitForReboot(limited(t)); err != nil {
		t.Error(err)
	}
	if err := m.Reboot(limited(t)); err != nil { // this one is nobody's news
		t.Fatal(err)
	}
	if err := m.WaitForReboot(limited(t), Timeout(100*time.Millisecond)); !errors.As(err, &we) {
		t.Errorf("got %v", err)
	}
}

// Where the guest may not reboot, its reset ends the machine, and so the wait.
func TestResetEndsWaits(t *testing.T) {
	s := newStage(t, mock.Options{Operating: func(ctx context.Context, m *mock.Machine, op string) {
		if op == wire.OpUntil {
			go m.End(vmm.Reset, "")
			<-ctx.Done()
		}
	}})
	m := s.lab(t, "a").Machine("a")
	err := m.WaitForReboot(limited(t))
	if err == nil || StatusOf(err) != Invalid || !strings.HasSuffix(err.Error(), "a reset of its guest ends the machine; declare it with allow_reboot=true") {
		t.Errorf("got %v", err)
	}
	var down *DownError
	if _, err := m.WaitUntilSucceeds(limited(t), "true"); !errors.As(err, &down) || down.Reason != "reset" {
		t.Errorf("got %v", err)
	}
}
