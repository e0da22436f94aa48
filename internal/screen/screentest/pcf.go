package screentest

import (
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"os"

	"golang.org/x/image/font"
	"golang.org/x/image/math/fixed"

	"github.com/attest-vm/attest/internal/screen/glyph"
)

// A bitmapFace is a font whose pixels are ink or are not.
type bitmapFace struct {
	glyphs          map[rune]bitmapGlyph
	ascent, descent int
}

// A bitmapGlyph is a letter: its ink, and where that is from the point at which it is written.
type bitmapGlyph struct {
	mask  *image.Alpha
	width int // to the next letter
}

func (f *bitmapFace) Close() error { return nil }

func (f *bitmapFace) Glyph(dot fixed.Point26_6, r rune) (image.Rectangle, image.Image, image.Point, fixed.Int26_6, bool) {
	g, ok := f.glyphs[r]
	if !ok {
		return image.Rectangle{}, nil, image.Point{}, 0, false
	}
	at := image.Pt(dot.X.Floor(), dot.Y.Floor())
	return g.mask.Rect.Add(at), g.mask, g.mask.Rect.Min, fixed.I(g.width), true
}

func (f *bitmapFace) GlyphBounds(r rune) (fixed.Rectangle26_6, fixed.Int26_6, bool) {
	g, ok := f.glyphs[r]
	if !ok {
		return fixed.Rectangle26_6{}, 0, false
	}
	b := g.mask.Rect
	return fixed.R(b.Min.X, b.Min.Y, b.Max.X, b.Max.Y), fixed.I(g.width), true
}

func (f *bitmapFace) GlyphAdvance(r rune) (fixed.Int26_6, bool) {
	g, ok := f.glyphs[r]
	return fixed.I(g.width), ok
}

func (f *bitmapFace) Kern(rune, rune) fixed.Int26_6 { return 0 }

func (f *bitmapFace) Metrics() font.Metrics {
	return font.Metrics{Height: fixed.I(f.ascent + f.descent), Ascent: fixed.I(f.ascent), Descent: fixed.I(f.descent)}
}

// consoleFace is a font of consoles, of which it has the letters of ASCII.
func consoleFace(f *glyph.Font) *bitmapFace {
	descent := f.Height / 4
	face := &bitmapFace{map[rune]bitmapGlyph{}, f.Height - descent, descent}
	for r := ' '; r <= '~'; r++ {
		mask := image.NewAlpha(image.Rect(0, -face.ascent, f.Width, descent))
		for y := range f.Height {
			for x := range f.Width {
				if f.Pixel(r, x, y) {
					mask.Pix[mask.PixOffset(x, y-face.ascent)] = 255
				}
			}
		}
		face.glyphs[r] = bitmapGlyph{mask, f.Width}
	}
	return face
}

// The tables of a font of an X server (PCF, as xorg's bdftopcf writes it) that drawing needs.
const (
	pcfAccelerators = 1 << 1
	pcfMetrics      = 1 << 2
	pcfBitmaps      = 1 << 3
	pcfEncodings    = 1 << 5
)

// A pcfTable is one of them, behind the number that says how it is laid out.
type pcfTable struct {
	format uint32
	data   []byte
}

func (t pcfTable) order() binary.ByteOrder {
	if t.format&4 != 0 {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

func (t pcfTable) int(at int) int   { return int(int32(t.order().Uint32(t.data[at:]))) }
func (t pcfTable) int16(at int) int { return int(int16(t.order().Uint16(t.data[at:]))) }
func (t pcfTable) compressed() bool { return t.format&0x100 != 0 }
func (t pcfTable) small(i int) int  { return int(t.data[i]) - 0x80 }
func (t pcfTable) bit(b byte, i uint) bool {
	if t.format&8 != 0 {
		i = 7 - i
	}
	return b>>i&1 != 0
}

// readPCF reads a font of an X server, with the letters that one byte can name. Its file is one of
// this host's packages: it is trusted as far as that.
func readPCF(path string) (face *bitmapFace, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	defer func() {
		if r := recover(); r != nil { // an index beyond the end
			err = fmt.Errorf("%s: not a font as bdftopcf writes it: %v", path, r)
		}
	}()
	tables := map[uint32]pcfTable{}
	le := binary.LittleEndian
	if string(data[:4]) != "\x01fcp" {
		return nil, errors.New(path + ": not a PCF file")
	}
	for i := range int(le.Uint32(data[4:])) {
		entry := data[8+16*i:]
		at := le.Uint32(entry[12:])
		tables[le.Uint32(entry)] = pcfTable{le.Uint32(data[at:]), data[at+4 : min(int(at+le.Uint32(entry[8:])), len(data))]}
	}
	a, metrics, bitmaps, names := tables[pcfAccelerators], tables[pcfMetrics], tables[pcfBitmaps], tables[pcfEncodings]
	face = &bitmapFace{map[rune]bitmapGlyph{}, a.int(8), a.int(12)}
	first, last := names.int16(0), names.int16(2)
	glyphs := bitmaps.int(0)
	for c := first; c <= last && names.int16(4) == 0; c++ {
		i := int(uint16(names.int16(10 + 2*(c-first))))
		if i == 0xffff {
			continue
		}
		var left, right, width, ascent, descent int
		if metrics.compressed() {
			at := 2 + 5*i
			left, right, width, ascent, descent = metrics.small(at), metrics.small(at+1), metrics.small(at+2), metrics.small(at+3), metrics.small(at+4)
		} else {
			at := 4 + 12*i
			left, right, width, ascent, descent = metrics.int16(at), metrics.int16(at+2), metrics.int16(at+4), metrics.int16(at+6), metrics.int16(at+8)
		}
		mask := image.NewAlpha(image.Rect(left, -ascent, right, descent))
		pad := 8 << (bitmaps.format & 3)
		stride := (right - left + pad - 1) / pad * pad / 8
		rows := bitmaps.data[4+4*glyphs+16+bitmaps.int(4+4*i):]
		for y := range ascent + descent {
			for x := range right - left {
				if bitmaps.bit(rows[y*stride+x/8], uint(x%8)) {
					mask.Pix[y*mask.Stride+x] = 255
				}
			}
		}
		face.glyphs[rune(c)] = bitmapGlyph{mask, width}
	}
	return face, nil
}
