package glyph_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"image"
	"image/color"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/screen/glyph"
	"github.com/attest-vm/attest/internal/screen/screentest"
)

// romFont is the font of a text mode of this host's QEMU.
func romFont(t testing.TB) *glyph.Font {
	t.Helper()
	for _, f := range glyph.HostFonts("/usr/bin/qemu-system-x86_64") {
		if strings.HasPrefix(f.Name, "VGA firmware") && f.Height == 16 {
			return f
		}
	}
	t.Fatal("QEMU has no firmware for a VGA adapter with a font of 8×16")
	return nil
}

func reader(fonts ...*glyph.Font) *glyph.Reader {
	return glyph.NewReader(func() []*glyph.Font { return fonts })
}

const login = "Debian GNU/Linux 12 m tty1\n\nm login: root\nPassword:\n~`|_^{}[]()<>?;:'\",.@#$%&*+-=/\\!\n┌────────────┐ ░▒▓▄ äöüß éà ¿¡\n│*Debian     │\n└────────────┘"

func TestRead(t *testing.T) {
	f := romFont(t)
	r := reader(f)
	for name, c := range map[string]screentest.Console{
		"text mode":                    screentest.VGA(f),
		"framebuffer":                  {Font: f, Columns: 128, Rows: 48, Ink: screentest.White, Paper: color.RGBA{0, 0, 170, 255}, Cursor: image.Pt(-1, -1)},
		"dark on light, with a cursor": {Font: f, Columns: 80, Rows: 25, Ink: screentest.Black, Paper: screentest.White, Cursor: image.Pt(9, 3)},
		"a cursor on a letter":         {Font: f, Columns: 80, Rows: 25, Ink: screentest.Grey, Paper: screentest.Black, Cursor: image.Pt(0, 0)},
	} {
		got, ok := r.Read(c.Draw(login))
		if !ok || got.String() != login || len(got.Lines) != c.Rows {
			t.Errorf("%s: %v, %d lines of %s:\n%s", name, ok, len(got.Lines), got.Font, got)
		}
	}
}

func TestIn(t *testing.T) {
	text, ok := reader(romFont(t)).Read(screentest.VGA(romFont(t)).Draw("0123456789\nabcdefghij\nABCDEFGHIJ"))
	if !ok {
		t.Fatal(text)
	}
	for want, part := range map[string]image.Rectangle{
		"0123456789\nabcdefghij\nABCDEFGHIJ": image.Rect(0, 0, 720, 400), "bc": image.Rect(10, 20, 27, 30), "0\na\nA": image.Rect(0, 0, 9, 48), "": image.Rect(700, 300, 720, 310),
	} {
		if got := text.In(part).String(); got != want {
			t.Errorf("%v: got %q, want %q", part, got, want)
		}
	}
}

// A kernel's font differs a little from the firmware's.
func TestReadNearly(t *testing.T) {
	f := romFont(t)
	p := screentest.VGA(f).Draw("Kernel panic - not syncing: sysrq triggered crash\n" + strings.Repeat("all the other letters\n", 20))
	for _, x := range []int{3, 9 + 3} { // a pixel more in K and in e
		p.SetRGBA(x, 1, screentest.Grey)
	}
	if got, ok := reader(f).Read(p); !ok || !strings.HasPrefix(got.String(), "Kernel panic - not syncing") {
		t.Errorf("%v: %s", ok, got)
	}
}

// What shows no console is left to others.
func TestReadOther(t *testing.T) {
	f := romFont(t)
	r := reader(f)
	noise := screentest.Uniform(image.Pt(640, 480), screentest.Black)
	for i := range noise.Pix {
		if i%4 != 3 {
			noise.Pix[i] = uint8(rand.UintN(2) * 255)
		}
	}
	desktop := screentest.Uniform(image.Pt(1024, 768), color.RGBA{40, 90, 130, 255})
	screentest.Fill(desktop, image.Rect(103, 77, 411, 303), screentest.White)
	screentest.Fill(desktop, image.Rect(103, 77, 411, 95), screentest.Grey)
	for name, p := range map[string]*image.RGBA{"noise": noise, "a window": desktop, "a pixel": screentest.Uniform(image.Pt(1, 1), screentest.Grey)} {
		got, ok := r.Read(p)
		if ok != (name == "a pixel") { // of one colour: a console without text
			t.Errorf("%s: %v %q", name, ok, got)
		}
	}
	if got, ok := r.Read(screentest.Uniform(image.Pt(720, 400), screentest.Black)); !ok || got.String() != "" {
		t.Errorf("a dark screen: %v %q", ok, got)
	}
}

// psf2 is a font file with the glyphs of runes, all blank but for their number.
func psf2(width, height int, runes string) []byte {
	stride := (width + 7) / 8
	var b bytes.Buffer
	b.Write([]byte{0x72, 0xb5, 0x4a, 0x86})
	for _, n := range []int{0, 32, 1, len(runes), stride * height, height, width} {
		binary.Write(&b, binary.LittleEndian, uint32(n))
	}
	for i := range runes {
		g := make([]byte, stride*height)
		g[0] = byte(i)
		b.Write(g)
	}
	for _, r := range runes {
		b.WriteString(string(r) + "\xff")
	}
	return b.Bytes()
}

func TestParseFont(t *testing.T) {
	f, err := glyph.ParseFont("small", psf2(6, 12, "abc"))
	if err != nil || f.Width != 6 || f.Height != 12 || !f.Pixel('c', 6, 0) == f.Pixel('c', 7, 0) {
		t.Errorf("%+v, %v", f, err)
	}
	psf1 := append([]byte{0x36, 0x04, 2, 8}, make([]byte, 256*8)...)
	psf1[4+8*'x'] = 0x80
	for i := range 256 {
		psf1 = binary.LittleEndian.AppendUint16(psf1, uint16(i))
		psf1 = append(psf1, 0xfe, 0xff, 'q', 0, 'q', 0, 0xff, 0xff) // a sequence, which does not count
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(psf1)
	w.Close()
	if f, err := glyph.ParseFont("compressed", z.Bytes()); err != nil || f.Height != 8 || !f.Pixel('x', 0, 0) || f.Pixel('y', 0, 0) {
		t.Errorf("%+v, %v", f, err)
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "text": []byte("no font at all, but a text"), "half": psf1[:1000], "no end": psf1[:len(psf1)-3],
		"huge": psf2(4000, 12, "a"), "a short table": psf2(8, 8, "abc")[:40],
	} {
		if f, err := glyph.ParseFont(name, bad); err == nil {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func FuzzParseFont(f *testing.F) {
	f.Add(psf2(8, 16, "ab"))
	f.Add([]byte{0x36, 0x04, 2, 8})
	f.Fuzz(func(t *testing.T, data []byte) { glyph.ParseFont("fuzz", data) })
}

func BenchmarkRead(b *testing.B) {
	f := romFont(b)
	r, p := reader(f), screentest.VGA(f).Draw(strings.Repeat(login+"\n", 3))
	r.Read(p)
	for b.Loop() {
		r.Read(p)
	}
}
