package attest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
	"github.com/attest-vm/attest/internal/wire"
)

func TestMockMachine(t *testing.T) {
	s := newStage(t, mock.Options{})
	l := s.lab(t, "a", "b")
	a := l.Machine("a")
	prints(t, a, "echo out", "out\n")
	if err := l.Machine("b").Start(limited(t)); err != nil {
		t.Fatal(err)
	}
	id := s.started(t, 1).Identity()
	if id.Hostname != "a" || id.MachineID != a.id || len(id.Hosts) != 2 || len(id.Interfaces) != 1 {
		t.Errorf("its identity is %+v", id)
	}
	if err := a.Shutdown(limited(t)); err != nil {
		t.Fatal(err)
	}
	prints(t, a, "echo again", "again\n") // on first use, again
	if s.starts() != 3 {
		t.Errorf("%d starts", s.starts())
	}
}

// faulty are options for machines of which all starts have these faults.
func faulty(f mock.Faults) mock.Options {
	return mock.Options{Starting: func(context.Context, vmm.Config) (mock.Faults, error) { return f, nil }}
}

// What ends a machine before its guest has answered is what the operation that
// waits for it says, with the right kind.
func TestEndsBeforeReady(t *testing.T) {
	for _, test := range []struct {
		reason vmm.ExitReason
		want   string
		status Status
	}{
		{vmm.PoweredOff, "guest did not boot: powered off", BootFailed},
		{vmm.Reset, "guest did not boot: reset", BootFailed},
		{vmm.Panicked, "guest did not boot: Kernel panic - not syncing: of this kind", BootFailed},
		{vmm.Killed, "the machine is down: killed", Infra},
		{vmm.Broken, "the machine is down: of this kind", Infra},
	} {
		t.Run(string(test.reason), func(t *testing.T) {
			s := newStage(t, faulty(mock.Faults{Silent: true}))
			m := s.lab(t, "a").Machine("a")
			go func() { s.started(t, 1).End(test.reason, "of this kind") }()
			_, err := m.Succeed(limited(t), "true")
			if err == nil || !strings.Contains(err.Error(), test.want) || StatusOf(err) != test.status {
				t.Errorf("got %v (%s), want %s (%s)", err, StatusOf(err), test.want, test.status)
			}
			// It stays down, and says why.
			var down *DownError
			if _, err := m.Succeed(limited(t), "true"); !errors.As(err, &down) {
				t.Errorf("later: %v", err)
			}
		})
	}
}

// A machine that ends while its guest is told who it is has not booted.
func TestEndsWhileGreeting(t *testing.T) {
	greeting := make(chan *mock.Machine, 1)
	s := newStage(t, mock.Options{Operating: func(ctx context.Context, m *mock.Machine, op string) {
		if op == wire.OpIdentity {
			greeting <- m
			<-ctx.Done()
		}
	}})
	m := s.lab(t, "a").Machine("a")
	go func() { (<-greeting).End(vmm.PoweredOff, "") }()
	_, err := m.Succeed(limited(t), "true")
	var boot *BootError
	if !errors.As(err, &boot) || boot.Reason != "powered off" {
		t.Errorf("got %v", err)
	}
	if got := s.states(); slices.Contains(got, "a ready") {
		t.Errorf("states: %v", got)
	}
}

func TestBootTimeout(t *testing.T) {
	s := newStage(t, faulty(mock.Faults{Silent: true}))
	l := s.open(t, LabConfig{Machines: []MachineConfig{{Name: "a", Backend: s.backend, Boot: BootCold, BootTimeout: 50 * time.Millisecond}}})
	_, err := l.Machine("a").Succeed(limited(t), "true")
	var boot *BootError
	if !errors.As(err, &boot) || !strings.Contains(boot.Reason, "did not answer within 50ms") {
		t.Errorf("got %v", err)
	}
}

// A VMM that does not start says why, and the machine can be started again.
func TestStartFails(t *testing.T) {
	fail := true
	s := newStage(t, mock.Options{Starting: func(context.Context, vmm.Config) (mock.Faults, error) {
		if fail {
			return mock.Faults{StartError: "no such device"}, nil
		}
		return mock.Faults{}, nil
	}})
	m := s.lab(t, "a").Machine("a")
	_, err := m.Succeed(limited(t), "true")
	var start *vmm.StartError
	if !errors.As(err, &start) || start.Output != "no such device" || StatusOf(err) != Infra {
		t.Errorf("got %v (%s)", err, StatusOf(err))
	}
	fail = false
	prints(t, m, "echo now", "now\n")
}

