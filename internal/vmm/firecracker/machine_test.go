package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
)

func TestMain(m *testing.M) {
	fake.Main()
	goleak.VerifyTestMain(m)
}

const patience = time.Minute

// A rig is a host with a fake Firecracker.
type rig struct {
	t       *testing.T
	ctx     context.Context
	host    vmm.Host
	backend vmm.Backend
	dir     string
	files   string // with a kernel and disks
}

func newRig(t *testing.T, o fake.Options) *rig {
	t.Helper()
	fake.Install(t, o)
	root, err := os.MkdirTemp("", "fc")
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
	r := &rig{t: t, ctx: ctx, host: vmm.Host{Supervisor: s, Accel: "kvm"}, backend: newBackend(), dir: s.Dir(), files: t.TempDir()}
	for name, text := range map[string]string{"vmlinux": "\x7fELF and more", "bzImage": "MZ and more", "initrd": "070701", "base": "base", "disk": "disk"} {
		if err := os.WriteFile(filepath.Join(r.files, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *rig) file(name string) string { return filepath.Join(r.files, name) }

// config is a machine of that name.
func (r *rig) config(name string) vmm.Config {
	r.t.Helper()
	dir := filepath.Join(r.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	return vmm.Config{Name: name, Dir: dir, Boot: &vmm.Hardware{
		Memory: 64, Kernel: r.file("vmlinux"), Vmlinux: r.file("vmlinux"), Initrd: r.file("initrd"), Cmdline: "attest.root=layers:1",
		Disks: []vmm.Disk{{Serial: "attest-l0", Path: r.file("base"), Format: "raw", ReadOnly: true}, {Serial: "attest-rw", Path: r.file("disk"), Format: "raw"}},
	}}
}

// A box is a machine that runs.
type box struct {
	vmm.VM
	*guest.Client
	t       *testing.T
	dir     string
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	read    chan struct{}
}

func (r *rig) start(config vmm.Config) *box {
	r.t.Helper()
	vm, err := r.backend.Start(r.ctx, r.host, config)
	if err != nil {
		r.t.Fatal(err)
	}
	b := &box{VM: vm, t: r.t, dir: config.Dir, changed: make(chan struct{}, 1), read: make(chan struct{})}
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

func (b *box) Write(p []byte) (int, error) {
	b.mu.Lock()
	b.text.Write(p)
	b.mu.Unlock()
	select {
	case b.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (b *box) console() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// says blocks until the console has a text so many times.
func (b *box) says(ctx context.Context, text string, times int) {
	b.t.Helper()
	for strings.Count(b.console(), text) < times {
		select {
		case <-b.changed:
		case <-ctx.Done():
			b.t.Fatalf("no %q on the console:\n%s", text, b.console())
		}
	}
}

// runs has a command run in the guest.
func (b *box) runs(ctx context.Context) {
	b.t.Helper()
	res, err := b.Run(ctx, guest.Command{Script: "echo works"})
	if err != nil || string(res.Stdout) != "works\n" {
		b.t.Fatalf("got %q, %v", res.Stdout, err)
	}
}

func (b *box) exits(ctx context.Context, want vmm.ExitReason) {
	b.t.Helper()
	select {
	case <-b.Done():
	case <-ctx.Done():
		b.t.Fatalf("it does not end; console:\n%s", b.console())
	}
	<-b.read
	if got := b.Exit(); got.Reason != want {
		b.t.Errorf("got %q (%s), want %q", got.Reason, got.Detail, want)
	}
}

func TestBoot(t *testing.T) {
	r := newRig(t, fake.Options{})
	b := r.start(r.config("m"))
	b.runs(r.ctx)
	b.says(r.ctx, "console=ttyS0 reboot=k attest.vsock=1 attest.disks=attest-l0,attest-rw pci=off attest.root=layers:1", 1)
	if text := b.console(); strings.Contains(text, "Running Firecracker") {
		t.Errorf("Firecracker's own log is on the console:\n%s", text)
	}
	if err := b.VM.(vmm.ConsoleWriter).WriteConsole(r.ctx, []byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	b.says(r.ctx, "typed: hello", 1)
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	b.exits(r.ctx, vmm.Killed)
}

// A guest is dialled until it listens, in whatever way it does not yet.
func TestGuestThatIsNotThereYet(t *testing.T) {
	for _, o := range []fake.Options{{Silent: 1}, {Unheard: 5}, {Silent: 2, Unheard: 2, Ghosts: true}} {
		t.Run(fmt.Sprint(o.Silent, o.Unheard, o.Ghosts), func(t *testing.T) {
			r := newRig(t, o)
			r.start(r.config("m")).runs(r.ctx)
		})
	}
}

// How a guest ends is told by its kernel, on the console.
func TestEnds(t *testing.T) {
	r := newRig(t, fake.Options{})
	for _, tt := range []struct {
		name string
		do   func(*box) error
		want vmm.ExitReason
	}{
		{"power off", func(b *box) error { return b.Poweroff(r.ctx) }, vmm.PoweredOff},
		{"reboot", func(b *box) error { return b.Reboot(r.ctx) }, vmm.Reset},
		{"panic", func(b *box) error { return b.Panic(r.ctx) }, vmm.Panicked},
		{"reset", func(b *box) error { return b.VM.(vmm.Rebooter).Reset(r.ctx) }, vmm.Reset},
		{"kill", func(b *box) error { return b.Kill() }, vmm.Killed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := r.start(r.config("m"))
			b.runs(r.ctx)
			done := make(chan struct{})
			go func() {
				defer close(done)
				tt.do(b) // it may wait for an answer that the guest's end was quicker than
			}()
			b.exits(r.ctx, tt.want)
			b.Client.Close(nil)
			<-done
		})
	}
}

// A guest that may reboot gets another process with the same disks.
func TestReboot(t *testing.T) {
	r := newRig(t, fake.Options{})
	c := r.config("m")
	c.AllowReboot = true
	b := r.start(c)
	before, err := b.Ready(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.Reboot(r.ctx)
	again, err := b.ReadyAgain(r.ctx, before)
	if err != nil || again.BootID == before.BootID {
		t.Fatalf("got %v, %v", again, err)
	}
	b.says(r.ctx, "Linux version fake", 2)
	b.runs(r.ctx)
	if err := b.VM.(vmm.Rebooter).Reset(r.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadyAgain(r.ctx, again); err != nil {
		t.Fatal(err)
	}
	b.VM.(vmm.Rebooter).AllowReboot(r.ctx, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Reboot(r.ctx) // nobody answers any more
	}()
	b.exits(r.ctx, vmm.Reset)
	b.Client.Close(nil)
	<-done
}

// What a machine was saved as goes on in others, at the same time, and in itself; its
// commands do not notice.
func TestSnapshot(t *testing.T) {
	r := newRig(t, fake.Options{})
	b := r.start(r.config("m"))
	info, err := b.Ready(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	stdin, typed := io.Pipe()
	defer typed.Close()
	command, err := b.Client.Start(r.ctx, guest.Command{Script: "read line; echo got $line", Stdin: stdin})
	if err != nil {
		t.Fatal(err)
	}
	memory, err := vmm.MemoryFile("test")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	s := b.VM.(vmm.Snapshotter)
	if err := s.Pause(r.ctx); err != nil {
		t.Fatal(err)
	}
	device, err := s.Save(r.ctx, memory)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Resume(r.ctx); err != nil {
		t.Fatal(err)
	}
	io.WriteString(typed, "on\n")
	if res, err := command.Wait(); err != nil || string(res.Stdout) != "got on\n" {
		t.Errorf("the command over the snapshot: %q, %v", res.Stdout, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(memory.Fd()), &st); err != nil || st.Size != 64<<20 || st.Blocks*512 > 8<<20 {
		t.Errorf("the memory has %d bytes, of which %d are allocated (%v)", st.Size, st.Blocks*512, err)
	}
	var clones []*box
	for _, name := range []string{"a", "b"} {
		c := r.config(name)
		c.Restore, c.Paused = &vmm.State{Memory: memory, Device: device}, true
		clones = append(clones, r.start(c))
	}
	for _, c := range clones {
		if err := c.VM.(vmm.Pauser).Resume(r.ctx); err != nil {
			t.Fatal(err)
		}
		got, err := c.Ready(r.ctx)
		if err != nil || got.Instance != info.Instance || got.BootID != info.BootID {
			t.Errorf("the clone is %v, %v, want %v", got, err, info)
		}
		c.runs(r.ctx)
	}
	b.runs(r.ctx)
}

// Whatever goes wrong at a start is one error that says what, and nothing is left.
func TestStartFails(t *testing.T) {
	state := func(r *rig, device string) *vmm.State {
		memory, err := vmm.MemoryFile("test")
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { memory.Close() })
		if err := memory.Truncate(64 << 20); err != nil {
			r.t.Fatal(err)
		}
		return &vmm.State{Memory: memory, Device: []byte(device)}
	}
	for _, tt := range []struct {
		name   string
		fake   fake.Options
		change func(*rig, *vmm.Config, *vmm.Hardware)
		want   string
	}{
		{"a refused request", fake.Options{Refuse: map[string]string{"PUT /entropy": "There is no entropy left."}}, nil,
			"m: firecracker did not start: PUT /entropy: There is no entropy left. (status 400)"},
		{"a status of another kind", fake.Options{Status: map[string]int{"PUT /vsock": 500}}, nil, "PUT /vsock: something went wrong (status 500)"},
		{"it ends", fake.Options{Exit: map[string]int{"PUT /drives": 148}}, nil, "its process ended: exit status 148\nthe fake was told to end at PUT /drives"},
		{"half an answer", fake.Options{Half: map[string]bool{"PUT /actions": true}}, nil, "its process ended: exit status 1"},
		{"no kernel file", fake.Options{}, func(r *rig, _ *vmm.Config, hw *vmm.Hardware) { hw.Vmlinux = r.file("none") }, "PUT /boot-source: Boot source error: The kernel file cannot be opened"},
		{"no disk file", fake.Options{}, func(r *rig, _ *vmm.Config, hw *vmm.Hardware) { hw.Disks[1].Path = r.file("none") }, "PUT /drives/d1: Drive config error"},
		{"not a state", fake.Options{}, func(r *rig, c *vmm.Config, _ *vmm.Hardware) { c.Restore = state(r, "nonsense") }, "CRC64 validation failed"},
		{"memory of another size", fake.Options{}, func(r *rig, c *vmm.Config, hw *vmm.Hardware) { c.Restore, hw.Memory = state(r, ""), 128 },
			"the saved memory has 67108864 bytes, and the machine has 134217728"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.fake)
			c := r.config("m")
			if tt.change != nil {
				tt.change(r, &c, c.Boot.(*vmm.Hardware))
			}
			_, err := r.backend.Start(r.ctx, r.host, c)
			var failed *vmm.StartError
			if !errors.As(err, &failed) || failed.Status() != event.Infra {
				t.Fatalf("got %v", err)
			}
			failed.After = 0
			if !strings.Contains(strings.ReplaceAll(err.Error(), " (after 0s)", ""), tt.want) {
				t.Errorf("got %q, want %q", err, tt.want)
			}
			if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
				t.Errorf("it left %v", left)
			}
		})
	}
}

// A socket that never appears does not hold up whoever gives up.
func TestStartIsCancelled(t *testing.T) {
	r := newRig(t, fake.Options{NoSocket: true})
	ctx, cancel := context.WithTimeout(r.ctx, 200*time.Millisecond)
	defer cancel()
	c := r.config("m")
	if _, err := r.backend.Start(ctx, r.host, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

// A save that fails leaves a machine that goes on.
func TestSaveFails(t *testing.T) {
	r := newRig(t, fake.Options{Refuse: map[string]string{"PUT /snapshot/create": "Create snapshot error: Cannot dump memory: No space left on device (os error 28)"}})
	b := r.start(r.config("m"))
	b.runs(r.ctx)
	memory, err := vmm.MemoryFile("test")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	s := b.VM.(vmm.Snapshotter)
	if err := s.Pause(r.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Save(r.ctx, memory); err == nil || !strings.Contains(err.Error(), "save: m: PUT /snapshot/create: Create snapshot error: Cannot dump memory: No space left on device") {
		t.Errorf("got %v", err)
	}
	if err := s.Resume(r.ctx); err != nil {
		t.Fatal(err)
	}
	b.runs(r.ctx)
}

// A Firecracker that dies in the middle of an operation ends the machine, and the
// operation.
func TestDiesWhilePausing(t *testing.T) {
	r := newRig(t, fake.Options{Exit: map[string]int{"PATCH /vm": 149}})
	b := r.start(r.config("m"))
	b.runs(r.ctx)
	if err := b.VM.(vmm.Pauser).Pause(r.ctx); err == nil {
		t.Error("no error")
	}
	b.exits(r.ctx, vmm.Broken)
	if got := b.Exit().Detail; !strings.Contains(got, "Firecracker ended: exit status 149: the fake was told to end at PATCH /vm") {
		t.Errorf("got %q", got)
	}
}

// A guest that nobody reaches any more is waited for as long as the caller wants, and no
// longer.
func TestDialEnds(t *testing.T) {
	r := newRig(t, fake.Options{Silent: -1})
	b := r.start(r.config("m"))
	ctx, cancel := context.WithTimeout(r.ctx, 700*time.Millisecond)
	defer cancel()
	if _, err := b.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer on its vsock") {
		t.Errorf("got %v", err)
	}
	dialled := make(chan error)
	go func() {
		_, err := b.Dial(r.ctx)
		dialled <- err
	}()
	b.Kill()
	if err := <-dialled; err == nil {
		t.Error("no error")
	}
}

// A cable is the lab's end of a network card.
type cable struct {
	taps chan *os.File
}

func (c cable) Stream() (*net.UnixConn, error)  { return nil, errors.New("it takes TAPs") }
func (c cable) Packets() (*net.UnixConn, error) { return nil, errors.New("it takes TAPs") }
func (c cable) TAP(f *os.File) error            { c.taps <- f; return nil }

// answers sends a frame to the card and waits for its answer.
func answers(t *testing.T, f *os.File) {
	t.Helper()
	frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}, make([]byte, 50)...)
	f.SetDeadline(time.Now().Add(patience))
	for buf := make([]byte, 2000); ; { // the first ones may come before the card is there
		if _, err := f.Write(frame); err != nil {
			t.Fatal(err)
		}
		f.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := f.Read(buf)
		if err == nil && n >= 14 && bytes.Equal(buf[:6], frame[6:12]) && bytes.Equal(buf[6:12], frame[:6]) {
			return
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
}

// Network cards are TAPs of the VMM's own namespace, in a guest that was restored as well,
// and others in one that was reset. A card without a cable has one, too.
func TestNetworkCards(t *testing.T) {
	if err := tap.Try(t.Context()); err != nil {
		t.Skip("no TAP can be made here: ", err)
	}
	r := newRig(t, fake.Options{})
	link := cable{make(chan *os.File, 1)}
	with := func(c vmm.Config) vmm.Config {
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
		c.AllowReboot = true
		c.NICs = []vmm.NIC{{ID: "net1", MAC: mac, Link: link}, {ID: "net2", MAC: mac}}
		return c
	}
	b := r.start(with(r.config("m")))
	first := <-link.taps
	defer first.Close()
	answers(t, first)
	before, err := b.Ready(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := vmm.MemoryFile("test")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	s := b.VM.(vmm.Snapshotter)
	if err := s.Pause(r.ctx); err != nil {
		t.Fatal(err)
	}
	device, err := s.Save(r.ctx, memory)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Resume(r.ctx); err != nil {
		t.Fatal(err)
	}
	clone := with(r.config("clone"))
	clone.Restore = &vmm.State{Memory: memory, Device: device}
	r.start(clone)
	second := <-link.taps
	defer second.Close()
	answers(t, second)
	answers(t, first)
	b.VM.(vmm.Rebooter).Reset(r.ctx)
	third := <-link.taps
	defer third.Close()
	if _, err := b.ReadyAgain(r.ctx, before); err != nil {
		t.Fatal(err)
	}
	answers(t, third)
}
