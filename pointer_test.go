package attest

import (
	"errors"
	"image"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

func TestPointer(t *testing.T) {
	s := newStage(t, mock.Options{})
	dir := needleFiles(t, map[string]string{"button": buttonArea})
	m, vm := s.shows(t, screentest.Uniform(image.Pt(101, 1001), screentest.Grey))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(m.MouseMove(limited(t), 100, 0))
	must(m.MouseClick(limited(t), At(50, 1000), Button("right")))
	must(m.MouseClick(limited(t)))
	must(m.Drag(limited(t), image.Pt(0, 0), image.Pt(100, 500)))
	vm.Show(desktop(image.Pt(100, 100)))
	must(m.MouseClick(limited(t), OnNeedle(dir+"/button")))
	want := []string{"1000,0", "500,1000", "+right", "-right", "+left", "-left", "0,0", "+left",
		"100,50", "200,100", "300,150", "400,200", "500,250", "600,300", "700,350", "800,400", "900,450", "1000,500", "-left",
		"164,223", "+left", "-left"} // 105, 107 of 640×480
	if got := vm.Pressed(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	var ce *ConfigError
	for want, err := range map[string]error{
		"outside of the screen, which has 640×480": m.MouseMove(limited(t), 640, 3),
		`a mouse has no button "fire"`:             m.MouseClick(limited(t), Button("fire")),
		"not both":                                 m.MouseClick(limited(t), At(1, 1), OnNeedle(dir)),
		"no such file":                             m.MouseClick(limited(t), OnNeedle("nothing")),
	} {
		if !errors.As(err, &ce) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
}

func TestKeymap(t *testing.T) {
	s := newStage(t, mock.Options{})
	m, vm := s.shows(t, screentest.Uniform(image.Pt(100, 100), screentest.Grey))
	if err := errors.Join(m.SendChars(limited(t), "zö", Keymap("de"), Delay(1), Hold(2)), m.SendKey(limited(t), "ctrl-q", Keymap("fr"))); err != nil {
		t.Error(err)
	}
	want := []string{"+y", "-y", "+semicolon", "-semicolon", "+ctrl+a", "-a+ctrl"}
	if got := vm.Pressed(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	var ce *ConfigError
	if err := m.SendChars(limited(t), "aß", Keymap("gb")); !errors.As(err, &ce) || !strings.Contains(err.Error(), "the layout gb has no key for 'ß'; nothing was typed") {
		t.Errorf("got %v", err)
	}
	if err := m.SendChars(limited(t), "a", Keymap("xy")); !errors.As(err, &ce) || len(vm.Pressed()) != len(want) {
		t.Errorf("got %v, %q", err, vm.Pressed())
	}
}
