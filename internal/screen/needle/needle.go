// Package needle finds parts of a screen that look like parts of a picture: needles, in
// the format of openQA (a PNG file, and a JSON file of the same name that says which of its
// areas count).
package needle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/attest-vm/attest/internal/atomicfile"
	"github.com/attest-vm/attest/internal/screen"
)

// A Kind is what an area is for.
type Kind string

const (
	Match   Kind = "match"   // the screen must look like it
	Exclude Kind = "exclude" // whatever is here does not count
	OCR     Kind = "ocr"     // the screen must have its text here
)

// What openQA takes where an area does not say.
const (
	defaultMatch  = 96 // percent
	defaultMargin = 50 // pixels
)

const (
	maxAreas = 100
	maxJSON  = 1 << 20
)

// A Needle is a picture and what of it counts.
type Needle struct {
	Name    string // of its files, without directory and extension
	Path    string // of the JSON file
	Tags    []string
	Areas   []Area
	Picture *image.RGBA

	rest  map[string]json.RawMessage // what else the JSON file has
	fresh bool                       // its picture has not been written
}

// New returns a needle of a picture that has no areas yet. The path is that of the JSON file that Save
// will write, or of the PNG file beside it, or of either without its extension.
func New(path string, picture *image.RGBA) *Needle {
	base := basePath(path)
	return &Needle{Name: filepath.Base(base), Path: base + ".json", Picture: picture, fresh: true}
}

// Files are the paths of the needle's two files.
func (n *Needle) Files() []string { return []string{n.Path, basePath(n.Path) + ".png"} }

func basePath(path string) string {
	return strings.TrimSuffix(strings.TrimSuffix(path, ".json"), ".png")
}

// An Area is a rectangle of a needle's picture.
type Area struct {
	Box        image.Rectangle
	Kind       Kind
	Similarity float64      // from which on it is found, 0 to 1
	Margin     int          // how far from Box it may be on a screen, in pixels to each side
	Click      *image.Point // where to click, from the corner of the area; nil: in the middle
	Clickable  bool         // the file says where to click
	Text       string       // of an area of kind OCR
}

// file is the JSON file.
type file struct {
	Area []fileArea `json:"area"`
	Tags []string   `json:"tags"`
}

type fileArea struct {
	X      number          `json:"xpos"`
	Y      number          `json:"ypos"`
	Width  number          `json:"width"`
	Height number          `json:"height"`
	Type   Kind            `json:"type"`
	Match  *number         `json:"match,omitempty"`
	Margin *number         `json:"margin,omitempty"`
	Click  json.RawMessage `json:"click_point,omitempty"` // a filePoint, or "center"
	Text   string          `json:"refstr,omitempty"`
}

type filePoint struct {
	X number `json:"xpos"`
	Y number `json:"ypos"`
}

// A number may be written as a string, or with a fraction, which does not count.
type number int

func (n *number) UnmarshalJSON(data []byte) error {
	v, err := strconv.ParseFloat(strings.Trim(string(data), `"`), 64)
	if err != nil || v < -1e6 || v > 1e6 {
		return fmt.Errorf("%.40s is not a number of pixels or percent", data)
	}
	*n = number(v)
	return nil
}

// Load reads a needle. The path is that of the JSON file, of the PNG file beside it, or
// of either without its extension.
func Load(path string) (*Needle, error) {
	base := basePath(path)
	n := &Needle{Name: filepath.Base(base), Path: base + ".json"}
	data, err := readFile(n.Path)
	if err == nil {
		err = n.parse(data)
	}
	if err != nil {
		return nil, fmt.Errorf("needle %s: %w", n.Path, err)
	}
	if n.Picture, err = screen.ReadFile(base + ".png"); err == nil {
		err = n.check()
	}
	if err != nil {
		return nil, fmt.Errorf("needle %s: %w", n.Path, err)
	}
	return n, nil
}

// LoadTag reads the needles of a directory that have a tag; all if it is empty.
func LoadTag(dir, tag string) ([]*Needle, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []*Needle
	for _, path := range files {
		data, err := readFile(path)
		var n Needle
		if err == nil {
			err = n.parse(data)
		}
		if err != nil {
			return nil, fmt.Errorf("needle %s: %w", path, err)
		}
		if tag != "" && !slices.Contains(n.Tags, tag) {
			continue
		}
		full, err := Load(path)
		if err != nil {
			return nil, err
		}
		out = append(out, full)
	}
	switch {
	case len(out) > 0:
		return out, nil
	case tag == "":
		return nil, fmt.Errorf("%s has no needles (NAME.json beside NAME.png)", dir)
	}
	return nil, fmt.Errorf("no needle in %s has the tag %q", dir, tag)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err == nil && len(data) > maxJSON {
		err = fmt.Errorf("more than %d bytes", maxJSON)
	}
	return data, err
}

func (n *Needle) parse(data []byte) error {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return err
	}
	if err := json.Unmarshal(data, &n.rest); err != nil {
		return err
	}
	var err error
	n.Tags = f.Tags
	n.Areas, err = f.areas()
	return err
}

