package attest

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// desktop is a screen with a button at a place.
func desktop(at image.Point) *image.RGBA {
	p := screentest.Uniform(image.Pt(640, 480), color.RGBA{40, 90, 130, 255})
	screentest.Fill(p, image.Rect(0, 0, 60, 20).Add(at), color.RGBA{0, 120, 40, 255})
	for i := range 5 {
		screentest.Fill(p, image.Rect(8+9*i, 5, 13+9*i, 8+2*i).Add(at), screentest.White)
	}
	return p
}

// needleFiles writes needles of a desktop with a button at 100, 100.
func needleFiles(t *testing.T, areas map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, area := range areas {
		f, err := os.Create(filepath.Join(dir, name+".png"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(png.Encode(f, desktop(image.Pt(100, 100))), f.Close()); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(`{"area": [%s], "tags": ["tag-%s"]}`, area, name)
		if err := os.WriteFile(filepath.Join(dir, name+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const buttonArea = `{"xpos": 98, "ypos": 98, "width": 64, "height": 24, "type": "match", "click_point": {"xpos": 7, "ypos": 9}}`

func TestNeedles(t *testing.T) {
	dir := needleFiles(t, map[string]string{
		"button":  buttonArea,
		"another": `{"xpos": 96, "ypos": 96, "width": 80, "height": 40, "type": "match", "match": 100, "margin": 0}`,
	})
	s := newStage(t, mock.Options{})
	m, vm := s.shows(t, desktop(image.Pt(400, 300)))
	waited := make(chan error, 1)
	go func() {
		found, err := m.WaitForScreen(limited(t), dir)
		if !found.Found || found.Needle != "button" || found.Box != image.Rect(118, 88, 182, 112) || found.Click != image.Pt(125, 97) || found.Similarity < 0.99 {
			err = errors.Join(err, fmt.Errorf("found %+v", found))
		}
		waited <- err
	}()
	if found, err := m.FindOnScreen(limited(t), filepath.Join(dir, "button.json")); err != nil || !found.Found || found.Box.Min != image.Pt(398, 298) {
		t.Errorf("%+v, %v", found, err)
	}
	vm.Show(screentest.Uniform(image.Pt(100, 50), screentest.Black)) // another resolution
	if found, err := m.FindOnScreen(limited(t), filepath.Join(dir, "button"), Tag("tag-button")); err != nil || found.Found {
		t.Errorf("%+v, %v", found, err)
	}
	vm.Show(desktop(image.Pt(120, 90)))
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

// A needle that is not there: pictures show why.
func TestNeedleNotFound(t *testing.T) {
	dir := needleFiles(t, map[string]string{"button": buttonArea})
	s := newStage(t, mock.Options{})
	m, _ := s.shows(t, desktop(image.Pt(300, 300)))
	for _, try := range []func(context.Context, string, ...NeedleOption) (ScreenMatch, error){m.AssertScreen, m.WaitForScreen} {
		_, err := try(limited(t), dir+"/button", Timeout(time.Millisecond))
		var we *WaitError
		if !errors.As(err, &we) || !we.Timeout() || !strings.Contains(we.LastSeen, "needle button: area 1 is similar by ") || !strings.Contains(we.LastSeen, "the needle is on the screen, at 298, 298, further away than its margin of 50 pixels") || len(we.Details) == 0 {
			t.Fatalf("got %v", err)
		}
		d := we.Details[0]
		if d.Title != "screen of m and needle button" || len(d.Pictures) != 3 {
			t.Fatalf("%+v", d)
		}
		for _, p := range d.Pictures {
			got, err := screen.ReadFile(p.Path)
			if err != nil || got.Rect.Dx() != 640 || !strings.Contains(d.Text, p.Path) {
				t.Errorf("%s: %v", p.Title, err)
			}
		}
	}
	for want, path := range map[string]string{"no such file": dir + "/nothing", `has the tag "other"`: dir, `and not "other"`: dir + "/button"} {
		var ce *ConfigError
		if _, err := m.AssertScreen(limited(t), path, Tag("other")); !errors.As(err, &ce) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
}
