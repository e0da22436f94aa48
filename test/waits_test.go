package test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
)

func testPorts(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("systemd-run --unit=listener systemd-socket-activate --accept --inetd -l '[::]:4444' cat")
	for _, opts := range [][]attest.OpenPortOption{nil, {attest.Address("127.0.0.1")}, {attest.Address("::1")}, {attest.Address("client")}} {
		if err := m.WaitForOpenPort(ctx, 4444, opts...); err != nil {
			t.Error(err)
		}
	}
	m.succeed("systemctl stop listener.service")
	if err := m.WaitForClosedPort(ctx, 4444); err != nil {
		t.Error(err)
	}
	err := m.WaitForOpenPort(ctx, 4444, attest.Timeout(500*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.Operation != "wait_for_open_port" || e.Args != "4444" || e.Tries < 2 || !strings.HasSuffix(e.LastSeen, "connection refused") {
		t.Errorf("got %+v", e)
	}
	err = m.WaitForClosedPort(ctx, 22222, attest.Timeout(0)) // it is closed
	if err != nil {
		t.Error(err)
	}
	if err := m.WaitForOpenPort(ctx, 70000); attest.StatusOf(err) != attest.Invalid {
		t.Errorf("got %v", err)
	}
}

func testWaitForFile(t *testing.T, m tried) {
	ctx := t.Context()
	waited := make(chan error, 1)
	go func() { waited <- m.WaitForFile(ctx, "/tmp/not/yet/there") }()
	m.succeed("mkdir /tmp/not; mkdir /tmp/not/yet; touch /tmp/not/yet/there")
	if err := <-waited; err != nil {
		t.Error(err)
	}
	err := m.WaitForFile(ctx, "/tmp/never", attest.Timeout(300*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.Limit != 300*time.Millisecond || e.Elapsed < e.Limit {
		t.Errorf("got %+v", e)
	}
}

// inTime tries what has a limit, with one that is twice as long each time: a guest on a busy
// host may need it. what tells what was seen in the end.
func inTime(t *testing.T, limit time.Duration, try func(limit time.Duration) (seen bool, what any)) {
	t.Helper()
	for {
		seen, what := try(limit)
		if seen {
			return
		}
		if limit > time.Minute {
			t.Errorf("in %v: %+v", limit, what)
			return
		}
		limit *= 2
	}
}

func testWaitUntil(t *testing.T, m tried) {
	ctx := t.Context()
	const third = "echo x >> /tmp/tries; test $(wc -l < /tmp/tries) -ge 3; echo now"
	if out, err := m.WaitUntilSucceeds(ctx, third); err != nil || out != "now\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if out, err := m.WaitUntilFails(ctx, "echo again; rm /tmp/tries"); err != nil || out != "again\n" {
		t.Errorf("got %q, %v", out, err)
	}
	inTime(t, 2*time.Second, func(limit time.Duration) (bool, any) {
		_, err := m.WaitUntilSucceeds(ctx, "echo out; echo not yet >&2; exit 4", attest.Timeout(limit))
		e := errorAs[*attest.WaitError](t, err)
		ended := e.Result != nil && e.Result.ExitCode == 4 && e.Result.Stdout == "out\n" && e.LastSeen == "exit code 4: not yet"
		// The limit may come in the middle of an attempt.
		interrupted := e.Result != nil && e.Result.TimedOut && strings.HasSuffix(e.LastSeen, "; the one before had exit code 4")
		return e.Timeout() && e.Tries >= 1 && (ended || interrupted), e
	})
	// An attempt that hangs is ended by the wait's own limit.
	inTime(t, 3*time.Second, func(limit time.Duration) (bool, any) {
		_, err := m.WaitUntilSucceeds(ctx, "echo before; sleep 66666", attest.Timeout(limit))
		e := errorAs[*attest.WaitError](t, err)
		return e.Timeout() && e.Tries == 1 && e.LastSeen == "the last attempt had not ended: before", e
	})
	m.succeed("while pgrep -f '^sleep 66666'; do sleep 0.05; done", attest.Timeout(patience))
}

func testConsole(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("echo the console says 42 > /dev/console")
	if err := m.WaitForConsoleText(ctx, `^the console says \d+$`); err != nil {
		t.Error(err)
	}
	if log := m.ConsoleLog(); !strings.Contains(log, "the console says 42") || !strings.Contains(log, "Multi-User System") {
		t.Errorf("console:\n%s", log)
	}
	err := m.WaitForConsoleText(ctx, "never said", attest.Timeout(300*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.LastSeen == "" {
		t.Errorf("got %+v", e)
	}
	if err := m.WaitForConsoleText(ctx, "("); attest.StatusOf(err) != attest.Invalid {
		t.Errorf("got %v", err)
	}
}

func testUnixSockets(t *testing.T, m tried) {
	ctx := t.Context()
	for _, tt := range []struct {
		flags string
		opts  []attest.SocketOption
	}{
		{"", nil},
		{"--datagram", []attest.SocketOption{attest.Datagram()}},
	} {
		waited := make(chan error, 1)
		go func() { waited <- m.WaitForOpenUnixSocket(ctx, "/run/late.sock", tt.opts...) }()
		m.succeed("rm -f /run/late.sock; systemd-run --unit=late-socket systemd-socket-activate " + tt.flags + " -l /run/late.sock cat")
		if err := <-waited; err != nil {
			t.Error(err)
		}
		m.execute("systemctl stop late-socket") // it may have ended with the first connection
		err := m.WaitForOpenUnixSocket(ctx, "/run/late.sock", append(tt.opts, attest.Timeout(200*time.Millisecond))...)
		if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.Tries == 0 || !strings.Contains(e.LastSeen, "/run/late.sock: ") {
			t.Errorf("got %+v", e)
		}
	}
	if err := m.WaitForOpenUnixSocket(ctx, "/"+strings.Repeat("x", 200)); err == nil || !strings.Contains(err.Error(), "not a socket address") {
		t.Errorf("got %v", err)
	}
}

// A limit of 0 is one look, not none.
func testOneLook(t *testing.T, m tried) {
	ctx := t.Context()
	now := attest.Timeout(0)
	m.succeed("touch /tmp/there; systemd-run --unit=look systemd-socket-activate --accept --inetd -l 127.0.0.1:6666 cat; echo one look > /dev/console")
	if err := m.WaitForOpenPort(ctx, 6666); err != nil {
		t.Fatal(err)
	}
	ended, err1 := m.Spawn(ctx, "true")
	running, err2 := m.Spawn(ctx, "echo said; sleep 99999")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	<-ended.Done()
	for running.Stdout() == "" {
		m.succeed("sleep 0.1")
	}
	for name, wait := range map[string][2]func() error{
		"file": {
			func() error { return m.WaitForFile(ctx, "/tmp/there", now) },
			func() error { return m.WaitForFile(ctx, "/tmp/not/there", now) },
		},
		"open port": {
			func() error { return m.WaitForOpenPort(ctx, 6666, now) },
			func() error { return m.WaitForOpenPort(ctx, 6667, now) },
		},
		"closed port": {
			func() error { return m.WaitForClosedPort(ctx, 6667, now) },
			func() error { return m.WaitForClosedPort(ctx, 6666, now) },
		},
		"socket": {
			func() error { return m.WaitForOpenUnixSocket(ctx, "/run/systemd/private", now) },
			func() error { return m.WaitForOpenUnixSocket(ctx, "/run/no.sock", now) },
		},
		"unit": {
			func() error { return m.WaitForUnit(ctx, "look", now) },
			func() error { return m.WaitForUnit(ctx, "no-such", now) },
		},
		"command": {
			func() error { _, err := m.WaitUntilSucceeds(ctx, "sleep 0.3; true", now); return err },
			func() error { _, err := m.WaitUntilSucceeds(ctx, "echo said >&2; false", now); return err },
		},
		"job": {
			func() error { _, err := ended.Wait(ctx, now); return err },
			func() error { _, err := running.Wait(ctx, now); return err },
		},
		"output of a job": {
			func() error { _, err := running.WaitForOutput(ctx, "said", now); return err },
			func() error { _, err := running.WaitForOutput(ctx, "never said", now); return err },
		},
		"console": {
			func() error { return m.WaitForConsoleText(ctx, "one look", now) },
			func() error { return m.WaitForConsoleText(ctx, "never said", now) },
		},
	} {
		if err := wait[0](); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if e := errorAs[*attest.WaitError](t, wait[1]()); e.LastSeen == "" || e.Tries > 1 {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// A condition that stops to hold ends the command under way.
func testCondition(t *testing.T, m tried) {
	ctx := t.Context()
	there := attest.Condition{Description: "the file is there", Interval: 20 * time.Millisecond, Check: func(ctx context.Context) error {
		_, err := m.Succeed(ctx, "test -e /tmp/condition")
		return err
	}}
	err := there.Wait(ctx, attest.Timeout(0))
	if e := errorAs[*attest.WaitError](t, err); e.Tries != 1 || !strings.Contains(e.LastSeen, "test -e /tmp/condition") {
		t.Errorf("got %+v", e)
	}
	if err := m.Detach(ctx, "sleep 0.2; touch /tmp/condition"); err != nil {
		t.Fatal(err)
	}
	if err := there.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := there.During(ctx, func(ctx context.Context) error { _, err := m.Succeed(ctx, "sleep 0.2"); return err }); err != nil {
		t.Error(err)
	}
	err = there.During(ctx, func(ctx context.Context) error {
		_, err := m.Succeed(ctx, "rm /tmp/condition; sleep 22222")
		return err
	})
	if e := errorAs[*attest.ConditionError](t, err); e.Checks < 2 || attest.StatusOf(err) != attest.Failed {
		t.Errorf("got %+v", e)
	}
	m.succeed("while pgrep -f '^sleep 22222'; do sleep 0.05; done", attest.Timeout(patience))
}

// TestPanic has a kernel panic, and a mere oops, in the middle of each kind of
// wait: all of them end at once, and say why. Each is in a fork of one machine.
func TestPanic(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, small("m"))
	m := lab.Machine("m")
	m.WaitForUnit("multi-user.target")
	m.Succeed("systemd-run --no-block --unit=never --property=Type=notify sleep 99999")
	m.Succeed("systemd-run --unit=open systemd-socket-activate --accept --inetd -l 127.0.0.2:9 cat")
	m.WaitForOpenPort(9, attest.Address("127.0.0.2"))
	state := lab.Snapshot()
	m.Crash()
	for _, tt := range []struct{ name, how, reason string }{
		{"panic", "echo c > /proc/sysrq-trigger", `^Kernel panic - not syncing: sysrq triggered crash`},
		{"oops", "echo '<0>Oops: 0002 [#1] PREEMPT SMP NOPTI' > /dev/kmsg", `^Oops: 0002 \[#1\]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := state.Fork(t).Machine("m")
			started := make(chan string, 1000) // the steps of ctx
			var bus event.Bus
			bus.Subscribe(func(r event.Record) {
				if s, ok := r.Event.(event.StepStarted); ok {
					started <- s.Operation
				}
			})
			ctx, cancel := context.WithTimeout(event.WithBus(t.Context(), &bus), 2*patience)
			defer cancel()
			job := m.Spawn("echo started; sleep 99999")
			job.WaitForOutput("started")
			waits := map[string]func() error{
				"succeed":                   func() error { _, err := m.Machine.Succeed(ctx, "sleep 99999"); return err },
				"fail":                      func() error { _, err := m.Machine.Fail(ctx, "trap 'exit 3' TERM; sleep 99999 & wait"); return err },
				"execute":                   func() error { _, err := m.Machine.Execute(ctx, "sleep 99999"); return err },
				"wait_until_succeeds":       func() error { _, err := m.Machine.WaitUntilSucceeds(ctx, "false"); return err },
				"wait_until_fails":          func() error { _, err := m.Machine.WaitUntilFails(ctx, "true"); return err },
				"wait_for_unit":             func() error { return m.Machine.WaitForUnit(ctx, "never") },
				"wait_for_open_port":        func() error { return m.Machine.WaitForOpenPort(ctx, 9) },
				"wait_for_closed_port":      func() error { return m.Machine.WaitForClosedPort(ctx, 9, attest.Address("127.0.0.2")) },
				"wait_for_open_unix_socket": func() error { return m.Machine.WaitForOpenUnixSocket(ctx, "/run/never") },
				"wait_for_file":             func() error { return m.Machine.WaitForFile(ctx, "/never") },
				"wait_for_console_text":     func() error { return m.Machine.WaitForConsoleText(ctx, "never said") },
				"wait_for_shutdown":         func() error { return m.Machine.WaitForShutdown(ctx) },
				"sleep":                     func() error { return m.Machine.Sleep(ctx, 24*time.Hour) },
				"job.wait":                  func() error { _, err := job.Job.Wait(ctx); return err },
				"job.wait_for_output":       func() error { _, err := job.Job.WaitForOutput(ctx, "never"); return err },
				"polling_condition.wait": func() error {
					return attest.Condition{Check: func(ctx context.Context) error { _, err := m.Machine.Succeed(ctx, "false"); return err }}.Wait(ctx)
				},
			}
			var waiting sync.WaitGroup
			for name, wait := range waits {
				waiting.Go(func() {
					err := wait()
					var down *attest.DownError
					switch {
					case !errors.As(err, &down):
						t.Errorf("%s: got %v (%T), want a *DownError", name, err, err)
					case !regexp.MustCompile(tt.reason).MatchString(down.Reason) || attest.StatusOf(err) != attest.Failed || len(down.Console) == 0:
						t.Errorf("%s: got %+v", name, down)
					case name != "polling_condition.wait" && down.Operation != name:
						t.Errorf("%s: the operation is called %s", name, down.Operation)
					}
				})
			}
			for begun := map[string]bool{}; len(begun) < len(waits); {
				begun[<-started] = true
			}
			m.Machine.Execute(ctx, tt.how)
			waiting.Wait()
			if m.IsUp() {
				t.Error("the machine is still up")
			}
		})
	}
}
