// Package screen has pictures of what machines show: read within limits, since a
// guest or a stranger may have made them, and compared.
//
// The packages below it find something on a picture: glyph the text of a console
// whose font is known, ocr any text, needle a part of a screen as an image.
package screen

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"io"
	"os"
)

const (
	// MaxPixels is the largest picture that is read: a screen of 8K.
	MaxPixels = 7680 * 4320
	// MaxSide is the longest side of one, in pixels.
	MaxSide = 16384
	// MaxFile is the largest file that is read, in bytes.
	MaxFile = 160 << 20
)

// ReadFile reads a picture from a file. See Decode.
func ReadFile(path string) (*image.RGBA, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	} else if st.Size() > MaxFile {
		return nil, fmt.Errorf("%s has %d MiB; a picture has at most %d", path, st.Size()>>20, MaxFile>>20)
	}
	picture, err := Decode(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return picture, nil
}

// Decode reads a picture in one of the formats PNG (of 8 bits a channel at most) and
// PPM (netpbm's P6 with 8 bits a channel). What is larger than the limits of this package is refused
// before memory is taken for it.
func Decode(r io.Reader) (*image.RGBA, error) {
	in := bufio.NewReader(io.LimitReader(r, MaxFile))
	switch head, _ := in.Peek(8); {
	case bytes.HasPrefix(head, []byte("P6")):
		return decodePPM(in)
	case bytes.Equal(head, []byte("\x89PNG\r\n\x1a\n")):
		return decodePNG(in)
	}
	return nil, errors.New("neither a PNG nor a PPM file")
}

func decodePNG(in *bufio.Reader) (*image.RGBA, error) {
	var head bytes.Buffer
	c, err := png.DecodeConfig(io.TeeReader(in, &head))
	if err != nil {
		return nil, err
	}
	if err := CheckSize(c.Width, c.Height); err != nil {
		return nil, err
	}
	if depth := head.Bytes(); len(depth) > 24 && depth[24] > 8 { // of IHDR, PNG 11.2.2
		return nil, fmt.Errorf("%d bits a channel; want 8 at most", depth[24])
	}
	picture, err := png.Decode(io.MultiReader(&head, in))
	if err != nil {
		return nil, err
	}
	return RGBA(picture), nil
}

// CheckSize returns an error for a picture that is too large to be read, or has no pixels.
func CheckSize(width, height int) error {
	if width < 1 || height < 1 || width > MaxSide || height > MaxSide || width*height > MaxPixels {
		return fmt.Errorf("a picture of %d×%d; want at most %d pixels, and %d on a side", width, height, MaxPixels, MaxSide)
	}
	return nil
}

// decodePPM reads what netpbm's ppm(5) describes, laid out as QEMU and grim write it.
func decodePPM(in *bufio.Reader) (*image.RGBA, error) {
	var width, height, most int
	for _, format := range []struct {
		line string
		into []any
	}{{"P6\n", nil}, {"%d %d\n", []any{&width, &height}}, {"%d\n", []any{&most}}} {
		line, err := in.ReadSlice('\n')
		if err == nil && len(line) <= 32 {
			_, err = fmt.Sscanf(string(line), format.line, format.into...)
		}
		if err != nil {
			return nil, errors.New("a PPM file with a bad header")
		}
	}
	if err := CheckSize(width, height); err != nil {
		return nil, err
	}
	if most != 255 {
		return nil, fmt.Errorf("a PPM file with values up to %d; want 255", most)
	}
	out := image.NewRGBA(image.Rect(0, 0, width, height))
	row := make([]byte, 3*width)
	for y := range height {
		if _, err := io.ReadFull(in, row); err != nil {
			return nil, fmt.Errorf("a PPM file that ends in line %d of %d: %w", y, height, io.ErrUnexpectedEOF)
		}
		to := out.Pix[y*out.Stride:]
		for x := range width {
			to[4*x], to[4*x+1], to[4*x+2], to[4*x+3] = row[3*x], row[3*x+1], row[3*x+2], 255
		}
	}
	return out, nil
}

// EncodePPM writes a picture as PPM.
func EncodePPM(w io.Writer, picture *image.RGBA) error {
	out := bufio.NewWriter(w)
	b := picture.Bounds()
	fmt.Fprintf(out, "P6\n%d %d\n255\n", b.Dx(), b.Dy())
	for y := range b.Dy() {
		row := picture.Pix[y*picture.Stride:]
		for x := range b.Dx() {
			out.Write(row[4*x : 4*x+3])
		}
	}
	return out.Flush()
}

// RGBA is a picture as one of 4 bytes a pixel that begins at 0, 0; p itself if it is one.
func RGBA(p image.Image) *image.RGBA {
	if rgba, ok := p.(*image.RGBA); ok && rgba.Rect.Min == (image.Point{}) {
		return rgba
	}
	b := p.Bounds()
	out := image.NewRGBA(image.Rect(0, 0, b.Dx(), b.Dy()))
	draw.Draw(out, out.Rect, p, b.Min, draw.Src)
	return out
}

// Crop is a copy of a part of a picture, as one that begins at 0, 0.
func Crop(p *image.RGBA, part image.Rectangle) *image.RGBA {
	return RGBA(p.SubImage(part.Intersect(p.Rect)))
}

// Changed is the smallest part in which two pictures differ; empty if they are equal, and
// all of now if they differ in size.
func Changed(before, now *image.RGBA) image.Rectangle {
	if before == nil || before.Rect != now.Rect {
		return now.Rect
	}
	width := 4 * now.Rect.Dx()
	row := func(p *image.RGBA, y int) []byte { return p.Pix[y*p.Stride : y*p.Stride+width] }
	out := image.Rectangle{Min: image.Pt(now.Rect.Max.X, -1)}
	for y := range now.Rect.Dy() {
		a, b := row(before, y), row(now, y)
		if bytes.Equal(a, b) {
			continue
		}
		if out.Min.Y < 0 {
			out.Min.Y = y
		}
		out.Max.Y = y + 1
		left, right := 0, width
		for a[left] == b[left] {
			left++
		}
		for a[right-1] == b[right-1] {
			right--
		}
		out.Min.X, out.Max.X = min(out.Min.X, left/4), max(out.Max.X, (right+3)/4)
	}
	if out.Min.Y < 0 {
		return image.Rectangle{}
	}
	return out
}
