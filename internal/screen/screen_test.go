package screen_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/screen/screentest"
)

func picture() *image.RGBA {
	p := screentest.Uniform(image.Pt(64, 32), screentest.Black)
	screentest.Fill(p, image.Rect(10, 5, 20, 9), color.RGBA{200, 10, 30, 255})
	return p
}

func TestDecode(t *testing.T) {
	p := picture()
	var ppm, asPNG bytes.Buffer
	if err := screen.EncodePPM(&ppm, p); err != nil {
		t.Fatal(err)
	}
	if err := png.Encode(&asPNG, p); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"ppm": ppm.Bytes(), "png": asPNG.Bytes()} {
		got, err := screen.Decode(bytes.NewReader(data))
		if err != nil || !screen.Changed(got, p).Empty() {
			t.Errorf("%s: %v", name, err)
		}
		for _, cut := range []int{0, 1, 10, 30, len(data) / 2, len(data) - 1} {
			if got, err := screen.Decode(bytes.NewReader(data[:cut])); err == nil && name == "ppm" {
				t.Errorf("%s cut at %d: %v", name, cut, got.Rect)
			}
		}
	}
}

// A picture that would take gigabytes of memory is refused when its size is known.
func TestBomb(t *testing.T) {
	head := func(width, height uint32, depth byte) []byte {
		data := []byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
		data = binary.BigEndian.AppendUint32(data, width)
		data = binary.BigEndian.AppendUint32(data, height)
		data = append(data, depth, 2, 0, 0, 0)
		return binary.BigEndian.AppendUint32(data, crc32.ChecksumIEEE(data[12:]))
	}
	for want, data := range map[string][]byte{
		"a picture of 60000×60000": head(60000, 60000, 8),
		"a picture of 16384×16384": head(16384, 16384, 8),
		"16 bits a channel":        head(100, 100, 16),
		"a picture of 99999×1":     []byte("P6\n99999 1\n255\n"),
		"a picture of -5×7":        []byte("P6\n-5 7\n255\n"),
		"values up to 65535":       []byte("P6\n5 7\n65535\n"),
		"a bad header":             []byte("P6\n5 7 255 " + strings.Repeat(" ", 1000)),
		"neither a PNG nor a PPM":  []byte("GIF89a, or whatever"),
	} {
		if _, err := screen.Decode(bytes.NewReader(data)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
	// Nobody reads a file of a gigabyte.
	path := filepath.Join(t.TempDir(), "huge.png")
	if err := os.WriteFile(path, head(10, 10, 8), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := screen.ReadFile(path); err == nil || !strings.Contains(err.Error(), "has 1024 MiB") {
		t.Errorf("got %v", err)
	}
	if _, err := screen.ReadFile(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("got %v", err)
	}
}

func TestChanged(t *testing.T) {
	a, b := picture(), picture()
	if got := screen.Changed(a, b); !got.Empty() {
		t.Errorf("equal pictures differ in %v", got)
	}
	b.SetRGBA(3, 30, screentest.White)
	b.SetRGBA(63, 7, screentest.White)
	if got, want := screen.Changed(a, b), image.Rect(3, 7, 64, 31); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	c := screentest.Uniform(image.Pt(10, 10), screentest.Black)
	if got := screen.Changed(a, c); got != c.Rect {
		t.Errorf("got %v", got)
	}
	if got := screen.Changed(nil, c); got != c.Rect {
		t.Errorf("got %v", got)
	}
	if got := screen.Crop(b, image.Rect(60, 6, 90, 8)); got.Rect != image.Rect(0, 0, 4, 2) || got.RGBAAt(3, 1) != screentest.White {
		t.Errorf("got %v", got.Rect)
	}
}

func FuzzDecode(f *testing.F) {
	var b bytes.Buffer
	png.Encode(&b, picture())
	f.Add(b.Bytes())
	f.Add([]byte("P6\n1 1\n255\nabc"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := screen.Decode(bytes.NewReader(data)); err == nil && p.Rect.Empty() {
			t.Error("a picture without pixels")
		}
	})
}
