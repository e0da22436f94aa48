package attest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/keyboard"
	"github.com/attest-vm/attest/internal/screen/glyph"
	"github.com/attest-vm/attest/internal/snapshot"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"

	_ "github.com/attest-vm/attest/internal/vmm/cloudhypervisor" // registers the backend
	_ "github.com/attest-vm/attest/internal/vmm/firecracker"     // and this one
	"github.com/attest-vm/attest/internal/vmm/qemu"
	_ "github.com/attest-vm/attest/internal/vmm/qemu" // and this one
)

// HostConfig is how labs use this host. The zero value is right for most.
type HostConfig struct {
	Backend string // for machines that name none; empty or "auto": QEMU, which can do everything
	Boot    Boot   // how machines start the first time; empty: ATTEST_BOOT of the environment, or BootWarm
	Keymap  string // the layout of keyboards, where an operation gives none; empty: "us"
	Keep    bool   // keep the state directory at the end, for a look at it
	// Packets has network cards send each frame as a message of its own (QEMU's
	// -netdev dgram) instead of all of them as a stream, which is faster.
	Packets bool
}

// A Host is what all labs of one process share: the supervisor that keeps the
// promise that nothing is left behind, the image store, and what is known
// about the speed of this machine. Close it at the end; a process that dies
// without doing so leaves nothing either.
type Host struct {
	config     HostConfig
	supervisor *supervise.Supervisor
	images     *image.Store
	snapshots  *snapshot.Store
	templates  templates // of a floor above: they live as long as the host, whichever lab has made them
	trees      trees     // of the files that are laid over machines
	probe      accel.Probe

	bootTimeout time.Duration // of BootTimeoutEnv; 0: not set

	guestOnce sync.Once
	guestPath string
	guestErr  error

	glyphs *glyph.Reader // of the consoles on screens

	digestOnce sync.Once // of the same
	digest     string
	digestErr  error
}

// BootTimeoutEnv is the environment variable with the boot limit of machines
// that have none of their own, such as "90s".
const BootTimeoutEnv = "ATTEST_BOOT_TIMEOUT"

// OpenHost starts the supervisor and finds out how machines run here.
func OpenHost(ctx context.Context, config HostConfig) (*Host, error) {
	var bootTimeout time.Duration
	if v := os.Getenv(BootTimeoutEnv); v != "" {
		var err error
		if bootTimeout, err = time.ParseDuration(v); err != nil || bootTimeout <= 0 {
			return nil, &ConfigError{Reason: fmt.Sprintf("%s=%q: want a duration such as 90s or 10m, or leave it unset", BootTimeoutEnv, v)}
		}
	}
	if _, err := keyboard.FindLayout(config.Keymap); err != nil {
		return nil, &ConfigError{Reason: err.Error()}
	}
	probe, err := accel.Detect(ctx)
	if err != nil {
		return nil, &ConfigError{Reason: err.Error()} // the environment variable makes no sense
	}
	if config.Boot, err = config.Boot.resolve(); err != nil {
		return nil, err
	}
	scratch, err := cache.RunRoot()
	if err != nil {
		return nil, &InfraError{Action: "find the cache (set XDG_CACHE_HOME)", Err: err}
	}
	sup, err := supervise.Start(ctx, supervise.Options{Scratch: scratch})
	if err != nil {
		return nil, err
	}
	if config.Keep {
		if err := sup.Keep(true); err != nil {
			sup.Close()
			return nil, err
		}
	}
	store, err := image.OpenStore(sup)
	if err != nil {
		sup.Close()
		return nil, err
	}
	snapshots, err := snapshot.OpenStore(store.Root(), sup)
	if err != nil {
		sup.Close()
		return nil, &ConfigError{Reason: err.Error()}
	}
	return &Host{config: config, supervisor: sup, images: store, snapshots: snapshots, probe: probe, bootTimeout: bootTimeout, glyphs: newGlyphs()}, nil
}

// Close ends every machine that is still there and removes all state.
func (h *Host) Close() error {
	return errors.Join(h.supervisor.Close(), h.templates.close(h.snapshots))
}

// StateDir is the directory in which labs keep their state while they run.
func (h *Host) StateDir() string { return h.supervisor.Dir() }

// scratch is where machines have their disks, and snapshots.
func (h *Host) scratch() string { return h.supervisor.Scratch() }

// speed says in one line how machines run here.
func (h *Host) speed() string {
	switch factor := h.probe.TimeoutFactor(); {
	case h.probe.KVM:
		return "KVM"
	default:
		return fmt.Sprintf("emulated guests (TCG; attest doctor says why), timeouts that a test does not give × %.0f", factor)
	}
}

// scale adapts a default timeout to the speed of the host: guests whose
// instructions are emulated take several times as long.
func (h *Host) scale(d time.Duration) time.Duration {
	return time.Duration(float64(d) * h.probe.TimeoutFactor())
}

// guestBinary is the attest binary that guests run as /init and as agent.
func (h *Host) guestBinary(ctx context.Context) (string, error) {
	h.guestOnce.Do(func() { h.guestPath, h.guestErr = boot.GuestBinary(ctx, h.supervisor) })
	return h.guestPath, h.guestErr
}

// vmmHost is what backends need of this host.
func (h *Host) vmmHost() vmm.Host {
	return vmm.Host{Supervisor: h.supervisor, Accel: h.probe.Accel(), Packets: h.config.Packets}
}

func (h *Host) backendName(asked string) string {
	if asked == "" {
		asked = h.config.Backend
	}
	if asked == "" || asked == "auto" {
		return defaultBackend
	}
	return asked
}

// limit is the operation's time limit: the one that was asked for as it is, or
// the default scaled to the speed of the host.
func (o options) limit(h *Host, otherwise time.Duration) time.Duration {
	if o.hasTimeout {
		return o.timeout
	}
	return h.scale(otherwise)
}

// newGlyphs returns what reads consoles on this host.
func newGlyphs() *glyph.Reader {
	return glyph.NewReader(func() []*glyph.Font {
		program, err := exec.LookPath(cmp.Or(os.Getenv(qemu.Env), "qemu-system-x86_64"))
		if err != nil {
			program = ""
		}
		return glyph.HostFonts(program)
	})
}
