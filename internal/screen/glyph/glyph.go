// Package glyph reads the text of a console: a screen whose cells each show one glyph of
// a font of fixed width, as Linux's console, boot menus and firmware write it. It takes milliseconds, and
// what it reads is exact, for it knows the fonts: from the firmware of the VGA
// adapter, and from the console fonts of this host.
package glyph

import (
	"encoding/binary"
	"image"
	"math/bits"
	"strings"
	"sync"
	"unicode/utf8"
)

// A Reader knows fonts.
type Reader struct {
	load  func() []*Font
	once  sync.Once
	fonts []*Font
}

// NewReader returns a Reader of the fonts that load returns, which is called when
// the first picture is read.
func NewReader(load func() []*Font) *Reader { return &Reader{load: load} }

// A Text is what a console shows.
type Text struct {
	Lines []string        // without the blanks at their ends; as many as the console has
	Cell  image.Rectangle // the first cell: the size of all
	Font  string
}

func (t Text) String() string { return strings.TrimRight(strings.Join(t.Lines, "\n"), "\n") }

// Padded is the text of a picture that is so wide, as a terminal has it: each line with blanks up to its last column.
func (t Text) Padded(width int) string {
	if t.Cell.Dx() == 0 {
		return t.String()
	}
	lines := make([]string, len(t.Lines))
	for i, line := range t.Lines {
		lines[i] = line + strings.Repeat(" ", max(0, width/t.Cell.Dx()-utf8.RuneCountInString(line)))
	}
	return strings.Join(lines, "\n")
}

// In is the part of the text whose cells have their middle in a part of the picture.
func (t Text) In(part image.Rectangle) Text {
	out := Text{Cell: t.Cell, Font: t.Font}
	size := t.Cell.Size()
	for y, line := range t.Lines {
		if middle := y*size.Y + size.Y/2; middle < part.Min.Y || middle >= part.Max.Y {
			continue
		}
		var b strings.Builder
		for x, r := range []rune(line) {
			if middle := x*size.X + size.X/2; middle >= part.Min.X && middle < part.Max.X {
				b.WriteRune(r)
			}
		}
		out.Lines = append(out.Lines, strings.TrimRight(b.String(), " "))
	}
	return out
}

const (
	// minText is how many cells have to show something. Fewer may look like anything.
	minText = 2
	// looseShare is the part of those cells, one in so many, that may look only nearly like a
	// glyph: the cursor is on one, and a kernel's own font differs a little from that of the
	// firmware.
	looseShare = 3
	// unknownShare is the part that may be unknown.
	unknownShare = 50
)

// Read returns the text of a console; false if the picture shows something else. A
// picture of one colour is a console without text.
func (r *Reader) Read(p *image.RGBA) (Text, bool) {
	if uniform(p, p.Rect) {
		return Text{}, true
	}
	r.once.Do(func() { r.fonts = r.load() })
	grids := map[image.Point]*grid{}
	var best *grid
	var font *Font
	most := 0
	for _, f := range r.fonts {
		for _, width := range widths(p, f) {
			size := image.Pt(width, f.Height)
			g, known := grids[size]
			if !known {
				g = newGrid(p, size, f.Width)
				grids[size] = g
			}
			if g == nil {
				continue
			}
			if n := g.exact(f); n > most {
				best, font, most = g, f, n
			}
		}
	}
	if best == nil {
		return Text{}, false
	}
	lines, ok := best.text(font)
	return Text{lines, image.Rectangle{Max: best.cell}, font.Name}, ok
}

// widths are the widths that cells of a font can have. A VGA adapter in text mode
// shows one more column of pixels than the font has.
func widths(p *image.RGBA, f *Font) []int {
	if f.Width == 8 && p.Rect.Dx()%9 == 0 && p.Rect.Dx()/9 <= 132 {
		return []int{8, 9}
	}
	return []int{f.Width}
}

// A grid is a picture cut into cells.
type grid struct {
	cell          image.Point
	columns, rows int
	marks         []mark         // of all cells
	counts        map[bitmap]int // how many cells have such a mark; by the mark's ink
}

// A mark is what a cell of two colours shows: the pixels that do not have the colour of
// its corner, and the others.
type mark struct{ ink, rest bitmap } // empty: the cell has one colour, or too many

const many bitmap = "many" // the ink of a cell of more than two colours

// newGrid is nil if too many cells have more than two colours.
func newGrid(p *image.RGBA, cell image.Point, width int) *grid {
	g := &grid{cell: cell, columns: p.Rect.Dx() / cell.X, rows: p.Rect.Dy() / cell.Y, counts: map[bitmap]int{}}
	colourful := 0
	for y := range g.rows {
		for x := range g.columns {
			m := cut(p, image.Pt(x*cell.X, y*cell.Y), width, cell.Y)
			if m.ink == many {
				if colourful++; colourful > 2+g.columns*g.rows/unknownShare {
					return nil
				}
			}
			g.marks = append(g.marks, m)
			if m.ink != "" {
				g.counts[m.ink]++
			}
		}
	}
	return g
}

