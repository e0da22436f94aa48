package guest

import (
	"bufio"
	"context"
	"fmt"
	"image"
	"io"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/wire"
)

// maxBehind is how many bytes may follow a picture, which a file can have at its end.
const maxBehind = 64 << 10

// Picture is what the guest shows, within the limits of screen.Decode.
func (c *Client) Picture(ctx context.Context, q wire.PictureRequest) (*image.RGBA, wire.PictureResult, error) {
	var r wire.PictureResult
	k, err := c.open(ctx, wire.OpPicture, q, nil)
	if err != nil {
		return nil, r, err
	}
	k.stall = c.opt.Stall
	var shown *image.RGBA
	received := make(chan error, 1)
	go func() {
		in := bufio.NewReader(k.stream.Reader(wire.Stdout))
		_, err := in.Peek(1)
		if err == io.EOF { // the guest has none, and says why
			received <- fmt.Errorf("%s: the guest sent no picture", c.name)
			return
		}
		if shown, err = screen.Decode(in); err == nil {
			var n int64
			if n, err = io.CopyN(io.Discard, in, maxBehind+1); err == io.EOF {
				err = nil
			} else if n > maxBehind {
				err = fmt.Errorf("more than %d bytes behind a picture", maxBehind)
			}
		}
		if err != nil {
			err = fmt.Errorf("%s: the picture that the guest sent: %w", c.name, err)
			k.stream.Cancel(err)
		}
		received <- err
	}()
	err = k.wait(ctx, &r)
	if badPicture := <-received; err == nil {
		err = badPicture
	}
	return shown, r, err
}