// Edit gives a needle other areas and tags: those of a JSON file with nothing else in it. What is not right for the
// needle's picture is an error, and changes nothing.
func (n *Needle) Edit(data []byte) error {
	var f file
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return err
	}
	edited := *n
	var err error
	edited.Tags = f.Tags
	if edited.Areas, err = f.areas(); err == nil {
		err = edited.check()
	}
	if err == nil {
		*n = edited
	}
	return err
}

func (f file) areas() (areas []Area, err error) {
	if len(f.Area) > maxAreas {
		return nil, fmt.Errorf("%d areas; want at most %d", len(f.Area), maxAreas)
	}
	for i, a := range f.Area {
		area, err := a.area()
		if err != nil {
			return nil, fmt.Errorf("area %d: %w", i+1, err)
		}
		areas = append(areas, area)
	}
	return areas, nil
}

func (a fileArea) area() (Area, error) {
	out := Area{
		Box:  image.Rect(int(a.X), int(a.Y), int(a.X)+int(a.Width), int(a.Y)+int(a.Height)),
		Kind: a.Type, Similarity: defaultMatch / 100., Margin: defaultMargin, Text: a.Text,
	}
	if a.Match != nil {
		out.Similarity = float64(*a.Match) / 100
	}
	if a.Margin != nil {
		out.Margin = int(*a.Margin)
	}
	switch {
	case a.Width < 1 || a.Height < 1:
		return out, fmt.Errorf("it is %d×%d pixels large", a.Width, a.Height)
	case a.Type != Match && a.Type != Exclude && a.Type != OCR:
		return out, fmt.Errorf("type %q; want match, exclude or ocr", a.Type)
	case out.Similarity < 0 || out.Similarity > 1:
		return out, fmt.Errorf("match %d; want percent", *a.Match)
	case out.Margin < 0:
		return out, fmt.Errorf("margin %d is negative", out.Margin)
	case a.Type == OCR && strings.TrimSpace(a.Text) == "":
		return out, errors.New("an area of type ocr needs refstr, the text that is there")
	}
	switch click := string(a.Click); click {
	case "", "null":
	case `"center"`:
		out.Clickable = true
	default:
		var p filePoint
		if err := json.Unmarshal(a.Click, &p); err != nil {
			return out, fmt.Errorf("click_point: %w", err)
		}
		out.Click, out.Clickable = &image.Point{int(p.X), int(p.Y)}, true
	}
	return out, nil
}

// check reports what is wrong with a needle as a whole.
func (n *Needle) check() error {
	counts := 0
	for i, a := range n.Areas {
		if !a.Box.In(n.Picture.Rect) {
			return fmt.Errorf("area %d (%v) is not on the picture, which is %d×%d", i+1, a.Box, n.Picture.Rect.Dx(), n.Picture.Rect.Dy())
		}
		if a.Kind != Exclude {
			counts++
		}
	}
	if counts == 0 {
		return errors.New("no area of type match or ocr: it would be found on any screen")
	}
	return nil
}

// JSON is the needle's JSON file. What else a file had that was read is kept.
func (n *Needle) JSON() ([]byte, error) {
	f := file{Area: []fileArea{}, Tags: n.Tags}
	if f.Tags == nil {
		f.Tags = []string{}
	}
	for _, a := range n.Areas {
		match, margin := number(a.Similarity*100+0.5), number(a.Margin)
		out := fileArea{X: number(a.Box.Min.X), Y: number(a.Box.Min.Y), Width: number(a.Box.Dx()), Height: number(a.Box.Dy()), Type: a.Kind, Match: &match, Margin: &margin, Text: a.Text}
		switch {
		case a.Click != nil:
			out.Click, _ = json.Marshal(filePoint{number(a.Click.X), number(a.Click.Y)})
		case a.Clickable:
			out.Click = json.RawMessage(`"center"`)
		}
		if a.Kind == Exclude {
			out.Match, out.Margin = nil, nil
		}
		f.Area = append(f.Area, out)
	}
	fields := map[string]any{}
	for k, v := range n.rest {
		fields[k] = v
	}
	fields["area"], fields["tags"] = f.Area, f.Tags
	return json.MarshalIndent(fields, "", "  ")
}

// Save writes a needle's two files, so that each is complete when it appears. The picture of a needle that was
// loaded is there already.
func (n *Needle) Save() error {
	if err := n.check(); err != nil {
		return err
	}
	data, err := n.JSON()
	if err != nil {
		return err
	}
	if n.fresh {
		err = write(basePath(n.Path)+".png", func(w io.Writer) error { return png.Encode(w, n.Picture) })
	}
	if err != nil {
		return err
	}
	n.fresh = false
	return write(n.Path, func(w io.Writer) error { _, err := w.Write(append(data, '\n')); return err })
}

func write(path string, fn func(io.Writer) error) error {
	f, err := atomicfile.Create(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := fn(f); err != nil {
		return err
	}
	return f.Commit(path)
}
