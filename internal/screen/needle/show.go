package needle

import (
	"image"
	"image/color"
)

// Colours of the frames of areas.
var (
	foundColour    = color.RGBA{40, 200, 90, 255}
	missingColour  = color.RGBA{240, 60, 50, 255}
	excludedColour = color.RGBA{150, 150, 150, 255}
)

// Drawn is the needle's picture, dark where it does not count. Frames show its areas: those that were found are
// green, the others red, and those that are excluded grey.
func (r Result) Drawn() *image.RGBA {
	n := r.Needle
	out := dimmed(n.Picture)
	for _, f := range r.Areas {
		r.counts(f, func(x, y int) { out.SetRGBA(x, y, n.Picture.RGBAAt(x, y)) })
	}
	r.frame(out)
	return out
}

// Difference is what a screen shows otherwise than the needle at the places where its areas were most
// likely: the brighter, the more. What does not count is the needle's picture, dark and grey. The frames are those of Drawn.
func (r Result) Difference(shown *image.RGBA) *image.RGBA {
	n := r.Needle
	out := dimmed(n.Picture)
	for _, f := range r.Areas {
		moved := f.Box.Min.Sub(f.Area.Box.Min)
		r.counts(f, func(x, y int) {
			want, got := n.Picture.RGBAAt(x, y), shown.RGBAAt(x+moved.X, y+moved.Y)
			out.SetRGBA(x, y, color.RGBA{apart(want.R, got.R), apart(want.G, got.G), apart(want.B, got.B), 255})
		})
	}
	r.frame(out)
	return out
}

// counts calls fn for each pixel of the needle's picture that counts for an area.
func (r Result) counts(f Found, fn func(x, y int)) {
	t := template{box: f.Area.Box}
	for _, a := range r.Needle.Areas {
		if a.Kind == Exclude {
			t.excluded = append(t.excluded, a.Box)
		}
	}
	for y := t.box.Min.Y; y < t.box.Max.Y; y++ {
		for x := t.box.Min.X; x < t.box.Max.X; x++ {
			if t.skip(x, y) == x {
				fn(x, y)
			}
		}
	}
}

// frame draws the frames of all areas, around them.
func (r Result) frame(p *image.RGBA) {
	for _, a := range r.Needle.Areas {
		if a.Kind == Exclude {
			frame(p, a.Box, excludedColour)
		}
	}
	for _, f := range r.Areas {
		c := missingColour
		if f.OK() {
			c = foundColour
		}
		frame(p, f.Area.Box, c)
	}
}

// frameWidth is in pixels. A report shows pictures smaller than they are.
const frameWidth = 3

func frame(p *image.RGBA, around image.Rectangle, c color.RGBA) {
	outer := around.Inset(-frameWidth).Intersect(p.Rect)
	for y := outer.Min.Y; y < outer.Max.Y; y++ {
		for x := outer.Min.X; x < outer.Max.X; x++ {
			if !image.Pt(x, y).In(around) {
				p.SetRGBA(x, y, c)
			}
		}
	}
}

// dimmed is a picture as a dark background.
func dimmed(p *image.RGBA) *image.RGBA {
	out := image.NewRGBA(p.Rect)
	for i := 0; i < len(p.Pix); i += 4 {
		grey := uint8((int(p.Pix[i]) + int(p.Pix[i+1]) + int(p.Pix[i+2])) / 9)
		out.Pix[i], out.Pix[i+1], out.Pix[i+2], out.Pix[i+3] = grey, grey, grey, 255
	}
	return out
}

func apart(a, b uint8) uint8 { return max(a, b) - min(a, b) }
