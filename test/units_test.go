package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

// TestUnits tries what has to do with systemd, and the waits, on one machine.
func TestUnits(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, attest.MachineConfig{Name: "client", Image: attest.Debian{}, Memory: 384}) // that of TestCommands
	m := lab.Machine("client")
	m.WaitForUnit("multi-user.target")
	for _, test := range []struct {
		name string
		run  func(*testing.T, tried)
	}{
		{"units", testUnits},
		{"units that end", testOneshots},
		{"units that wait for something", testTriggeredUnits},
		{"users' units", testUserUnits},
		{"state of units", testUnitState},
		{"journal", testJournal},
		{"ports", testPorts},
		{"unix sockets", testUnixSockets},
		{"files that appear", testWaitForFile},
		{"wait until", testWaitUntil},
		{"one look", testOneLook},
		{"condition", testCondition},
		{"console", testConsole},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, tried{m.Machine, t}) })
	}
}

func testUnits(t *testing.T, m tried) {
	ctx := t.Context()
	if err := m.WaitForUnit(ctx, "dbus.service"); err != nil {
		t.Error(err)
	}
	// One that starts later.
	m.succeed("systemd-run --no-block --unit=later --property=Type=notify --property=NotifyAccess=all bash -c 'until test -e /tmp/start-it; do sleep 0.05; done; systemd-notify --ready; sleep 99999'")
	waited := make(chan error, 1)
	go func() { waited <- m.WaitForUnit(ctx, "later.service") }()
	m.succeed(`until test "$(systemctl is-active later.service)" = activating; do sleep 0.05; done; touch /tmp/start-it`)
	if err := <-waited; err != nil {
		t.Error(err)
	}

	// These can never become active, which is known at once and not after 15 minutes.
	m.succeed("systemd-run --wait --unit=broken bash -c 'echo why it is broken; exit 3' || true")
	for unit, reason := range map[string]string{
		"broken.service":  `"failed"`,
		"no-such.service": "no-such.service",
		"rescue.service":  "inactive",
	} {
		err := m.WaitForUnit(ctx, unit)
		e := errorAs[*attest.WaitError](t, err)
		if e.Reason == "" || e.Timeout() || !strings.Contains(err.Error(), reason) || attest.StatusOf(err) != attest.Failed {
			t.Errorf("%s: %+v, want %s", unit, e, reason)
		}
		if unit == "broken.service" && !hasDetail(e, "journal of broken.service", "why it is broken") {
			t.Errorf("no journal in %+v", e.Details)
		}
	}

	// A unit that fails while it is waited for.
	m.succeed("systemd-run --no-block --unit=breaks --property=Type=notify bash -c 'until test -e /tmp/break-it; do sleep 0.05; done; exit 7'")
	go func() { waited <- m.WaitForUnit(ctx, "breaks.service") }()
	m.succeed(`until test "$(systemctl is-active breaks.service)" = activating; do sleep 0.05; done; touch /tmp/break-it`)
	e := errorAs[*attest.WaitError](t, <-waited)
	if e.Timeout() || !strings.Contains(e.Reason, `"failed" (result "exit-code")`) || !hasDetail(e, "failed units", "breaks.service") || !hasDetail(e, "last console lines of client", "multi-user.target") {
		t.Errorf("got %+v", e)
	}

	if r, err := m.Systemctl(ctx, "is-active broken.service"); err != nil || r.ExitCode != 3 || r.Stdout != "failed\n" {
		t.Errorf("systemctl: %+v, %v", r, err)
	}
	if r, err := m.Systemctl(ctx, "show --property=User user@0.service"); err != nil || r.ExitCode != 0 || r.Stdout != "User=0\n" {
		t.Errorf("systemctl: %+v, %v", r, err)
	}
}

func hasDetail(e *attest.WaitError, title, text string) bool {
	for _, d := range e.Details {
		if d.Title == title && strings.Contains(d.Text, text) {
			return true
		}
	}
	return false
}

// A oneshot service that does not remain active is waited for to its end.
func testOneshots(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed(`cat > /run/systemd/system/work.service <<-'end'
		[Service]
		Type=oneshot
		ExecStart=bash -c 'until test -e /tmp/work; do sleep 0.05; done; exit $(cat /tmp/work)'
	end
	systemctl daemon-reload; systemctl start --no-block work`)
	waited := make(chan error, 1)
	go func() { waited <- m.WaitForUnit(ctx, "work") }()
	m.succeed("echo 0 > /tmp/work")
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := m.WaitForUnit(ctx, "work.service"); err != nil {
		t.Errorf("one that has run before: %v", err)
	}
	m.succeed("echo 3 > /tmp/work; systemctl start work || true")
	if e := errorAs[*attest.WaitError](t, m.WaitForUnit(ctx, "work")); !strings.Contains(e.Reason, "failed") {
		t.Errorf("got %+v", e)
	}
	// A transient one is forgotten when it has ended.
	m.succeed("systemd-run --no-block --unit=transient --property=Type=oneshot bash -c 'until test -e /tmp/transient; do sleep 0.05; done'")
	go func() { waited <- m.WaitForUnit(ctx, "transient") }()
	m.succeed(`until test "$(systemctl is-active transient)" = activating; do sleep 0.05; done; touch /tmp/transient`)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	m.succeed(`printf '[Service]\nType=oneshot\nExecStart=true\n' > /run/systemd/system/idle.service; systemctl daemon-reload`)
	if e := errorAs[*attest.WaitError](t, m.WaitForUnit(ctx, "idle")); !strings.Contains(e.Reason, "no pending jobs") {
		t.Errorf("one that was never started: %+v", e)
	}
}

