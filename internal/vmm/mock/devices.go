package mock

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// Events are what QEMU would say of the same: STOP, RESUME, RESET, SHUTDOWN, POWERDOWN.
func (m *Machine) Events() *vmm.EventLog { return &m.events }

// WriteConsole types on the console, which echoes.
func (m *Machine) WriteConsole(_ context.Context, p []byte) error {
	m.mu.Lock()
	m.typed = append(m.typed, p...)
	m.mu.Unlock()
	m.console.Write(p)
	return nil
}

// Typed is all that was typed on the console.
func (m *Machine) Typed() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.typed)
}

func (m *Machine) Keys(_ context.Context, keys []string, down bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	sign := "-"
	if down {
		sign = "+"
	}
	m.keys = append(m.keys, sign+strings.Join(keys, "+"))
	return nil
}

// Move notes where the pointer is, in thousandths of the screen.
func (m *Machine) Move(_ context.Context, x, y float64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys = append(m.keys, fmt.Sprintf("%.0f,%.0f", 1000*x, 1000*y))
	return nil
}

func (m *Machine) Button(ctx context.Context, name string, down bool) error {
	return m.Keys(ctx, []string{name}, down)
}

// Pressed is what was pressed ("+ctrl+a") and released ("-ctrl+a").
func (m *Machine) Pressed() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.keys)
}

// The size of the screen, which is dark until something is shown.
const screenWidth, screenHeight = 720, 400

// Show has the screen show a picture from now on, of which it is the only owner.
func (m *Machine) Show(picture *image.RGBA) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.screen = picture
}

// Screenshot writes what is shown.
func (m *Machine) Screenshot(_ context.Context, path string, format vmm.PictureFormat) error {
	shown := m.shown()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return fmt.Errorf("%s: %w", m.config.Name, err)
	}
	defer f.Close()
	if format == vmm.PPM {
		err = screen.EncodePPM(f, shown)
	} else {
		err = png.Encode(f, shown)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.config.Name, err)
	}
	return f.Close()
}

func (m *Machine) shown() *image.RGBA {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.screen != nil {
		return m.screen
	}
	dark := image.NewRGBA(image.Rect(0, 0, screenWidth, screenHeight))
	draw.Draw(dark, dark.Rect, image.NewUniform(color.Black), image.Point{}, draw.Src)
	return dark
}

// sendPicture is what the guest says of what it shows: by X11, unless it is asked for another way.
func (m *Machine) sendPicture(q wire.PictureRequest, w io.Writer) (any, error) {
	return wire.PictureResult{Method: cmp.Or(q.Method, wire.ShowX11)}, screen.EncodePPM(w, m.shown())
}

// InjectNMI has the guest panic, as attest's kernels do.
func (m *Machine) InjectNMI(context.Context) error {
	m.End(vmm.Panicked, "NMI: Not continuing")
	return nil
}

// MonitorCommand knows the answers of the script's monitor, and no other command.
func (m *Machine) MonitorCommand(_ context.Context, line string) (string, error) {
	if s, ok := m.system.(*canned); ok {
		if answer, ok := s.script.Monitor[line]; ok {
			return answer, nil
		}
	}
	return "", fmt.Errorf("%s: the mock has no monitor command %q", m.config.Name, line)
}

// Ask knows the answers of the script's monitor, which are JSON then.
func (m *Machine) Ask(ctx context.Context, command string, _ map[string]any) (json.RawMessage, error) {
	answer, err := m.MonitorCommand(ctx, command)
	if err == nil && !json.Valid([]byte(answer)) {
		err = fmt.Errorf("%s: the answer of the mock's monitor to %q is not JSON", m.config.Name, command)
	}
	return json.RawMessage(answer), err
}

// SetLink drops the frames of a network card while it is down.
func (m *Machine) SetLink(_ context.Context, nic string, up bool) error {
	c := m.cards[nic]
	if c == nil {
		return fmt.Errorf("%s: there is no network card %s", m.config.Name, nic)
	}
	c.down.Store(!up)
	return nil
}
