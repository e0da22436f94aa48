package test

import (
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestScreen looks at the screen of a machine that has one, and at the windows
// of an X server.
func TestScreen(t *testing.T) {
	t.Parallel()
	ctx, out := t.Context(), t.TempDir()
	lab := attest.NewLab(t, attest.LabConfig{OutDir: out, Machines: []attest.MachineConfig{
		// The machine of internal/operation/testdata/every_operation.star.
		{Name: "m", Image: attest.Debian{Packages: []string{"x11-utils", "xvfb"}}, Memory: 512, Display: true},
	}})
	m := lab.Machine("m")
	m.WaitUntilTTYMatches("1", "login: ")
	// getty clears its terminal when it starts, and writes again.
	deadline := time.Now().Add(patience)
	for m.Screenshot("login"); litPixels(t, filepath.Join(out, "login.png")) < 100; m.Screenshot("login") {
		if time.Now().After(deadline) {
			t.Fatalf("the screen stays dark; the terminal has\n%s", m.TTYText("1"))
		}
	}
	m.Pause()
	m.Screenshot(filepath.Join(out, "made/paused.png"))
	m.Resume()
	litPixels(t, filepath.Join(out, "made/paused.png"))

	// The server wants a cookie, which commands of the test do not have.
	m.Succeed("printf '\\001\\000\\000\\001m\\000\\0010\\000\\022MIT-MAGIC-COOKIE-1\\000\\0200123456789abcdef' > /root/cookie",
		attest.Dir("/"))
	waited := make(chan error, 1)
	go func() { waited <- m.Machine.WaitForX(ctx) }()
	m.Succeed("systemd-run --unit=x Xvfb :0 -screen 0 640x480x8 -auth /root/cookie")
	must(t, <-waited)
	m.Fail("xwininfo -root")
	if names := m.WindowNames(); len(names) != 0 {
		t.Errorf("windows of an empty screen: %q", names)
	}
	m.Succeed(`systemd-run --setenv=DISPLAY=:0 --setenv=XAUTHORITY=/root/cookie bash -c 'xev -name "the first" > /dev/null & xev -name "the second" > /dev/null'`)
	m.WaitForWindow("^the fi.st$")
	m.WaitForWindow("second")
	names := m.WindowNames()
	slices.Sort(names)
	if got := strings.Join(names, ", "); got != "the first, the second" {
		t.Errorf("windows: %s", got)
	}
	if got := m.Succeed(`XAUTHORITY=/root/cookie xwininfo -root -tree | grep -c '"the '`); got != "2\n" {
		t.Errorf("xwininfo sees %s", got)
	}

	// What a wait has seen last is in its error, with a screenshot.
	for operation, err := range map[string]error{
		"wait_for_window":        m.Machine.WaitForWindow(ctx, "the third", attest.Timeout(3*time.Second)),
		"wait_until_tty_matches": m.Machine.WaitUntilTTYMatches(ctx, "1", "never shown", attest.Timeout(3*time.Second)),
	} {
		e := errorAs[*attest.WaitError](t, err)
		if e.Operation != operation || !hasDetail(e, "screenshot of m", out) {
			t.Errorf("%s: %+v", operation, e)
		}
		if operation == "wait_for_window" && !strings.Contains(e.LastSeen, `"the first"`) {
			t.Errorf("last seen: %s", e.LastSeen)
		}
		for _, d := range e.Details {
			if d.Title == "screenshot of m" {
				litPixels(t, d.Text)
			}
		}
	}
}

// litPixels counts the pixels of a PNG file that are not black.
func litPixels(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	n := 0
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			if r, g, b, _ := img.At(x, y).RGBA(); r+g+b > 0 {
				n++
			}
		}
	}
	return n
}
