package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	pixels "image"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// screenBackend has machines that show what the benchmark draws.
const screenBackend = "mock-screens"

// A stage is a machine without a VMM, whose screen shows pictures.
type stage struct {
	machine *attest.Machine
	shown   *mock.Machine
	dir     string
}

// screenRows measure how text is read, on screens that are drawn: how much of it is read wrong, and how soon a wait
// for it returns.
func (b *bench) screenRows(ctx context.Context) (rows []Row, err error) {
	corpus, err := screentest.Corpus()
	if err != nil {
		return nil, err
	}
	s := &stage{dir: b.dir}
	vmm.Register(mock.New(mock.Options{Name: screenBackend, InProcess: true, Started: func(m *mock.Machine) { s.shown = m }}))
	lab, err := b.host.NewLab(ctx, attest.LabConfig{Machines: []attest.MachineConfig{{Name: "m", Backend: screenBackend}}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	s.machine = lab.Machine("m")
	if err := s.machine.Start(ctx); err != nil {
		return nil, err
	}
	if rows, err = b.readings(ctx, s, corpus); err != nil {
		return nil, err
	}
	for _, kind := range []screentest.Kind{screentest.OnConsole, screentest.OnDesktop} {
		row, err := b.matches(ctx, s, kind, corpus)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// readings compare what get_screen_text reads with what tesseract reads of the same screenshot.
func (b *bench) readings(ctx context.Context, s *stage, corpus []screentest.Sample) ([]Row, error) {
	plain, ours := map[screentest.Kind]*Rate{}, map[screentest.Kind]*Rate{}
	for i, sample := range corpus {
		if i%b.everyScreen != 0 {
			continue
		}
		if plain[sample.Kind] == nil {
			plain[sample.Kind], ours[sample.Kind] = &Rate{}, &Rate{}
		}
		b.say("screen %d of %d: %s", i+1, len(corpus), sample.Name)
		s.shown.Show(sample.Picture)
		shot, err := s.screenshot(ctx)
		if err != nil {
			return nil, err
		}
		text, err := tesseract(ctx, shot)
		if err != nil {
			return nil, err
		}
		plain[sample.Kind].add(sample.Text, text)
		if text, err = s.machine.ScreenText(ctx); err != nil {
			return nil, err
		}
		ours[sample.Kind].add(sample.Text, text)
	}
	var rows []Row
	for _, kind := range []screentest.Kind{screentest.OnConsole, screentest.OnX, screentest.OnDesktop} {
		if ours[kind] != nil {
			rows = append(rows, rateRow("characters that `get_screen_text` reads wrong, "+kindNames[kind], plain[kind], ours[kind]))
		}
	}
	return rows, nil
}

var kindNames = map[screentest.Kind]string{
	screentest.OnConsole: "console fonts", screentest.OnX: "fonts of an X server", screentest.OnDesktop: "fonts with grey edges",
}

// add counts the characters of a screen.
func (r *Rate) add(want, read string) {
	wrong, all := screentest.Errors(want, read)
	r.Screens, r.Wrong, r.All = r.Screens+1, r.Wrong+wrong, r.All+all
}

// matches measure from when a screen shows a text until a wait for it returns.
func (b *bench) matches(ctx context.Context, s *stage, kind screentest.Kind, corpus []screentest.Sample) (Row, error) {
	var sample screentest.Sample
	for _, c := range corpus { // the last one of its kind in a common size
		if c.Kind == kind && (strings.Contains(c.Name, "DejaVuSans 13, page") || kind == screentest.OnConsole && strings.Contains(c.Name, "8×16, text mode")) {
			sample = c
		}
	}
	word := strings.Fields(sample.Text)[0]
	var reference, ours []time.Duration
	for i := range b.sights {
		b.say("%s: wait %d for %q", kind, i+1, word)
		if i < b.referenceSights {
			d, err := s.react(ctx, sample.Picture, func() error { return s.waitAsDriver(ctx, word) })
			if err != nil {
				return Row{}, err
			}
			reference = append(reference, d)
		}
		d, err := s.react(ctx, sample.Picture, func() error { return s.machine.WaitForText(ctx, word, attest.Timeout(5*time.Minute)) })
		if err != nil {
			return Row{}, err
		}
		ours = append(ours, d)
	}
	return newRow("text shown → `wait_for_text` returns, "+kindNames[kind], reference, ours, Target{}), nil
}

// react shows a picture while a wait is under way, and returns how much later that returned.
func (s *stage) react(ctx context.Context, picture *pixels.RGBA, wait func() error) (time.Duration, error) {
	s.shown.Show(screentest.Uniform(picture.Rect.Size(), screentest.Black))
	done := make(chan error, 1)
	var ended time.Time
	go func() {
		err := wait()
		ended = time.Now()
		done <- err
	}()
	// The reference looks once a second: the events fall evenly over that.
	select {
	case <-time.After(400*time.Millisecond + rand.N(time.Second)):
	case <-ctx.Done():
		<-done
		return 0, context.Cause(ctx)
	}
	shown := time.Now()
	s.shown.Show(picture)
	err := <-done
	return ended.Sub(shown), err
}

// waitAsDriver waits for a text as the NixOS driver does: a screenshot, of which convert makes two more, and each of
// the three is read, all as far as that goes at the same time; and once more after a second.
func (s *stage) waitAsDriver(ctx context.Context, pattern string) error {
	re := regexp.MustCompile(pattern)
	return retry(ctx, func() (bool, error) {
		shot, err := s.screenshot(ctx)
		if err != nil {
			return false, err
		}
		var wg sync.WaitGroup
		texts, errs := make([]string, 3), make([]error, 3)
		for i := range texts {
			wg.Go(func() {
				picture := shot
				if i > 0 {
					if picture, errs[i] = s.prepare(ctx, shot, i == 2); errs[i] != nil {
						return
					}
				}
				texts[i], errs[i] = tesseract(ctx, picture, "--psm", "11")
			})
		}
		wg.Wait()
		return re.MatchString(strings.Join(texts, "\n")), errors.Join(errs...)
	})
}

// prepare is what the NixOS driver has ImageMagick do.
func (s *stage) prepare(ctx context.Context, shot string, negate bool) (string, error) {
	out := fmt.Sprintf("%s-%v.tiff", strings.TrimSuffix(shot, ".png"), negate)
	args := []string{"-filter", "Catrom", "-density", "72", "-resample", "300", "-contrast", "-normalize", "-despeckle",
		"-type", "grayscale", "-sharpen", "1", "-posterize", "3"}
	if negate {
		args = append(args, "-negate")
	}
	program, err := imageMagick()
	if err != nil {
		return "", err
	}
	if text, err := exec.CommandContext(ctx, program, append(append([]string{shot}, args...), "-gamma", "100", "-blur", "1x65535", out)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(text))
	}
	return out, nil
}

// imageMagick is the program that changes pictures. Others are called convert, too.
func imageMagick() (path string, err error) {
	for _, name := range []string{"convert-im6.q16", "magick", "convert"} {
		if path, err = exec.LookPath(name); err == nil {
			break
		}
	}
	return path, err
}

// screenshot writes a screenshot to a file.
func (s *stage) screenshot(ctx context.Context) (string, error) {
	path := filepath.Join(s.dir, "screen.png")
	return path, s.machine.Screenshot(ctx, path)
}

// tesseract reads a file.
func tesseract(ctx context.Context, path string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "tesseract", append([]string{path, "stdout"}, args...)...)
	c.Env = append(os.Environ(), "OMP_THREAD_LIMIT=1")
	var complaint bytes.Buffer
	c.Stderr = &complaint
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("tesseract: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return string(out), err
}
