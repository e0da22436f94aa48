package glyph

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// A Font has glyphs of one size.
type Font struct {
	Name          string
	Width, Height int // of a glyph, in pixels
	runes         map[bitmap]rune

	byRuneOnce sync.Once
	byRune     map[rune]bitmap
}

// A bitmap is the pixels of a cell that have the colour of its text: a number of 32
// bits, big-endian, for each line, whose highest bit is the leftmost pixel.
type bitmap string

const (
	maxWidth, maxHeight = 32, 64
	maxGlyphs           = 1 << 16
	maxFontFile         = 4 << 20
)

// newFont takes glyphs in the form of PSF files: the lines of each glyph one after
// the other, each padded to bytes. runes are what each glyph stands for, the preferred one
// first.
func newFont(name string, width, height int, glyphs []byte, runes [][]rune) *Font {
	f := &Font{Name: name, Width: width, Height: height, runes: map[bitmap]rune{}}
	stride := (width + 7) / 8
	for i, names := range runes {
		if len(names) == 0 {
			continue
		}
		glyph := glyphs[i*stride*height:]
		rows := make([]byte, 4*height)
		for y := range height {
			copy(rows[4*y:], glyph[y*stride:(y+1)*stride])
			if spare := width % 8; spare > 0 {
				rows[4*y+stride-1] &= 0xff << (8 - spare)
			}
		}
		r := preferred(names)
		if before, ok := f.runes[bitmap(rows)]; !ok || r < before {
			f.runes[bitmap(rows)] = r
		}
	}
	return f
}

// preferred is what a glyph is most likely to stand for: of all that look the same,
// the lowest, which is ASCII where there is one.
func preferred(runes []rune) rune { return slices.Min(runes) }

// ParseFont reads a console font: PSF version 1 or 2 with a table of characters (the
// formats that Linux's setfont reads), possibly compressed with gzip.
func ParseFont(name string, data []byte) (*Font, error) {
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		if data, err = io.ReadAll(io.LimitReader(z, maxFontFile)); err != nil {
			return nil, err
		}
	}
	switch {
	case bytes.HasPrefix(data, []byte{0x36, 0x04}) && len(data) >= 4:
		return parsePSF1(name, data)
	case bytes.HasPrefix(data, []byte{0x72, 0xb5, 0x4a, 0x86}) && len(data) >= 32:
		return parsePSF2(name, data)
	}
	return nil, errors.New("not a PSF font")
}

func parsePSF1(name string, data []byte) (*Font, error) {
	const mode512, modeTable, modeSequences = 1, 2, 4
	mode, height, count := data[2], int(data[3]), 256
	if mode&mode512 != 0 {
		count = 512
	}
	data = data[4:]
	if mode&(modeTable|modeSequences) == 0 {
		return nil, errors.New("a font without a table of characters")
	}
	if height < 1 || height > maxHeight || len(data) < count*height {
		return nil, fmt.Errorf("a font of %d glyphs of height %d in %d bytes", count, height, len(data))
	}
	table, runes := data[count*height:], make([][]rune, count)
	for i := range runes {
		single := true // before the sequences of several characters
		for {
			if len(table) < 2 {
				return nil, errors.New("a font whose table of characters ends early")
			}
			c := binary.LittleEndian.Uint16(table)
			table = table[2:]
			if c == 0xffff {
				break
			}
			if c == 0xfffe {
				single = false
			} else if single {
				runes[i] = append(runes[i], rune(c))
			}
		}
	}
	return newFont(name, 8, height, data, runes), nil
}

func parsePSF2(name string, data []byte) (*Font, error) {
	field := func(i int) int64 { return int64(binary.LittleEndian.Uint32(data[4*i:])) }
	head, flags, count, size, height, width := field(2), field(3), field(4), field(5), field(6), field(7)
	stride := (width + 7) / 8
	switch {
	case flags&1 == 0:
		return nil, errors.New("a font without a table of characters")
	case width < 1 || width > maxWidth || height < 1 || height > maxHeight || count < 1 || count > maxGlyphs || size != stride*height:
		return nil, fmt.Errorf("a font of %d glyphs of %d×%d", count, width, height)
	case head < 32 || head+count*size > int64(len(data)):
		return nil, errors.New("a font that ends early")
	}
	table, runes := data[head+count*size:], make([][]rune, count)
	for i := range runes {
		end := bytes.IndexByte(table, 0xff)
		if end < 0 {
			return nil, errors.New("a font whose table of characters ends early")
		}
		single, _, _ := bytes.Cut(table[:end], []byte{0xfe})
		for len(single) > 0 {
			r, n := utf8.DecodeRune(single)
			if r != utf8.RuneError {
				runes[i] = append(runes[i], r)
			}
			single = single[n:]
		}
		table = table[end+1:]
	}
	return newFont(name, int(width), int(height), data[head:], runes), nil
}

