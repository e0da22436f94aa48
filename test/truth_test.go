package test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
)

// TestTruth has a guest do what keeps tests from their end, and looks at what is said of
// it. Each part has a fork of one machine that has one processor.
func TestTruth(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, small("m"))
	for name, text := range map[string]string{
		"loops": "[Service]\nExecStart=/bin/sh -c 'echo no configuration; exit 3'\nRestart=always\nRestartSec=200ms\nStartLimitIntervalSec=0\n",
		"fails": "[Service]\nExecStart=/bin/sh -c 'sleep 1; echo no database; exit 4'\n",
	} {
		lab.Machine("m").Succeed("cat > /etc/systemd/system/"+name+".service", attest.Input([]byte(text)))
	}
	lab.Machine("m").Succeed("systemctl daemon-reload; sync")
	state := lab.Snapshot()
	lab.Machine("m").Crash()
	for name, part := range map[string]func(*testing.T, tried){
		"services in the way": testServicesInTheWay,
		"held output":         testHeldOutput,
		"suspended":           testSuspended,
		"paused":              testPausedUnderACommand,
		"hung":                testHung,
		"out of memory":       testOutOfMemory,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			part(t, tried{state.Fork(t).Machine("m").Machine, t})
		})
	}
}

// busy has the guest's only processor do something else, as on a slow host.
func (m tried) busy() {
	m.t.Helper()
	m.succeed("for i in 1 2; do (while :; do :; done) >/dev/null 2>&1 </dev/null & done")
}

// shows repeats an operation that fails until the details of its failure have a text: the
// guest has a time for them, which it may not keep on a busy host. Then they have to say
// that something is not known.
func (m tried) shows(title, text string, op func() error) error {
	m.t.Helper()
	for {
		err := op()
		var details []attest.Detail
		var wait *attest.WaitError
		var command *attest.CommandError
		state := ""
		switch {
		case errors.As(err, &wait):
			details, state = wait.Details, wait.State
		case errors.As(err, &command):
			details, state = command.Details, command.State
		default:
			m.t.Fatalf("got %v", err)
		}
		said, excuse := false, state != ""
		for _, d := range details {
			said = said || strings.HasPrefix(d.Title, title) && strings.Contains(d.Text, text)
			excuse = excuse || strings.Contains(d.Text, "not known: ") || strings.Contains(d.Text, "not read: ")
		}
		if said {
			return err
		}
		if !excuse || m.t.Context().Err() != nil {
			m.t.Fatalf("%v has no %q with %q: %q", err, title, text, details)
		}
		m.t.Logf("again: %s %q", state, details)
	}
}

func testServicesInTheWay(t *testing.T, m tried) {
	ctx := t.Context()
	m.busy()
	m.succeed("systemctl start loops.service")
	if _, err := m.WaitUntilSucceeds(ctx, "test $(systemctl show -P NRestarts loops.service) -ge 2"); err != nil {
		t.Fatal(err)
	}
	// Without its name a service behind a closed port is among those that systemd restarts.
	m.shows("units that systemd restarts", "loops.service was restarted ", func() error {
		return m.WaitForOpenPort(ctx, 8080, attest.Timeout(2*time.Second))
	})
	m.shows("units that systemd restarts", "loops.service was restarted ", func() error {
		_, err := m.Succeed(ctx, "echo > /dev/tcp/localhost/8080")
		return err
	})
	// With its name the failure has what it said.
	m.shows("journal of loops", "no configuration", func() error {
		return m.WaitForOpenPort(ctx, 8080, attest.Unit("loops"), attest.Timeout(2*time.Second))
	})
	// So it is told to somebody who ends what waits for it.
	if err := m.ended("loops.service was restarted ", func(ctx context.Context) error { return m.WaitForOpenPort(ctx, 8080) }); !strings.Contains(err.Error(), "under way was m: wait_for_open_port(8080) for ") {
		t.Errorf("got %v", err)
	}
	// A service that has failed ends the wait for its port.
	m.succeed("systemctl start fails")
	byName := func() error { return m.WaitForOpenPort(ctx, 8080, attest.Unit("fails")) }
	err := m.shows("journal of fails", "no database", byName)
	if e := errorAs[*attest.WaitError](t, err); e.Timeout() || !strings.Contains(e.Reason, `fails.service reached state "failed"`) || !strings.Contains(e.LastSeen, "refused") {
		t.Errorf("got %v", err)
	}
	m.shows("failed units", "fails.service is failed (failed), result exit-code, exit status 4", byName)
	m.succeed("systemctl stop loops; systemd-run --unit=listens systemd-socket-activate --accept --inetd -l 8081 cat")
	if err := m.WaitForOpenPort(ctx, 8081, attest.Unit("listens.service")); err != nil {
		t.Error(err)
	}
}

// ended ends an operation as soon as it was said what keeps it from its end, which the
// error has to say, too.
func (m tried) ended(reason string, op func(context.Context) error) error {
	m.t.Helper()
	var bus event.Bus
	said := make(chan string, 64)
	bus.Subscribe(func(r event.Record) {
		if e, ok := r.Event.(event.StepWaiting); ok {
			said <- e.Reason
		}
	})
	ctx, cancel := context.WithCancel(event.WithBus(m.t.Context(), &bus))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- op(ctx) }()
	for text := ""; !strings.Contains(text, reason); {
		select {
		case text = <-said:
		case err := <-done:
			m.t.Fatalf("it ended before anybody said %q: %v", reason, err)
		}
	}
	cancel()
	err := <-done
	if attest.StatusOf(err) != attest.Interrupted || !strings.Contains(err.Error(), reason) {
		m.t.Errorf("got %v (%s), want %q", err, attest.StatusOf(err), reason)
	}
	return err
}

