package attest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm/mock"
	"github.com/attest-vm/attest/internal/wire"
)

// quickly makes what an operation has for a guest that does nothing a fraction of a
// second, for a test that waits for it.
func quickly(t *testing.T) {
	was := firstLook
	t.Cleanup(func() { firstLook = was })
	firstLook = 10 * time.Millisecond
}

// A limit that the test gives is kept whatever the machine does, and the error says what
// that is.
func TestLimitsInEveryState(t *testing.T) {
	states := map[string]struct {
		begin func(*testing.T, *Machine, *mock.Machine)
		want  string
	}{
		"suspended": {func(_ *testing.T, _ *Machine, vm *mock.Machine) { vm.Suspend(true) }, "the machine is suspended"},
		"hung": {func(_ *testing.T, _ *Machine, vm *mock.Machine) {
			vm.Say("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [app:77]\n")
			vm.Hang(true)
		}, "its guest does not respond; its kernel said: soft lockup - CPU#0 stuck for 22s!"},
		"paused": {func(t *testing.T, m *Machine, _ *mock.Machine) {
			if err := m.Pause(limited(t)); err != nil {
				t.Error(err)
			}
		}, "the machine is paused"},
	}
	operations := map[string]func(context.Context, *Machine) error{
		"succeed": func(ctx context.Context, m *Machine) error {
			_, err := m.Succeed(ctx, "sleep 1000", Timeout(time.Second))
			return err
		},
		"wait_until_succeeds": func(ctx context.Context, m *Machine) error {
			_, err := m.WaitUntilSucceeds(ctx, "false", Timeout(time.Second))
			return err
		},
		"wait_for_file": func(ctx context.Context, m *Machine) error {
			return m.WaitForFile(ctx, "/does/not/exist", Timeout(time.Second))
		},
	}
	for state, in := range states {
		t.Run(state, func(t *testing.T) {
			under := make(chan string, 64)
			s := newStage(t, mock.Options{Operating: func(_ context.Context, _ *mock.Machine, op string) {
				if op == wire.OpExec || op == wire.OpUntil || op == wire.OpWaitFile {
					select {
					case under <- op:
					default:
					}
				}
			}})
			m := s.lab(t, "a").Machine("a")
			prints(t, m, "true", "")
			<-under
			vm := s.started(t, 1)
			var all sync.WaitGroup
			for name, op := range operations {
				all.Go(func() {
					begin := time.Now()
					err := op(limited(t), m)
					if err == nil || !strings.Contains(err.Error(), in.want) || StatusOf(err) != Failed {
						t.Errorf("%s: got %v (%s), want %s", name, err, StatusOf(err), in.want)
					}
					if took := time.Since(begin); took > patience/2 {
						t.Errorf("%s took %v, of one second", name, took)
					}
				})
			}
			for begun := map[string]bool{}; len(begun) < len(operations); { // of a command under way, also
				begun[<-under] = true
			}
			in.begin(t, m, vm)
			all.Wait()
			vm.Suspend(false)
		})
	}
}

// Who holds the output of a command that has ended is named: while it is under way, when
// it is interrupted, and when its time is over.
func TestHeldOutput(t *testing.T) {
	quickly(t)
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	prints(t, m, "true", "")
	const command = "(exec sleep 1234) & true"
	holder := "`sleep 1234` (pid "

	_, err := m.Succeed(limited(t), command, Timeout(time.Second))
	var failed *CommandError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), "it had ended, and its standard output is held open by "+holder) || !strings.HasPrefix(failed.Result.HeldBy, holder) {
		t.Errorf("over its limit: %v", err)
	}

	ctx, cancel := context.WithCancelCause(s.context(t))
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		_, err := m.Succeed(ctx, command)
		done <- err
	}()
	s.await(t, "the holder", func() bool {
		for _, r := range s.records {
			if e, ok := r.Event.(event.StepWaiting); ok && strings.Contains(e.Reason, "the command has ended, and its standard output is held open by "+holder) {
				return e.Machine == "a" && e.ID == r.Scope.Step
			}
		}
		return false
	})
	gone := errors.New("somebody went away")
	cancel(gone)
	err = <-done
	var under *UnderWayError
	if !errors.Is(err, gone) || !errors.As(err, &under) || under.Operation != "succeed" || !strings.Contains(under.LastSeen, holder) {
		t.Errorf("interrupted: %v", err)
	}
	result, err := m.Execute(s.context(t), command, Timeout(time.Second))
	if err != nil || result.ExitCode != 124 || !strings.HasPrefix(result.HeldBy, holder) {
		t.Errorf("execute: %+v, %v", result, err)
	}
	if w := s.warnings(); !strings.Contains(w, "held open by "+holder) {
		t.Errorf("warnings: %s", w)
	}
}

