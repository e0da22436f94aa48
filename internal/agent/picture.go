package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"github.com/attest-vm/attest/internal/wire"
)

// An absentError is a way to a picture that this guest does not have.
type absentError struct{ reason string }

func (e *absentError) Error() string { return e.reason }

func absent(format string, args ...any) error { return &absentError{fmt.Sprintf(format, args...)} }

// A shower writes a picture of what one display shows: as PPM, or as PNG.
type shower func(ctx context.Context, display string, w io.Writer) error

// showers are the ways to a picture, in the order in which they are tried. What has windows comes
// first: behind it the framebuffer has what the console showed before.
var showers = []struct {
	method string
	show   shower
}{
	{wire.ShowWayland, showWayland},
	{wire.ShowX11, showX},
	{wire.ShowFramebuffer, showFramebuffer},
}

// takePicture writes a picture of what the guest shows.
func takePicture(ctx context.Context, q wire.PictureRequest, w io.Writer) (any, error) {
	var reasons []string
	for _, s := range showers {
		if q.Method != "" && q.Method != s.method || q.Method == "" && !fits(s.method, q.Display) {
			continue
		}
		err := s.show(ctx, q.Display, w)
		var a *absentError
		switch {
		case err == nil:
			return wire.PictureResult{Method: s.method}, nil
		case q.Method == "" && errors.As(err, &a):
			reasons = append(reasons, s.method+": "+err.Error())
		case errors.As(err, &a):
			return nil, errorf(wire.KindFailed, "%v", err)
		default:
			return nil, fmt.Errorf("%s: %w", s.method, err)
		}
	}
	if len(reasons) == 0 {
		return nil, errorf(wire.KindInvalid, "there is no way %q to a picture of display %q", q.Method, q.Display)
	}
	return nil, errorf(wire.KindFailed, "nothing in the guest shows a picture (%s)", strings.Join(reasons, "; "))
}

// fits reports whether a display can be one of a method's.
func fits(method, display string) bool {
	switch {
	case display == "":
		return true
	case strings.HasPrefix(display, ":"):
		return method == wire.ShowX11
	case IsWayland(display):
		return method == wire.ShowWayland
	}
	return method == wire.ShowFramebuffer
}

// maxSide is the longest side of a picture, in pixels: that of internal/screen, which reads it.
const maxSide = 16384

// writeHeader begins a PPM file.
func writeHeader(w io.Writer, width, height int) error {
	if width < 1 || height < 1 || width > maxSide || height > maxSide {
		return fmt.Errorf("a screen of %d×%d pixels", width, height)
	}
	_, err := fmt.Fprintf(w, "P6\n%d %d\n255\n", width, height)
	return err
}

// A pixelFormat is how pixels lie in memory.
type pixelFormat struct {
	size             int // bytes of each: 1 to 4
	bigEndian        bool
	red, green, blue channel
	palette          [][3]byte // of pixels of one byte; nil: they have channels
}

// A channel is the bits of a pixel that are a colour's.
type channel struct{ shift, length uint }

// channelOf is the channel that a mask selects.
func channelOf(mask uint32) channel {
	return channel{uint(bits.TrailingZeros32(mask)) & 31, uint(bits.OnesCount32(mask))}
}

// of is the colour in a pixel, from 0 to 255.
func (c channel) of(pixel uint32) byte {
	if c.length == 0 || c.length > 16 {
		return 0
	}
	most := uint32(1)<<c.length - 1
	return byte((pixel >> c.shift & most) * 255 / most)
}

// check returns an error for pixels that cannot be read.
func (f pixelFormat) check() error {
	switch {
	case f.size < 1 || f.size > 4, f.size == 1 && f.palette == nil:
		return fmt.Errorf("its pixels have %d bits", 8*f.size)
	case f.palette == nil && f.red.length+f.green.length+f.blue.length == 0:
		return errors.New("its pixels have no colours")
	}
	return nil
}

// line writes the pixels of a line to rgb, three bytes each.
func (f pixelFormat) line(rgb, line []byte) {
	for x := 0; 3*x < len(rgb); x++ {
		at, out := line[x*f.size:(x+1)*f.size], rgb[3*x:]
		if f.palette != nil {
			if i := int(at[0]); i < len(f.palette) {
				copy(out, f.palette[i][:])
			}
			continue
		}
		var pixel uint32
		for i := range at {
			if f.bigEndian {
				pixel = pixel<<8 | uint32(at[i])
			} else {
				pixel |= uint32(at[i]) << (8 * i)
			}
		}
		out[0], out[1], out[2] = f.red.of(pixel), f.green.of(pixel), f.blue.of(pixel)
	}
}