// codePage437 is what the glyphs of a PC's firmware stand for.
var codePage437 = []rune("\u0000☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼" +
	" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~⌂" +
	"ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀" +
	"αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0")

// ROMFonts finds the fonts in the firmware of a VGA adapter: 256 glyphs in the order
// of code page 437. Such a table is known by those of its glyphs that are blocks.
func ROMFonts(name string, rom []byte) []*Font {
	var out []*Font
	for _, height := range []int{8, 14, 16} {
		for at := 0; at+256*height <= len(rom); at++ {
			if isROMFont(rom[at:at+256*height], height) {
				out = append(out, newFont(fmt.Sprintf("%s (8x%d)", name, height), 8, height, rom[at:], romRunes))
				break
			}
		}
	}
	return out
}

var romRunes = func() [][]rune {
	out := make([][]rune, len(codePage437))
	for i, r := range codePage437 {
		if r != 0 && r != '\u00a0' {
			out[i] = []rune{r}
		}
	}
	return out
}()

func isROMFont(table []byte, height int) bool {
	glyph := func(i int) []byte { return table[i*height : (i+1)*height] }
	full := func(i int, b byte) bool { return len(bytes.Trim(glyph(i), string([]byte{b}))) == 0 }
	const block, left, right = 0xdb, 0xdd, 0xde
	if table[0] != 0 || table[block*height] != 0xff || !full(0, 0) || !full(' ', 0) || !full(0xff, 0) {
		return false
	}
	return full(block, 0xff) && full(left, 0xf0) && full(right, 0x0f) && !full('A', 0) && !full('z', 0)
}

// consoleFonts are where Linux distributions have fonts for the console.
var consoleFonts = []string{"/usr/share/consolefonts", "/usr/share/kbd/consolefonts", "/run/current-system/sw/share/consolefonts"}

// firmware is where QEMU's packages have the firmware of its VGA adapters, below the prefix
// of QEMU's program.
var firmware = []string{"share/seabios", "share/qemu", "share/qemu-kvm", "share/vgabios"}

// HostFonts reads the fonts that this host has: those in the firmware which belongs to a
// QEMU, whose program is given and may be unknown, and the console fonts of the host itself.
func HostFonts(qemu string) []*Font {
	prefixes := []string{"/usr", "/usr/local"}
	if real, err := filepath.EvalSymlinks(qemu); err == nil {
		prefixes = append([]string{filepath.Dir(filepath.Dir(real))}, prefixes...)
	}
	var out []*Font
	for _, prefix := range prefixes {
		for _, dir := range firmware {
			if data, err := readBounded(filepath.Join(prefix, dir, "vgabios-stdvga.bin")); err == nil && len(out) == 0 {
				out = ROMFonts("VGA firmware", data)
			}
		}
	}
	for _, dir := range consoleFonts {
		files, _ := filepath.Glob(filepath.Join(dir, "*.psf*"))
		for _, file := range files {
			data, err := readBounded(file)
			if err != nil {
				continue
			}
			name, _, _ := strings.Cut(filepath.Base(file), ".psf")
			if f, err := ParseFont(name, data); err == nil {
				out = append(out, f)
			}
		}
	}
	return out
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFontFile))
}

// Pixel reports whether a pixel of the glyph of a character has the colour of the text. A
// character that the font does not have has none.
func (f *Font) Pixel(r rune, x, y int) bool {
	f.byRuneOnce.Do(func() {
		f.byRune = map[rune]bitmap{}
		for glyph, r := range f.runes {
			f.byRune[r] = glyph
		}
	})
	glyph, ok := f.byRune[r]
	return ok && glyph[4*y+x/8]&(0x80>>(x%8)) != 0
}
