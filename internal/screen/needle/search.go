package needle

import (
	"context"
	"image"
	"math"
	"slices"
)

// A level is a picture in shades of grey, made smaller by a factor.
type level struct {
	width, height int
	pix           []uint8
}

func (l *level) at(x, y int) int { return int(l.pix[y*l.width+x]) }

// shrink makes each square of factor × factor pixels of a part of a picture into one. What
// is left over at the right and at the bottom is cut off.
func shrink(p *image.RGBA, part image.Rectangle, factor int) *level {
	l := &level{width: part.Dx() / factor, height: part.Dy() / factor}
	l.pix = make([]uint8, l.width*l.height)
	for y := range l.height {
		for x := range l.width {
			sum := 0
			for dy := range factor {
				row := p.Pix[p.PixOffset(part.Min.X+x*factor, part.Min.Y+y*factor+dy):]
				for i := 0; i < 4*factor; i += 4 {
					sum += 299*int(row[i]) + 587*int(row[i+1]) + 114*int(row[i+2])
				}
			}
			l.pix[y*l.width+x] = uint8(sum / (1000 * factor * factor))
		}
	}
	return l
}

const (
	// A template is made smaller as long as it has so many pixels on each side.
	minSide = 8
	// maxFactor is the most by which anything is made smaller.
	maxFactor = 8
	// keep is how many places are looked at more closely.
	keep = 16
)

// candidates are the most promising of many places. They are searched with
// everything made smaller, and then at each larger size near where they were found.
func (t *template) candidates(ctx context.Context, shown *image.RGBA, places image.Rectangle) ([]image.Point, error) {
	factor := 1
	for 2*factor <= maxFactor && min(t.box.Dx(), t.box.Dy())/(2*factor) >= minSide && places.Dx()*places.Dy() > keep*factor*factor {
		factor *= 2
	}
	// The part of the screen that any of the places covers.
	window := image.Rectangle{places.Min, places.Max.Add(t.box.Size()).Sub(image.Pt(1, 1))}
	var found []image.Point // in the window, at the size of the step before
	for f := factor; f >= 1; f /= 2 {
		all, part := shrink(shown, window, f), t.shrink(f)
		s := scorer{all: all, part: part}
		s.prepare()
		right, bottom := all.width-part.width, all.height-part.height
		var scored []place
		if f == factor {
			for y := 0; y <= bottom; y++ {
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				for x := 0; x <= right; x++ {
					scored = append(scored, place{image.Pt(x, y), s.score(x, y)})
				}
			}
		} else {
			for _, p := range found {
				best := place{score: math.Inf(-1)}
				for y := max(0, 2*p.Y-2); y <= min(bottom, 2*p.Y+2); y++ {
					for x := max(0, 2*p.X-2); x <= min(right, 2*p.X+2); x++ {
						if got := s.score(x, y); got > best.score {
							best = place{image.Pt(x, y), got}
						}
					}
				}
				if !math.IsInf(best.score, -1) {
					scored = append(scored, best)
				}
			}
		}
		found = peaks(scored, max(2, keep*f/factor))
	}
	for i := range found {
		found[i] = found[i].Add(places.Min)
	}
	return slices.DeleteFunc(found, func(p image.Point) bool { return !p.In(places) }), nil
}

// shrink is the template at a smaller size. What does not count has the mean of the rest, so
// that it correlates with nothing.
func (t *template) shrink(factor int) *level {
	l := shrink(t.picture, t.box, factor)
	if len(t.excluded) == 0 {
		return l
	}
	sum, n := 0, 0
	hidden := make([]bool, len(l.pix))
	for i, v := range l.pix {
		x, y := t.box.Min.X+i%l.width*factor, t.box.Min.Y+i/l.width*factor
		square := image.Rect(x, y, x+factor, y+factor)
		hidden[i] = slices.ContainsFunc(t.excluded, square.Overlaps)
		if !hidden[i] {
			sum, n = sum+int(v), n+1
		}
	}
	for i := range l.pix {
		if hidden[i] && n > 0 {
			l.pix[i] = uint8(sum / n)
		}
	}
	return l
}

// A scorer computes the normalised cross-correlation of a part with all places.
type scorer struct {
	all, part         *level
	mean, deviation   float64 // of the part
	sums, squares     []int64 // of all that is above and to the left, one line and column more than all
	lineWidth, pixels int
}

func (s *scorer) prepare() {
	s.lineWidth, s.pixels = s.all.width+1, s.part.width*s.part.height
	s.sums, s.squares = make([]int64, s.lineWidth*(s.all.height+1)), make([]int64, s.lineWidth*(s.all.height+1))
	for y := range s.all.height {
		var sum, square int64
		for x := range s.all.width {
			v := int64(s.all.at(x, y))
			sum, square = sum+v, square+v*v
			i := (y+1)*s.lineWidth + x + 1
			s.sums[i], s.squares[i] = s.sums[i-s.lineWidth]+sum, s.squares[i-s.lineWidth]+square
		}
	}
	var sum, square int64
	for _, v := range s.part.pix {
		sum, square = sum+int64(v), square+int64(v)*int64(v)
	}
	n := float64(s.pixels)
	s.mean = float64(sum) / n
	s.deviation = math.Sqrt(max(0, float64(square)/n-s.mean*s.mean))
}

func (s *scorer) box(of []int64, x, y int) float64 {
	w, h := s.part.width, s.part.height*s.lineWidth
	i := y*s.lineWidth + x
	return float64(of[i+h+w] - of[i+h] - of[i+w] + of[i])
}

// score is the correlation at a place, from -1 to 1. A part of one colour correlates with
// nothing; how equal the colours are counts there.
func (s *scorer) score(x, y int) float64 {
	n := float64(s.pixels)
	mean := s.box(s.sums, x, y) / n
	variance := max(0, s.box(s.squares, x, y)/n-mean*mean)
	if s.deviation < 1 {
		return -(math.Abs(mean-s.mean) + math.Sqrt(variance)) / 255
	}
	if variance < 1 {
		return -1
	}
	cross := 0
	for row := range s.part.height {
		want := s.part.pix[row*s.part.width : (row+1)*s.part.width]
		got := s.all.pix[(y+row)*s.all.width+x:][:len(want)]
		for i, v := range want {
			cross += int(v) * int(got[i])
		}
	}
	return (float64(cross)/n - mean*s.mean) / (math.Sqrt(variance) * s.deviation)
}

// A place is a corner with how much what is there looks like the part.
type place struct {
	image.Point
	score float64
}

// peaks are the best places, of which no two are next to each other.
func peaks(all []place, most int) []image.Point {
	slices.SortFunc(all, func(a, b place) int {
		switch {
		case a.score > b.score:
			return -1
		case a.score < b.score:
			return 1
		}
		return 0
	})
	var out []image.Point
	for _, p := range all {
		near := func(q image.Point) bool { d := p.Sub(q); return max(d.X, -d.X) <= 1 && max(d.Y, -d.Y) <= 1 }
		if !slices.ContainsFunc(out, near) {
			if out = append(out, p.Point); len(out) == most {
				break
			}
		}
	}
	return out
}
