package needle_test

import (
	"bytes"
	"context"
	"image"
	"image/color"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/screen/needle"
	"github.com/attest-vm/attest/internal/screen/screentest"
)

var background = color.RGBA{40, 90, 130, 255}

// desktop is a screen with a window at a place, and a button in it.
func desktop(at image.Point) *image.RGBA {
	p := screentest.Uniform(image.Pt(1024, 768), background)
	random := rand.New(rand.NewPCG(1, 2))
	for range 60 { // icons
		x, y := random.IntN(1000), random.IntN(740)
		screentest.Fill(p, image.Rect(x, y, x+24, y+24), color.RGBA{uint8(random.UintN(256)), uint8(random.UintN(256)), uint8(random.UintN(256)), 255})
	}
	window := image.Rect(0, 0, 300, 200).Add(at)
	screentest.Fill(p, window, screentest.Grey)
	screentest.Fill(p, image.Rect(0, 0, 300, 20).Add(at), color.RGBA{20, 20, 90, 255})
	button(p, at.Add(image.Pt(200, 160)), color.RGBA{0, 120, 40, 255})
	return p
}

func button(p *image.RGBA, at image.Point, c color.RGBA) {
	screentest.Fill(p, image.Rect(0, 0, 80, 26).Add(at), c)
	for i := range 6 { // letters
		screentest.Fill(p, image.Rect(12+10*i, 6, 17+10*i, 10+i*2).Add(at), screentest.White)
	}
}

