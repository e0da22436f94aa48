package attest

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// What is on the screen when a kernel has panicked is kept: for the report, for waits that are under
// way, and for who looks when the machine is off.
func TestScreenOfPanic(t *testing.T) {
	s := newStage(t, mock.Options{})
	c := screentest.VGA(consoleFont(t))
	m, vm := s.shows(t, c.Draw("booting"))
	waited := make(chan error, 1)
	go func() { waited <- m.WaitForText(s.context(t), "Fatal exception$") }()
	s.await(t, "the wait has begun", func() bool {
		return slices.ContainsFunc(s.records, func(r event.Record) bool {
			e, ok := r.Event.(event.StepStarted)
			return ok && e.Operation == "wait_for_text"
		})
	})
	want := c.Draw("Kernel panic - not syncing: Fatal exception")
	vm.Show(want)
	vm.Say("Kernel panic - not syncing: Fatal exception\n")
	if err := <-waited; err != nil {
		t.Error(err)
	}
	var down *DownError
	if err := m.WaitForShutdown(limited(t)); !errors.As(err, &down) {
		t.Errorf("got %v", err)
	}
	if text, err := m.ScreenText(limited(t)); err != nil || text != "Kernel panic - not syncing: Fatal exception" {
		t.Errorf("%q, %v", text, err)
	}
	if err := m.WaitForText(limited(t), "^Kernel panic"); err != nil {
		t.Error(err)
	}
	if err := m.WaitForText(limited(t), "login:"); !errors.As(err, &down) || !strings.Contains(err.Error(), "Fatal exception") {
		t.Errorf("got %v", err)
	}
	if err := m.SendKey(limited(t), "ret"); !errors.As(err, &down) {
		t.Errorf("got %v", err)
	}
	if err := m.Screenshot(limited(t), "later"); err != nil {
		t.Error(err)
	}
	pictures, _ := filepath.Glob(filepath.Join(m.lab.out.dir, "m-panic-*.png"))
	for _, path := range append(pictures, filepath.Join(m.lab.out.dir, "later.png")) {
		got, err := screen.ReadFile(path)
		if err != nil || !screen.Changed(want, got).Empty() {
			t.Errorf("%s has another picture: %v", path, err)
		}
	}
	if len(pictures) != 1 {
		t.Errorf("pictures of the panic: %q", pictures)
	}
	// The next start has a screen of its own.
	if err := m.Start(limited(t)); err != nil {
		t.Fatal(err)
	}
	if text, err := m.ScreenText(limited(t)); err != nil || text != "" {
		t.Errorf("%q, %v", text, err)
	}
}

// The picture of a wait that failed goes to the directory of the wait's test, also if the lab is there for more tests
// than that, and reports know whose it is.
func TestScreenOfFailedWait(t *testing.T) {
	s := newStage(t, mock.Options{})
	m, _ := s.shows(t, screentest.VGA(consoleFont(t)).Draw("booting"))
	scope := event.Scope{File: "a_test.star", Test: "test_it"}
	ctx := event.WithScope(limited(t), scope)
	var pictures []Picture
	for len(pictures) == 0 { // on a busy host there may be no time for one
		var we *WaitError
		if err := m.WaitForText(ctx, "never", Timeout(0)); !errors.As(err, &we) {
			t.Fatalf("got %v", err)
		}
		for _, d := range we.Details {
			pictures = append(pictures, d.Pictures...)
		}
	}
	path := pictures[0].Path
	if dir := filepath.Join(m.lab.out.dir, "a_test-test_it", "m"); filepath.Dir(path) != dir {
		t.Errorf("the picture is %s, want one in %s", path, dir)
	}
	if _, err := screen.ReadFile(path); err != nil {
		t.Error(err)
	}
	s.await(t, "the picture is reported", func() bool {
		return slices.ContainsFunc(s.records, func(r event.Record) bool {
			e, ok := r.Event.(event.Artifact)
			return ok && e.Path == path && r.Scope.Test == "test_it"
		})
	})
}
