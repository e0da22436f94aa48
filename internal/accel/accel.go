// Package accel finds out whether this host runs guests in hardware.
//
// That /dev/kvm opens proves nothing: on a host that is a virtual machine
// itself it may be there and be emulated in software, and guests under it take
// minutes or hang, while QEMU's own emulator (TCG) boots them in seconds. So
// the answer is measured: a guest of one loop runs for a moment, and its speed
// tells hardware (thousands of millions of instructions a second) from an
// emulator (a few millions).
package accel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/atomicfile"
	"github.com/attest-vm/attest/internal/doctor"
)

// The accelerators, by QEMU's names.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// Env overrides the measurement when it is "kvm" or "tcg".
const Env = "ATTEST_ACCEL"

// hardware is the rate, in instructions per second, above which a guest runs in
// hardware. A loop of two instructions does more than 10^9 on any processor
// with virtualisation; emulated by KVM it does about 4·10^6.
const hardware = 100e6

// A Probe is what was found out.
type Probe struct {
	KVM    bool    `json:"kvm"`    // guests run in hardware
	Rate   float64 `json:"rate"`   // instructions per second under KVM; 0 if it could not be tried
	Reason string  `json:"reason"` // for a person: why this accelerator
	Host   float64 `json:"host"`   // speed of one core, 1 for a machine of 2023
	Forced bool    `json:"-"`      // by Env
}

// Detect measures, or takes the answer of an earlier measurement since the
// host was booted. The only error is a value of Env that makes no sense.
func Detect(ctx context.Context) (Probe, error) {
	forced := os.Getenv(Env)
	if forced != "" && forced != KVM && forced != TCG {
		return Probe{}, &EnvError{forced}
	}
	p, ok := load()
	if !ok {
		p = measure(ctx)
	}
	if p.improve() || !ok {
		p.save()
	}
	if forced != "" {
		measured := p
		p.Forced, p.KVM, p.Reason = true, forced == KVM, Env+"="+forced
		if p.KVM != measured.KVM {
			p.Reason += ", although " + measured.Reason
		}
	}
	return p, nil
}

// EnvError is a value of Env that is not an accelerator.
type EnvError struct{ Value string }

func (e *EnvError) Error() string {
	return fmt.Sprintf("%s=%q: want kvm or tcg, or leave it unset to have it measured", Env, e.Value)
}

// Accel is the accelerator to use: KVM or TCG.
func (p Probe) Accel() string {
	if p.KVM {
		return KVM
	}
	return TCG
}

func (p Probe) String() string { return p.Accel() + ": " + p.Reason }

// TimeoutFactor is by how much default timeouts are longer here than where they
// were chosen. An emulated guest takes about four times as long, more on a
// slow host.
func (p Probe) TimeoutFactor() float64 {
	if p.KVM {
		return 1
	}
	return min(max(minFactor/max(p.Host, 0.1), minFactor), maxFactor)
}

const (
	minFactor = 4
	maxFactor = 16
)

func measure(ctx context.Context) Probe {
	p := Probe{Host: hostSpeed()}
	rate, err := bestRate(ctx)
	p.Rate = rate
	switch {
	case errors.Is(err, os.ErrNotExist):
		p.Reason = "there is no /dev/kvm, so guests are emulated"
	case errors.Is(err, os.ErrPermission):
		p.Reason = "/dev/kvm may not be opened by this user, so guests are emulated"
	case err != nil:
		p.Reason = fmt.Sprintf("/dev/kvm does not work (%v), so guests are emulated", err)
	case rate < hardware:
		p.Reason = fmt.Sprintf("/dev/kvm opens but is emulated in software (%s instructions a second, hardware does more than 1000 million), so QEMU's own emulator is faster", millions(rate))
	default:
		p.KVM = true
		p.Reason = fmt.Sprintf("/dev/kvm runs guests in hardware (%s instructions a second)", millions(rate))
	}
	return p
}

// probeBudget is when an emulated guest has told enough about itself.
const probeBudget = 200 * time.Millisecond

// bestRate tries until the budget is spent: on a busy host a loop of a
// millisecond may wait for a processor for many.
func bestRate(ctx context.Context) (best float64, err error) {
	for start := time.Now(); best < hardware && time.Since(start) < probeBudget; {
		rate, err := kvmRate(ctx)
		if err != nil {
			return best, err
		}
		best = max(best, rate)
	}
	return best, nil
}

func millions(rate float64) string {
	if rate < 10e6 {
		return fmt.Sprintf("%.1f million", rate/1e6)
	}
	return fmt.Sprintf("%.0f million", rate/1e6)
}

// How the speed of the host is measured: by the best of many samples, each so
// short that most fit between two moments at which a busy host takes the
// processor away. A loop of 4·10^6 rounds that no compiler can shorten takes about
// 4 ms on a server core of 2023.
const (
	speedRounds    = 250_000
	speedReference = 250 * time.Microsecond
	speedBudget    = 30 * time.Millisecond
)

func hostSpeed() float64 {
	best := time.Hour
	for begun := time.Now(); time.Since(begun) < speedBudget; {
		start := time.Now()
		x := uint64(start.UnixNano()) | 1
		for range speedRounds {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		runtime.KeepAlive(x)
		best = min(best, time.Since(start))
	}
	return float64(speedReference) / float64(best)
}

// improve measures again on a host that seemed slow: it may have been busy. A
// host never looks faster than it is.
func (p *Probe) improve() (better bool) {
	if p.TimeoutFactor() <= minFactor {
		return false
	}
	speed := hostSpeed()
	better = speed > p.Host*1.05
	p.Host = max(p.Host, speed)
	return better
}

// cachePath holds the answer until the host is booted again. An answer that
// depends on permissions is not kept: the user is about to change them.
func cachePath() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "attest", "accel-"+strings.TrimSpace(string(id))+".json"), nil
}

func load() (p Probe, ok bool) {
	path, err := cachePath()
	if err != nil {
		return p, false
	}
	data, err := os.ReadFile(path)
	return p, err == nil && json.Unmarshal(data, &p) == nil && p.Reason != "" && (!p.KVM || opens())
}

// device is KVM's.
var device = "/dev/kvm"

// opens reports whether KVM can still be had: since it was measured its module may have been
// unloaded, or the user may have become another one.
func opens() bool {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// save keeps the answer. It is only for speed, so errors do not matter.
func (p Probe) save() {
	path, err := cachePath()
	if err != nil || p.Rate == 0 {
		return
	}
	dir := filepath.Dir(path)
	os.MkdirAll(dir, 0o755)
	old, _ := filepath.Glob(filepath.Join(dir, "accel-*.json"))
	for _, o := range old {
		os.Remove(o)
	}
	data, err := json.Marshal(p)
	if err != nil {
		return
	}
	f, err := atomicfile.Create(dir)
	if err != nil {
		return
	}
	defer f.Discard()
	if _, err := f.Write(data); err == nil {
		f.Commit(path)
	}
}

// Examine is the answer for attest doctor.
func Examine(ctx context.Context) doctor.Finding {
	f := doctor.Finding{Name: "accelerator"}
	p, err := Detect(ctx)
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "unset "+Env
		return f
	}
	f.OK, f.Detail = true, p.String()
	if !p.KVM && !p.Forced && strings.Contains(p.Reason, "may not be opened") {
		f.Remedy = "add yourself to the group kvm: sudo usermod -aG kvm $USER, and log in again"
	}
	if factor := p.TimeoutFactor(); factor != 1 {
		f.Detail += fmt.Sprintf("; default timeouts are %.0f times as long", factor)
	}
	return f
}