// The end of the VMM under a command is what the command's error says.
func TestEndsUnderACommand(t *testing.T) {
	for _, test := range []struct {
		reason vmm.ExitReason
		status Status
	}{
		{vmm.PoweredOff, Failed}, {vmm.Panicked, Failed}, {vmm.Killed, Infra}, {vmm.Broken, Infra},
	} {
		t.Run(string(test.reason), func(t *testing.T) {
			executing := make(chan *mock.Machine, 1)
			s := newStage(t, mock.Options{Operating: func(_ context.Context, m *mock.Machine, op string) {
				if op == wire.OpExec {
					executing <- m
				}
			}})
			m := s.lab(t, "a").Machine("a")
			go func() { (<-executing).End(test.reason, "of this kind") }()
			_, err := m.Succeed(limited(t), "sleep 1000")
			var down *DownError
			if !errors.As(err, &down) || down.Operation != "succeed" || StatusOf(err) != test.status {
				t.Errorf("got %v (%s)", err, StatusOf(err))
			}
		})
	}
}

func TestPausedAndKilled(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	ctx := limited(t)
	prints(t, m, "echo here", "here\n")
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	var paused *PausedError
	if _, err := m.Succeed(ctx, "true"); !errors.As(err, &paused) {
		t.Errorf("of a paused machine: %v", err)
	}
	s.started(t, 1).End(vmm.Killed, "")
	s.awaitState(t, "a crashed")
	for name, op := range map[string]func() error{
		"resume":  func() error { return m.Resume(ctx) },
		"succeed": func() error { _, err := m.Succeed(ctx, "true"); return err },
	} {
		var down *DownError
		if err := op(); !errors.As(err, &down) || !down.Broken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRebootTwice(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	prints(t, m, "echo here", "here\n")
	for range 2 {
		if err := m.Reboot(limited(t)); err != nil {
			t.Fatal(err)
		}
		prints(t, m, "echo here", "here\n")
	}
	vm := s.started(t, 1)
	if vm.Boots() != 3 || s.starts() != 1 || vm.Identity().Hostname != "a" {
		t.Errorf("%d boots in %d starts, as %q", vm.Boots(), s.starts(), vm.Identity().Hostname)
	}
	// Without being asked for, a reset is the end of the machine.
	vm.End(vmm.Reset, "")
	s.awaitState(t, "a crashed")
}

// A guest may be gone before it has answered that it restarts.
func TestRebootBeforeItsAnswer(t *testing.T) {
	s := newStage(t, mock.Options{Operating: func(ctx context.Context, m *mock.Machine, op string) {
		if op == wire.OpPower {
			go m.End(vmm.Reset, "")
			<-ctx.Done()
		}
	}})
	m := s.lab(t, "a").Machine("a")
	prints(t, m, "true", "")
	if err := m.Reboot(limited(t)); err != nil {
		t.Fatal(err)
	}
	prints(t, m, "echo again", "again\n")
}

// A guest that is ready is so after its machine runs: reports are made of that.
func TestReadyAfterRunning(t *testing.T) {
	s := newStage(t, mock.Options{})
	l := s.lab(t, "a")
	m := l.Machine("a")
	prints(t, m, "true", "")
	snapshot, err := l.Snapshot(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Close()
	for range 5 {
		s.note(func() { s.records = nil })
		fork, err := snapshot.Fork(s.context(t))
		if err != nil {
			t.Fatal(err)
		}
		s.awaitState(t, "a ready")
		got := s.states()
		if err := fork.Close(); err != nil {
			t.Error(err)
		}
		if want := []string{"a starting", "a running", "a ready"}; !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

// A lab that is closed while a VMM starts ends the start, and what it began.
func TestCloseDuringLaunch(t *testing.T) {
	starting, goOn := make(chan struct{}), make(chan struct{})
	s := newStage(t, mock.Options{Starting: func(context.Context, vmm.Config) (mock.Faults, error) {
		close(starting)
		<-goOn
		return mock.Faults{}, nil
	}})
	l := s.lab(t, "a")
	begun := make(chan error, 1)
	go func() { begun <- l.Machine("a").Start(limited(t)) }()
	<-starting
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	close(goOn)
	if err := <-begun; !errors.Is(err, errLabClosed) {
		t.Errorf("got %v", err)
	}
	if s.starts() > 0 {
		<-s.started(t, 1).Done() // it was ended
	}
}

// A lab can be closed under anything.
func TestCloseUnderOperations(t *testing.T) {
	executing := make(chan struct{}, 1)
	s := newStage(t, mock.Options{Operating: func(_ context.Context, _ *mock.Machine, op string) {
		if op == wire.OpExec {
			executing <- struct{}{}
		}
	}})
	l := s.lab(t, "a", "b")
	failed := make(chan error, 2)
	go func() { _, err := l.Machine("a").Succeed(limited(t), "sleep 1000"); failed <- err }()
	<-executing
	go func() { failed <- l.Machine("a").WaitForConsoleText(limited(t), "never") }()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-failed; err == nil || StatusOf(err) == Passed {
			t.Errorf("got %v", err)
		}
	}
}

// Each machine starts once, whoever wants it.
func TestConcurrentStartAll(t *testing.T) {
	s := newStage(t, mock.Options{})
	l := s.lab(t, "a", "b", "c")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := l.StartAll(limited(t)); err != nil {
				t.Error(err)
			}
		})
		for _, m := range l.Machines() {
			wg.Go(func() { prints(t, m, "true", "") })
		}
	}
	wg.Wait()
	if s.starts() != 3 {
		t.Errorf("%d starts of 3 machines", s.starts())
	}
}

// What the guest refuses can be told by errors.As through an operation's error.
func TestRefusalsKeepTheirType(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	ctx := limited(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"copy_from_machine": m.CopyFromMachine(ctx, "/does/not/exist", ""),
		"copy_from_host":    m.CopyFromHost(ctx, file, "/proc/self/no/such"),
		"get_window_names":  second(m.WindowNames(ctx)),
	} {
		var op *guest.OpError
		if !errors.As(err, &op) || !strings.HasPrefix(err.Error(), "a: "+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// What a machine cannot do is refused by name.
func TestLacks(t *testing.T) {
	for _, test := range []struct {
		without mock.Group
		op      func(context.Context, *Machine) error
	}{
		{mock.Pausing, func(ctx context.Context, m *Machine) error { return m.Pause(ctx) }},
		{mock.Saving, func(ctx context.Context, m *Machine) error { return m.SnapshotCreate(ctx, "x") }},
		{mock.Reset, func(ctx context.Context, m *Machine) error { return m.Reboot(ctx) }},
		{mock.Screen, func(ctx context.Context, m *Machine) error { _, err := m.ScreenText(ctx); return err }},
		{mock.Keyboard, func(ctx context.Context, m *Machine) error { return m.SendKey(ctx, "a") }},
		{mock.Pointer, func(ctx context.Context, m *Machine) error { return m.MouseMove(ctx, 1, 1) }},
		{mock.Input, func(ctx context.Context, m *Machine) error { return m.SendConsole(ctx, "a") }},
		{mock.Monitor, func(ctx context.Context, m *Machine) error {
			_, err := m.SendMonitorCommand(ctx, "info")
			return err
		}},
		{mock.All, func(ctx context.Context, m *Machine) error { return m.SnapshotCreate(ctx, "x") }},
		{mock.All, func(ctx context.Context, m *Machine) error { return m.Reboot(ctx) }},
	} {
		t.Run(string(test.without), func(t *testing.T) {
			s := newStage(t, mock.Options{Without: []mock.Group{test.without}})
			m := s.lab(t, "a").Machine("a")
			err := test.op(limited(t), m)
			var unsupported *UnsupportedError
			if !errors.As(err, &unsupported) || unsupported.Backend != s.backend || slices.Contains(unsupported.Can, s.backend) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Where a VMM can do nothing but start and end machines, there is another way for what does
// not ask for more: guests are reached, pulled cables lose frames, and a crash is a kill.
func TestLacksWithoutConsequence(t *testing.T) {
	s := newStage(t, mock.Options{Without: []mock.Group{mock.All}})
	m := s.lab(t, "a").Machine("a")
	prints(t, m, "true", "")
	for _, op := range []func(context.Context, ...int) error{m.Block, m.Unblock} {
		if err := op(limited(t)); err != nil {
			t.Error(err)
		}
	}
	if err := m.Crash(limited(t)); err != nil {
		t.Error(err)
	}
	if exit := s.started(t, 1).Exit(); exit.Reason != vmm.Killed {
		t.Errorf("ended with %+v", exit)
	}
}

func TestPolledConditionKnowsTheHost(t *testing.T) {
	s := newStage(t, mock.Options{})
	l := s.lab(t, "a")
	probe := testHost.probe
	defer func() { testHost.probe = probe }()
	testHost.probe.KVM, testHost.probe.Host = false, 1
	ctx, cancel := context.WithCancel(t.Context()) // which has no limit of its own
	limit := time.Duration(0)
	Condition{Lab: l, Check: func(ctx context.Context) error {
		deadline, _ := ctx.Deadline()
		limit = time.Until(deadline)
		cancel()
		return errors.New("not yet")
	}}.Wait(ctx)
	if want := testHost.scale(defaultTimeout); limit < want-patience || limit > want || want == defaultTimeout {
		t.Errorf("it has %v, want %v", limit, want)
	}
}

// When a lab ends while a machine boots, with what waits for it, the machine has not booted.
func TestWaitForBootEndsWithItsLab(t *testing.T) {
	m := newStage(t, mock.Options{}).lab(t, "a").Machine("a")
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("it is over")
	cancel(over)
	r := &run{machine: m, ready: make(chan struct{}), readyErr: over, started: time.Now()}
	close(r.ready)
	var boot *BootError
	if err := r.awaitReady(ctx); !errors.As(err, &boot) || !errors.Is(err, over) {
		t.Errorf("got %v", err)
	}
}
