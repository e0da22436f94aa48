package attest

import (
	"context"
	"fmt"
	"image"
	"image/png"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/screen/needle"
	"github.com/attest-vm/attest/internal/screen/ocr"
	"github.com/attest-vm/attest/internal/vmm"
)

// A ScreenMatch is where a needle is on a screen, or most likely would be.
type ScreenMatch struct {
	Needle     string // its name: that of its files
	Found      bool
	Similarity float64         // of the area that is least similar, 0 to 1
	Box        image.Rectangle // of its first area, in pixels from the screen's upper left corner
	Click      image.Point     // where to click on it
}

// AssertScreen waits until the machine's screen shows a needle: a part of a picture, in the
// format of openQA (docs/screen.md). The limit is 30 seconds unless Timeout gives another. The path is that
// of its PNG or JSON file, or of a directory, of whose needles any will do.
func (m *Machine) AssertScreen(ctx context.Context, path string, opts ...NeedleOption) (ScreenMatch, error) {
	o := collect(opts)
	if !o.hasTimeout {
		o.timeout, o.hasTimeout = m.lab.host.scale(assertTimeout), true
	}
	return m.waitForNeedle(ctx, "assert_screen", path, o)
}

// assertTimeout is openQA's limit of assert_screen.
const assertTimeout = 30 * time.Second

// WaitForScreen is AssertScreen with the limit that waits have.
func (m *Machine) WaitForScreen(ctx context.Context, path string, opts ...NeedleOption) (ScreenMatch, error) {
	return m.waitForNeedle(ctx, "wait_for_screen", path, collect(opts))
}

// FindOnScreen looks once for a needle, whose first area may be anywhere on the screen.
// That there is none is not an error.
func (m *Machine) FindOnScreen(ctx context.Context, path string, opts ...TagOption) (ScreenMatch, error) {
	const operation = "find_on_screen"
	o := collect(opts)
	var found ScreenMatch
	err := step(ctx, m.Name(), operation, needleGiven(ctx, path, o), func(ctx context.Context) error {
		needles, err := m.loadNeedles(operation, path, o)
		if err != nil {
			return err
		}
		return withVMM(ctx, m, operation, capabilityFor(needles), func(r *run, s vmm.Screener) error {
			shown, err := r.look(ctx, s)
			if err != nil {
				return err
			}
			result, err := r.find(ctx, operation, needles, shown, true)
			found = matchOf(result)
			return err
		})
	})
	return found, err
}

func needleGiven(ctx context.Context, path string, o options) string {
	return written(ctx, argument{"", path}, unless("tag", o.tag, ""))
}

func (m *Machine) waitForNeedle(ctx context.Context, operation, path string, o options) (ScreenMatch, error) {
	args := needleGiven(ctx, path, o)
	needles, err := m.loadNeedles(operation, path, o)
	if err != nil {
		return ScreenMatch{}, err
	}
	var found ScreenMatch
	err = m.watch(ctx, operation, args, capabilityFor(needles), o, func(ctx context.Context, r *run, shown *image.RGBA) (*WaitError, error) {
		result, err := r.find(ctx, operation, needles, shown, false)
		if err != nil {
			return nil, err
		}
		if found = matchOf(result); result.Found {
			return nil, nil
		}
		return &WaitError{LastSeen: describeMatch(result), attach: func(we *WaitError) {
			we.LastSeen += r.elsewhere(ctx, operation, result.Needle, shown)
			r.attachDifference(ctx, we, operation, result, shown)
		}}, nil
	})
	return found, err
}

// loadNeedles reads the needles of an operation's path.
func (m *Machine) loadNeedles(operation, path string, o options) ([]*needle.Needle, error) {
	var needles []*needle.Needle
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		needles, err = needle.LoadTag(path, o.tag)
	} else {
		var n *needle.Needle
		if n, err = needle.Load(path); err == nil && o.tag != "" && !slices.Contains(n.Tags, o.tag) {
			err = fmt.Errorf("needle %s has the tags %q, and not %q", n.Path, n.Tags, o.tag)
		}
		needles = []*needle.Needle{n}
	}
	if err != nil {
		return nil, &ConfigError{m.Name(), fmt.Sprintf("%s: %v", operation, err)}
	}
	return needles, nil
}