// A wait that somebody ends says how far it was.
func TestInterruptedWait(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	prints(t, m, "true", "")
	ctx, cancel := context.WithCancel(limited(t))
	missing := filepath.Join(t.TempDir(), "missing")
	done := make(chan error, 1)
	go func() { done <- m.WaitForFile(ctx, missing) }()
	cancel()
	err := <-done
	if StatusOf(err) != Interrupted || !strings.Contains(err.Error(), fmt.Sprintf("under way was a: wait_for_file(%q) for ", missing)) {
		t.Errorf("got %v (%s)", err, StatusOf(err))
	}
}

// What is added to an error takes its own time, which is not that of the wait.
func TestAttachedAfterTheWait(t *testing.T) {
	s := newStage(t, mock.Options{})
	m := s.lab(t, "a").Machine("a")
	var then time.Duration
	err := m.wait(s.context(t), "wait_for_file", "", options{}, func(context.Context, *run) error {
		return &WaitError{attach: func(we *WaitError) { then, we.LastSeen = we.Elapsed, "attached" }}
	})
	var we *WaitError
	if !errors.As(err, &we) || then == 0 || we.Elapsed != then || we.LastSeen != "attached" || we.attach != nil {
		t.Errorf("got %v, attached after %v", err, then)
	}
}

func TestLookInWords(t *testing.T) {
	l := look{units: []wire.Trouble{
		{Unit: "app.service", ActiveState: "activating", SubState: "auto-restart", Result: "exit-code", Status: 3, Restarts: 5},
		{Unit: "db.service", ActiveState: "failed", SubState: "failed", Result: "timeout"},
	}, held: []wire.Process{{Pid: 7, Name: "a b"}}}
	want := "the command has ended, and its standard output is held open by `a b` (pid 7); " +
		"app.service was restarted 5 times, is activating (auto-restart), result exit-code, exit status 3; db.service is failed (failed), result timeout"
	if got := l.String(); got != want {
		t.Errorf("got %s", got)
	}
	d := l.details()
	if len(d) != 2 || d[0].Title != "failed units" || d[1].Title != "units that systemd restarts" || !strings.HasPrefix(d[1].Text, "app.service") {
		t.Errorf("got %+v", d)
	}
	l = look{units: l.units[1:], dark: "systemd had not answered after 8s"}
	if got, want := l.String(), "db.service is failed (failed), result timeout; which units have failed is not known: systemd had not answered after 8s"; got != want {
		t.Errorf("got %s", got)
	}
	if d := l.details(); len(d) != 1 || d[0].Text != "db.service is failed (failed), result timeout\nnot known: systemd had not answered after 8s" {
		t.Errorf("got %+v", d)
	}
	for _, test := range []struct {
		memory wire.Memory
		want   string
	}{
		{wire.Memory{}, ""},
		{wire.Memory{Total: 1 << 20, Available: 1 << 19}, ""},
		{wire.Memory{Total: 240 << 10, Available: 8 << 10}, "its guest is out of memory: 8 of 240 MiB are available"},
		{wire.Memory{Total: 240 << 10, Available: 80 << 10, Stalled: 45.4}, "its guest is out of memory: 80 of 240 MiB are available, and all of it waited for memory in 45 % of the last 10 s"},
	} {
		if got := shortage(test.memory); got != test.want {
			t.Errorf("%+v: %q", test.memory, got)
		}
	}
	for _, test := range []struct {
		look
		want string
	}{
		{look{}, ""},
		{look{oom: 1}, "its guest has run out of memory: its kernel has killed 1 process since it started"},
		{look{oom: 2, state: "its guest is very slow"}, "its guest is very slow"},
	} {
		if got := test.ofKilled(); got != test.want {
			t.Errorf("%+v: %q", test.look, got)
		}
	}
}