// write writes a needle of a picture.
func write(t *testing.T, name, text string, p *image.RGBA) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	var b bytes.Buffer
	if err := png.Encode(&b, p); err != nil {
		t.Fatal(err)
	}
	for ext, data := range map[string][]byte{".json": []byte(text), ".png": b.Bytes()} {
		if err := os.WriteFile(path+ext, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// A needle as openQA has them.
const ok = `{
  "area": [
    {"xpos": 300, "ypos": 260, "width": 80, "height": 26, "type": "match", "match": 95, "margin": 100, "click_point": {"xpos": 10, "ypos": 13}},
    {"xpos": "310", "ypos": 264, "width": 20, "height": 10, "type": "exclude"}
  ],
  "properties": ["workaround"],
  "tags": ["ENV-DISTRI-debian", "button-ok"]
}`

func load(t *testing.T, path string) *needle.Needle {
	t.Helper()
	n, err := needle.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func find(t *testing.T, n *needle.Needle, shown *image.RGBA, o needle.Options) needle.Result {
	t.Helper()
	r, err := n.Find(t.Context(), shown, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFind(t *testing.T) {
	made := desktop(image.Pt(100, 100))
	n := load(t, write(t, "ok", ok, made))
	if strings.Join(n.Tags, " ") != "ENV-DISTRI-debian button-ok" || n.Name != "ok" || len(n.Areas) != 2 || n.Areas[0].Similarity != 0.95 || n.Areas[1].Box.Min.X != 310 {
		t.Errorf("%+v", n)
	}
	if r := find(t, n, made, needle.Options{}); !r.Found || r.Similarity < 0.9999 || r.Click() != image.Pt(310, 273) {
		t.Errorf("where it was: %+v at %v", r, r.Click())
	}
	// Within the margin, and what is excluded looks different.
	moved := desktop(image.Pt(137, 61))
	screentest.Fill(moved, image.Rect(347, 225, 367, 235), screentest.Black)
	if r := find(t, n, moved, needle.Options{}); !r.Found || r.Areas[0].Box.Min != image.Pt(337, 221) {
		t.Errorf("moved: %+v", r)
	}
	// Outside of it.
	far := desktop(image.Pt(600, 500))
	if r := find(t, n, far, needle.Options{}); r.Found || r.Similarity > 0.7 {
		t.Errorf("far away: %+v", r)
	}
	if r := find(t, n, far, needle.Options{Anywhere: true}); !r.Found || r.Areas[0].Box.Min != image.Pt(800, 660) {
		t.Errorf("anywhere: %+v", r)
	}
}

// What looks nearly like a needle is not it.
func TestFindOther(t *testing.T) {
	n := load(t, write(t, "ok", ok, desktop(image.Pt(100, 100))))
	for name, change := range map[string]func(p *image.RGBA){
		"another colour": func(p *image.RGBA) { button(p, image.Pt(300, 260), color.RGBA{120, 0, 40, 255}) },
		"darker":         func(p *image.RGBA) { button(p, image.Pt(300, 260), color.RGBA{0, 60, 20, 255}) },
		"no text":        func(p *image.RGBA) { screentest.Fill(p, image.Rect(300, 260, 380, 286), color.RGBA{0, 120, 40, 255}) },
		"gone":           func(p *image.RGBA) { screentest.Fill(p, image.Rect(300, 260, 380, 286), screentest.Grey) },
	} {
		p := desktop(image.Pt(100, 100))
		change(p)
		r := find(t, n, p, needle.Options{})
		if r.Found {
			t.Errorf("%s: found with %v at %v", name, r.Similarity, r.Areas[0].Box)
		}
		if d := r.Difference(p); d.Rect != p.Rect {
			t.Errorf("%s: a difference of %v", name, d.Rect)
		}
	}
	for _, size := range []image.Point{{640, 480}, {310, 270}, {20, 20}, {1, 1}} { // the resolution changed
		if r := find(t, n, screentest.Uniform(size, background), needle.Options{}); r.Found {
			t.Errorf("found on %v", size)
		}
		if r := find(t, n, screentest.Uniform(size, background), needle.Options{Anywhere: true}); r.Found || r.Difference(screentest.Uniform(size, background)) == nil {
			t.Errorf("found somewhere on %v", size)
		}
	}
}

// The pictures of a needle that was not found show what counts, what of it is there, and how the rest differs.
func TestPictures(t *testing.T) {
	grey := color.RGBA{90, 90, 90, 255}
	p := screentest.Uniform(image.Pt(200, 100), grey)
	screentest.Fill(p, image.Rect(20, 20, 60, 40), color.RGBA{200, 0, 0, 255})
	screentest.Fill(p, image.Rect(120, 20, 180, 60), color.RGBA{0, 200, 0, 255})
	n := load(t, write(t, "two", `{"area": [
		{"xpos": 20, "ypos": 20, "width": 40, "height": 20, "type": "match", "margin": 0},
		{"xpos": 120, "ypos": 20, "width": 60, "height": 40, "type": "match", "margin": 0},
		{"xpos": 150, "ypos": 40, "width": 30, "height": 20, "type": "exclude"}]}`, p))
	shown := screentest.Uniform(image.Pt(200, 100), grey)
	screentest.Fill(shown, image.Rect(20, 20, 60, 40), color.RGBA{200, 0, 0, 255})
	screentest.Fill(shown, image.Rect(120, 20, 180, 60), color.RGBA{0, 50, 100, 255})
	r := find(t, n, shown, needle.Options{})
	dark, red, green, frame := color.RGBA{30, 30, 30, 255}, color.RGBA{240, 60, 50, 255}, color.RGBA{40, 200, 90, 255}, color.RGBA{150, 150, 150, 255}
	for name, want := range map[string]map[image.Point]color.RGBA{
		"needle": {
			{5, 5}: dark, {18, 30}: green, {20, 20}: {200, 0, 0, 255}, {118, 30}: red, {120, 20}: {0, 200, 0, 255}, {150, 38}: frame, {160, 50}: {22, 22, 22, 255},
		},
		"difference": {
			{5, 5}: dark, {18, 30}: green, {20, 20}: {0, 0, 0, 255}, {118, 30}: red, {120, 20}: {0, 150, 100, 255}, {150, 38}: frame, {160, 50}: {22, 22, 22, 255},
		},
	} {
		got := r.Drawn()
		if name == "difference" {
			got = r.Difference(shown)
		}
		for at, c := range want {
			if got.RGBAAt(at.X, at.Y) != c {
				t.Errorf("%s: %v is %v, want %v", name, at, got.RGBAAt(at.X, at.Y), c)
			}
		}
	}
}

// Areas of one colour, and small ones, are found too.
func TestFindPlain(t *testing.T) {
	p := screentest.Uniform(image.Pt(640, 480), screentest.Black)
	screentest.Fill(p, image.Rect(100, 100, 160, 130), color.RGBA{200, 0, 0, 255})
	n := load(t, write(t, "red", `{"area": [{"xpos": 100, "ypos": 100, "width": 60, "height": 30, "type": "match"}], "tags": []}`, p))
	if r := find(t, n, p, needle.Options{}); !r.Found {
		t.Errorf("%+v", r)
	}
	q := screentest.Uniform(image.Pt(640, 480), screentest.Black)
	screentest.Fill(q, image.Rect(123, 77, 183, 107), color.RGBA{200, 0, 0, 255})
	if r := find(t, n, q, needle.Options{}); !r.Found || r.Areas[0].Box.Min != image.Pt(123, 77) {
		t.Errorf("moved: %+v", r)
	}
	screentest.Fill(q, image.Rect(123, 77, 183, 107), color.RGBA{0, 200, 0, 255})
	if r := find(t, n, q, needle.Options{}); r.Found {
		t.Errorf("another colour: %+v", r)
	}
	screentest.Fill(p, image.Rect(103, 103, 105, 104), screentest.White)
	small := load(t, write(t, "dot", `{"area": [{"xpos": 102, "ypos": 102, "width": 5, "height": 4, "type": "match", "margin": 600}]}`, p))
	screentest.Fill(q, q.Rect, color.RGBA{200, 0, 0, 255})
	screentest.Fill(q, image.Rect(500, 400, 502, 401), screentest.White)
	if r := find(t, small, q, needle.Options{}); !r.Found || r.Areas[0].Box.Min != image.Pt(499, 399) {
		t.Errorf("small: %+v", r)
	}
}

func TestFindText(t *testing.T) {
	p := desktop(image.Pt(100, 100))
	n := load(t, write(t, "text", `{"area": [{"xpos": 110, "ypos": 102, "width": 100, "height": 16, "type": "ocr", "refstr": "Save the file", "match": 80}]}`, p))
	for text, want := range map[string]bool{"Save the file\n": true, "Save tha fi1e": true, "Delete the file": false, "": false} {
		r := find(t, n, p, needle.Options{Read: func(_ context.Context, part *image.RGBA) (string, error) {
			if part.Rect.Dx() < 100 || part.Rect.Dx() > 120 {
				t.Errorf("reads %v", part.Rect)
			}
			return text, nil
		}})
		if r.Found != want {
			t.Errorf("%q: %+v", text, r)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	p := screentest.Uniform(image.Pt(100, 100), background)
	for want, text := range map[string]string{
		"unexpected end":        `{"area": [`,
		"no area of type match": `{"area": []}`,
		"it is 0×5 pixels":      `{"area": [{"xpos": 1, "ypos": 1, "width": 0, "height": 5, "type": "match"}]}`,
		"is not on the picture": `{"area": [{"xpos": 90, "ypos": 1, "width": 20, "height": 5, "type": "match"}]}`,
		`type "mach"`:           `{"area": [{"xpos": 9, "ypos": 1, "width": 20, "height": 5, "type": "mach"}]}`,
		"match 900":             `{"area": [{"xpos": 9, "ypos": 1, "width": 20, "height": 5, "type": "match", "match": 900}]}`,
		"needs refstr":          `{"area": [{"xpos": 9, "ypos": 1, "width": 20, "height": 5, "type": "ocr"}]}`,
		"is not a number":       `{"area": [{"xpos": "a", "ypos": 1, "width": 20, "height": 5, "type": "match"}]}`,
		"click_point":           `{"area": [{"xpos": 9, "ypos": 1, "width": 20, "height": 5, "type": "match", "click_point": "left"}]}`,
		"101 areas":             `{"area": [` + strings.Repeat(`{"xpos": 9, "ypos": 1, "width": 20, "height": 5, "type": "match"},`, 100) + `{}]}`,
		"more than 1048576":     `{"area": [` + strings.Repeat(" ", 1<<20) + `]}`,
	} {
		path := write(t, "bad", text, p)
		if _, err := needle.Load(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path+".json") {
			t.Errorf("want %s, got %v", want, err)
		}
	}
	if _, err := needle.Load(filepath.Join(t.TempDir(), "nothing.png")); !os.IsNotExist(errorsCause(err)) {
		t.Errorf("got %v", err)
	}
	path := write(t, "big", ok, p)
	if err := os.Truncate(path+".png", 1<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := needle.Load(path); err == nil || !strings.Contains(err.Error(), "has 1024 MiB") {
		t.Errorf("got %v", err)
	}
}

func errorsCause(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		if os.IsNotExist(err) {
			return err
		}
		err = u.Unwrap()
	}
}

// What is saved is what was read, with what attest does not know.
func TestSave(t *testing.T) {
	path := write(t, "ok", ok, desktop(image.Pt(100, 100)))
	n := load(t, path+".png")
	n.Tags = append(n.Tags, "more")
	if err := n.Save(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path + ".json")
	if err != nil || !strings.Contains(string(text), `"workaround"`) || !strings.Contains(string(text), `"more"`) {
		t.Errorf("%s, %v", text, err)
	}
	again := load(t, path)
	if len(again.Areas) != 2 || again.Areas[0].Box != n.Areas[0].Box || *again.Areas[0].Click != *n.Areas[0].Click || math.Abs(again.Areas[0].Similarity-0.95) > 1e-9 || !screen.Changed(again.Picture, n.Picture).Empty() {
		t.Errorf("%+v", again)
	}
	tagged, err := needle.LoadTag(filepath.Dir(path), "more")
	if err != nil || len(tagged) != 1 || tagged[0].Name != "ok" {
		t.Errorf("%v, %v", tagged, err)
	}
	if _, err := needle.LoadTag(filepath.Dir(path), "none"); err == nil || !strings.Contains(err.Error(), `has the tag "none"`) {
		t.Errorf("got %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(ok))
	f.Add([]byte(`{"area":[{"click_point":"center","type":"ocr"}]}`))
	var b bytes.Buffer
	png.Encode(&b, screentest.Uniform(image.Pt(400, 300), background))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "n")
		if os.WriteFile(path+".json", text, 0o600) != nil || os.WriteFile(path+".png", b.Bytes(), 0o600) != nil {
			t.Skip()
		}
		if n, err := needle.Load(path); err == nil {
			for _, a := range n.Areas {
				if a.Box.Empty() || !a.Box.In(n.Picture.Rect) {
					t.Errorf("%+v", a)
				}
			}
		}
	})
}

func BenchmarkFind(b *testing.B) {
	made := desktop(image.Pt(100, 100))
	n := &needle.Needle{Picture: made, Areas: []needle.Area{{Box: image.Rect(300, 260, 380, 286), Kind: needle.Match, Similarity: 0.95, Margin: 100}}}
	for name, shown := range map[string]*image.RGBA{"same place": made, "within the margin": desktop(image.Pt(137, 61)), "anywhere": desktop(image.Pt(600, 500))} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n.Find(b.Context(), shown, needle.Options{Anywhere: name == "anywhere"})
			}
		})
	}
}
