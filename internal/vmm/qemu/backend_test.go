package qemu

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/vmm"
)

// fake puts a script in QEMU's place.
func fake(t *testing.T, script string) {
	t.Helper()
	path := writeFile(t, "qemu", []byte("#!/bin/sh\n"+script))
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv(Env, path)
}

const sayVersion = `case "$*" in *--version*) echo "QEMU emulator version 7.2.0"; exit;; esac
`

func TestMissing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(t *testing.T)
		want  []string
	}{
		{"not on PATH", func(t *testing.T) { t.Setenv(Env, ""); t.Setenv("PATH", "/nowhere") },
			[]string{"qemu-system-x86_64", "PATH (/nowhere)", "apt-get install qemu-system-x86"}},
		{"not where it should be", func(t *testing.T) { t.Setenv(Env, "/nowhere/qemu") },
			[]string{"/nowhere/qemu", "no such file", Env}},
		{"too old", func(t *testing.T) { fake(t, `echo "QEMU emulator version 6.2.0 (Debian)"`) },
			[]string{"6.2.0 is too old", "7.2"}},
		{"something else", func(t *testing.T) { fake(t, "echo oops >&2; exit 1") },
			[]string{`"oops"`, "exit status 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.setup(t)
			b := &backend{}
			err := b.Check(vmm.Config{Name: "web", Boot: &vmm.Hardware{}})
			if missing := (*doctor.MissingError)(nil); !errors.As(err, &missing) {
				t.Fatalf("got %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if d := b.Examine(t.Context()); d.Usable || d.Findings[0].OK || d.Findings[0].Detail != err.Error() {
				t.Errorf("the diagnosis is %+v", d)
			}
		})
	}
}

func TestTooOld(t *testing.T) {
	for version, want := range map[string]bool{
		"7.2.22": false, "7.2": false, "7.10.0": false, "8.0.0": false, "10.0.2": false,
		"7.1.99": true, "6.9": true, "2.11.1": true, "": true, "x": true,
	} {
		if tooOld(version) != want {
			t.Errorf("%q: %v", version, !want)
		}
	}
}

func TestVersionIsAskedOnce(t *testing.T) {
	count := filepath.Join(t.TempDir(), "count")
	fake(t, "echo >>"+count+"; echo QEMU emulator version 9.1.0")
	b := &backend{}
	for range 3 {
		if p, err := b.find(); err != nil || p.version != "9.1.0" {
			t.Fatalf("got %+v, %v", p, err)
		}
	}
	if data, err := os.ReadFile(count); err != nil || string(data) != "\n" {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		config vmm.Config
		want   string
	}{
		{vmm.Config{Boot: &vmm.Hardware{Type: "pc"}}, `machine type "pc"`},
		{vmm.Config{Boot: &vmm.Hardware{}, NICs: []vmm.NIC{{Model: "ne2k"}}}, `network card "ne2k" is not supported by backend qemu: want one of virtio, e1000, e1000e, rtl8139, vmxnet3`},
		{vmm.Config{Boot: &vmm.Hardware{Type: "microvm"}, NICs: []vmm.NIC{{Model: "e1000"}}}, `a microvm has virtio only`},
		{vmm.Config{Boot: &vmm.Hardware{Options: []byte(`{"argv":[]}`)}}, `unknown field "argv"`},
		{vmm.Config{Boot: &vmm.Hardware{Disks: []vmm.Disk{{Format: "vmdk"}}}}, `disk format "vmdk"`},
		{vmm.Config{Boot: &vmm.Hardware{Disks: []vmm.Disk{{Serial: strings.Repeat("x", 21)}}}}, "21 bytes"},
	} {
		tt.config.Name = "web"
		err := (&backend{}).Check(tt.config)
		if refused := (*vmm.UnsupportedError)(nil); !errors.As(err, &refused) || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "web: ") {
			t.Errorf("got %v, want %s", err, tt.want)
		}
		if _, err := (&backend{}).Start(t.Context(), vmm.Host{}, tt.config); err == nil {
			t.Errorf("%s: it starts", tt.want)
		}
	}
	if err := (&backend{}).Check(vmm.Config{Boot: &vmm.Hardware{}}); err != nil {
		t.Errorf("the zero configuration: %v", err)
	}
}

func TestExamine(t *testing.T) {
	d := (&backend{}).Examine(t.Context())
	if !d.Usable || d.Path == "" || tooOld(d.Version) {
		t.Errorf("QEMU is needed for these tests: %+v", d)
	}
}

