package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/attest-vm/attest"
)

// The guest of all measurements: Debian 12 with systemd, and a unit that is
// only started in a boot of the reference.
const (
	memory       = 512
	backdoorFlag = "attest.bench-backdoor"
	backdoorPath = "/etc/systemd/system/backdoor.service"
	backdoorLink = "systemctl enable backdoor.service"
)

// backdoorUnit stands where the NixOS module has its backdoor.service, and says
// what that says when its shell is ready.
const backdoorUnit = `[Unit]
ConditionKernelCommandLine=` + backdoorFlag + `

[Service]
Type=simple
ExecStart=/bin/bash -c '. /etc/profile; cd /tmp; echo "` + readyMarker + `" >/dev/ttyS0; exec sleep infinity'
KillSignal=SIGHUP

[Install]
WantedBy=multi-user.target
`

var image = attest.Debian{
	Files: map[string]attest.File{backdoorPath: {Content: backdoorUnit}},
	Run:   []string{backdoorLink},
}

// testFile is a test of one machine of the same image. It says when it has its
// first result.
func testFile() string {
	return fmt.Sprintf(`m = machine(image = debian(files = {%q: %q}, run = [%q]), memory = %d)

def test_first():
    m.succeed("true")
    print(%q)
`, backdoorPath, backdoorUnit, backdoorLink, memory, firstResult)
}

const firstResult = "the first result is here"

// instrumented are the kernel's arguments that the NixOS module for tests sets
// (test-instrumentation.nix), as far as they have a meaning here.
const instrumented = backdoorFlag + " loglevel=7 clocksource=acpi_pm" +
	" systemd.show_status=0 systemd.journald.forward_to_console=1 systemd.journald.max_level_console=debug"

// newLab lays out a lab of one machine, ready to be started.
func (b *bench) newLab(ctx context.Context, cmdline string) (*attest.Lab, *attest.Machine, error) {
	lab, err := b.host.NewLab(ctx, attest.LabConfig{Machines: []attest.MachineConfig{
		{Name: "guest", Image: image, Memory: memory, Cmdline: cmdline, Boot: attest.BootCold},
	}})
	if err != nil {
		return nil, nil, err
	}
	if err := lab.Prepare(ctx); err != nil {
		lab.Close()
		return nil, nil, err
	}
	return lab, lab.Machine("guest"), nil
}

// boots are the times from the start of the VMM to the result of the first
// command, and until multi-user.target is known to be active.
type boots struct {
	command, multiUser []time.Duration
	script             []time.Duration // to the end of driver.script
	long               []time.Duration // likewise, with longCommands
	after              []time.Duration // driver.script alone, on a guest that has booted
}

// bootLimit is far more than a boot takes on a host that is good for measuring.
const bootLimit = 5 * time.Minute

// boot starts a machine as attest does. The lab is the caller's to close.
func (b *bench) boot(ctx context.Context, t *boots) (_ *attest.Lab, _ *attest.Machine, err error) {
	lab, m, err := b.newLab(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	start := time.Now()
	if _, err = m.Succeed(ctx, "true"); err == nil {
		t.command = append(t.command, time.Since(start))
		if err = m.WaitForUnit(ctx, "multi-user.target", attest.Timeout(bootLimit)); err == nil {
			t.multiUser = append(t.multiUser, time.Since(start))
			return lab, m, nil
		}
	}
	lab.Close()
	return nil, nil, err
}

// bootReference starts the same machine as the NixOS driver finds it: its shell
// comes with multi-user.target, the kernel and the journal talk to the console.
func (b *bench) bootReference(ctx context.Context, t *boots) error {
	lab, m, err := b.newLab(ctx, instrumented)
	if err != nil {
		return err
	}
	defer lab.Close()
	start := time.Now()
	if err := m.Start(ctx); err != nil {
		return err
	}
	if err := m.WaitForConsoleText(ctx, regexp.QuoteMeta(readyMarker), attest.Timeout(bootLimit)); err != nil {
		return err
	}
	d, shell := connect(ctx, m)
	defer shell.close()
	if _, err := d.succeed("true"); err != nil {
		return err
	}
	t.command = append(t.command, time.Since(start))
	if err := d.waitForUnit(ctx, "multi-user.target"); err != nil {
		return err
	}
	t.multiUser = append(t.multiUser, time.Since(start))
	booted := time.Now()
	if err := d.script(ctx); err != nil {
		return err
	}
	t.after = append(t.after, time.Since(booted))
	t.script = append(t.script, time.Since(start))
	for range longCommands - scriptCommands {
		if _, err := d.succeed("true"); err != nil {
			return err
		}
	}
	t.long = append(t.long, time.Since(start))
	return nil
}

// settle waits until the guest has nothing to do from its boot.
func settle(ctx context.Context, m *attest.Machine) (Guest, error) {
	if _, err := m.Execute(ctx, "systemctl is-system-running --wait"); err != nil {
		return Guest{}, err
	}
	out, err := m.Succeed(ctx, `. /etc/os-release; echo "$PRETTY_NAME"; uname -r`)
	if err != nil {
		return Guest{}, err
	}
	system, kernel, _ := strings.Cut(strings.TrimSpace(out), "\n")
	return Guest{System: system, Kernel: kernel, Memory: memory, CPUs: 1}, nil
}
