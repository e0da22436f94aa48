package guest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"io"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/guest"
	pictures "github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/wire"
)

// A painter is a guest that answers a request for a picture with what it likes.
type painter func(w io.Writer) error

func (painter) Info(*wire.Info) {}

func (p painter) Operate(stream *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error) {
	if r.Op == wire.OpPicture {
		return wire.PictureResult{Method: wire.ShowX11}, p(stream.Writer(wire.Stdout))
	}
	return next(r)
}

// picture asks a guest for a picture.
func (p painter) picture(t *testing.T) (*image.RGBA, error) {
	t.Helper()
	host, theirs := socketpair(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := agent.Server{Stage: p}
		defer s.Close()
		s.Serve(ctx, theirs)
	}()
	c := guest.New("m", dialOnce(host), guest.Options{})
	defer func() {
		c.Close(nil)
		cancel()
		<-done
	}()
	shown, _, err := c.Picture(testContext(t), wire.PictureRequest{})
	return shown, err
}

// pngHeader is the beginning of a PNG file that says how large its picture is.
func pngHeader(width, height uint32) []byte {
	chunk := append([]byte("IHDR"), binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, width), height)...)
	chunk = append(chunk, 8, 2, 0, 0, 0)
	out := append([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\x0d"), chunk...)
	return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(chunk))
}

func TestPicture(t *testing.T) {
	want := image.NewRGBA(image.Rect(0, 0, 800, 600))
	for i := range want.Pix {
		want.Pix[i] = byte(i/4*7) | 0xff*byte(i%4/3)
	}
	got, err := painter(func(w io.Writer) error { return pictures.EncodePPM(w, want) }).picture(t)
	if err != nil || !bytes.Equal(got.Pix, want.Pix) {
		t.Errorf("another picture: %v", err)
	}
	endless := func(w io.Writer, begin []byte) error {
		_, err := w.Write(begin)
		for block := make([]byte, 64<<10); err == nil; {
			_, err = w.Write(block)
		}
		return err
	}
	for name, c := range map[string]struct {
		paint painter
		want  string
	}{
		"none":                  {func(io.Writer) error { return nil }, "the guest sent no picture"},
		"none, and why":         {func(io.Writer) error { return errors.New("it is dark") }, "it is dark"},
		"half of one, and why":  {func(w io.Writer) error { w.Write([]byte("P6\n3 3\n255\n123")); return errors.New("it is dark") }, "it is dark"},
		"half of one":           {func(w io.Writer) error { w.Write([]byte("P6\n3 3\n255\n123")); return nil }, "ends in line 0"},
		"something else":        {func(w io.Writer) error { return endless(w, []byte("#!/bin/sh\n")) }, "neither a PNG nor a PPM"},
		"a large one":           {func(w io.Writer) error { return endless(w, []byte("P6\n60000 60000\n255\n")) }, "a picture of 60000×60000"},
		"a bomb":                {func(w io.Writer) error { return endless(w, pngHeader(100_000, 100_000)) }, "a picture of 100000×100000"},
		"a heading without end": {func(w io.Writer) error { return endless(w, []byte("P6 ")) }, "bad header"},
		"one without end":       {func(w io.Writer) error { return endless(w, []byte("P6\n1 1\n255\n123")) }, "behind a picture"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := c.paint.picture(t); err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "m: ") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
