package attest

import (
	"cmp"
	"context"
	"fmt"
	"image"
	"regexp"
	"strings"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/screen/ocr"
	"github.com/attest-vm/attest/internal/vmm"
)

// ScreenText reads what is on the machine's screen. The text of a console is exact; other text
// is read by tesseract, a program of this host, which makes mistakes. The guest need not have booted.
func (m *Machine) ScreenText(ctx context.Context, opts ...RegionOption) (string, error) {
	texts, err := m.readScreen(ctx, "get_screen_text", []ocr.Variant{ocr.Positive}, collect(opts))
	return strings.Join(texts, ""), err
}

// ScreenTextVariants is ScreenText with the picture prepared in several ways, of which
// each may help with a text that others garble: as it is; enlarged, and dark on white wherever the background has one colour, as
// ScreenText has it; and enlarged, with dark and light exchanged. The text of a console is the only variant.
func (m *Machine) ScreenTextVariants(ctx context.Context, opts ...RegionOption) ([]string, error) {
	return m.readScreen(ctx, "get_screen_text_variants", ocr.Variants(), collect(opts))
}

func (m *Machine) readScreen(ctx context.Context, operation string, variants []ocr.Variant, o options) (texts []string, err error) {
	args := written(ctx, regionGiven(o.region))
	err = step(ctx, m.Name(), operation, args, func(ctx context.Context) error {
		return withVMM(ctx, m, operation, vmm.CanRead, func(r *run, s vmm.Screener) error {
			shown, err := r.look(ctx, s)
			if err == nil {
				texts, err = m.newText(operation, o).read(ctx, shown, variants, nil)
			}
			return err
		})
	})
	return texts, err
}

// WaitForText waits until some text on the machine's screen matches a regular expression
// (Go's syntax, ^ and $ match at lines), in one of the variants of ScreenTextVariants. The guest
// need not have booted.
func (m *Machine) WaitForText(ctx context.Context, pattern string, opts ...TextOption) error {
	const operation = "wait_for_text"
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return &ConfigError{m.Name(), fmt.Sprintf("%s: not a regular expression: %v", operation, err)}
	}
	o := collect(opts)
	text := m.newText(operation, o)
	// Blanks at the ends of lines are not there, and people look for "login: ".
	matches := func(t string) bool {
		return re.MatchString(t) || re.MatchString(strings.ReplaceAll(t, "\n", " \n")+" ")
	}
	args := written(ctx, argument{"", pattern}, regionGiven(o.region))
	return m.watch(ctx, operation, args, vmm.CanRead, o, func(ctx context.Context, _ *run, shown *image.RGBA) (*WaitError, error) {
		texts, err := text.read(ctx, shown, ocr.Variants(), matches)
		if err != nil {
			return nil, err
		}
		we := &WaitError{}
		for i, t := range texts {
			if matches(t) {
				return nil, nil
			}
			if t = trimScreen(t); t != "" {
				we.LastSeen = cmp.Or(we.LastSeen, t[strings.LastIndex(t, "\n")+1:])
				we.Details = append(we.Details, Detail{Title: "text on the screen of " + m.Name() + variantNames[len(texts)][i], Text: t})
			}
		}
		we.LastSeen = cmp.Or(we.LastSeen, "a screen without text")
		return we, nil
	})
}

// variantNames are what tells variants from each other, by their number.
var variantNames = map[int][]string{
	1: {""},
	3: {", as it is", ", dark on white", ", negative"},
}

// regionGiven is a part of the screen as an argument.
func regionGiven(part image.Rectangle) argument {
	if part.Empty() {
		return argument{}
	}
	return argument{"region", verbatim(fmt.Sprintf("[%d, %d, %d, %d]", part.Min.X, part.Min.Y, part.Dx(), part.Dy()))}
}

// A screenText reads a screen, or a part of it.
type screenText struct {
	machine   *Machine
	operation string
	region    image.Rectangle // empty: all of it
	ocr       *ocr.Reader
}

// newText returns what reads for an operation. What is read of the whole screen is kept
// for the next operation.
func (m *Machine) newText(operation string, o options) screenText {
	if o.region.Empty() {
		return screenText{m, operation, o.region, m.text}
	}
	return screenText{m, operation, o.region, ocr.NewReader(m.lab.tesseract)}
}

// read returns the text in some variants, or the exact text alone. When enough reports
// true of one, the others may be missing (empty).
func (s screenText) read(ctx context.Context, shown *image.RGBA, variants []ocr.Variant, enough func(string) bool) ([]string, error) {
	text, console := s.machine.lab.host.glyphs.Read(shown)
	if !s.region.Empty() {
		part := s.region.Intersect(shown.Rect)
		if part.Empty() {
			return nil, &ConfigError{s.machine.Name(), fmt.Sprintf("%s: region %v is outside of the screen, which has %d×%d pixels", s.operation, s.region, shown.Rect.Dx(), shown.Rect.Dy())}
		}
		shown, text = screen.Crop(shown, part), text.In(part)
	}
	if console {
		return []string{text.String()}, nil
	}
	var done func(ocr.Page) bool
	if enough != nil {
		done = func(p ocr.Page) bool { return enough(p.Text()) }
	}
	pages, err := s.ocr.Read(ctx, shown, variants, done)
	if err != nil {
		return nil, err
	}
	texts := make([]string, len(pages))
	for i, p := range pages {
		texts[i] = p.Text()
	}
	return texts, nil
}
