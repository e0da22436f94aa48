package attest

import (
	"context"
	"errors"
	"fmt"
	"image"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/vmm"
)

// TTYText is what a virtual terminal, "1" to "63", shows now: all its lines, each
// as long as the terminal is wide. It needs no screen.
func (m *Machine) TTYText(ctx context.Context, tty string) (string, error) {
	var text string
	args := strconv.Quote(tty)
	err := step(ctx, m.Name(), "get_tty_text", args, func(ctx context.Context) (err error) {
		text, err = m.ttyText(ctx, "get_tty_text", args, tty)
		return err
	})
	return text, err
}

func (m *Machine) ttyText(ctx context.Context, operation, args, tty string) (string, error) {
	n, err := m.ttyNumber(operation, args, tty)
	if err != nil {
		return "", err
	}
	r, err := m.use(ctx, operation)
	if err != nil {
		return "", err
	}
	state, err := r.guest.WaitTTY(ctx, n, "")
	return state.Text, r.explainRefusal(ctx, operation, args, err)
}

func (m *Machine) ttyNumber(operation, args, tty string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(tty, "tty"))
	if err != nil || n < 1 || n > 63 {
		return 0, &ConfigError{m.Name(), fmt.Sprintf(`%s(%s): a terminal is a number from "1" to "63"`, operation, args)}
	}
	return n, nil
}

// DumpTTYContents writes what a virtual terminal shows to the log of the run.
func (m *Machine) DumpTTYContents(ctx context.Context, tty string) error {
	args := strconv.Quote(tty)
	return step(ctx, m.Name(), "dump_tty_contents", args, func(ctx context.Context) error {
		text, err := m.ttyText(ctx, "dump_tty_contents", args, tty)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(trimScreen(text), "\n") {
			event.Publish(ctx, event.Log{Machine: m.Name(), Level: "info", Text: line})
		}
		return nil
	})
}

// trimScreen is a terminal's text as a person reads it: without the blanks at
// the ends of lines and the empty lines below them.
func trimScreen(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = printable.Line(strings.TrimRight(l, " "))
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n")
}

// WaitUntilTTYMatches waits until what a virtual terminal shows, as TTYText
// gives it, matches a regular expression (Go's syntax, ^ and $ match at lines).
//
// What the guest says is exact. While it does not answer, because it still boots, hangs,
// or its kernel has panicked, a machine with a screen is looked at for "1": what a
// console shows there is read by its glyphs.
func (m *Machine) WaitUntilTTYMatches(ctx context.Context, tty, pattern string, opts ...WaitOption) error {
	const operation = "wait_until_tty_matches"
	args := fmt.Sprintf("%q, %q", tty, pattern)
	n, err := m.ttyNumber(operation, args, tty)
	if err != nil {
		return err
	}
	if err := m.checkPattern(operation, pattern); err != nil {
		return err
	}
	o := collect(opts)
	w := m.newWait(operation, args, o, defaultTimeout)
	inGuest := func(outer context.Context) error {
		return w.inGuest(outer, func(ctx context.Context, r *run) error { return w.askTTY(ctx, r, n, pattern) })
	}
	return step(ctx, m.Name(), operation, args, func(outer context.Context) error {
		if n != 1 || m.config.supports(outer, operation, vmm.CanShow) != nil {
			return inGuest(outer)
		}
		g := glance{machine: m, operation: operation, pattern: regexp.MustCompile("(?m)" + pattern)}
		return g.beside(outer, o.once(), inGuest)
	})
}

// askTTY has the guest wait for what a terminal shows.
func (w *wait) askTTY(ctx context.Context, r *run, n int, pattern string) error {
	state, err := r.guest.WaitTTY(ctx, n, cmpOrAny(pattern))
	if err == nil {
		return nil
	}
	if context.Cause(ctx) != errWaitOver {
		return r.explainRefusal(ctx, w.operation, w.args, err)
	}
	we := &WaitError{}
	switch screen := trimScreen(state.Text); {
	case screen != "":
		we.shows("tty"+strconv.Itoa(n)+" shows", screen)
	case state.Text != "":
		we.LastSeen = "an empty terminal"
	case state.Missing:
		we.LastSeen = "nothing has used the terminal yet"
	}
	we.attach = r.attachScreenshot(ctx, w.operation)
	return we
}