func TestRegistered(t *testing.T) {
	b, ok := vmm.Lookup("qemu")
	if !ok || b.Name() != "qemu" {
		t.Errorf("got %v, %v", b, ok)
	}
}

func TestMicroVMNeedsAKernel(t *testing.T) {
	config := vmm.Config{Name: "web", Boot: &vmm.Hardware{Type: "microvm"}}
	if err := (&backend{}).Check(config); err != nil {
		t.Errorf("before there is an image: %v", err)
	}
	_, err := (&backend{}).Start(t.Context(), newHost(t), config)
	if refused := (*vmm.UnsupportedError)(nil); !errors.As(err, &refused) || !strings.Contains(err.Error(), "without a kernel") {
		t.Errorf("got %v", err)
	}
}

// A lab that cannot give the machine its cable says why, and no QEMU starts.
func TestNoCable(t *testing.T) {
	config := vmm.Config{Name: "web", Boot: &vmm.Hardware{}, NICs: []vmm.NIC{{ID: "net1", Link: cable{nil}}}}
	if _, err := (&backend{}).Start(t.Context(), newHost(t), config); !errors.Is(err, errNoCable) {
		t.Errorf("got %v", err)
	}
}

// startFails starts a machine that cannot start, and looks at what is left.
func startFails(t *testing.T, ctx context.Context, config vmm.Config) *vmm.StartError {
	t.Helper()
	host := newHost(t)
	ours, theirs := connPair(t)
	config.Name, config.Dir = "web", host.Supervisor.Dir()
	if config.Boot == nil {
		config.Boot = &vmm.Hardware{}
	}
	config.NICs = []vmm.NIC{{ID: "net1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Link: cable{theirs}}}
	_, err := (&backend{}).Start(ctx, host, config)
	var failed *vmm.StartError
	if !errors.As(err, &failed) || failed.Machine != "web" || failed.Backend != "qemu" {
		t.Fatalf("got %v", err)
	}
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the network's connection is open: %v", err)
	}
	return failed
}

func TestStartFails(t *testing.T) {
	for _, tt := range []struct {
		name   string
		setup  func(t *testing.T)
		config vmm.Config
		want   []string
	}{
		{name: "no such kernel", config: vmm.Config{Boot: &vmm.Hardware{Kernel: "/nowhere/vmlinuz"}}, want: []string{"exit status 1", "/nowhere/vmlinuz"}},
		{name: "not a kernel", config: vmm.Config{Boot: &vmm.Hardware{Kernel: "/dev/null"}}, want: []string{"exit status 1", "/dev/null"}},
		{name: "no such disk", config: vmm.Config{Boot: &vmm.Hardware{Disks: []vmm.Disk{{Path: "/nowhere/disk"}}}}, want: []string{"/nowhere/disk"}},
		{name: "too much memory", config: vmm.Config{Boot: &vmm.Hardware{Memory: 1 << 40}}, want: []string{"exit status 1"}},
		{name: "it dies", setup: func(t *testing.T) { fake(t, sayVersion+"echo what a pity >&2; kill -SEGV $$") },
			want: []string{"what a pity", "SIGSEGV"}},
		{name: "it talks nonsense", setup: func(t *testing.T) { fake(t, sayVersion+"echo nonsense >&3; sleep 1000") },
			want: []string{"not a message"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.setup != nil {
				tt.setup(t)
			}
			text := startFails(t, t.Context(), tt.config).Error()
			for _, want := range append(tt.want, "web: qemu did not start") {
				if !strings.Contains(text, want) {
					t.Errorf("%q does not say %q", text, want)
				}
			}
		})
	}
}

func TestStartIsCancelled(t *testing.T) {
	fake(t, sayVersion+"sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := startFails(t, ctx, vmm.Config{Boot: &vmm.Hardware{}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestEndlessOutput has a QEMU that says more than anybody wants to keep.
func TestEndlessOutput(t *testing.T) {
	fake(t, sayVersion+"yes | head -c 10000000; echo the end; exit 1")
	err := startFails(t, t.Context(), vmm.Config{Boot: &vmm.Hardware{}})
	if len(err.Output) > vmm.MaxOutput || !strings.HasSuffix(err.Output, "the end") {
		t.Errorf("%d bytes, …%q", len(err.Output), err.Output[max(0, len(err.Output)-20):])
	}
}
