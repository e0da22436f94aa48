// Package ocr reads text off pictures with tesseract, a program of the host.
//
// A screen is read in up to three variants, since what helps with one text harms another.
// What was read is kept: a screen that has not changed is not read again, and of one that
// has only the part that has.
package ocr

import (
	"context"
	"fmt"
	"image"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/attest-vm/attest/internal/screen"
)

// Program is the program that reads, and Package Debian's package with it.
const Program, Package = "tesseract", "tesseract-ocr"

// A Run runs tesseract with some standard input and returns its standard output.
type Run func(ctx context.Context, input []byte, args ...string) ([]byte, error)

// A Word is a word on a picture.
type Word struct {
	Text       string
	Box        image.Rectangle
	Confidence float64 // percent
}

// A Page is all words on a picture.
type Page []Word

// A Variant is a way to prepare a picture for reading.
type Variant int

const (
	Raw      Variant = iota // as it is
	Positive                // enlarged, and dark on white wherever text stands on one colour
	Negative                // enlarged, grey, with all the contrast that there is, and with dark and light exchanged
	variants
)

// Variants are all of them.
func Variants() []Variant { return []Variant{Raw, Positive, Negative} }

// A Reader reads one screen again and again. Its methods can be called from any goroutine.
type Reader struct {
	run Run

	mu   sync.Mutex
	last [variants]reading
}

// A reading is what was read in one variant.
type reading struct {
	picture *image.RGBA // nil: nothing yet
	page    Page
}

// NewReader returns a Reader that has read nothing yet.
func NewReader(run Run) *Reader { return &Reader{run: run} }

// Read reads a picture in some variants, all at the same time, and returns their pages
// in that order. When enough reports true of a page, the others are given up and nil;
// enough may be nil.
func (r *Reader) Read(ctx context.Context, p *image.RGBA, which []Variant, enough func(Page) bool) ([]Page, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		i    int
		page Page
		err  error
	}
	results := make(chan result, len(which))
	for i, v := range which {
		go func() {
			page, err := r.read(ctx, p, v)
			results <- result{i, page, err}
		}()
	}
	pages := make([]Page, len(which))
	var failed error
	satisfied := false
	for range which {
		switch got := <-results; {
		case satisfied || failed != nil:
		case got.err != nil:
			failed = got.err
			cancel()
		default:
			pages[got.i] = got.page
			if satisfied = enough != nil && enough(got.page); satisfied {
				cancel()
			}
		}
	}
	return pages, failed
}

// margin is how far around a change is read again, in pixels: a word that grows ends there.
const margin = 24

// read reads a picture in one variant, as much of it as has changed.
func (r *Reader) read(ctx context.Context, p *image.RGBA, v Variant) (Page, error) {
	r.mu.Lock()
	last := r.last[v]
	r.mu.Unlock()
	part := screen.Changed(last.picture, p)
	if part.Empty() {
		return last.page, nil
	}
	var kept Page
	if last.picture != nil {
		part, kept = widen(part, p.Rect, last.page)
	}
	page, err := r.recognize(ctx, screen.Crop(p, part), v)
	if err != nil {
		return nil, err
	}
	for _, w := range page {
		w.Box = w.Box.Add(part.Min)
		kept = append(kept, w)
	}
	r.mu.Lock()
	r.last[v] = reading{p, kept}
	r.mu.Unlock()
	return slices.Clip(kept), nil
}

// widen makes a part so large that it cuts no word that was read before, and returns
// the words outside of it. A change of most of the picture is all of it.
func widen(part, all image.Rectangle, words Page) (image.Rectangle, Page) {
	if part.Dx()*part.Dy()*2 > all.Dx()*all.Dy() {
		return all, nil
	}
	part = part.Inset(-margin).Intersect(all)
	for grown := true; grown; {
		grown = false
		for _, w := range words {
			if w.Box.Overlaps(part) && !w.Box.In(part) {
				part = part.Union(w.Box.Inset(-2)).Intersect(all)
				grown = true
			}
		}
	}
	kept := slices.DeleteFunc(slices.Clone(words), func(w Word) bool { return w.Box.Overlaps(part) })
	return part, kept
}