// shows adds a text of a screen, of which the last line is what was seen last.
func (e *WaitError) shows(title, screen string) {
	e.LastSeen = screen[strings.LastIndex(screen, "\n")+1:]
	e.Details = append(e.Details, Detail{Title: title, Text: screen})
}

// A glance looks for a pattern on the console that a screen shows, while the guest cannot
// be asked what its terminal has: before it has answered for the first time, when it is
// silent, and when its kernel has panicked.
type glance struct {
	machine   *Machine
	operation string
	pattern   *regexp.Regexp

	last *image.RGBA
	text string // of last; empty: it is no console, or has none
}

// glancePause is the pause between two looks at whether a guest that has answered once still does.
const glancePause = 5 * time.Second

// errOnScreen ends the wait in the guest when the screen has what it waits for.
var errOnScreen = errors.New("the screen shows it")

// beside runs a wait for something that the guest says, and looks at the screen meanwhile;
// at the end of a wait only if it is for one look.
func (g *glance) beside(ctx context.Context, once bool, wait func(context.Context) error) error {
	r, err := g.machine.powered(ctx, g.operation)
	if err != nil {
		if ended, still := g.machine.fallen(); ended != nil && g.sees(ctx, ended, still) {
			return nil
		}
		return err
	}
	s, ok := vmm.As[vmm.Screener](r.vm)
	if !ok {
		return wait(ctx)
	}
	both, end := context.WithCancelCause(ctx)
	defer end(nil)
	found := false
	var beside sync.WaitGroup
	if !once {
		beside.Go(func() {
			if found = g.until(both, r, s); found {
				end(errOnScreen)
			}
		})
	}
	err = wait(both)
	end(nil)
	beside.Wait()
	if err == nil || found || ctx.Err() == nil && g.lastly(ctx, r, s, err) {
		return nil
	}
	var we *WaitError
	if errors.As(err, &we) && we.LastSeen == "" && g.text != "" {
		we.shows("the screen of "+g.machine.Name()+" shows", g.text)
	}
	return err
}

// until looks again and again, and reports whether it has seen what it looks for.
func (g *glance) until(ctx context.Context, r *run, s vmm.Screener) bool {
	for {
		pause, began := glancePause, time.Now()
		if !r.talks(ctx) {
			if g.sees(ctx, r, s) {
				return true
			}
			pause = max(lookPause, time.Since(began))
		}
		if r.pause(ctx, pause) != nil {
			return false
		}
	}
}

// lastly is the look at the end of a wait that has failed, if that may be since the guest does not answer.
func (g *glance) lastly(ctx context.Context, r *run, s vmm.Screener, failed error) bool {
	var down *DownError
	var boot *BootError
	var silent *UnresponsiveError
	var late *WaitError
	switch {
	case errors.As(failed, &down):
		<-r.over
		still := r.afterwards()
		return still != nil && g.sees(ctx, r, still)
	case errors.As(failed, &boot), errors.As(failed, &silent), errors.As(failed, &late):
		return !r.talks(ctx) && g.sees(ctx, r, s)
	}
	return false
}

// talks reports whether the guest can be asked what its terminals show.
func (r *run) talks(ctx context.Context) bool {
	select {
	case <-r.ready:
		return r.echoes(ctx)
	default:
		return false
	}
}

// sees reports whether the screen has a console that matches. A screen that cannot be read shows nothing.
func (g *glance) sees(ctx context.Context, r *run, s vmm.Screener) bool {
	shown, err := r.shown(ctx, s)
	if err != nil {
		return false
	}
	if !screen.Changed(g.last, shown).Empty() {
		g.last, g.text = shown, ""
		if text, console := g.machine.lab.host.glyphs.Read(shown); console {
			g.text = trimScreen(text.String())
			return g.text != "" && g.pattern.MatchString(text.Padded(shown.Rect.Dx()))
		}
	}
	return false
}
