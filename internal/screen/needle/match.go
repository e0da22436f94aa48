package needle

import (
	"context"
	"image"
	"strings"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/screen"
)

// A Result is a needle as it was found on a screen, or not.
type Result struct {
	Needle     *Needle
	Found      bool
	Similarity float64 // the least of all areas, 0 to 1
	Areas      []Found // of those that are not excluded, in the needle's order
}

// Found is where an area is most likely to be.
type Found struct {
	Area       *Area
	Box        image.Rectangle // on the screen; empty if there is no place for it
	Similarity float64
	Text       string // what an area of kind OCR has
}

// OK reports whether the area is found.
func (f Found) OK() bool { return f.Similarity >= f.Area.Similarity }

// Options are of a search. The zero value searches as openQA does.
type Options struct {
	// Anywhere has the first area be anywhere on the screen, and the others where they
	// are when seen from there, within their margins.
	Anywhere bool
	// Read returns the text of a picture; areas of kind OCR need it.
	Read func(context.Context, *image.RGBA) (string, error)
}

// Find looks for a needle on a screen.
func (n *Needle) Find(ctx context.Context, shown *image.RGBA, o Options) (Result, error) {
	r := Result{Needle: n, Found: true, Similarity: 1}
	var moved image.Point // of the first area, if it may be anywhere
	for i := range n.Areas {
		a := &n.Areas[i]
		if a.Kind == Exclude {
			continue
		}
		margin := a.Margin
		if o.Anywhere && len(r.Areas) == 0 && a.Kind == Match {
			margin = screen.MaxSide
		}
		f := Found{Area: a}
		var err error
		if a.Kind == OCR {
			f, err = n.read(ctx, shown, a, moved, o.Read)
		} else {
			f, err = n.search(ctx, shown, a, a.Box.Add(moved), margin)
		}
		if err != nil {
			return r, err
		}
		if o.Anywhere && len(r.Areas) == 0 {
			moved = f.Box.Min.Sub(a.Box.Min)
		}
		r.Areas = append(r.Areas, f)
		r.Similarity = min(r.Similarity, f.Similarity)
		r.Found = r.Found && f.OK()
	}
	return r, nil
}

// Best is the needle that was found, or that was most nearly.
func Best(results []Result) Result {
	best := results[0]
	for _, r := range results[1:] {
		if r.Found && !best.Found || r.Found == best.Found && r.Similarity > best.Similarity {
			best = r
		}
	}
	return best
}

// Click is where on the screen to click: where the needle says so, or in the middle of
// its last area.
func (r Result) Click() image.Point {
	chosen := r.Areas[len(r.Areas)-1]
	for _, f := range r.Areas {
		if f.Area.Clickable {
			chosen = f
		}
	}
	if p := chosen.Area.Click; p != nil {
		return chosen.Box.Min.Add(*p)
	}
	return chosen.Box.Min.Add(chosen.Box.Size().Div(2))
}

// read compares the text at an area's place with the one that it should have.
func (n *Needle) read(ctx context.Context, shown *image.RGBA, a *Area, moved image.Point, read func(context.Context, *image.RGBA) (string, error)) (Found, error) {
	f := Found{Area: a, Box: a.Box.Add(moved).Intersect(shown.Rect)}
	if f.Box.Empty() {
		return f, nil
	}
	// With a little around it, since letters that touch the edge are misread.
	text, err := read(ctx, screen.Crop(shown, f.Box.Inset(-min(a.Margin, 4))))
	if err != nil {
		return f, err
	}
	f.Text = strings.Join(strings.Fields(text), " ")
	want := strings.Join(strings.Fields(a.Text), " ")
	f.Similarity = 1 - float64(editDistance(f.Text, want))/float64(max(utf8.RuneCountInString(f.Text), utf8.RuneCountInString(want)))
	return f, nil
}

// editDistance is how many characters have to be added, taken away or exchanged to make
// one text of the other (Levenshtein).
func editDistance(a, b string) int {
	to := []rune(b)
	row := make([]int, len(to)+1)
	for j := range row {
		row[j] = j
	}
	for i, r := range []rune(a) {
		left := row[0] // the row before, one to the left
		row[0] = i + 1
		for j, s := range to {
			cost := left
			if r != s {
				cost++
			}
			left = row[j+1]
			row[j+1] = min(cost, row[j]+1, left+1)
		}
	}
	return row[len(to)]
}

