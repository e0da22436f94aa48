package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// stripBytes is how much of a screen is asked for at once.
const stripBytes = 1 << 20

// showX writes what an X server shows.
func showX(ctx context.Context, display string, w io.Writer) error {
	x, done, err := dialX(ctx, display)
	if err != nil {
		return absent("%v", err)
	}
	defer done()
	return x.picture(w)
}

// picture writes the root window with all that is on it as PPM, from top to bottom.
func (x *xClient) picture(w io.Writer) error {
	s := x.setup
	format := pixelFormat{
		size: s.bits / 8, bigEndian: s.bigEndian,
		red: channelOf(s.visual.red), green: channelOf(s.visual.green), blue: channelOf(s.visual.blue),
	}
	if s.bits == 8 && s.visual == (xVisual{}) {
		palette, err := x.palette()
		if err != nil {
			return err
		}
		format.palette = palette
	}
	if err := format.check(); err != nil || s.bits%8 != 0 || s.pad < 8 || s.pad%8 != 0 {
		return fmt.Errorf("a screen of depth %d with %d bits a pixel cannot be read", s.depth, s.bits)
	}
	if err := writeHeader(w, s.width, s.height); err != nil {
		return err
	}
	length := (s.width*s.bits + s.pad - 1) / s.pad * s.pad / 8
	rgb := make([]byte, 3*s.width)
	for y := 0; y < s.height; {
		n := min(max(1, stripBytes/length), s.height-y)
		data, err := x.image(y, n)
		if err != nil {
			return err
		}
		if len(data) < n*length {
			return fmt.Errorf("a picture of %d bytes instead of %d", len(data), n*length)
		}
		for ; n > 0; n-- {
			format.line(rgb, data[:length])
			if _, err := w.Write(rgb); err != nil {
				return err
			}
			data = data[length:]
			y++
		}
	}
	return nil
}

// image is some lines of the root window.
func (x *xClient) image(y, lines int) ([]byte, error) {
	const zPixmap = 2
	body := le.AppendUint32(nil, x.setup.root)
	for _, v := range []int{0, y, x.setup.width, lines} {
		body = le.AppendUint16(body, uint16(v))
	}
	reply, err := x.request(73, zPixmap, le.AppendUint32(body, 0xffffffff)) // GetImage, of all planes
	if errors.Is(err, errXGone) {
		return nil, errors.New("the X server refuses a picture of its screen, whose size may just have changed")
	}
	if err != nil {
		return nil, err
	}
	return reply[32:], nil
}

// palette is the colours of the default colormap of a screen of 8 bits.
func (x *xClient) palette() ([][3]byte, error) {
	body := le.AppendUint32(nil, x.setup.colormap)
	for i := range uint32(1) << min(x.setup.depth, 8) {
		body = le.AppendUint32(body, i)
	}
	reply, err := x.request(91, 0, body) // QueryColors
	if err != nil {
		return nil, err
	}
	out := make([][3]byte, min(int(le.Uint16(reply[8:])), (len(reply)-32)/8))
	for i := range out {
		c := reply[32+8*i:]
		out[i] = [3]byte{c[1], c[3], c[5]} // of 16 bits each
	}
	return out, nil
}