// cut is one cell of a picture.
func cut(p *image.RGBA, at image.Point, width, height int) mark {
	pixel := func(x, y int) uint32 { return binary.LittleEndian.Uint32(p.Pix[p.PixOffset(at.X+x, at.Y+y):]) }
	corner, other := pixel(0, 0), uint32(0)
	var ink, rest [4 * maxHeight]byte
	found := false
	for y := range height {
		var line uint32
		for x := range width {
			switch c := pixel(x, y); {
			case c == corner:
				continue
			case !found:
				other, found = c, true
			case c != other:
				return mark{ink: many}
			}
			line |= 1 << (31 - x)
		}
		binary.BigEndian.PutUint32(ink[4*y:], line)
		binary.BigEndian.PutUint32(rest[4*y:], ^line&^(1<<(32-width)-1))
	}
	if !found {
		return mark{}
	}
	return mark{bitmap(ink[:4*height]), bitmap(rest[:4*height])}
}

// exact counts the cells that show a glyph of the font.
func (g *grid) exact(f *Font) int {
	n, seen := 0, map[bitmap]bool{}
	for _, m := range g.marks {
		if m.ink == "" || m.ink == many || seen[m.ink] {
			continue
		}
		seen[m.ink] = true
		if _, ok := f.find(m); ok {
			n += g.counts[m.ink]
		}
	}
	return n
}

// find is the glyph that a mark is. The corner of a cell is rarely a part of its glyph.
func (f *Font) find(m mark) (rune, bool) {
	if r, ok := f.runes[m.ink]; ok {
		return r, true
	}
	r, ok := f.runes[m.rest]
	return r, ok
}

// text reads the lines; false if too many cells are no text.
func (g *grid) text(f *Font) ([]string, bool) {
	shown, loose, unknown := 0, 0, 0
	near := map[bitmap]rune{}
	var lines []string
	var line strings.Builder
	for i, m := range g.marks {
		r, ok := ' ', true
		if m.ink != "" {
			shown++
			if r, ok = f.find(m); !ok {
				loose++
				if r, ok = near[m.ink]; !ok {
					r = f.nearest(m)
					near[m.ink] = r
				}
				if r == unreadable {
					unknown++
				}
			}
		}
		line.WriteRune(r)
		if (i+1)%g.columns == 0 {
			lines = append(lines, strings.TrimRight(line.String(), " "))
			line.Reset()
		}
	}
	return lines, shown >= minText && (loose-1)*looseShare <= shown && (unknown-1)*unknownShare <= shown
}

// unreadable stands for a cell that is no glyph of the font.
const unreadable = '\uFFFD'

// nearest is the glyph that a mark nearly is, but for its last lines, in which the cursor
// may be.
func (f *Font) nearest(m mark) rune {
	if m.ink == many {
		return unreadable
	}
	const cursorLines = 3
	tolerance := f.Width * f.Height / 20
	best, least, second := unreadable, tolerance+1, tolerance+1
	note := func(r rune, d int) {
		switch {
		case d < least:
			best, least, second = r, d, least
		case d < second && r != best:
			second = d
		}
	}
	for _, shape := range []bitmap{m.ink, m.rest} {
		body := 4 * max(f.Height-cursorLines, 1)
		note(' ', ones(shape[:body]))
		for glyph, r := range f.runes {
			note(r, distance(glyph, shape))
			// A cursor: below the body all is ink or none is.
			if d := distance(glyph[:body], shape[:body]); d == 0 {
				note(r, 1)
			}
		}
	}
	if second == least {
		return unreadable
	}
	return best
}

func ones(b bitmap) int {
	n := 0
	for i := range len(b) {
		n += bits.OnesCount8(b[i])
	}
	return n
}

func distance(a, b bitmap) int {
	n := 0
	for i := range len(a) {
		n += bits.OnesCount8(a[i] ^ b[i])
	}
	return n
}

// uniform reports whether a part of a picture has one colour.
func uniform(p *image.RGBA, part image.Rectangle) bool {
	first := p.RGBAAt(part.Min.X, part.Min.Y)
	for y := part.Min.Y; y < part.Max.Y; y++ {
		row := p.Pix[p.PixOffset(part.Min.X, y) : p.PixOffset(part.Max.X-1, y)+4]
		for i := 0; i < len(row); i += 4 {
			if row[i] != first.R || row[i+1] != first.G || row[i+2] != first.B {
				return false
			}
		}
	}
	return true
}
