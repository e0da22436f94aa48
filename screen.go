package attest

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// WaitForX waits until the guest's X server takes connections: that of display :0, or of
// another Display.
func (m *Machine) WaitForX(ctx context.Context, opts ...XOption) error {
	return m.waitX(ctx, "wait_for_x", wire.WindowRequest{}, collect(opts))
}

// WaitForWindow waits until an X server, or the Wayland compositor of Display, has a window whose
// title matches a regular expression.
func (m *Machine) WaitForWindow(ctx context.Context, pattern string, opts ...XOption) error {
	if err := m.checkPattern("wait_for_window", pattern); err != nil {
		return err
	}
	return m.waitX(ctx, "wait_for_window", wire.WindowRequest{Pattern: cmpOrAny(pattern)}, collect(opts), argument{"", pattern})
}

// displayName is the name of a display of a guest: that of an X server, or the socket of a Wayland compositor.
var displayName = regexp.MustCompile(`^(:[0-9]{1,5}(\.0)?|(/.*/)?wayland(-[0-9]{1,5})?)$`)

func (m *Machine) checkDisplay(operation string, o options, windows bool) error {
	switch isX := strings.HasPrefix(o.display, ":"); {
	case o.display == "" || displayName.MatchString(o.display) && (windows || isX):
		return nil
	case windows:
		return &ConfigError{m.Name(), fmt.Sprintf(`%s: there is no display %q; want one of the guest's, such as ":1" or "wayland-1"`, operation, o.display)}
	}
	return &ConfigError{m.Name(), fmt.Sprintf(`%s: there is no display %q of an X server; want one of the guest's, such as ":1"`, operation, o.display)}
}

func (m *Machine) waitX(ctx context.Context, operation string, q wire.WindowRequest, o options, given ...argument) error {
	if err := m.checkDisplay(operation, o, q.Pattern != ""); err != nil {
		return err
	}
	q.Display = o.display
	args := written(ctx, append(given, unless("display", o.display, ":0"))...)
	return m.wait(ctx, operation, args, o, func(ctx context.Context, r *run) error {
		state, err := r.guest.WaitX(ctx, q)
		if err == nil || context.Cause(ctx) != errWaitOver {
			return err
		}
		we := &WaitError{Tries: state.Tries, LastSeen: state.Seen}
		switch {
		case state.Seen != "" || state.Tries == 0: // the guest may have been too slow to look
		case len(state.Windows) == 0:
			we.LastSeen = "no window has a title"
		default:
			we.LastSeen = fmt.Sprintf("windows %q", state.Windows)
		}
		we.attach = r.attachScreenshot(ctx, operation)
		return we
	})
}

// WindowNames are the titles of all windows that have one: of the X server of display :0, or of
// another Display.
func (m *Machine) WindowNames(ctx context.Context, opts ...DisplayOption) ([]string, error) {
	const operation = "get_window_names"
	o := collect(opts)
	if err := m.checkDisplay(operation, o, true); err != nil {
		return nil, err
	}
	args := written(ctx, unless("display", o.display, ":0"))
	var names []string
	err := step(ctx, m.Name(), operation, args, func(ctx context.Context) error {
		r, err := m.use(ctx, operation)
		if err != nil {
			return err
		}
		state, err := r.guest.WaitX(ctx, wire.WindowRequest{Display: o.display, Once: true})
		names = state.Windows
		return r.explainRefusal(ctx, operation, args, err)
	})
	return names, err
}

// Screenshot writes what is on the machine's screen to a PNG file below
// LabConfig.OutDir. A name without a dot gets ".png". The guest need not have booted,
// and the machine can be paused. On a backend without screens it is [Machine.GuestScreenshot].
func (m *Machine) Screenshot(ctx context.Context, filename string) error {
	const operation = "screenshot"
	args := strconv.Quote(filename)
	return step(ctx, m.Name(), operation, args, func(ctx context.Context) error {
		path, err := m.pictureName(ctx, operation, args, filename)
		if err != nil {
			return err
		}
		if m.config.supports(ctx, operation, vmm.CanShow) != nil && m.config.supports(ctx, operation, vmm.CanCapture) == nil {
			_, err := m.guestScreenshot(ctx, operation, args, path, options{})
			return err
		}
		return withVMM(ctx, m, operation, vmm.CanShow, func(r *run, s vmm.Screener) error {
			return r.screenshot(ctx, s, path)
		})
	})
}

// pictureName is the path of the file that an operation writes a picture to.
func (m *Machine) pictureName(ctx context.Context, operation, args, filename string) (string, error) {
	if filename == "" || strings.HasSuffix(filename, "/") {
		return "", &ConfigError{m.Name(), fmt.Sprintf("%s(%s): the file name is missing", operation, args)}
	}
	if !strings.Contains(filepath.Base(filename), ".") {
		filename += ".png"
	}
	if !filepath.IsAbs(filename) {
		filename = m.lab.out.place(ctx, m.Name(), filename)
	}
	return filename, nil
}

// attachScreenshot returns what adds the screen to a wait that failed, if there is one. of is the context of
// the wait, which may be over.
func (r *run) attachScreenshot(of context.Context, operation string) func(*WaitError) {
	return func(we *WaitError) {
		m := r.machine
		s, ok := vmm.As[vmm.Screener](r.vm)
		if !ok || m.config.supports(m.lab.ctx, operation, vmm.CanShow) != nil {
			return
		}
		ctx, cancel := context.WithTimeout(event.WithScope(m.lab.ctx, event.ScopeOf(of)), m.lab.host.scale(attachTimeout))
		defer cancel()
		name := m.lab.out.place(ctx, m.Name(), fmt.Sprintf("%s-%s-%d.png", m.Name(), operation, stepCounter.Load()))
		if r.screenshot(ctx, s, name) == nil {
			we.Details = append(we.Details, Detail{Title: "screenshot of " + m.Name(), Text: filepath.Join(m.lab.out.dir, name), Pictures: []Picture{{"screen", filepath.Join(m.lab.out.dir, name)}}})
		}
	}
}

// cmpOrAny makes an empty pattern one that every screen matches; to the guest an
// empty one means something else.
func cmpOrAny(pattern string) string {
	if pattern == "" {
		return "(?:)"
	}
	return pattern
}

func (m *Machine) checkPattern(operation, pattern string) error {
	if _, err := regexp.Compile("(?m)" + pattern); err != nil {
		return &ConfigError{m.Name(), fmt.Sprintf("%s: not a regular expression: %v", operation, err)}
	}
	return nil
}
