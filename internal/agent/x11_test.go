package agent

import (
	"bytes"
	"encoding/binary"
	"image"
	"io"
	"testing"
)

func xauth(number, name, data string) []byte {
	b := []byte{1, 0}
	for _, s := range []string{"host", number, name, data} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	return b
}

func TestXauthority(t *testing.T) {
	file := bytes.Join([][]byte{xauth("1", cookieName, "of another"), xauth("0", "XDM-AUTHORIZATION-1", "of another kind"), xauth("0", cookieName, "mine")}, nil)
	if got := parseXauthority(file, "0"); string(got) != "mine" {
		t.Errorf("got %q", got)
	}
	if got := parseXauthority(xauth("", cookieName, "any"), "0"); string(got) != "any" {
		t.Errorf("a display without a number: %q", got)
	}
	for n := range file {
		if got := parseXauthority(file[:n], "0"); got != nil {
			t.Errorf("%d bytes of it: %q", n, got)
		}
	}
}

// An X server, or what listens in its place, can answer anything.
func FuzzXClient(f *testing.F) {
	setup := make([]byte, 8+40)
	setup[0] = 1
	binary.LittleEndian.PutUint16(setup[6:], 10)
	setup[8+20] = 1
	reply := append([]byte{1}, make([]byte, 31)...)
	f.Add(append(append([]byte{}, setup...), bytes.Repeat(reply, 3)...))
	f.Add([]byte{0, 4, 11, 0, 0, 0, 1, 0, 'n', 'o', 0, 0})
	palette := xScreen{size: image.Pt(3, 2), format: pixelFormat{size: 1}, depth: 8, pad: 32, colours: 2}
	f.Add(bytes.Join([][]byte{palette.setup(), reply, reply, palette.image(bytes.Clone(reply), []byte{77, 0, 0, 0, 0, 0, 0, 0, 3, 0, 2, 0, 255, 255, 255, 255})}, nil))
	f.Fuzz(func(t *testing.T, answer []byte) {
		for _, ask := range []func(*xClient){
			func(x *xClient) { x.titles() },
			func(x *xClient) { x.picture(io.Discard) },
		} {
			conn := struct {
				io.Reader
				io.Writer
			}{bytes.NewReader(answer), io.Discard}
			if x, err := newXClient(conn, nil); err == nil {
				ask(x)
			}
		}
	})
}