// search finds the place within a margin of the expected one that looks most like an area.
func (n *Needle) search(ctx context.Context, shown *image.RGBA, a *Area, expected image.Rectangle, margin int) (Found, error) {
	t := template{picture: n.Picture, box: a.Box}
	for _, other := range n.Areas {
		if hidden := other.Box.Intersect(a.Box); other.Kind == Exclude && !hidden.Empty() {
			t.excluded = append(t.excluded, hidden)
		}
	}
	f := Found{Area: a}
	size := a.Box.Size()
	// The corners that the area can have.
	places := image.Rectangle{expected.Min.Sub(image.Pt(margin, margin)), expected.Min.Add(image.Pt(margin+1, margin+1))}.
		Intersect(image.Rectangle{Max: shown.Rect.Size().Sub(size).Add(image.Pt(1, 1))})
	if places.Empty() {
		return f, nil
	}
	note := func(at image.Point) {
		if s := t.similarity(shown, at); s > f.Similarity || f.Box.Empty() {
			f.Similarity, f.Box = s, image.Rectangle{at, at.Add(size)}
		}
	}
	if expected.Min.In(places) {
		// Mostly nothing has moved.
		if note(expected.Min); f.Similarity >= same {
			return f, nil
		}
	}
	candidates, err := t.candidates(ctx, shown, places)
	if err != nil {
		return f, err
	}
	for _, at := range candidates {
		note(at)
	}
	return f, nil
}

// same is a similarity above which it is not worth looking elsewhere.
const same = 0.999

// A template is a part of a picture to be found.
type template struct {
	picture  *image.RGBA
	box      image.Rectangle
	excluded []image.Rectangle // parts of it that do not count
}

// skip returns where to go on in a line of the template if a pixel does not count, and otherwise x.
func (t *template) skip(x, y int) int {
	for _, e := range t.excluded {
		if y >= e.Min.Y && y < e.Max.Y && x >= e.Min.X && x < e.Max.X {
			return e.Max.X
		}
	}
	return x
}

// similarity compares the template with the part of a screen at a place, in colour. It is the
// index of Wang, Bovik, Sheikh and Simoncelli (2004, SSIM) over the whole area: the
// normalised cross-correlation, weighed by how equal brightness and contrast are. 1 is the
// same; what has nothing to do with each other is near 0.
func (t *template) similarity(shown *image.RGBA, at image.Point) float64 {
	var total float64
	for channel := range 3 {
		var count, a, b, aa, bb, ab float64
		for y := t.box.Min.Y; y < t.box.Max.Y; y++ {
			want := t.picture.Pix[y*t.picture.Stride+channel:]
			got := shown.Pix[(y-t.box.Min.Y+at.Y)*shown.Stride+channel:]
			var n, la, lb, laa, lbb, lab int
			for x := t.box.Min.X; x < t.box.Max.X; x++ {
				if len(t.excluded) > 0 {
					if next := t.skip(x, y); next > x {
						x = next - 1
						continue
					}
				}
				v, w := int(want[4*x]), int(got[4*(x-t.box.Min.X+at.X)])
				n, la, lb, laa, lbb, lab = n+1, la+v, lb+w, laa+v*v, lbb+w*w, lab+v*w
			}
			count, a, b, aa, bb, ab = count+float64(n), a+float64(la), b+float64(lb), aa+float64(laa), bb+float64(lbb), ab+float64(lab)
		}
		if count == 0 {
			return 1 // all of it is excluded
		}
		a, b, aa, bb, ab = a/count, b/count, aa/count, bb/count, ab/count
		// The constants of the paper, for values up to 255; they decide where all is of one colour.
		const c1, c2 = 0.01 * 255 * 0.01 * 255, 0.03 * 255 * 0.03 * 255
		total += (2*a*b + c1) * (2*(ab-a*b) + c2) / ((a*a + b*b + c1) * (aa - a*a + bb - b*b + c2))
	}
	return max(0, total/3)
}
