package test

import (
	"fmt"
	"image"
	"image/color"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/report"
	"github.com/attest-vm/attest/internal/screen/needle"
	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// An editorPage is the page of attest needle in a browser.
type editorPage struct {
	*browser
	attest *program
}

// openEditor runs attest needle, and opens its page.
func openEditor(t *testing.T, size image.Point, args ...string) *editorPage {
	t.Helper()
	a := start(t, t.TempDir(), nil, attestBinary, append([]string{"needle"}, args...)...)
	a.poll(t, "address", func() bool { return strings.Contains(a.said(), "in a browser") })
	p := &editorPage{openBrowser(t, regexp.MustCompile(`http://\S+`).FindString(a.said()), size), a}
	p.await("document.getElementById('size').textContent !== ''")
	return p
}

// on is where a pixel of the needle's picture is on the page.
func (p *editorPage) on(x, y int) image.Point {
	p.t.Helper()
	var box []float64
	p.eval("(() => { const r = document.getElementById('picture').getBoundingClientRect(); return [r.x, r.y, r.width / document.getElementById('picture').naturalWidth]; })()", &box)
	return image.Pt(int(box[0]+(float64(x)+0.5)*box[2]), int(box[1]+(float64(y)+0.5)*box[2]))
}

// areas are the areas as the page has them.
func (p *editorPage) areas() (text string) {
	p.t.Helper()
	p.eval("areas.map(a => [a.type, a.xpos, a.ypos, a.width, a.height].join(' ')).join(', ')", &text)
	return text
}

// fill types a value into a field, as the only one.
func (p *editorPage) fill(selector, value string) {
	p.t.Helper()
	p.click(selector)
	p.eval(fmt.Sprintf("document.querySelector(%q).select()", selector), nil)
	p.typeText(value)
}

// A person draws a needle with the mouse, corrects it with keys, is told what is wrong with it, and saves it.
func TestScreensNeedleEditor(t *testing.T) {
	needScreens(t)
	dir := t.TempDir()
	writePNG(t, filepath.Join(dir, "shot.png"), loginScreen())
	path := filepath.Join(dir, "needles", "login")
	p := openEditor(t, image.Pt(1500, 900), "new", filepath.Join(dir, "shot.png"), path)
	check := func(want string) {
		t.Helper()
		if got := p.areas(); got != want {
			t.Fatalf("the page has the areas [%s], want [%s]", got, want)
		}
	}
	p.drag(p.on(362, 284), p.on(500, 300), p.on(662, 484))
	p.dragWith(shift, p.on(380, 330), p.on(500, 340), p.on(640, 360)) // inside of the first
	p.drag(p.on(120, 20), p.on(60, 10), p.on(10, 2))                  // from below
	p.drag(p.on(900, 700))                                            // a click draws nothing
	check("match 362 284 300 200, match 380 330 260 30, match 10 2 110 18")

	// The second is on top of the first: it is moved, and pulled at its corner.
	p.drag(p.on(500, 340), p.on(510, 350), p.on(502, 344))
	p.drag(p.on(642, 364), p.on(650, 360), p.on(640, 368))
	check("match 362 284 300 200, match 382 334 258 34, match 10 2 110 18")
	p.drag(p.on(500, 344), p.on(100, 500), p.on(-300, 2000)) // no further than the picture goes
	check("match 362 284 300 200, match 0 734 258 34, match 10 2 110 18")
	p.drag(p.on(100, 744), p.on(200, 400), p.on(482, 344))
	p.key("ArrowRight", 0)
	p.key("ArrowUp", shift)
	check("match 362 284 300 200, match 383 334 258 33, match 10 2 110 18")

	// What they are for, by the keyboard.
	for i, keys := range []int{0, 1, 2} {
		p.eval(fmt.Sprintf("document.querySelectorAll('fieldset select')[%d].focus()", i), nil)
		for range keys {
			p.key("ArrowDown", 0)
		}
	}
	check("match 362 284 300 200, exclude 383 334 258 33, ocr 10 2 110 18")
	p.click("#save")
	p.await("document.getElementById('said').textContent.includes('area 3: an area of type ocr needs refstr')")
	p.fill("fieldset.ocr input[type=text]", "Applications")
	p.fill("fieldset.match input[max='100']", "120")
	p.key("s", ctrl)
	p.await("document.getElementById('said').textContent.includes('area 1: match 120')")
	p.fill("fieldset.match input[max='100']", "90")
	p.click("fieldset.match .row:last-child button") // Set click point
	p.drag(p.on(600, 450))
	p.click("#add")
	p.key("Delete", 0)
	p.fill("#tags", "login  gnome")
	check("match 362 284 300 200, exclude 383 334 258 33, ocr 10 2 110 18")

	// A directory that cannot be written to is no end of the work either.
	must(t, os.WriteFile(filepath.Join(dir, "needles"), nil, 0o600))
	p.click("#save")
	p.await("document.getElementById('said').textContent.includes('not a directory')")
	must(t, os.Remove(filepath.Join(dir, "needles")))
	must(t, os.Mkdir(filepath.Join(dir, "needles"), 0o755))
	p.click("#save")
	p.await("document.getElementById('said').textContent.startsWith('Saved as ')")
	if code := p.attest.exitCode(t); code != 0 || !strings.Contains(p.attest.said(), "login.json: saved") {
		t.Errorf("exit code %d", code)
	}
	n, err := needle.Load(path)
	must(t, err)
	first := n.Areas[0]
	if first.Similarity != 0.9 || *first.Click != image.Pt(600-362, 450-284) || n.Areas[1].Kind != needle.Exclude || n.Areas[2].Text != "Applications" || !slices.Equal(n.Tags, []string{"login", "gnome"}) {
		t.Errorf("saved %+v", n)
	}
}

// What a person has drawn is not lost when attest has ended, and the page fits on any screen, in light and dark.
func TestScreensNeedleEditorWithoutAttest(t *testing.T) {
	needScreens(t)
	dir := t.TempDir()
	n := needle.New(filepath.Join(dir, "login"), loginScreen())
	must(t, n.Edit([]byte(`{"area": [{"type": "match", "xpos": 362, "ypos": 284, "width": 300, "height": 200}], "tags": ["login"]}`)))
	must(t, n.Save())
	p := openEditor(t, image.Pt(1500, 900), "edit", n.Path)
	for _, size := range []image.Point{{1280, 800}, {700, 500}, {390, 700}} {
		for _, scheme := range []string{"light", "dark"} {
			p.resize(size)
			p.colours(scheme)
			// All of the picture is there, and nothing has to be scrolled sideways.
			p.await("document.documentElement.scrollWidth <= innerWidth && picture.getBoundingClientRect().right <= innerWidth && picture.getBoundingClientRect().bottom <= innerHeight")
			if *browserPictures != "" {
				p.picture(filepath.Join(*browserPictures, fmt.Sprintf("editor-%d-%s.png", size.X, scheme)))
			}
		}
	}
	p.key("Tab", 0)
	p.drag(p.on(20, 40), p.on(100, 100), p.on(300, 200))
	must(t, p.attest.cmd.Process.Signal(os.Interrupt))
	if code := p.attest.exitCode(t); code != 130 {
		t.Errorf("exit code %d", code)
	}
	p.click("#save")
	p.await("document.getElementById('said').textContent.startsWith('Nothing is saved: attest has ended')")
	var rescued string
	p.eval("document.getElementById('rescue').value", &rescued)
	drawn := p.areas()
	must(t, n.Edit([]byte(rescued)))
	if len(n.Areas) != 2 || !strings.HasPrefix(drawn, "match 362 284 300 200, match ") || n.Areas[1].Box.Dx() < 250 {
		t.Errorf("drawn were [%s]; the page gives %s", drawn, rescued)
	}
}

// loginScreen is a screen of a login manager.
func loginScreen() *image.RGBA {
	p := screentest.Uniform(image.Pt(1024, 768), color.RGBA{40, 90, 130, 255})
	screentest.Fill(p, image.Rect(0, 0, 1024, 24), color.RGBA{30, 30, 30, 255})
	screentest.Fill(p, image.Rect(362, 284, 662, 484), color.RGBA{235, 235, 235, 255})
	screentest.Fill(p, image.Rect(382, 334, 642, 364), screentest.White)
	screentest.Fill(p, image.Rect(552, 434, 642, 464), color.RGBA{0, 120, 40, 255})
	return p
}

// notFound waits for a needle on a machine without a VMM that shows something else, and writes the report of a test that has
// failed for that.
func notFound(t *testing.T, shown *image.RGBA, needle, path string) {
	t.Helper()
	const backend = "mock-report"
	var vm *mock.Machine
	vmm.Register(mock.New(mock.Options{Name: backend, InProcess: true, Started: func(m *mock.Machine) { vm = m }}))
	t.Cleanup(func() { vmm.Unregister(backend) })
	lab := attest.NewLab(t, attest.LabConfig{OutDir: filepath.Dir(path), Machines: []attest.MachineConfig{{Name: "m", Backend: backend, Boot: attest.BootCold}}})
	m := lab.Machine("m")
	m.Start()
	vm.Show(shown)
	reports, err := report.Open(report.Options{HTML: path})
	must(t, err)
	var bus event.Bus
	var failure *event.Failure
	defer bus.Subscribe(func(r event.Record) {
		if e, ok := r.Event.(event.StepFinished); ok && e.Failure != nil {
			failure = e.Failure
		}
		reports.Record(r)
	})()
	scope := event.Scope{File: "login_test.star", Test: "test_login"}
	bus.Publish(scope, event.TestStarted{})
	if _, err := m.Machine.AssertScreen(event.WithScope(event.WithBus(t.Context(), &bus), scope), needle, attest.Timeout(0)); err == nil {
		t.Fatal("it is on the screen")
	}
	bus.Publish(scope, event.TestFinished{Status: event.Failed, Failure: failure})
	_, err = reports.Close()
	must(t, err)
}

// The report of a needle that was not found has the screen, the needle and the difference beside each other.
func TestScreensReport(t *testing.T) {
	needScreens(t)
	dir := t.TempDir()
	n := needle.New(filepath.Join(dir, "login"), loginScreen())
	must(t, n.Edit([]byte(`{"area": [
		{"type": "match", "xpos": 362, "ypos": 284, "width": 300, "height": 130}, {"type": "exclude", "xpos": 382, "ypos": 334, "width": 260, "height": 30},
		{"type": "match", "xpos": 552, "ypos": 434, "width": 90, "height": 30}], "tags": []}`)))
	must(t, n.Save())
	shown := loginScreen() // with another button
	screentest.Fill(shown, image.Rect(552, 434, 642, 464), color.RGBA{180, 30, 30, 255})
	screentest.Fill(shown, image.Rect(560, 444, 620, 454), screentest.White)
	path := filepath.Join(dir, "out", "report.html")
	notFound(t, shown, n.Path, path)
	b := openBrowser(t, "file://"+path, image.Pt(1300, 900))
	b.await("document.querySelectorAll('.failure .pictures img').length === 3 && [...document.images].every(i => i.complete)")
	for _, c := range []struct {
		width  int
		beside bool
	}{{1300, true}, {390, false}} {
		b.resize(image.Pt(c.width, 900))
		var got struct {
			Tops, Widths []float64
			Captions     string
			Fits         bool
		}
		b.eval(`({Tops: [...document.images].map(i => i.getBoundingClientRect().y), Widths: [...document.images].map(i => i.naturalWidth),
			Captions: [...document.querySelectorAll('.pictures figcaption')].map(c => c.textContent).join(' '), Fits: document.documentElement.scrollWidth <= innerWidth})`, &got)
		if len(got.Tops) != 3 || (got.Tops[0] == got.Tops[2]) != c.beside || !slices.Equal(got.Widths, []float64{1024, 1024, 1024}) || got.Captions != "screen needle difference" || !got.Fits {
			t.Errorf("%d pixels wide: %+v", c.width, got)
		}
		if *browserPictures != "" {
			b.picture(filepath.Join(*browserPictures, fmt.Sprintf("report-%d.png", c.width)))
		}
	}
}
