package attest

import (
	"errors"
	"image/color"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// A guest takes a picture of what it shows; on a backend without screens a screenshot is that.
func TestGuestScreenshot(t *testing.T) {
	for name, without := range map[string][]mock.Group{"with a screen": nil, "without": {mock.Devices}} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, mock.Options{Without: without})
			want := screentest.Uniform(screentest.VGA(consoleFont(t)).Draw("").Rect.Size(), color.RGBA{1, 2, 3, 255})
			m, _ := s.shows(t, want)
			method, err := m.GuestScreenshot(limited(t), "a")
			if err != nil || method != "x11" {
				t.Errorf("%q, %v", method, err)
			}
			if method, err := m.GuestScreenshot(limited(t), "a", Method("fb"), Display("fb1")); err != nil || method != "fb" {
				t.Errorf("%q, %v", method, err)
			}
			if err := m.Screenshot(limited(t), "b"); err != nil {
				t.Error(err)
			}
			for _, name := range []string{"a", "b"} {
				got, err := screen.ReadFile(filepath.Join(m.lab.out.dir, name+".png"))
				if err != nil || !screen.Changed(want, got).Empty() {
					t.Errorf("%s has another picture: %v", name, err)
				}
			}
			for want, fn := range map[string]func() error{
				`there is no method "x12"`:   func() error { _, err := m.GuestScreenshot(limited(t), "a", Method("x12")); return err },
				"the file name is missing":   func() error { _, err := m.GuestScreenshot(limited(t), ""); return err },
				`no display "fb1"`:           func() error { _, err := m.WindowNames(limited(t), Display("fb1")); return err },
				`"wayland-1" of an X server`: func() error { return m.WaitForX(limited(t), Display("wayland-1")) },
			} {
				var ce *ConfigError
				if err := fn(); !errors.As(err, &ce) || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q", err, want)
				}
			}
		})
	}
}

// Only where no machine of a backend has a screen does the guest take its place.
func TestWhereScreenshotsComeFrom(t *testing.T) {
	for backend, can := range map[string]bool{"firecracker": true, "cloud-hypervisor": true, "qemu": false, "mock": false} {
		err := (MachineConfig{Name: "m", Backend: backend}).supports(t.Context(), "screenshot", vmm.CanCapture)
		if (err == nil) != can {
			t.Errorf("%s: %v", backend, err)
		}
	}
}
