package contract

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
)

const patience = time.Minute

// A Rig is a host with a fake VMM.
type Rig struct {
	t       *testing.T
	Ctx     context.Context
	Host    vmm.Host
	Backend vmm.Backend
	dir     string
	Files   string          // the directory of a kernel and disks
	Options json.RawMessage // of machines (vmm.Hardware.Options)
}

// NewRig returns a host on which machines are the backend's, whose fake was installed.
func NewRig(t *testing.T, b vmm.Backend) *Rig {
	t.Helper()
	root, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	s, err := supervise.Start(t.Context(), supervise.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(func() {
		cancel()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(root)
	})
	r := &Rig{t: t, Ctx: ctx, Host: vmm.Host{Supervisor: s, Accel: "kvm"}, Backend: b, dir: s.Dir(), Files: t.TempDir()}
	for name, text := range map[string]string{"vmlinux": "\x7fELF and more", "bzImage": "MZ and more", "initrd": "070701", "base": "base"} {
		if err := os.WriteFile(filepath.Join(r.Files, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// File is the path of a file that machines may have: vmlinux, bzImage, initrd, base.
func (r *Rig) File(name string) string { return filepath.Join(r.Files, name) }

// Config is a machine of that name.
func (r *Rig) Config(name string) vmm.Config {
	r.t.Helper()
	dir := filepath.Join(r.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	disk := r.File("disk-" + name) // of its own, as whoever writes to a disk is alone with it
	if err := os.WriteFile(disk, []byte("disk"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return vmm.Config{Name: name, Dir: dir, Boot: &vmm.Hardware{
		Options: r.Options, Memory: 64, Kernel: r.File("vmlinux"), Vmlinux: r.File("vmlinux"), Initrd: r.File("initrd"), Cmdline: "attest.root=layers:1",
		Disks: []vmm.Disk{{Serial: "attest-l0", Path: r.File("base"), Format: "raw", ReadOnly: true}, {Serial: "attest-rw", Path: disk, Format: "raw"}},
	}}
}

// A Box is a machine that runs.
type Box struct {
	vmm.VM
	*guest.Client
	t       *testing.T
	Dir     string
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	read    chan struct{}
}

// Start starts a machine, which ends with the test and leaves nothing.
func (r *Rig) Start(config vmm.Config) *Box {
	r.t.Helper()
	vm, err := r.Backend.Start(r.Ctx, r.Host, config)
	if err != nil {
		r.t.Fatal(err)
	}
	b := &Box{VM: vm, t: r.t, Dir: config.Dir, changed: make(chan struct{}, 1), read: make(chan struct{})}
	go func() {
		defer close(b.read)
		console := vm.Console()
		defer console.Close()
		io.Copy(b, console)
	}()
	b.Client = guest.New(config.Name, vm.Dial, guest.Options{Redial: time.Second})
	r.t.Cleanup(func() {
		b.Client.Close(nil)
		b.Kill()
		<-b.read
		if left, _ := os.ReadDir(config.Dir); len(left) > 0 {
			r.t.Errorf("%s left %v", config.Name, left)
		}
	})
	return b
}

// Memory is an empty file for the memory of a machine.
func (r *Rig) Memory() *os.File {
	r.t.Helper()
	f, err := vmm.MemoryFile("test")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { f.Close() })
	return f
}

// State is a state with 64 MiB of empty memory, as nothing has saved it.
func (r *Rig) State(device string) *vmm.State {
	r.t.Helper()
	memory := r.Memory()
	if err := memory.Truncate(64 << 20); err != nil {
		r.t.Fatal(err)
	}
	return &vmm.State{Memory: memory, Device: []byte(device)}
}

// Save saves a machine that runs, and lets it go on. Pausing twice is as once.
func (r *Rig) Save(b *Box) *vmm.State {
	r.t.Helper()
	return r.SaveTo(b, r.Memory())
}

// SaveTo is Save with a file of another kind.
func (r *Rig) SaveTo(b *Box, memory *os.File) *vmm.State {
	r.t.Helper()
	s := b.VM.(vmm.Snapshotter)
	for range 2 {
		if err := s.Pause(r.Ctx); err != nil {
			r.t.Fatal(err)
		}
	}
	device, err := s.Save(r.Ctx, memory)
	if err != nil {
		r.t.Fatal(err)
	}
	for range 2 {
		if err := s.Resume(r.Ctx); err != nil {
			r.t.Fatal(err)
		}
	}
	return &vmm.State{Memory: memory, Device: device}
}

// FailsToStart has a start end with one error that says what is wrong, and leave nothing.
func (r *Rig) FailsToStart(c vmm.Config, want string) {
	r.t.Helper()
	_, err := r.Backend.Start(r.Ctx, r.Host, c)
	var failed *vmm.StartError
	if !errors.As(err, &failed) || failed.Status() != event.Infra {
		r.t.Fatalf("got %v", err)
	}
	failed.After = 0
	if !strings.Contains(strings.ReplaceAll(err.Error(), " (after 0s)", ""), want) {
		r.t.Errorf("got %q, want %q", err, want)
	}
	if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
		r.t.Errorf("it left %v", left)
	}
}

// FailsToSave has a paused machine not be saved, and go on.
func (r *Rig) FailsToSave(want string) {
	r.t.Helper()
	b := r.Start(r.Config("m"))
	b.Runs(r.Ctx)
	memory := r.Memory()
	s := b.VM.(vmm.Snapshotter)
	if err := s.Pause(r.Ctx); err != nil {
		r.t.Fatal(err)
	}
	if _, err := s.Save(r.Ctx, memory); err == nil || !strings.Contains(err.Error(), want) {
		r.t.Errorf("got %v, want %q", err, want)
	}
	if err := s.Resume(r.Ctx); err != nil {
		r.t.Fatal(err)
	}
	b.Runs(r.Ctx)
}

// DiesWhilePausing has the VMM end in the middle of an operation, which ends with the machine.
func (r *Rig) DiesWhilePausing(want string) {
	r.t.Helper()
	b := r.Start(r.Config("m"))
	b.Runs(r.Ctx)
	if err := b.VM.(vmm.Pauser).Pause(r.Ctx); err == nil {
		r.t.Error("no error")
	}
	b.Exits(r.Ctx, vmm.Broken)
	if got := b.Exit().Detail; !strings.Contains(got, want) {
		r.t.Errorf("got %q, want %q", got, want)
	}
}

// Write adds to the text of the console.
func (b *Box) Write(p []byte) (int, error) {
	b.mu.Lock()
	b.text.Write(p)
	b.mu.Unlock()
	select {
	case b.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

// Text is what the console has said.
func (b *Box) Text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Says blocks until the console has a text so many times.
func (b *Box) Says(ctx context.Context, text string, times int) {
	b.t.Helper()
	for strings.Count(b.Text(), text) < times {
		select {
		case <-b.changed:
		case <-ctx.Done():
			b.t.Fatalf("no %q on the console:\n%s", text, b.Text())
		}
	}
}

// Runs has a command run in the guest.
func (b *Box) Runs(ctx context.Context) {
	b.t.Helper()
	res, err := b.Run(ctx, guest.Command{Script: "echo works"})
	if err != nil || string(res.Stdout) != "works\n" {
		b.t.Fatalf("got %q, %v", res.Stdout, err)
	}
}

// Exits waits for the end of the machine.
func (b *Box) Exits(ctx context.Context, want vmm.ExitReason) {
	b.t.Helper()
	select {
	case <-b.Done():
	case <-ctx.Done():
		b.t.Fatalf("it does not end; console:\n%s", b.Text())
	}
	<-b.read
	if got := b.Exit(); got.Reason != want {
		b.t.Errorf("got %q (%s), want %q", got.Reason, got.Detail, want)
	}
}