// A unit that something else starts is inactive until then, and the error says
// what that is.
func testTriggeredUnits(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed(`printf '[Socket]\nListenStream=127.0.0.1:5555\nAccept=no\n' > /run/systemd/system/lazy.socket
		printf '[Service]\nExecStart=sleep 99999\n' > /run/systemd/system/lazy.service
		printf '[Unit]\nConditionPathExists=/no/such/path\n[Service]\nExecStart=sleep 99999\n' > /run/systemd/system/unmet.service
		systemctl daemon-reload; systemctl start lazy.socket unmet.service`)
	if err := m.WaitForUnit(ctx, "lazy.socket"); err != nil {
		t.Error(err)
	}
	if e := errorAs[*attest.WaitError](t, m.WaitForUnit(ctx, "lazy.service")); !strings.Contains(e.Reason, "lazy.socket starts it") {
		t.Errorf("got %+v", e)
	}
	m.succeed(": < /dev/tcp/127.0.0.1/5555")
	if err := m.WaitForUnit(ctx, "lazy.service"); err != nil {
		t.Error(err)
	}
	if e := errorAs[*attest.WaitError](t, m.WaitForUnit(ctx, "unmet.service")); !hasDetail(e, "journal of unmet.service", "/no/such/path") {
		t.Errorf("got %+v", e)
	}
}

// A user has a service manager of its own.
func testUserUnits(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("useradd --create-home alice; loginctl enable-linger alice")
	if err := m.WaitForUnit(ctx, "default.target", attest.User("alice")); err != nil {
		t.Fatal(err)
	}
	m.succeed("systemd-run --user --unit=own sleep 99999", attest.User("alice"))
	if err := m.WaitForUnit(ctx, "own.service", attest.User("alice")); err != nil {
		t.Error(err)
	}
	if got, err := m.UnitProperty(ctx, "own", "ActiveState", attest.User("alice")); err != nil || got != "active" {
		t.Errorf("got %q, %v", got, err)
	}
	if r, err := m.StopJob(ctx, "own", attest.User("alice")); err != nil || r.ExitCode != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	err := m.WaitForUnit(ctx, "own.service", attest.User("nobody-at-all"))
	if err == nil || !strings.Contains(err.Error(), "nobody-at-all") {
		t.Errorf("got %v", err)
	}
	_, err = m.UnitInfo(ctx, "own.service", attest.User("daemon")) // it has no manager
	want := `retrieving systemctl info for unit "own.service" under user "daemon" failed with exit code 1`
	if e := errorAs[*attest.UnitError](t, err); !strings.Contains(err.Error(), want) || e.User != "daemon" {
		t.Errorf("got %v, want %s", err, want)
	}
}

func testUnitState(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("systemd-run --unit=state --property=RemainAfterExit=yes --description='two words' echo the state is well")
	info, err := m.UnitInfo(ctx, "state")
	if err != nil || info["ActiveState"] != "active" || info["Description"] != "two words" || info["Id"] != "state.service" || len(info) < 50 {
		t.Errorf("got %v, %v", info, err)
	}
	if got, err := m.UnitProperty(ctx, "state", "Description"); err != nil || got != "two words" {
		t.Errorf("got %q, %v", got, err)
	}
	_, err = m.UnitProperty(ctx, "state", "NoSuchProperty")
	if e := errorAs[*attest.UnitError](t, err); !strings.Contains(e.Reason, `unit "state" has no property "NoSuchProperty"`) {
		t.Errorf("got %v", err)
	}
	_, err = m.UnitProperty(ctx, "-/-", "ActiveState")
	errorAs[*attest.UnitError](t, err)
	if err := m.RequireUnitState(ctx, "state", "active"); err != nil {
		t.Error(err)
	}
	if r, err := m.StopJob(ctx, "state"); err != nil || r.ExitCode != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	err = m.RequireUnitState(ctx, "state.service", "active")
	want := `client: require_unit_state: expected unit "state.service" to be in state "active" but it is in state "inactive"`
	if e := errorAs[*attest.UnitError](t, err); err.Error() != want || attest.StatusOf(err) != attest.Failed || len(e.Details) == 0 {
		t.Errorf("got %v, %+v", err, e)
	}
	if err := m.RequireUnitState(ctx, "state.service", "inactive"); err != nil {
		t.Error(err)
	}
	if r, err := m.StartJob(ctx, "no-such.service"); err != nil || r.ExitCode != 5 || !strings.Contains(r.Stderr, "not found") {
		t.Errorf("got %+v, %v", r, err)
	}
}

func testJournal(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("systemd-run --wait --unit=talk bash -c 'for i in {1..9}; do echo line $i; done'; journalctl --sync")
	text, err := m.Journal(ctx, "talk.service", attest.Since("-1h"))
	for i := range 9 {
		if line := fmt.Sprintf("line %d\n", i+1); err != nil || !strings.Contains(text, line) {
			t.Errorf("no %q in %q, %v", line, text, err)
		}
	}
	if text, err = m.Journal(ctx, "talk.service", attest.Lines(2)); err != nil || strings.Count(text, "\n") != 2 {
		t.Errorf("got %q, %v", text, err)
	}
	if text, err = m.Journal(ctx, "", attest.Lines(10)); err != nil || strings.Count(text, "\n") < 10 {
		t.Errorf("got %q, %v", text, err)
	}
	if text, err = m.Journal(ctx, "no-such.service"); err != nil || text != "" {
		t.Errorf("got %q, %v", text, err)
	}
	_, err = m.Journal(ctx, "talk", attest.Since("whenever"))
	if e := errorAs[*attest.CommandError](t, err); !strings.Contains(e.Result.Stderr, "whenever") {
		t.Errorf("got %v", err)
	}
}
