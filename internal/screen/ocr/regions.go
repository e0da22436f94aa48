package ocr

import "image"

// A part of a picture of one colour is a background from this number of pixels on, if it has this share of them not at
// its edge. Letters are smaller, or have thin strokes.
const (
	leastBackground = 600
	leastInside     = 0.5
)

// Lines that are as thin as a frame, and longer than a letter, are not read: tesseract takes what they enclose for an
// image.
const (
	longLine  = 40 // from left to right, pixels
	tallLine  = 24 // from top to bottom
	thickLine = 2
)

// inked has what stands on the backgrounds of a picture as dark on white, whatever the colours are: of
// a window whose title is light on dark and whose buttons are dark on light, all is read.
func inked(p *image.RGBA) *image.Gray {
	w, h := p.Rect.Dx(), p.Rect.Dy()
	ground := backgrounds(p)
	spread(ground, w, h)
	out := image.NewGray(p.Rect)
	ink := out.Pix
	for i, g := range ground {
		if g < 0 {
			return nil
		}
		ink[i] = uint8(difference(p.Pix, i, int(g)))
	}
	eraseLines(ink, w, h)
	most := map[int32]uint8{} // the strongest ink on each background
	for i, v := range ink {
		most[ground[i]] = max(most[ground[i]], v)
	}
	const least = 32 // what is weaker is a shade of the background
	for i, v := range ink {
		ink[i] = uint8(255 - int(v)*255/int(max(most[ground[i]], least)))
	}
	return out
}

// difference is how much two pixels differ, in the channel in which they do most.
func difference(pix []uint8, a, b int) int {
	d := 0
	for c := range 3 {
		v := int(pix[4*a+c]) - int(pix[4*b+c])
		d = max(d, v, -v)
	}
	return d
}

// backgrounds has for each pixel of a background the number of one of its pixels, and -1 for all others.
func backgrounds(p *image.RGBA) []int32 {
	w, h := p.Rect.Dx(), p.Rect.Dy()
	parent := make([]int32, w*h)
	find := func(i int32) int32 {
		for parent[i] != i {
			parent[i] = parent[parent[i]]
			i = parent[i]
		}
		return i
	}
	for i := range parent {
		parent[i] = int32(i)
		if i%w > 0 && difference(p.Pix, i, i-1) == 0 {
			parent[i] = find(int32(i - 1))
		}
		if i >= w && difference(p.Pix, i, i-w) == 0 {
			parent[find(int32(i))] = find(int32(i - w))
		}
	}
	size, inside := make([]int32, w*h), make([]int32, w*h)
	for i := range parent {
		root := find(int32(i))
		parent[i] = root
		size[root]++
	}
	for i, root := range parent {
		x, y := i%w, i/w
		if x > 0 && x < w-1 && y > 0 && y < h-1 && parent[i-1] == root && parent[i+1] == root && parent[i-w] == root && parent[i+w] == root {
			inside[root]++
		}
	}
	for i, root := range parent {
		if size[root] < leastBackground || float64(inside[root]) < leastInside*float64(size[root]) {
			parent[i] = -1
		} else {
			parent[i] = root
		}
	}
	return parent
}

// spread gives each pixel that is on no background the nearest one.
func spread(ground []int32, w, h int) {
	var border []int32
	for i, g := range ground {
		if g >= 0 {
			border = append(border, int32(i))
		}
	}
	for len(border) > 0 {
		var next []int32
		for _, i := range border {
			x := int(i) % w
			for _, n := range [4]int32{i - 1, i + 1, i - int32(w), i + int32(w)} {
				if n < 0 || int(n) >= w*h || n == i-1 && x == 0 || n == i+1 && x == w-1 || ground[n] >= 0 {
					continue
				}
				ground[n] = ground[i]
				next = append(next, n)
			}
		}
		border = next
	}
}

// eraseLines erases the frames of a picture of ink.
func eraseLines(ink []uint8, w, h int) {
	erased := make([]bool, len(ink))
	const faint = 24 // it may belong to the background
	dark := func(i int) bool { return ink[i] > faint }
	mark := func(lines, length, along, across, long int) {
		for l := range lines {
			for from := 0; from < length; {
				to := from
				for to < length && dark(l*across+to*along) {
					to++
				}
				if to-from >= long && thin(dark, l, lines, from, to, along, across) {
					for k := from; k < to; k++ {
						erased[l*across+k*along] = true
					}
				}
				from = to + 1
			}
		}
	}
	mark(h, w, 1, w, longLine)
	mark(w, h, w, 1, tallLine)
	for i, e := range erased {
		if e {
			ink[i] = 0
		}
	}
}

// thin reports whether a line of ink is no thicker than a frame.
func thin(dark func(int) bool, l, lines, from, to, along, across int) bool {
	n := 0
	for k := from; k < to; k++ {
		above, below := l-thickLine, l+thickLine
		if (above < 0 || !dark(above*across+k*along)) && (below >= lines || !dark(below*across+k*along)) {
			n++
		}
	}
	return 4*n >= 3*(to-from)
}
