// Package attest runs integration tests on real virtual machines.
//
// A [Lab] is a set of machines and the networks between them; a [Machine] is
// one guest. In go test, [New] gives a lab whose operations fail the test:
//
//	func TestServes(t *testing.T) {
//		lab := attest.New(t,
//			attest.MachineConfig{Name: "server", Image: attest.Debian{Packages: []string{"nginx"}}},
//			attest.MachineConfig{Name: "client", Image: attest.Debian{Packages: []string{"curl"}}},
//		)
//		lab.Machine("server").WaitForUnit("nginx.service")
//		lab.Machine("client").Succeed("curl -sf http://server/")
//	}
//
// No root and no daemon is needed, only QEMU on the PATH, and mmdebstrap to
// build images (attest doctor says what is missing). Machines of a lab reach
// each other by name and nothing else. Whatever way the test ends, kill -9 and
// -timeout included, nothing of it stays behind.
//
// Outside go test, [OpenHost] and [Host.NewLab] give the same operations with a
// context and an error.
package attest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// TB is what [New] needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
	Cleanup(func())
	Context() context.Context
}

// New lays out a lab for a test and closes it when the test ends. Machines
// start on first use; their images are built if need be. Anything that goes
// wrong ends the test.
func New(t TB, machines ...MachineConfig) *TestLab {
	t.Helper()
	return NewLab(t, LabConfig{Name: t.Name(), Machines: machines})
}

// NewLab is New with a whole configuration.
func NewLab(t TB, config LabConfig) *TestLab {
	t.Helper()
	return testLab(t, func(ctx context.Context, h *Host) (*Lab, error) { return h.NewLab(ctx, config) })
}

// testLab makes a lab for a test, and closes it when the test ends.
func testLab(t TB, make func(context.Context, *Host) (*Lab, error)) *TestLab {
	t.Helper()
	ctx, cancel := testContext(t)
	host, err := shared.open(ctx)
	if err != nil {
		cancel()
		t.Fatalf("attest: %v", err)
	}
	lab, err := make(ctx, host)
	if err != nil {
		shared.close()
		cancel()
		t.Fatalf("attest: %s", explainError(err))
	}
	t.Logf("attest: seed %[1]d (%[2]s=%[1]d repeats its random decisions)", lab.Seed(), seedEnv)
	l := &TestLab{lab, scope{t, ctx}}
	t.Cleanup(func() {
		l.keep()
		err := lab.Network().settle(ctx)
		err = errors.Join(err, lab.Close(), shared.close())
		cancel()
		if err != nil {
			t.Logf("attest: closing the lab: %v", err)
		}
	})
	return l
}

// testGrace is what is left of the test binary's own deadline (-timeout) for
// attest to say what hangs and to clean up; go test itself would say nothing
// but a stack trace.
const testGrace = 10 * time.Second

func testContext(t TB) (context.Context, context.CancelFunc) {
	bus := &event.Bus{}
	log := &testLog{t: t}
	cancelLog := bus.Subscribe(log.record)
	// Not t.Context itself: that one ends before the Cleanup functions run.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	stop := context.AfterFunc(t.Context(), func() { cancel(context.Cause(t.Context())) })
	var timer *time.Timer
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if deadline, ok := d.Deadline(); ok {
			timer = time.AfterFunc(time.Until(deadline)-testGrace, func() {
				cancel(fmt.Errorf("the test binary's -timeout is near (in %v)", testGrace))
			})
		}
	}
	ctx = event.WithScope(event.WithBus(ctx, bus), event.Scope{Test: t.Name()})
	return ctx, func() {
		stop()
		if timer != nil {
			timer.Stop()
		}
		cancel(nil)
		cancelLog()
	}
}

// testLog writes to the test's log what helps to read a failure.
type testLog struct {
	t TB
}

func (l *testLog) record(r event.Record) {
	switch e := r.Event.(type) {
	case event.Progress:
		if e.Done || e.Message == "" {
			l.t.Logf("%s %s", e.Title, map[bool]string{true: "done", false: "…"}[e.Done])
		}
	case event.MachineState:
		l.t.Logf("%s: %s (%v)", e.Machine, e.State, roundDuration(e.After))
	case event.StepFinished:
		// Failures are reported by Fatalf, with all that belongs to them.
	case event.Log:
		l.t.Logf("%s%s", prefix(e.Machine), e.Text)
	case event.FaultStarted:
		l.t.Logf("network: %s", e.Fault)
	case event.FaultEnded:
		l.t.Logf("network: %s ended after %v (%d of %d frames affected)", e.Fault, roundDuration(e.Duration), e.Affected, e.Frames)
	case event.Output:
		if e.Stream == "stderr" {
			l.t.Logf("%s%s", prefix(e.Machine), strings.TrimSuffix(e.Data, "\n"))
		}
	}
}

func prefix(machine string) string {
	if machine == "" {
		return ""
	}
	return machine + ": "
}

// shared is the Host of all tests of this process that are under way.
var shared sharedHost

type sharedHost struct {
	mu   sync.Mutex
	host *Host
	uses int
}

func (s *sharedHost) open(ctx context.Context) (*Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == nil {
		host, err := OpenHost(ctx, HostConfig{})
		if err != nil {
			return nil, err
		}
		s.host = host
	}
	s.uses++
	return s.host, nil
}

func (s *sharedHost) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses--; s.uses > 0 {
		return nil
	}
	err := s.host.Close()
	s.host = nil
	return err
}
