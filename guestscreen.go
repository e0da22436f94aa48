package attest

import (
	"context"
	"fmt"
	"image/png"
	"io"
	"slices"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// guestPictureLimit is what a guest may take to send what it shows.
const guestPictureLimit = time.Minute

// GuestScreenshot writes what the guest shows to a PNG file, as Screenshot does, and returns the Method that
// it was taken by. The guest itself takes the picture, so the machine needs no screen: from an X server, such as Xvfb, from a
// Wayland compositor, or from a framebuffer. "auto" is the first of wayland, x11 and fb that is there.
func (m *Machine) GuestScreenshot(ctx context.Context, filename string, opts ...PictureOption) (string, error) {
	const operation = "guest_screenshot"
	o := collect(opts)
	args := written(ctx, argument{"", filename}, unless("method", o.method, ""), unless("display", o.display, ""))
	var method string
	err := step(ctx, m.Name(), operation, args, func(ctx context.Context) error {
		if methods := []string{"", "auto", wire.ShowFramebuffer, wire.ShowX11, wire.ShowWayland}; !slices.Contains(methods, o.method) {
			return &ConfigError{m.Name(), fmt.Sprintf("%s: there is no method %q; want one of %q", operation, o.method, methods[1:])}
		}
		path, err := m.pictureName(ctx, operation, args, filename)
		if err == nil {
			method, err = m.guestScreenshot(ctx, operation, args, path, o)
		}
		return err
	})
	return method, err
}

func (m *Machine) guestScreenshot(ctx context.Context, operation, args, path string, o options) (string, error) {
	r, err := m.use(ctx, operation)
	if err != nil {
		return "", err
	}
	q := wire.PictureRequest{Method: o.method, Display: o.display}
	if q.Method == "auto" {
		q.Method = ""
	}
	limit := m.lab.host.scale(guestPictureLimit)
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the guest has not sent a picture within %v", limit))
	defer cancel()
	shown, result, err := r.guest.Picture(limited, q)
	if err != nil {
		return "", r.explainRefusal(ctx, operation, args, err)
	}
	return result.Method, m.writePicture(ctx, path, func(w io.Writer) error { return png.Encode(w, shown) })
}
