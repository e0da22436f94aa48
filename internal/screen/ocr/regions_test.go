package ocr

import (
	"image"
	"image/color"
	"testing"

	"github.com/attest-vm/attest/internal/screen/screentest"
)

// Whatever stands on a background of one colour is dark on white, and frames are gone.
func TestInked(t *testing.T) {
	p := screentest.Uniform(image.Pt(300, 200), color.RGBA{40, 90, 130, 255})
	title, body := image.Rect(20, 20, 280, 50), image.Rect(20, 50, 280, 180)
	screentest.Fill(p, title, color.RGBA{20, 20, 90, 255})
	screentest.Fill(p, body, color.RGBA{230, 230, 225, 255})
	letter := image.Rect(0, 0, 3, 10)
	onTitle, onBody, inButton := image.Pt(60, 30), image.Pt(60, 80), image.Pt(80, 130)
	screentest.Fill(p, letter.Add(onTitle), screentest.White)
	screentest.Fill(p, letter.Add(onBody), color.RGBA{150, 150, 150, 255}) // weak
	button := image.Rect(50, 120, 150, 155)
	screentest.Fill(p, button, screentest.Black)
	screentest.Fill(p, button.Inset(1), color.RGBA{230, 230, 225, 255})
	screentest.Fill(p, letter.Add(inButton), screentest.Black)
	got := inked(p)
	for name, at := range map[string]image.Point{"on the title": onTitle, "on the window": onBody, "in the button": inButton} {
		if v := got.GrayAt(at.X+1, at.Y+5).Y; v > 150 {
			t.Errorf("a letter %s is %d", name, v)
		}
	}
	for name, at := range map[string]image.Point{
		"the desktop": {5, 5}, "the title": {100, 35}, "the window": {200, 100}, "inside of the button": {120, 140},
		"the frame's upper line": {100, 120}, "the frame's left line": {50, 135},
	} {
		if v := got.GrayAt(at.X, at.Y).Y; v < 250 {
			t.Errorf("%s is %d", name, v)
		}
	}
}

// A picture without any background, such as a photo, is left to the other ways.
func TestInkedNothing(t *testing.T) {
	p := screentest.Uniform(image.Pt(64, 64), screentest.Black)
	for i := range p.Pix {
		p.Pix[i] = uint8(i * 37 % 251)
	}
	if got := inked(p); got != nil {
		t.Errorf("it has backgrounds")
	}
	if data, factor := prepare(p, Positive); len(data) < 64*64*factor*factor {
		t.Errorf("%d bytes", len(data))
	}
	if got := inked(screentest.Uniform(image.Pt(1, 1), screentest.Black)); got != nil {
		t.Errorf("one pixel is a background")
	}
}