func testHeldOutput(t *testing.T, m tried) {
	m.busy()
	_, err := m.Succeed(t.Context(), "sleep 4321 & echo started", attest.Timeout(10*time.Second))
	if e := errorAs[*attest.CommandError](t, err); !strings.HasPrefix(e.Result.HeldBy, "`sleep 4321` (pid ") || e.Result.Stdout != "started\n" {
		t.Errorf("got %v, %+v", err, e.Result)
	}
	m.ended("its standard output is held open by `sleep 4321` (pid ", func(ctx context.Context) error {
		_, err := m.Succeed(ctx, "sleep 4321 & echo started")
		return err
	})
}

// limit is what operations have on machines that do nothing.
const limit = 2 * time.Second

// keepLimits has operations run into their limit, and say why they do.
func (m tried) keepLimits(state string) {
	ctx := m.t.Context()
	for name, op := range map[string]func() error{
		"succeed":             func() error { _, err := m.Succeed(ctx, "sleep 4321", attest.Timeout(limit)); return err },
		"wait_until_succeeds": func() error { _, err := m.WaitUntilSucceeds(ctx, "false", attest.Timeout(limit)); return err },
		"wait_for_unit":       func() error { return m.WaitForUnit(ctx, "fails.service", attest.Timeout(limit)) },
		"shutdown":            func() error { return m.Shutdown(ctx, attest.Timeout(limit)) },
	} {
		begin := time.Now()
		err := op()
		took := time.Since(begin).Round(time.Millisecond)
		if err == nil || !strings.Contains(err.Error(), state) || attest.StatusOf(err) != attest.Failed {
			m.t.Errorf("%s: got %v (%s), want %q", name, err, attest.StatusOf(err), state)
		}
		// What a guest has beyond its limit if its host is slow, and the host of this test.
		if took > limit+time.Minute {
			m.t.Errorf("%s took %v, of %v", name, took, limit)
		}
		m.t.Logf("%s: %v after %v", name, err, took)
	}
}

func testSuspended(t *testing.T, m tried) {
	if err := m.Detach(t.Context(), "sleep 0.5; echo mem > /sys/power/state"); err != nil {
		t.Fatal(err)
	}
	closed := func(e attest.QMPEvent) bool {
		return e.Name == "VSERPORT_CHANGE" && e.Data["open"] == false
	}
	if _, err := m.WaitForQMPEvent(t.Context(), closed); err != nil {
		t.Fatal(err)
	}
	m.keepLimits("the machine is suspended")
}

// A machine that is paused gets no further operation. One that is under way keeps its limit.
func testPausedUnderACommand(t *testing.T, m tried) {
	ctx := t.Context()
	done := make(chan error, 1)
	go func() {
		_, err := m.Succeed(ctx, "touch /tmp/begun; sleep 4321", attest.Timeout(15*time.Second))
		done <- err
	}()
	if err := errors.Join(m.WaitForFile(ctx, "/tmp/begun"), m.Pause(ctx)); err != nil {
		t.Fatal(err)
	}
	m.keepLimits("paused")
	if err := <-done; err == nil || !strings.Contains(err.Error(), "the machine is paused") || attest.StatusOf(err) != attest.Failed {
		t.Errorf("got %v", err)
	}
}

// A guest whose only processor is taken by a process that nothing preempts.
func testHung(t *testing.T, m tried) {
	m.succeed("echo -1 > /proc/sys/kernel/sched_rt_runtime_us")
	if err := m.Detach(t.Context(), "sleep 0.5; exec chrt --fifo 99 sh -c 'echo hangs > /dev/console; while :; do :; done'"); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitForConsoleText(t.Context(), "hangs"); err != nil {
		t.Fatal(err)
	}
	m.keepLimits("its guest does not respond")
}

// A guest that has hardly any memory left, and reads its files again and again.
func testOutOfMemory(t *testing.T, m tried) {
	const least = 9 << 10 // KiB; attest names what is below a twentieth of the guest's
	// It takes as much as there is at once: near the end every process that it started would
	// have to be read from the disk again.
	job, err := m.Spawn(t.Context(), fmt.Sprintf(`
		mkdir /tmp/full; mount -t tmpfs -o size=100%% none /tmp/full
		available() { while read -r name kib _; do [ $name != MemAvailable: ] || break; done < /proc/meminfo; }
		while available; [ $kib -gt %[1]d ]; do head -c $((kib - %[1]d + 64))K /dev/zero >> /tmp/full/zeros; done
		(while :; do cat /usr/lib/x86_64-linux-gnu/*.so* > /dev/null; done) &
		echo full; wait`, least))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := job.WaitForOutput(t.Context(), "full"); err != nil {
		t.Fatal(err)
	}
	_, err = m.Succeed(t.Context(), "sleep 4321", attest.Timeout(limit))
	said := func(text string) bool { return strings.Contains(err.Error(), text) }
	// The kernel may kill any process of the guest, the shell of this command among them.
	if err == nil || attest.StatusOf(err) != attest.Failed || !said("its guest is out of memory: ") && !said("its guest has run out of memory: ") && !said("its guest does not respond") {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}