// recognize reads all of a picture.
func (r *Reader) recognize(ctx context.Context, p *image.RGBA, v Variant) (Page, error) {
	input, factor := prepare(p, v)
	// Sparse text (11): it may be anywhere.
	out, err := r.run(ctx, input, "stdin", "stdout", "--psm", "11", "--dpi", strconv.Itoa(factor*100), "tsv")
	if err != nil {
		return nil, err
	}
	page, err := parse(out)
	if err != nil {
		return nil, fmt.Errorf("what %s says: %w", Program, err)
	}
	for i := range page {
		b := &page[i].Box
		*b = image.Rect(b.Min.X/factor, b.Min.Y/factor, (b.Max.X+factor-1)/factor, (b.Max.Y+factor-1)/factor).Intersect(p.Rect)
	}
	return page, nil
}

// parse reads tesseract's table of words (tsv): what it is, its page, block, paragraph, line and
// word, its place, how sure tesseract is, and the text.
func parse(table []byte) (Page, error) {
	var page Page
	for line := range strings.Lines(string(table)) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(f) != 12 || f[0] != "5" { // the heading; what is no word
			continue
		}
		var n [4]int
		for i := range n {
			var err error
			if n[i], err = strconv.Atoi(f[6+i]); err != nil {
				return nil, fmt.Errorf("a word's place: %w", err)
			}
		}
		confidence, err := strconv.ParseFloat(f[10], 64)
		if err != nil {
			return nil, fmt.Errorf("a word's confidence: %w", err)
		}
		if text := strings.TrimSpace(strings.ToValidUTF8(f[11], "\uFFFD")); text != "" {
			page = append(page, Word{text, image.Rect(n[0], n[1], n[0]+n[2], n[1]+n[3]), confidence})
		}
	}
	return page, nil
}

// Text is the words as lines, from top to bottom and from left to right. Words far from each other
// have three blanks between them.
func (p Page) Text() string {
	var b strings.Builder
	for i, line := range p.lines() {
		if i > 0 {
			b.WriteByte('\n')
		}
		for j, w := range line {
			if j > 0 {
				gap := " "
				if w.Box.Min.X-line[j-1].Box.Max.X > 3*max(w.Box.Dy(), line[j-1].Box.Dy()) {
					gap = "   "
				}
				b.WriteString(gap)
			}
			b.WriteString(w.Text)
		}
	}
	return b.String()
}

// lines are the words that stand beside each other.
func (p Page) lines() []Page {
	words := slices.Clone(p)
	middle := func(w Word) int { return w.Box.Min.Y + w.Box.Max.Y } // twice
	slices.SortStableFunc(words, func(a, b Word) int { return middle(a) - middle(b) })
	var lines []Page
	var span []image.Rectangle // of each line
	for _, w := range words {
		// On a line is what overlaps with it by half of the height of what is lower. A small sign may stand
		// anywhere in it, and a letter below it.
		if n := len(lines); n > 0 {
			overlap := min(w.Box.Max.Y, span[n-1].Max.Y) - max(w.Box.Min.Y, span[n-1].Min.Y)
			if 2*overlap >= min(w.Box.Dy(), span[n-1].Dy()) {
				lines[n-1] = append(lines[n-1], w)
				if w.Box.Dy() > span[n-1].Dy() { // the tallest word says where the line is
					span[n-1] = w.Box
				}
				continue
			}
		}
		lines, span = append(lines, Page{w}), append(span, w.Box)
	}
	for _, l := range lines {
		slices.SortStableFunc(l, func(a, b Word) int { return a.Box.Min.X - b.Box.Min.X })
	}
	return lines
}
