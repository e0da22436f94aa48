package ocr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/attest-vm/attest/internal/screen/glyph"
	"github.com/attest-vm/attest/internal/screen/screentest"
)

// tesseract runs the program of this host.
func tesseract(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, Program, args...)
	c.Env = append(os.Environ(), "OMP_THREAD_LIMIT=1")
	c.Stdin = bytes.NewReader(input)
	return c.Output()
}

func font(t testing.TB) *glyph.Font {
	t.Helper()
	for _, f := range glyph.HostFonts("/usr/bin/qemu-system-x86_64") {
		if f.Width == 8 && f.Height == 16 {
			return f
		}
	}
	t.Fatal("this host has no font of 8×16")
	return nil
}

// TestRead reads a screen, of which then a part changes, with tesseract itself.
func TestRead(t *testing.T) {
	c := screentest.Console{Font: font(t), Columns: 60, Rows: 20, Ink: screentest.Grey, Paper: screentest.Black, Cursor: image.Pt(-1, -1)}
	const first, second = "\n  Welcome to the installation\n\n\n  Language      English\n", "\n\n\n\n\n\n\n  Continue with return\n"
	var mu sync.Mutex
	var sizes []string
	r := NewReader(func(ctx context.Context, input []byte, args ...string) ([]byte, error) {
		mu.Lock()
		sizes = append(sizes, strings.Split(string(input[:40]), "\n")[1])
		mu.Unlock()
		return tesseract(ctx, input, args...)
	})
	pages, err := r.Read(t.Context(), c.Draw(first), Variants(), nil)
	if err != nil || len(pages) != 3 {
		t.Fatal(pages, err)
	}
	read := pages[Raw].Text() + pages[Positive].Text() + pages[Negative].Text()
	if !strings.Contains(read, "Welcome to the installation") || !strings.Contains(read, "English") {
		t.Errorf("read %q", read)
	}
	mu.Lock()
	if n := len(sizes); n != 3 {
		t.Errorf("tesseract ran %d times: %q", n, sizes)
	}
	sizes = nil
	mu.Unlock()
	// Not again what has not changed.
	again, err := r.Read(t.Context(), c.Draw(first), Variants(), nil)
	if err != nil || again[Negative].Text() != pages[Negative].Text() || len(sizes) != 0 {
		t.Errorf("%v, %v; tesseract ran: %q", again, err, sizes)
	}
	// Only what has.
	pages, err = r.Read(t.Context(), c.Draw(first+second), []Variant{Negative}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if text := pages[0].Text(); !strings.Contains(text, "Welcome to the installation\n") || !strings.Contains(text, "Continue with return") {
		t.Errorf("read %q", text)
	}
	var width, height int
	if fmt.Sscan(strings.Join(sizes, " "), &width, &height); len(sizes) != 1 || width > 3*400 || height > 3*80 || width < 3*100 {
		t.Errorf("tesseract got %q", sizes)
	}
	for _, w := range pages[0] {
		if w.Text == "Continue" && !w.Box.In(image.Rect(0, 180, 120, 240)) {
			t.Errorf("%+v", w)
		}
	}
}

// One variant is enough if it has what is looked for.
func TestEnough(t *testing.T) {
	word := func(text string) []byte {
		return fmt.Appendf(nil, "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n5\t1\t1\t1\t1\t1\t30\t30\t60\t30\t91.5\t%s\n", text)
	}
	r := NewReader(func(ctx context.Context, input []byte, args ...string) ([]byte, error) {
		if args[5] == "100" { // of the raw picture
			return word("here"), nil
		}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	p := screentest.Uniform(image.Pt(100, 100), screentest.Black)
	pages, err := r.Read(t.Context(), p, Variants(), func(p Page) bool { return p.Text() == "here" })
	if err != nil || pages[Raw].Text() != "here" || pages[Raw][0].Box != image.Rect(30, 30, 90, 60) || pages[Positive] != nil {
		t.Errorf("%v, %v", pages, err)
	}
	failed := NewReader(func(context.Context, []byte, ...string) ([]byte, error) { return nil, errors.New("broken") })
	if _, err := failed.Read(t.Context(), p, Variants(), nil); err == nil || err.Error() != "broken" {
		t.Errorf("got %v", err)
	}
}

func TestText(t *testing.T) {
	at := func(text string, x, y int) Word {
		return Word{Text: text, Box: image.Rect(x, y, x+10*len(text), y+12)}
	}
	page := Page{at("world", 62, 12), at("below", 0, 40), at("hello", 0, 10), at("far", 400, 11)}
	if got := page.Text(); got != "hello world   far\nbelow" {
		t.Errorf("got %q", got)
	}
	// Letters that go below the line, and signs that stand in the middle of it, are on it.
	box := func(text string, x0, y0, x1, y1 int) Word { return Word{Text: text, Box: image.Rect(x0, y0, x1, y1)} }
	page = Page{box("you", 55, 202, 83, 214), box("If", 25, 197, 43, 210), box("-", 95, 203, 103, 204), box("next", 25, 227, 60, 240), box(",", 110, 206, 112, 212)}
	if got := page.Text(); got != "If you - ,\nnext" {
		t.Errorf("got %q", got)
	}
	if got := (Page{}).Text(); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestParse(t *testing.T) {
	page, err := parse([]byte("5\t1\t1\t1\t1\t1\t1\t2\t3\t4\t-1\t\"quoted\n4\t1\n5\t1\t1\t1\t1\t1\t1\t2\t3\t4\t95\t \n"))
	if err != nil || len(page) != 1 || page[0].Text != `"quoted` {
		t.Errorf("%v, %v", page, err)
	}
	for _, bad := range []string{"5\t1\t1\t1\t1\t1\tx\t2\t3\t4\t95\ta\n", "5\t1\t1\t1\t1\t1\t1\t2\t3\t4\tx\ta\n"} {
		if page, err := parse([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, page)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("5\t1\t1\t1\t1\t1\t1\t2\t3\t4\t95\ttext\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if page, err := parse(data); err == nil {
			page.Text()
		}
	})
}
