package test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestConsoles types and reads on all consoles of a machine without a screen,
// and pauses it.
func TestConsoles(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, attest.MachineConfig{Name: "m", Image: attest.Debian{}, Memory: 256, Networks: []int{}})
	m := lab.Machine("m")
	m.WaitForUnit("multi-user.target")
	for _, test := range []struct {
		name string
		run  func(*testing.T, tried)
	}{
		{"a login", testLogin},
		{"all characters", testAllCharacters},
		{"chords", testChords},
		{"terminals that fail", testTTYErrors},
		{"serial input", testSerialInput},
		{"the monitor", testMonitor},
		{"events", testQMPEvents},
		{"no X server", testNoX},
		{"pause", testPause},
		{"a panic in the middle of waits", testPanicInWaits},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, tried{m.Machine, t}) })
	}
}

// must fails the test on the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func testLogin(t *testing.T, m tried) {
	ctx := t.Context()
	must(t, m.WaitUntilTTYMatches(ctx, "1", "login: "))
	must(t, m.SendChars(ctx, "somebody\n"), m.WaitUntilTTYMatches(ctx, "1", "(?s)login: somebody *\nPassword: "))
	must(t, m.SendChars(ctx, "secret\n"), m.WaitUntilTTYMatches(ctx, "1", "Login incorrect"))
	text, err := m.TTYText(ctx, "1")
	lines := strings.Split(text, "\n")
	if err != nil || len(lines) != 25 || len(lines[0]) != 80 || strings.Contains(text, "secret") {
		t.Errorf("%d lines, %v:\n%s", len(lines), err, text)
	}
	must(t, m.DumpTTYContents(ctx, "1"))
}

// All that a US keyboard can type arrives, however fast it is typed.
func testAllCharacters(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("systemd-run --unit=typed -p StandardInput=tty -p TTYPath=/dev/tty3 bash -c 'stty -icanon -echo; touch /tmp/typing; head -c 97 > /tmp/typed'; until test -e /tmp/typing; do sleep 0.05; done", attest.Timeout(patience))
	must(t, m.SendKey(ctx, "alt-f3"))
	m.succeed("until test $(cat /sys/class/tty/tty0/active) = tty3; do sleep 0.05; done", attest.Timeout(patience))
	var want strings.Builder
	for c := ' '; c <= '~'; c++ {
		want.WriteRune(c)
	}
	want.WriteString("\t\n")
	must(t, m.SendChars(ctx, want.String(), attest.Delay(time.Millisecond)))
	m.succeed("while systemctl is-active typed; do sleep 0.05; done", attest.Timeout(patience))
	if got := m.succeed("cat /tmp/typed"); got != want.String() {
		t.Errorf("got %q, want %q", got, want.String())
	}
	err := m.SendChars(ctx, "naïve")
	if errorAs[*attest.ConfigError](t, err); !strings.Contains(err.Error(), `'ï'`) {
		t.Errorf("got %v", err)
	}
}

func testChords(t *testing.T, m tried) {
	ctx := t.Context()
	const foreground = "cat /sys/class/tty/tty0/active"
	// The kernel switches only to terminals that have been opened. logind does that,
	// at some time.
	m.succeed("for i in 1 2 3; do : > /dev/tty$i; done")
	for _, key := range []string{"alt-f2", "ctrl-alt-f1", "alt-right"} {
		// alt-right leads to the next terminal that is in use, which tty2 is not for a
		// moment while its getty starts.
		want := map[string]string{"alt-f2": "tty2", "ctrl-alt-f1": "tty1", "alt-right": "tty[23]"}[key]
		must(t, m.SendKey(ctx, key))
		m.succeed("until [[ $("+foreground+") = "+want+" ]]; do sleep 0.05; done", attest.Timeout(patience))
	}
	must(t, m.SendKey(ctx, "alt-f1", attest.Unlogged()))
	for _, bad := range []string{"ctrl-alt-entf", "", "ä"} {
		errorAs[*attest.ConfigError](t, m.SendKey(ctx, bad))
	}
	// The kernel's own keys work, too, and what they do can be waited for.
	m.succeed("sysctl -q kernel.sysrq=1; dmesg -n 8")
	must(t, m.SendKey(ctx, "alt-sysrq-h"), m.WaitForConsoleText(ctx, "sysrq: HELP"))
}

