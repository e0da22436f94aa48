// Package screentest draws screens for tests and benchmarks, with known text on them.
package screentest

import (
	"image"
	"image/color"
	"image/draw"
	"strings"

	"github.com/attest-vm/attest/internal/screen/glyph"
)

// A Console is a screen of cells.
type Console struct {
	Font          *glyph.Font
	Columns, Rows int
	Wide          bool // one more column of pixels for each cell, as a VGA adapter has in text mode
	Ink, Paper    color.RGBA
	// Cursor is the cell that a cursor is in: its last two lines have the colour of the
	// text. Negative: there is none.
	Cursor image.Point
}

// The colours of a console.
var (
	Black = color.RGBA{0, 0, 0, 255}
	Grey  = color.RGBA{170, 170, 170, 255}
	White = color.RGBA{255, 255, 255, 255}
)

// VGA is a console of 80×25 as a kernel or a boot menu has it in text mode.
func VGA(f *glyph.Font) Console {
	return Console{Font: f, Columns: 80, Rows: 25, Wide: true, Ink: Grey, Paper: Black, Cursor: image.Pt(-1, -1)}
}

// Draw draws text in the upper left corner; what does not fit is not shown.
func (c Console) Draw(text string) *image.RGBA {
	width := c.Font.Width
	if c.Wide {
		width++
	}
	out := Uniform(image.Pt(c.Columns*width, c.Rows*c.Font.Height), c.Paper)
	for y, line := range strings.Split(text, "\n") {
		for x, r := range []rune(line) {
			if x >= c.Columns || y >= c.Rows {
				continue
			}
			for dy := range c.Font.Height {
				for dx := range c.Font.Width {
					if c.Font.Pixel(r, dx, dy) {
						out.SetRGBA(x*width+dx, y*c.Font.Height+dy, c.Ink)
					}
				}
			}
		}
	}
	if c.Cursor.X >= 0 {
		at := image.Pt(c.Cursor.X*width, (c.Cursor.Y+1)*c.Font.Height)
		Fill(out, image.Rectangle{at.Sub(image.Pt(0, 2)), at.Add(image.Pt(width, 0))}, c.Ink)
	}
	return out
}

// Uniform is a screen of one colour.
func Uniform(size image.Point, c color.RGBA) *image.RGBA {
	out := image.NewRGBA(image.Rectangle{Max: size})
	Fill(out, out.Rect, c)
	return out
}

// Fill fills a part of a screen.
func Fill(p *image.RGBA, part image.Rectangle, c color.RGBA) {
	draw.Draw(p, part, image.NewUniform(c), image.Point{}, draw.Src)
}
