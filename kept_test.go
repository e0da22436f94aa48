package attest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A directory that keeps the files of a machine belongs to one lab at a time, and its lab's
// forks do without.
func TestKeptFiles(t *testing.T) {
	state := t.TempDir()
	script := filepath.Join(t.TempDir(), "run-box-vm")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec false\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	config := LabConfig{StateDir: state, Machines: []MachineConfig{{StartCommand: script}, {Name: "other", Backend: "mock"}}}
	lab, err := testHost.NewLab(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	box := lab.Machine("box")
	dir := filepath.Join(state, "vm-state-box")
	if box.disks() != dir || box.config.Boot != BootCold || lab.Machine("other").kept != nil {
		t.Errorf("its directory is %s, and it starts %s", box.disks(), box.config.Boot)
	}
	if state, shared, _, err := lab.directories("box"); err != nil || state != dir || shared == "" {
		t.Errorf("got %s, %s, %v", state, shared, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "box.qcow2"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = testHost.NewLab(t.Context(), config)
	if StatusOf(err) != Invalid || !strings.Contains(err.Error(), `machine "box": another run uses its state in `+dir) {
		t.Errorf("another lab: %v", err)
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := testHost.NewLab(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if text, err := os.ReadFile(filepath.Join(again.Machine("box").disks(), "box.qcow2")); err != nil || string(text) != "x" {
		t.Errorf("got %q, %v", text, err)
	}
	// A checkpoint puts other files into the directory, which stays locked.
	if err := again.Machine("box").removeDisks(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("got %v, %v", left, err)
	}
	if _, err := testHost.NewLab(t.Context(), config); err == nil {
		t.Error("two labs have it")
	}
}