func testTTYErrors(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("printf 'the last words' > /dev/tty5")
	err := m.WaitUntilTTYMatches(ctx, "5", "never shown", attest.Timeout(3*time.Second))
	e := errorAs[*attest.WaitError](t, err)
	if !e.Timeout() || e.LastSeen != "the last words" || !hasDetail(e, "tty5 shows", "the last words") {
		t.Errorf("got %+v", e)
	}
	err = m.WaitUntilTTYMatches(ctx, "40", "x", attest.Timeout(3*time.Second))
	if e := errorAs[*attest.WaitError](t, err); !strings.Contains(e.LastSeen, "nothing has used") {
		t.Errorf("got %+v", e)
	}
	if _, err := m.TTYText(ctx, "40"); err == nil || !strings.Contains(err.Error(), "nothing has used tty40") {
		t.Errorf("got %v", err)
	}
	for _, tty := range []string{"0", "64", "ttyS0", ""} {
		_, err := m.TTYText(ctx, tty)
		errorAs[*attest.ConfigError](t, err)
	}
	errorAs[*attest.ConfigError](t, m.WaitUntilTTYMatches(ctx, "1", "("))
	// A terminal that comes to be, and what is not ASCII.
	waited := make(chan error, 1)
	go func() { waited <- m.WaitUntilTTYMatches(ctx, "41", "grüße") }()
	m.succeed("printf '\\033%%Ggrüße' > /dev/tty41")
	must(t, <-waited)
}

