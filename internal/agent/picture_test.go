package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"io"
	"net"
	"strings"
	"testing"
	"unsafe"

	pictures "github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/wire"
)

// shade is the colour of a pixel of the screens that these tests look at. Its values are those that
// survive 5 bits a channel.
func shade(x, y int) color.RGBA {
	return color.RGBA{uint8(x%2) * 255, uint8(y%2) * 255, uint8((x+y)%3/2) * 255, 255}
}

// pack is a colour as a pixel of a format.
func pack(f pixelFormat, c color.RGBA) []byte {
	put := func(c channel, v uint8) uint32 { return uint32(v) * (1<<c.length - 1) / 255 << c.shift }
	pixel := put(f.red, c.R) | put(f.green, c.G) | put(f.blue, c.B)
	b := make([]byte, f.size)
	for i := range b {
		shift := 8 * i
		if f.bigEndian {
			shift = 8 * (f.size - 1 - i)
		}
		b[i] = byte(pixel >> shift)
	}
	return b
}

// checkShades compares a PPM file with the colours of shade.
func checkShades(t *testing.T, ppm []byte, size image.Point) {
	t.Helper()
	got, err := pictures.Decode(bytes.NewReader(ppm))
	if err != nil {
		t.Fatal(err)
	}
	if got.Rect.Size() != size {
		t.Fatalf("a picture of %v, want %v", got.Rect.Size(), size)
	}
	for y := range size.Y {
		for x := range size.X {
			if got.RGBAAt(x, y) != shade(x, y) {
				t.Fatalf("pixel %d, %d is %v, want %v", x, y, got.RGBAAt(x, y), shade(x, y))
			}
		}
	}
}

// framebufferOf is the memory of a framebuffer that shows shades, at a place of a larger virtual screen.
func framebufferOf(f pixelFormat, size, at image.Point) ([]byte, fbVariable, fbFixed) {
	bits := func(c channel) fbBits { return fbBits{Offset: uint32(c.shift), Length: uint32(c.length)} }
	v := fbVariable{
		Width: uint32(size.X), Height: uint32(size.Y), X: uint32(at.X), Y: uint32(at.Y),
		Bits: uint32(8 * f.size), Red: bits(f.red), Green: bits(f.green), Blue: bits(f.blue),
	}
	length := (size.X+at.X)*f.size + 12 // lines are longer than what they show
	memory := bytes.Repeat([]byte{0xaa}, length*(size.Y+at.Y))
	for y := range size.Y {
		for x := range size.X {
			copy(memory[(y+at.Y)*length+(x+at.X)*f.size:], pack(f, shade(x, y)))
		}
	}
	return memory, v, fbFixed{LineLength: uint32(length), Size: uint32(len(memory))}
}

var formats = map[string]pixelFormat{
	"XRGB8888": {size: 4, red: channel{16, 8}, green: channel{8, 8}, blue: channel{0, 8}},
	"XBGR8888": {size: 4, red: channel{0, 8}, green: channel{8, 8}, blue: channel{16, 8}},
	"RGB888":   {size: 3, red: channel{16, 8}, green: channel{8, 8}, blue: channel{0, 8}},
	"RGB565":   {size: 2, red: channel{11, 5}, green: channel{5, 6}, blue: channel{0, 5}},
	"XRGB1555": {size: 2, red: channel{10, 5}, green: channel{5, 5}, blue: channel{0, 5}},
	"30 bits":  {size: 4, red: channel{20, 10}, green: channel{10, 10}, blue: channel{0, 10}},
}

