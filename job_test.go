package attest

import (
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/vmm/mock"
)

// A job that a snapshot has and its guest has not is named; a machine that boots has
// none. What becomes of jobs whose guest goes on is TestFork in test/, since a mock
// that is restored has no processes.
func TestJobsThatAreLost(t *testing.T) {
	s := newStage(t, mock.Options{Warm: true})
	l := s.lab(t, "a")
	ctx := limited(t)
	m := l.Machine("a")
	job, err := m.Spawn(ctx, "echo before; exec sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := job.WaitForOutput(ctx, "before"); err != nil {
		t.Fatal(err)
	}
	if err := l.Checkpoint(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if jobs, err := m.Jobs(ctx); err != nil || len(jobs) != 1 || jobs[0] != job || !job.Running() {
		t.Fatalf("jobs %v, %v; the checkpoint has ended it", jobs, err)
	}
	if err := l.Restore(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if jobs, err := m.Jobs(ctx); err != nil || len(jobs) != 0 {
		t.Errorf("after the restore: %v, %v", jobs, err)
	}
	if said := s.warnings(); !strings.Contains(said, "a: the job `echo before; exec sleep 1000` of the snapshot is lost") {
		t.Errorf("warned of %q", said)
	}
	if _, err := m.Spawn(ctx, "exec sleep 1000"); err != nil {
		t.Fatal(err)
	}
	if err := m.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Succeed(ctx, "true"); err != nil {
		t.Fatal(err)
	}
	if jobs, err := m.Jobs(ctx); err != nil || len(jobs) != 0 {
		t.Errorf("after a boot: %v, %v", jobs, err)
	}
}
