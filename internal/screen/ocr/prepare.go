package ocr

import (
	"bytes"
	"fmt"
	"image"

	"golang.org/x/image/draw"
)

// prepare makes a picture ready for tesseract, as a PNM file, and enlarged by a factor.
func prepare(p *image.RGBA, v Variant) (pnm []byte, factor int) {
	grey := luminance(p)
	if v == Raw {
		return pgm(grey), 1
	}
	factor = enlargement(p.Rect)
	var byRegion *image.Gray
	if v == Positive {
		byRegion = inked(p)
	}
	if byRegion != nil {
		grey = byRegion
	} else {
		stretch(grey, v == Negative)
	}
	large := image.NewRGBA(image.Rect(0, 0, factor*p.Rect.Dx(), factor*p.Rect.Dy()))
	draw.CatmullRom.Scale(large, large.Rect, grey, grey.Rect, draw.Src, nil)
	out := image.NewGray(large.Rect)
	for i := range out.Pix {
		out.Pix[i] = large.Pix[4*i]
	}
	return pgm(out), factor
}

// enlargement is by how much a picture is enlarged. Tesseract was trained with letters
// of some 30 pixels, and those on screens have 10.
func enlargement(r image.Rectangle) int {
	if r.Dx()*r.Dy() <= 1280*1024 {
		return 3
	}
	return 2
}

// luminance is a picture without its colours.
func luminance(p *image.RGBA) *image.Gray {
	out := image.NewGray(p.Rect)
	for y := range p.Rect.Dy() {
		from, to := p.Pix[y*p.Stride:], out.Pix[y*out.Stride:]
		for x := range p.Rect.Dx() {
			// ITU-R BT.601
			to[x] = uint8((299*int(from[4*x]) + 587*int(from[4*x+1]) + 114*int(from[4*x+2]) + 500) / 1000)
		}
	}
	return out
}

// stretch spreads the values of a picture over the whole range, and turns them round.
func stretch(p *image.Gray, negative bool) {
	low, high := uint8(255), uint8(0)
	for _, v := range p.Pix {
		low, high = min(low, v), max(high, v)
	}
	if low >= high {
		low, high = 0, 255
	}
	var table [256]uint8
	for v := range table {
		table[v] = uint8((min(max(v, int(low)), int(high)) - int(low)) * 255 / (int(high) - int(low)))
		if negative {
			table[v] = 255 - table[v]
		}
	}
	for i, v := range p.Pix {
		p.Pix[i] = table[v]
	}
}

// pgm is a picture in netpbm's format for shades of grey.
func pgm(p *image.Gray) []byte {
	var b bytes.Buffer
	b.Grow(len(p.Pix) + 32)
	fmt.Fprintf(&b, "P5\n%d %d\n255\n", p.Rect.Dx(), p.Rect.Dy())
	b.Write(p.Pix)
	return b.Bytes()
}