func testSerialInput(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("systemd-run --unit=serial bash -c 'exec < /dev/ttyS0; stty -echo -icanon; touch /tmp/reads; head -c 100000 | sha256sum > /tmp/sum'; until test -e /tmp/reads; do sleep 0.05; done", attest.Timeout(patience))
	text := strings.Repeat("0123456789", 10000)
	must(t, m.SendConsole(ctx, text))
	if got, want := m.succeed("while systemctl -q is-active serial; do sleep 0.05; done; cut -c1-64 /tmp/sum", attest.Timeout(patience)), m.succeed("for i in {1..10000}; do printf 0123456789; done | sha256sum | cut -c1-64"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// Nobody reads: it waits until it is given up, and the machine goes on.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := m.SendConsole(ctx, strings.Repeat("x", 4<<20)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	m.succeed("true")
}

func testMonitor(t *testing.T, m tried) {
	ctx := t.Context()
	if out, err := m.SendMonitorCommand(ctx, "info version"); err != nil || !strings.Contains(out, ".") || strings.ContainsAny(out, "\x1b\r") {
		t.Errorf("%q, %v", out, err)
	}
	for _, bad := range []string{"no-such-command", "info nothing", "device_del nothing"} {
		if out, err := m.SendMonitorCommand(ctx, bad); err == nil || attest.StatusOf(err) != attest.Failed {
			t.Errorf("%s: %q, %v", bad, out, err)
		}
	}
	_, err := m.SendMonitorCommand(ctx, "info version\nquit")
	errorAs[*attest.ConfigError](t, err)
}

func testQMPEvents(t *testing.T, m tried) {
	ctx := t.Context()
	must(t, m.Pause(ctx), m.Resume(ctx))
	// What happened before the call counts, and each event once.
	e, err := m.WaitForQMPEventNamed(ctx, "STOP")
	if err != nil || e.Name != "STOP" || time.Since(e.Time) > patience {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := m.WaitForQMPEvent(ctx, func(e attest.QMPEvent) bool { return e.Name == "RESUME" }); err != nil {
		t.Error(err)
	}
	_, err = m.WaitForQMPEventNamed(ctx, "STOP", attest.Timeout(300*time.Millisecond))
	if w := errorAs[*attest.WaitError](t, err); !w.Timeout() || w.Operation != "wait_for_qmp_event" || w.Args != `"STOP"` {
		t.Errorf("got %+v", w)
	}
}

// A guest without an X server: the waits say what they find.
func testNoX(t *testing.T, m tried) {
	ctx := t.Context()
	for name, err := range map[string]error{
		"wait_for_x":      m.WaitForX(ctx, attest.Timeout(3*time.Second)),
		"wait_for_window": m.WaitForWindow(ctx, "x", attest.Timeout(3*time.Second)),
	} {
		e := errorAs[*attest.WaitError](t, err)
		if !e.Timeout() || e.Operation != name || e.Tries < 1 || !strings.Contains(e.LastSeen, "no X server on display :0") {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if _, err := m.WindowNames(ctx); err == nil || !strings.Contains(err.Error(), "no X server on display :0") {
		t.Errorf("got %v", err)
	}
	errorAs[*attest.ConfigError](t, m.WaitForWindow(ctx, "("))
	err := m.Screenshot(ctx, "nothing")
	if e := errorAs[*attest.UnsupportedError](t, err); e.Backend != "qemu" || !strings.Contains(e.Reason, "display=true") || attest.StatusOf(err) != attest.Unsupported {
		t.Errorf("got %+v", e)
	}
}

// What needs the guest of a paused machine fails at once; what is under way
// waits until its own limit.
func testPause(t *testing.T, m tried) {
	ctx := t.Context()
	waited := make(chan error, 1)
	go func() {
		_, err := m.WaitUntilSucceeds(ctx, "touch /tmp/tried; false", attest.Timeout(2*time.Second))
		waited <- err
	}()
	must(t, m.WaitForFile(ctx, "/tmp/tried"), m.Pause(ctx), m.Pause(ctx))
	for name, try := range map[string]func() error{
		"succeed":                func() error { _, err := m.Succeed(ctx, "true"); return err },
		"wait_for_unit":          func() error { return m.WaitForUnit(ctx, "dbus.service") },
		"copy_from_machine":      func() error { return m.CopyFromMachine(ctx, "/etc/hosts", t.TempDir()) },
		"wait_until_tty_matches": func() error { return m.WaitUntilTTYMatches(ctx, "1", "x") },
		"send_key":               func() error { return m.SendKey(ctx, "a") },
		"send_console":           func() error { return m.SendConsole(ctx, "a") },
		"shutdown":               func() error { return m.Shutdown(ctx) },
		"wait_for_shutdown":      func() error { return m.WaitForShutdown(ctx) },
		"kernel_panic":           func() error { return m.KernelPanic(ctx) },
	} {
		if e := errorAs[*attest.PausedError](t, try()); e.Machine != "m" || e.Operation != name {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if out, err := m.SendMonitorCommand(ctx, "info status"); err != nil || !strings.Contains(out, "paused") {
		t.Errorf("%q, %v", out, err)
	}
	if e := errorAs[*attest.WaitError](t, <-waited); !e.Timeout() {
		t.Errorf("got %+v", e)
	}
	must(t, m.Resume(ctx), m.Resume(ctx))
	m.succeed("true")
}

// A guest that panics in the middle of a wait ends it at once.
func testPanicInWaits(t *testing.T, m tried) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	waits := map[string]func() error{
		"wait_until_tty_matches": func() error { return m.WaitUntilTTYMatches(ctx, "1", "never shown") },
		"wait_for_x":             func() error { return m.WaitForX(ctx) },
		"wait_for_window":        func() error { return m.WaitForWindow(ctx, "x") },
		"wait_for_qmp_event":     func() error { _, err := m.WaitForQMPEventNamed(ctx, "NEVER"); return err },
		"wait_for_shutdown":      func() error { return m.WaitForShutdown(ctx) },
	}
	type end struct {
		name string
		err  error
	}
	ends := make(chan end, len(waits))
	for name, wait := range waits {
		go func() { ends <- end{name, wait()} }()
	}
	shutdown := make(chan attest.QMPEvent, 1)
	go func() {
		e, err := m.WaitForQMPEventNamed(ctx, "SHUTDOWN")
		if err != nil {
			t.Error(err)
		}
		shutdown <- e
	}()
	m.succeed("systemd-run bash -c 'sleep 1; echo c > /proc/sysrq-trigger'")
	for range waits {
		e := <-ends
		if down := errorAs[*attest.DownError](t, e.err); !strings.Contains(down.Reason, "Kernel panic") || down.Operation != e.name || len(down.Console) == 0 {
			t.Errorf("%s: %+v", e.name, down)
		}
	}
	if e := <-shutdown; e.Data["guest"] != true {
		t.Errorf("the last event: %+v", e)
	}
	for name, err := range map[string]error{"pause": m.Pause(ctx), "resume": m.Resume(ctx), "send_key": m.SendKey(ctx, "a")} {
		if down := errorAs[*attest.DownError](t, err); down.Operation != name {
			t.Errorf("%s: %+v", name, down)
		}
	}
}