func TestFramebuffer(t *testing.T) {
	if a, b := unsafe.Sizeof(fbVariable{}), unsafe.Sizeof(fbFixed{}); a != 160 || b != 80 {
		t.Fatalf("%d and %d bytes; linux/fb.h has 160 and 80", a, b)
	}
	for name, f := range formats {
		t.Run(name, func(t *testing.T) {
			size := image.Pt(13, 7)
			memory, v, x := framebufferOf(f, size, image.Pt(3, 5))
			var out bytes.Buffer
			if err := readFramebuffer(bytes.NewReader(memory), v, x, &out); err != nil {
				t.Fatal(err)
			}
			checkShades(t, out.Bytes(), size)
		})
	}
	memory, v, x := framebufferOf(formats["RGB565"], image.Pt(4, 4), image.Point{})
	for want, change := range map[string]func(*fbVariable, *fbFixed){
		"want 16, 24 or 32":         func(v *fbVariable, _ *fbFixed) { v.Bits = 8 },
		"12 bits":                   func(v *fbVariable, _ *fbFixed) { v.Bits = 12 },
		"planes":                    func(_ *fbVariable, x *fbFixed) { x.Type = 1 },
		"are shorter than 5 pixels": func(v *fbVariable, x *fbFixed) { v.X, x.LineLength = 1, 8 },
		"read line 4 of 5":          func(v *fbVariable, _ *fbFixed) { v.Height = 5; memory = memory[:len(memory)-1] },
		"a screen of 4×100000":      func(v *fbVariable, _ *fbFixed) { v.Height = 100_000 },
		"a screen of 0×4":           func(v *fbVariable, _ *fbFixed) { v.Width = 0 },
	} {
		v, x := v, x
		change(&v, &x)
		if err := readFramebuffer(bytes.NewReader(memory), v, x, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// An xScreen is an X server with one screen, which shows shades.
type xScreen struct {
	size    image.Point
	format  pixelFormat
	depth   byte
	pad     int    // bits
	refuses string // why it takes no connection
	shrinks bool   // refuses pictures, as of a screen that has become smaller
	colours int    // of its palette
}

// setup is the server's answer to a client.
func (s xScreen) setup() []byte {
	var b []byte
	b = append(b, make([]byte, 16)...)
	b = le.AppendUint16(b, 6) // vendor
	b = le.AppendUint16(b, 0xffff)
	order := byte(0)
	if s.format.bigEndian {
		order = 1
	}
	b = append(b, 1, 2, order, 0, 32, 32, 8, 255, 0, 0, 0, 0)
	b = append(b, "tester\x00\x00"...)
	b = append(b, 1, 1, 32, 0, 0, 0, 0, 0)
	b = append(b, s.depth, byte(8*s.format.size), byte(s.pad), 0, 0, 0, 0, 0)
	b = le.AppendUint32(b, 77)
	b = le.AppendUint32(b, 78) // colormap
	b = append(b, make([]byte, 12)...)
	b = le.AppendUint16(b, uint16(s.size.X))
	b = le.AppendUint16(b, uint16(s.size.Y))
	b = append(b, make([]byte, 8)...)
	b = le.AppendUint32(b, 99) // visual
	b = append(b, 0, 0, s.depth, 2)
	b = append(b, 1, 0, 0, 0, 0, 0, 0, 0) // a depth without visuals
	b = append(b, s.depth, 0, 1, 0, 0, 0, 0, 0)
	b = le.AppendUint32(b, 99)
	class := byte(trueColor)
	if s.colours > 0 {
		class = 3
	}
	b = append(b, class, 8, 0, 1)
	for _, c := range []channel{s.format.red, s.format.green, s.format.blue} {
		b = le.AppendUint32(b, (1<<c.length-1)<<c.shift)
	}
	b = append(b, 0, 0, 0, 0)
	head := []byte{1, 0, 11, 0, 0, 0}
	return append(le.AppendUint16(head, uint16(len(b)/4)), b...)
}

// serve answers one client.
func (s xScreen) serve(conn net.Conn) error {
	hello := make([]byte, 12)
	if _, err := io.ReadFull(conn, hello); err != nil {
		return err
	}
	if s.refuses != "" {
		reason := make([]byte, pad4(len(s.refuses)))
		copy(reason, s.refuses)
		_, err := conn.Write(append([]byte{0, byte(len(s.refuses)), 11, 0, 0, 0, byte(len(reason) / 4), 0}, reason...))
		return err
	}
	if _, err := conn.Write(s.setup()); err != nil {
		return err
	}
	for {
		head := make([]byte, 4)
		if _, err := io.ReadFull(conn, head); err != nil {
			return nil
		}
		body := make([]byte, 4*int(le.Uint16(head[2:]))-4)
		if _, err := io.ReadFull(conn, body); err != nil {
			return err
		}
		reply := make([]byte, 32)
		reply[0] = 1
		switch head[0] {
		case 16: // InternAtom
		case 73:
			reply = s.image(reply, body)
		case 91: // QueryColors
			n := min(s.colours, len(body)/4-1)
			le.PutUint16(reply[8:], uint16(n))
			for i := range n {
				c := shade(i%2, i/2)
				reply = append(reply, c.R, c.R, c.G, c.G, c.B, c.B, 0, 0)
			}
		default:
			return fmt.Errorf("a request %d", head[0])
		}
		le.PutUint32(reply[4:], uint32((len(reply)-32)/4))
		if _, err := conn.Write(reply); err != nil {
			return nil
		}
	}
}

func (s xScreen) image(reply, body []byte) []byte {
	y, lines := int(le.Uint16(body[6:])), int(le.Uint16(body[10:]))
	if s.shrinks || le.Uint32(body) != 77 {
		reply[0] = 0
		return reply
	}
	for ; lines > 0; lines-- {
		begin := len(reply)
		for x := range s.size.X {
			if s.colours > 0 {
				reply = append(reply, byte(x%2+2*(y%2)))
			} else {
				reply = append(reply, pack(s.format, shade(x, y))...)
			}
		}
		for (len(reply)-begin)*8%s.pad != 0 {
			reply = append(reply, 0xaa)
		}
		y++
	}
	return append(reply, make([]byte, pad4(len(reply))-len(reply))...)
}

// ask has a client take a picture of a screen.
func (s xScreen) ask(t *testing.T) ([]byte, error) {
	t.Helper()
	client, server := net.Pipe()
	served := make(chan error, 1)
	go func() { defer server.Close(); served <- s.serve(server) }()
	var out bytes.Buffer
	x, err := newXClient(client, nil)
	if err == nil {
		err = x.picture(&out)
	}
	client.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	return out.Bytes(), err
}

func TestXPicture(t *testing.T) {
	for name, f := range formats {
		for _, big := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, big-endian %v", name, big), func(t *testing.T) {
				f.bigEndian = big
				s := xScreen{size: image.Pt(701, 503), format: f, depth: 24, pad: 32} // several strips
				ppm, err := s.ask(t)
				if err != nil {
					t.Fatal(err)
				}
				checkShades(t, ppm, s.size)
			})
		}
	}
	t.Run("palette", func(t *testing.T) {
		s := xScreen{size: image.Pt(5, 4), format: pixelFormat{size: 1}, depth: 8, pad: 32, colours: 4}
		ppm, err := s.ask(t)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pictures.Decode(bytes.NewReader(ppm))
		if err != nil {
			t.Fatal(err)
		}
		if c := got.RGBAAt(3, 1); c != shade(1, 1) {
			t.Errorf("colour %v, want %v", c, shade(1, 1))
		}
	})
	fine := xScreen{size: image.Pt(8, 8), format: formats["XRGB8888"], depth: 24, pad: 32}
	for want, change := range map[string]func(*xScreen){
		"No protocol specified":    func(s *xScreen) { s.refuses = "No protocol specified" },
		"size may just have":       func(s *xScreen) { s.shrinks = true },
		"depth 24 with 24 bits":    func(s *xScreen) { s.format.size, s.pad = 3, 0 },
		"a screen of 65535×8 pixe": func(s *xScreen) { s.size.X = 65535 },
	} {
		s := fine
		change(&s)
		if _, err := s.ask(t); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestPictureOfNothing(t *testing.T) {
	if method, display := "x11", "wayland-7"; fits(method, display) || !fits("wayland", display) || fits("fb", display) {
		t.Error("wayland-7 is a compositor's")
	}
	if !fits("fb", "fb1") || fits("x11", "fb1") || !fits("x11", ":1") || fits("fb", ":1") || !fits("fb", "") {
		t.Error("the displays of X servers and framebuffers")
	}
	for display, want := range map[string]string{
		":61999":      "nothing in the guest shows a picture (x11: no X server on display :61999",
		"wayland-999": "no Wayland compositor listens on a socket wayland-999",
		"fb98":        "there is no /dev/fb98: the kernel has no driver for a screen (Debian: install linux-image-amd64",
		"fb0x":        `"fb0x" is not a framebuffer`,
	} {
		_, err := takePicture(t.Context(), wire.PictureRequest{Display: display}, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", display, err, want)
		}
	}
	_, err := toplevels(t.Context(), "wayland-999")
	if err == nil || !mayCome(err) {
		t.Errorf("a compositor that may still come: %v", err)
	}
	if err := showX(t.Context(), ":x", io.Discard); err == nil || !strings.Contains(err.Error(), "is not a display of an X server") {
		t.Errorf("got %v", err)
	}
}

// A program that takes the picture gets no further than its end, and its complaint is in the error.
func TestPictureTool(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("over"))
	for want, c := range map[string]struct {
		ctx  context.Context
		path string
	}{
		"exit status 1: ": {t.Context(), "/bin/cat"},
		"over":            {ctx, "/bin/cat"},
	} {
		err := runGrim(c.ctx, c.path, nil, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) && want != "over" {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestListening(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00000000 0001 03 12 /run/user/0/wayland-1
0000000000000000: 00000002 00000000 00010000 0001 01 13 @/tmp/wayland-3
0000000000000000: 00000002 00000000 00010000 0001 01 14 /tmp/.X11-unix/X0
0000000000000000: 00000002 00000000 00010000 0001 01 15
0000000000000000: 00000002 00000000 00010000 0001 01 16 /run/user/1000/wayland-2
`
	if got := listening(strings.NewReader(table), func(path string) bool { return strings.Contains(path, "wayland") }); got != "/run/user/1000/wayland-2" {
		t.Errorf("got %q", got)
	}
}

// wlEvent is an event of a compositor.
func wlEvent(object uint32, event uint16, body []byte) []byte {
	b := le.AppendUint16(le.AppendUint32(nil, object), event)
	return append(le.AppendUint16(b, uint16(8+len(body))), body...)
}

func wlText(s string) []byte {
	b := append(le.AppendUint32(nil, uint32(len(s)+1)), s...)
	return append(b, make([]byte, pad4(len(s)+1)-len(s))...)
}

func wlGlobal(name uint32, protocol string) []byte {
	return wlEvent(wlRegistry, 0, append(append(le.AppendUint32(nil, name), wlText(protocol)...), 1, 0, 0, 0))
}

// A compositor that answers without reading: what it is asked is known.
type wlAnswer struct {
	io.Reader
	bytes.Buffer // what it was asked
}

func (a *wlAnswer) Read(p []byte) (int, error)  { return a.Reader.Read(p) }
func (a *wlAnswer) Write(p []byte) (int, error) { return a.Buffer.Write(p) }

func TestToplevels(t *testing.T) {
	done := func(object uint32) []byte { return wlEvent(object, 0, make([]byte, 4)) }
	for name, p := range map[string]toplevelProtocol{"ext": toplevelProtocols[0], "wlr": toplevelProtocols[1]} {
		t.Run(name, func(t *testing.T) {
			const first = 0xff000000
			window := func(n uint32) []byte { return wlEvent(wlManager, 0, le.AppendUint32(nil, first+n)) }
			a := &wlAnswer{Reader: bytes.NewReader(bytes.Join([][]byte{
				wlGlobal(1, "wl_compositor"), wlGlobal(17, p.name), done(wlSynced), wlEvent(wlDisplay, 1, le.AppendUint32(nil, wlSynced)),
				window(0), wlEvent(first, p.title, wlText("a terminal")), window(1), wlEvent(first+1, p.title, wlText("gone")),
				wlEvent(first+1, p.closed, nil), window(2), wlEvent(first, p.title, wlText("renamed")), done(wlTold),
			}, nil))}
			titles, err := askToplevels(a)
			if err != nil || len(titles) != 1 || titles[0] != "renamed" {
				t.Errorf("%q, %v", titles, err)
			}
			// The bind has the length that it says.
			asked := a.Bytes()[24:]
			if size := binary.LittleEndian.Uint16(asked[6:]); int(size) != len(asked)-12 || !bytes.Contains(asked, []byte(p.name)) {
				t.Errorf("bind says it has %d bytes, of %d", size, len(asked)-12)
			}
		})
	}
	for want, answer := range map[string][]byte{
		"does not tell of its windows": append(wlGlobal(1, "wl_compositor"), done(wlSynced)...),
		"it refuses: no":               wlEvent(wlDisplay, 0, append(make([]byte, 8), wlText("no")...)),
		"an event of 3 bytes":          {1, 0, 0, 0, 0, 0, 3, 0},
		"half an answer":               {1, 0, 0, 0, 0, 0, 30, 0},
		"cut off":                      wlEvent(wlRegistry, 0, []byte{1, 0, 0, 0, 255, 255, 255, 255}),
		"without end":                  bytes.Repeat(wlEvent(wlDisplay, 1, nil), maxWlEvents),
	} {
		_, err := askToplevels(&wlAnswer{Reader: bytes.NewReader(answer)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if want == "does not tell of its windows" && mayCome(err) {
			t.Error("a wait for its windows goes on")
		}
	}
}

// A compositor can answer anything.
func FuzzToplevels(f *testing.F) {
	f.Add(append(wlGlobal(1, toplevelProtocols[1].name), wlEvent(wlSynced, 0, make([]byte, 4))...))
	f.Fuzz(func(t *testing.T, answer []byte) {
		askToplevels(&wlAnswer{Reader: bytes.NewReader(answer)})
	})
}