// capabilityFor is what it takes to look for needles: those with text have to be read.
func capabilityFor(needles []*needle.Needle) vmm.Capability {
	for _, n := range needles {
		if slices.ContainsFunc(n.Areas, func(a needle.Area) bool { return a.Kind == needle.OCR }) {
			return vmm.CanRead
		}
	}
	return vmm.CanShow
}

// find looks for all needles on a picture and returns the best result.
func (r *run) find(ctx context.Context, operation string, needles []*needle.Needle, shown *image.RGBA, anywhere bool) (needle.Result, error) {
	o := needle.Options{Anywhere: anywhere, Read: func(ctx context.Context, part *image.RGBA) (string, error) {
		text := screenText{r.machine, operation, image.Rectangle{}, ocr.NewReader(r.machine.lab.tesseract)}
		texts, err := text.read(ctx, part, []ocr.Variant{ocr.Positive}, nil)
		return strings.Join(texts, "\n"), err
	}}
	var results []needle.Result
	for _, n := range needles {
		result, err := n.Find(ctx, shown, o)
		if err != nil {
			return needle.Result{}, err
		}
		results = append(results, result)
		if result.Found {
			break
		}
	}
	return needle.Best(results), nil
}

func matchOf(r needle.Result) ScreenMatch {
	return ScreenMatch{r.Needle.Name, r.Found, r.Similarity, r.Areas[0].Box, r.Click()}
}

// describeMatch says which area of a needle was not found.
func describeMatch(r needle.Result) string {
	for i, f := range r.Areas {
		if f.OK() {
			continue
		}
		text := fmt.Sprintf("needle %s: area %d is similar by %.1f %%, and has to be by %.1f %%", r.Needle.Name, i+1, 100*f.Similarity, 100*f.Area.Similarity)
		switch {
		case f.Area.Kind == needle.OCR:
			text += fmt.Sprintf("; it reads %q instead of %q", f.Text, f.Area.Text)
		case f.Box.Empty():
			text += "; the screen is too small for it"
		default:
			text += fmt.Sprintf("; it is most likely at %d, %d", f.Box.Min.X, f.Box.Min.Y)
		}
		return text
	}
	return "needle " + r.Needle.Name
}

// elsewhere says that a needle which was not found is on the screen all the same, but further away than its margin
// allows; empty if it is not.
func (r *run) elsewhere(ctx context.Context, operation string, n *needle.Needle, shown *image.RGBA) string {
	limit := min(r.machine.lab.host.scale(attachTimeout), maxAttach)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	result, err := r.find(limited, operation, []*needle.Needle{n}, shown, true)
	if err != nil || !result.Found {
		return ""
	}
	first := result.Areas[0]
	return fmt.Sprintf("; the needle is on the screen, at %d, %d, further away than its margin of %d pixels", first.Box.Min.X, first.Box.Min.Y, first.Area.Margin)
}

// attachDifference adds the screen, the needle and how they differ to a wait that failed. ctx is that of the wait.
func (r *run) attachDifference(ctx context.Context, we *WaitError, operation string, result needle.Result, shown *image.RGBA) {
	m := r.machine
	d := Detail{Title: "screen of " + m.Name() + " and needle " + result.Needle.Name}
	id := stepCounter.Load()
	for _, p := range []struct {
		title   string
		picture *image.RGBA
	}{{"screen", shown}, {"needle", result.Drawn()}, {"difference", result.Difference(shown)}} {
		name := m.lab.out.place(ctx, m.Name(), fmt.Sprintf("%s-%s-%d-%s.png", m.Name(), operation, id, p.title))
		f, path, err := m.lab.out.create(name, m.Name()+": "+operation)
		if err != nil {
			return // what went wrong is more important
		}
		if err = png.Encode(f, p.picture); f.Close() != nil || err != nil {
			return
		}
		d.Pictures = append(d.Pictures, Picture{p.title, path})
		d.Text += fmt.Sprintf("%-10s  %s\n", p.title, path)
	}
	we.Details = append(we.Details, d)
}
