package attest

import (
	"errors"
	"image"
	"image/color"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/screen/glyph"
	"github.com/attest-vm/attest/internal/screen/ocr"
	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// consoleFonts has the one font of the consoles that these tests show, and that testHost
// knows: a host has hundreds, which the race detector makes slow to read.
var consoleFonts = sync.OnceValue(func() []*glyph.Font {
	fonts := glyph.HostFonts("/usr/bin/qemu-system-x86_64")
	i := slices.IndexFunc(fonts, func(f *glyph.Font) bool { return f.Width == 8 && f.Height == 16 })
	if i < 0 {
		return nil
	}
	return fonts[i : i+1]
})

func consoleFont(t *testing.T) *glyph.Font {
	t.Helper()
	fonts := consoleFonts()
	if len(fonts) == 0 {
		t.Fatal("this host has no font of 8×16")
	}
	return fonts[0]
}

// shows starts a machine that shows a picture.
func (s *stage) shows(t *testing.T, p *image.RGBA) (*Machine, *mock.Machine) {
	t.Helper()
	m := s.lab(t, "m").Machine("m")
	if err := m.Start(limited(t)); err != nil {
		t.Fatal(err)
	}
	vm := s.started(t, 1)
	vm.Show(p)
	return m, vm
}

// On a console tesseract is not asked: it would fail here.
func TestScreenTextOfConsole(t *testing.T) {
	s := newStage(t, mock.Options{})
	c := screentest.VGA(consoleFont(t))
	const boot = "GNU GRUB  version 2.06\n\n *Debian GNU/Linux\n  Advanced options"
	m, vm := s.shows(t, c.Draw(boot))
	m.text = ocr.NewReader(nil)
	text, err := m.ScreenText(limited(t))
	if err != nil || text != boot {
		t.Errorf("%q, %v", text, err)
	}
	texts, err := m.ScreenTextVariants(limited(t), Region(image.Rect(0, 40, 113, 55)))
	if err != nil || len(texts) != 1 || texts[0] != " *Debian GNU/" {
		t.Errorf("%q, %v", texts, err)
	}
	waited := make(chan error, 1)
	go func() { waited <- m.WaitForText(limited(t), `^m login: $`) }()
	for range 20 { // a screen that changes all the time
		boot := boot + strings.Repeat("\n.", len(boot)%7)
		vm.Show(c.Draw(boot))
	}
	// And one whose resolution changes.
	c.Wide, c.Columns, c.Rows = false, 128, 48
	vm.Show(c.Draw("Debian GNU/Linux 12\n\nm login:"))
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestWaitForTextErrors(t *testing.T) {
	s := newStage(t, mock.Options{})
	const markup = "<script>alert(1)</script> \x1b[31m & nothing"
	m, _ := s.shows(t, screentest.VGA(consoleFont(t)).Draw(strings.ReplaceAll(markup, "\x1b", " ")))
	m.text = ocr.NewReader(nil)
	for limit, once := range map[time.Duration]bool{0: true, 300 * time.Millisecond: false} {
		var we *WaitError
		err := m.WaitForText(limited(t), "something", Timeout(limit), Region(image.Rect(0, 0, 720, 100)))
		if !errors.As(err, &we) || !we.Timeout() || once && we.Tries != 1 || !strings.Contains(we.LastSeen, "<script>alert(1)</script>") || we.Args != `"something", region=[0, 0, 720, 100]` {
			t.Fatalf("%+v", err)
		}
		titles := ""
		for _, d := range we.Details {
			titles += d.Title + "; "
		}
		if !strings.Contains(titles, "text on the screen of m; ") || !strings.Contains(titles, "screenshot of m; ") {
			t.Errorf("details: %s", titles)
		}
	}
	var ce *ConfigError
	for name, err := range map[string]error{
		"a pattern": m.WaitForText(limited(t), "("),
		"a region":  m.WaitForText(limited(t), "x", Region(image.Rect(5000, 0, 5001, 1))),
	} {
		if !errors.As(err, &ce) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A machine that ends, ends the wait.
func TestWaitForTextDown(t *testing.T) {
	s := newStage(t, mock.Options{})
	m, vm := s.shows(t, screentest.VGA(consoleFont(t)).Draw("booting"))
	waited := make(chan error, 1)
	go func() { waited <- m.WaitForText(s.context(t), "never shown") }()
	s.await(t, "the wait has begun", func() bool {
		return slices.ContainsFunc(s.records, func(r event.Record) bool {
			e, ok := r.Event.(event.StepStarted)
			return ok && e.Operation == "wait_for_text"
		})
	})
	vm.End("panicked", "of the test")
	var down *DownError
	if err := <-waited; !errors.As(err, &down) || down.Operation != "wait_for_text" || !strings.Contains(down.Reason, "Kernel panic") {
		t.Errorf("got %v", err)
	}
}

// What is no console is read by tesseract, which ends with the lab.
func TestScreenTextByOCR(t *testing.T) {
	s := newStage(t, mock.Options{})
	c := screentest.Console{Font: consoleFont(t), Columns: 30, Rows: 4, Ink: screentest.Black, Paper: screentest.White, Cursor: image.Pt(-1, -1)}
	p := c.Draw("\n  Install the system")
	for x := range 40 { // an image
		screentest.Fill(p, image.Rect(200+x, 10, 201+x, 60), color.RGBA{uint8(6 * x), 90, uint8(200 - 5*x), 255})
	}
	m, _ := s.shows(t, p)
	if err := m.WaitForText(limited(t), "Install +the +system"); err != nil {
		t.Fatal(err)
	}
	texts, err := m.ScreenTextVariants(limited(t))
	if err != nil || len(texts) != 3 {
		t.Errorf("%q, %v", texts, err)
	}
}

// A host without tesseract is told so before the machine starts.
func TestNoTesseract(t *testing.T) {
	if _, err := exec.LookPath(ocr.Program); err != nil {
		t.Fatal("tesseract is not installed; scripts/setup test does it")
	}
	s := newStage(t, mock.Options{})
	m := s.lab(t, "m").Machine("m")
	t.Setenv("PATH", t.TempDir())
	_, err := m.ScreenText(limited(t))
	var missing *MissingProgramError
	if !errors.As(err, &missing) || StatusOf(err) != Unsupported || !strings.Contains(err.Error(), "m: get_screen_text needs the program tesseract on this host: not found on PATH") || !strings.Contains(err.Error(), "apt-get install tesseract-ocr") {
		t.Errorf("got %v", err)
	}
	if err := m.WaitForText(limited(t), "x"); !errors.As(err, &missing) {
		t.Errorf("got %v", err)
	}
	if m.running() != nil {
		t.Error("the machine was started")
	}
}
