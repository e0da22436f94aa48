package accel

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMeasure(t *testing.T) {
	p := measure(t.Context())
	t.Logf("%+v", p)
	if p.KVM != (p.Rate >= hardware) {
		t.Errorf("KVM is %v at %.0f instructions a second", p.KVM, p.Rate)
	}
	if p.Reason == "" || p.Host <= 0 {
		t.Errorf("no reason or no host speed: %+v", p)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil && !strings.Contains(p.Reason, "no /dev/kvm") {
		t.Errorf("without /dev/kvm the reason is %q", p.Reason)
	}
}

func TestDetect(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Run("measured", func(t *testing.T) {
		t.Setenv(Env, "")
		first, err := Detect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if first.Rate == 0 {
			return // an answer that is not kept
		}
		second, err := Detect(t.Context())
		if second.Host < first.Host {
			t.Errorf("a host that became slower: %+v, and before %+v", second, first)
		}
		second.Host = first.Host // it may have been busy the first time
		if err != nil || second != first {
			t.Errorf("the second time %+v (%v), the first %+v", second, err, first)
		}
	})
	for _, want := range []string{KVM, TCG} {
		t.Run(want, func(t *testing.T) {
			t.Setenv(Env, "")
			measured, err := Detect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv(Env, want)
			p, err := Detect(t.Context())
			if err != nil || p.Accel() != want || !p.Forced {
				t.Errorf("got %+v, %v", p, err)
			}
			if against := measured.Accel() != want; strings.Contains(p.Reason, "although "+measured.Reason) != against {
				t.Errorf("measured %q; the reason is %q", measured, p.Reason)
			}
		})
	}
	t.Run("nonsense", func(t *testing.T) {
		t.Setenv(Env, "hvf")
		_, err := Detect(t.Context())
		var envError *EnvError
		if !errors.As(err, &envError) {
			t.Errorf("got %v", err)
		}
	})
}

func TestTimeoutFactor(t *testing.T) {
	for _, test := range []struct {
		p    Probe
		want float64
	}{
		{Probe{KVM: true, Host: 0.2}, 1},
		{Probe{Host: 1}, 4},
		{Probe{Host: 4}, 4},
		{Probe{Host: 0.5}, 8},
		{Probe{}, 16},
	} {
		if got := test.p.TimeoutFactor(); got != test.want {
			t.Errorf("%+v: %v, want %v", test.p, got, test.want)
		}
	}
}

// A host that was busy when it was measured is not slow for ever.
func TestImprove(t *testing.T) {
	p := Probe{Host: 0.001}
	if p.TimeoutFactor() != maxFactor || !p.improve() || p.Host <= 0.001 {
		t.Errorf("still %+v", p)
	}
	fast := Probe{Host: 1000}
	if fast.improve() || fast.Host != 1000 {
		t.Errorf("got %+v", fast)
	}
	kvm := Probe{KVM: true, Host: 0.001}
	if kvm.improve() || kvm.Host != 0.001 {
		t.Errorf("guests in hardware are measured again: %+v", kvm)
	}
}

// A kept answer does not outlive the device that it was about.
func TestDeviceIsGone(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv(Env, "")
	path := device
	defer func() { device = path }()
	device = filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kept := Probe{KVM: true, Rate: 3e9, Host: 1, Reason: "it was measured"}
	kept.save()
	if p, err := Detect(t.Context()); err != nil || !p.KVM || p.Reason != kept.Reason {
		t.Errorf("with the device: %+v, %v", p, err)
	}
	if err := os.Remove(device); err != nil {
		t.Fatal(err)
	}
	if p, err := Detect(t.Context()); err != nil || p.KVM || !strings.Contains(p.Reason, "no /dev/kvm") {
		t.Errorf("without it: %+v, %v", p, err)
	}
}
