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

// The layout of HostConfig (attest run --keymap) is that of all keyboards whose operation names none.
func TestKeymapOfHost(t *testing.T) {
	for layout, c := range map[string]struct {
		text, cannot string
		want         []string
	}{
		"de": {"yß", "я", []string{"+z", "-z", "+minus", "-minus"}},
		"fr": {"a1", "ß", []string{"+q", "-q", "+shift+1", "-1+shift"}},
		"gb": {"a\"", "ß", []string{"+a", "-a", "+shift+2", "-2+shift"}},
	} {
		t.Run(layout, func(t *testing.T) {
			s := newStage(t, mock.Options{})
			host, err := OpenHost(limited(t), HostConfig{Keymap: layout})
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			l, err := host.NewLab(limited(t), LabConfig{OutDir: t.TempDir(), Machines: []MachineConfig{{Name: "m", Backend: s.backend, Memory: minMemory, Boot: BootCold}}})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			m := l.Machine("m")
			var ce *ConfigError
			if err := m.SendChars(limited(t), c.text+c.cannot); !errors.As(err, &ce) || !strings.Contains(err.Error(), "the layout "+layout+" has no key for '"+c.cannot+"'; nothing was typed") || s.starts() != 0 {
				t.Errorf("%d starts, %v", s.starts(), err)
			}
			if err := m.SendChars(limited(t), c.text, Delay(1)); err != nil {
				t.Fatal(err)
			}
			if got := s.started(t, 1).Pressed(); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	if _, err := OpenHost(limited(t), HostConfig{Keymap: "xy"}); err == nil || !strings.Contains(err.Error(), `no keyboard layout "xy", only de, fr, gb, us`) {
		t.Errorf("got %v", err)
	}
}
