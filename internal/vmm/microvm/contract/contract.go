package contract

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

// A Subject is a backend of a small VMM, with its fake.
type Subject struct {
	New     func() vmm.Backend
	Install func(*testing.T, Options) // the fake
	Cmdline string                    // with which the guest's kernel begins; on its console
	Log     string                    // what the VMM says of itself, on another stream
	Options json.RawMessage           // of the machines, where a test gives none of its own
	Jailed  bool                      // the VMM has a root directory of its own: what that makes no difference for is left out
}

// Options are what the fakes have in common.
type Options struct {
	NoSocket bool
	Program  bool // the fake is a program, and not a script that starts one
	fake.Manners
}

func (s Subject) rig(t *testing.T, o Options) *Rig {
	t.Helper()
	s.Install(t, o)
	r := NewRig(t, s.New())
	r.Options = s.Options
	return r
}

// Test tests what every backend of a small VMM does.
func (s Subject) Test(t *testing.T) {
	t.Run("boot", s.boots)
	t.Run("ends", s.ends)
	t.Run("ends at once", s.endsAtOnce)
	t.Run("reboot", s.reboots)
	t.Run("snapshot", s.isSaved)
	t.Run("cancelled start", s.startIsCancelled)
	t.Run("network cards", s.hasNetworkCards)
	t.Run("root shell", s.hasRootShell)
	if s.Jailed {
		return
	}
	t.Run("disk limits", s.limitsDisks)
	t.Run("not there yet", s.isNotThereYet)
	t.Run("dial", s.dialEnds)
	t.Run("refused vsock", s.refusesForEver)
	t.Run("files", s.seesItsOwnFiles)
}

func (s Subject) boots(t *testing.T) {
	r := s.rig(t, Options{})
	b := r.Start(r.Config("m"))
	b.Runs(r.Ctx)
	b.Says(r.Ctx, s.Cmdline, 1)
	if text := b.Text(); strings.Contains(text, s.Log) {
		t.Errorf("the VMM's own log is on the console:\n%s", text)
	}
	if err := b.VM.(vmm.ConsoleWriter).WriteConsole(r.Ctx, []byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	b.Says(r.Ctx, "typed: hello", 1)
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	b.Exits(r.Ctx, vmm.Killed)
}

// Disks are as fast as the options say, and without options nothing limits them.
func (s Subject) limitsDisks(t *testing.T) {
	r := s.rig(t, Options{})
	free := r.Start(r.Config("free"))
	free.Runs(r.Ctx)
	c := r.Config("m")
	c.Boot.(*vmm.Hardware).Options = json.RawMessage(`{"disk_bytes_per_second": 1000000, "disk_ops_per_second": 50}`)
	r.Start(c).Says(r.Ctx, "d1: 1000000 bytes in 1000 ms, 50 operations in 1000 ms", 1)
	if text := free.Text(); strings.Contains(text, " operations in ") {
		t.Errorf("there is a limit without one:\n%s", text)
	}
	c.Boot.(*vmm.Hardware).Options = json.RawMessage(`{"disk_ops_per_second": -1}`)
	if err := r.Backend.Check(c); err == nil || !strings.Contains(err.Error(), "disk_ops_per_second=-1: want numbers from 1 on") {
		t.Errorf("got %v", err)
	}
}

// A guest is dialled until it listens, in whatever way it does not yet.
func (s Subject) isNotThereYet(t *testing.T) {
	for _, o := range []fake.Manners{{Silent: 1}, {Unheard: 5}, {Silent: 2, Unheard: 2, Ghosts: true}} {
		t.Run(fmt.Sprint(o.Silent, o.Unheard, o.Ghosts), func(t *testing.T) {
			r := s.rig(t, Options{Manners: o})
			r.Start(r.Config("m")).Runs(r.Ctx)
		})
	}
}

// How a guest ends is told by its kernel, on the console.
func (s Subject) ends(t *testing.T) {
	r := s.rig(t, Options{})
	for _, tt := range []struct {
		name string
		do   func(*Box) error
		want vmm.ExitReason
	}{
		{"power off", func(b *Box) error { return b.Poweroff(r.Ctx) }, vmm.PoweredOff},
		{"reboot", func(b *Box) error { return b.Reboot(r.Ctx) }, vmm.Reset},
		{"panic", func(b *Box) error { return b.Panic(r.Ctx) }, vmm.Panicked},
		{"reset", func(b *Box) error { return b.VM.(vmm.Rebooter).Reset(r.Ctx) }, vmm.Reset},
		{"kill", func(b *Box) error { return b.Kill() }, vmm.Killed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := r.Start(r.Config("m"))
			b.Runs(r.Ctx)
			done := make(chan struct{})
			go func() {
				defer close(done)
				tt.do(b) // it may wait for an answer that the guest's end was quicker than
			}()
			b.Exits(r.Ctx, tt.want)
			b.Client.Close(nil)
			<-done
		})
	}
}

// A guest may be quicker with its end than the VMM with the answer that it runs.
func (s Subject) endsAtOnce(t *testing.T) {
	r := s.rig(t, Options{Manners: fake.Manners{Fleeting: true}})
	b := r.Start(r.Config("m"))
	b.Exits(r.Ctx, vmm.Reset)
	b.Says(r.Ctx, "reboot: Restarting system", 1)
}

// A guest that may reboot gets another process with the same disks.
func (s Subject) reboots(t *testing.T) {
	r := s.rig(t, Options{})
	c := r.Config("m")
	c.AllowReboot = true
	b := r.Start(c)
	before, err := b.Ready(r.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.Reboot(r.Ctx)
	again, err := b.ReadyAgain(r.Ctx, before)
	if err != nil || again.BootID == before.BootID {
		t.Fatalf("got %v, %v", again, err)
	}
	b.Says(r.Ctx, "Linux version fake", 2)
	b.Runs(r.Ctx)
	if err := b.VM.(vmm.Rebooter).Reset(r.Ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadyAgain(r.Ctx, again); err != nil {
		t.Fatal(err)
	}
	b.VM.(vmm.Rebooter).AllowReboot(r.Ctx, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Reboot(r.Ctx) // nobody answers any more
	}()
	b.Exits(r.Ctx, vmm.Reset)
	b.Client.Close(nil)
	<-done
}

// What a machine was saved as goes on in others, at the same time, and in itself; its
// commands do not notice.
func (s Subject) isSaved(t *testing.T) {
	r := s.rig(t, Options{})
	b := r.Start(r.Config("m"))
	info, err := b.Ready(r.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	stdin, typed := io.Pipe()
	defer typed.Close()
	command, err := b.Client.Start(r.Ctx, guest.Command{Script: "read line; echo got $line", Stdin: stdin})
	if err != nil {
		t.Fatal(err)
	}
	state := r.Save(b)
	io.WriteString(typed, "on\n")
	if res, err := command.Wait(); err != nil || string(res.Stdout) != "got on\n" {
		t.Errorf("the command over the snapshot: %q, %v", res.Stdout, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(state.Memory.Fd()), &st); err != nil || st.Size != 64<<20 || st.Blocks*512 > 8<<20 {
		t.Errorf("the memory has %d bytes, of which %d are allocated (%v)", st.Size, st.Blocks*512, err)
	}
	var clones []*Box
	for _, name := range []string{"a", "b"} {
		c := r.Config(name)
		c.Restore, c.Paused = state, true
		clones = append(clones, r.Start(c))
	}
	for _, c := range clones {
		if err := c.VM.(vmm.Pauser).Resume(r.Ctx); err != nil {
			t.Fatal(err)
		}
		got, err := c.Ready(r.Ctx)
		if err != nil || got.Instance != info.Instance || got.BootID != info.BootID {
			t.Errorf("the clone is %v, %v, want %v", got, err, info)
		}
		c.Runs(r.Ctx)
	}
	b.Runs(r.Ctx)
}

// A socket that never appears does not hold up whoever gives up.
func (s Subject) startIsCancelled(t *testing.T) {
	r := s.rig(t, Options{NoSocket: true})
	ctx, cancel := context.WithTimeout(r.Ctx, 200*time.Millisecond)
	defer cancel()
	c := r.Config("m")
	if _, err := r.Backend.Start(ctx, r.Host, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

// A guest that nobody reaches any more is waited for as long as the caller wants, and no
// longer.
func (s Subject) dialEnds(t *testing.T) {
	r := s.rig(t, Options{Manners: fake.Manners{Silent: -1}})
	b := r.Start(r.Config("m"))
	ctx, cancel := context.WithTimeout(r.Ctx, 700*time.Millisecond)
	defer cancel()
	if _, err := b.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer on its vsock") {
		t.Errorf("got %v", err)
	}
	dialled := make(chan error)
	go func() {
		_, err := b.Dial(r.Ctx)
		dialled <- err
	}()
	b.Kill()
	if err := <-dialled; err == nil {
		t.Error("no error")
	}
}

// A guest in which nobody listens, for its whole boot, is an error that says so.
func (s Subject) refusesForEver(t *testing.T) {
	r := s.rig(t, Options{Manners: fake.Manners{Unheard: -1}})
	b := r.Start(r.Config("m"))
	ctx, cancel := context.WithTimeout(r.Ctx, 2*time.Second)
	defer cancel()
	if _, err := b.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nobody listens on port 1024 of the guest's vsock") {
		t.Errorf("got %v", err)
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
func (s Subject) hasNetworkCards(t *testing.T) {
	if err := tap.Try(t.Context()); err != nil {
		t.Skip("no TAP can be made here: ", err)
	}
	r := s.rig(t, Options{})
	link := cable{make(chan *os.File, 1)}
	with := func(c vmm.Config) vmm.Config {
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
		c.AllowReboot = true
		c.NICs = []vmm.NIC{{ID: "net1", MAC: mac, Link: link}, {ID: "net2", MAC: mac}}
		return c
	}
	b := r.Start(with(r.Config("m")))
	first := <-link.taps
	defer first.Close()
	answers(t, first)
	before, err := b.Ready(r.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	state := r.Save(b)
	clone := with(r.Config("clone"))
	clone.Restore = state
	r.Start(clone)
	second := <-link.taps
	defer second.Close()
	answers(t, second)
	answers(t, first)
	b.VM.(vmm.Rebooter).Reset(r.Ctx)
	third := <-link.taps
	defer third.Close()
	if _, err := b.ReadyAgain(r.Ctx, before); err != nil {
		t.Fatal(err)
	}
	answers(t, third)
}

// A VMM that a guest has taken over opens no file of the host that its machine
// was not given: with network cards and without, and after a restore. A command in the
// fake's guest runs with the rights of the process, and stands for that.
func (s Subject) seesItsOwnFiles(t *testing.T) {
	r := s.rig(t, Options{Program: true})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if why := vmm.WhyVisible(self, false); why != "" {
		t.Skip(why)
	}
	if err := os.WriteFile(r.File("secret"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(b *Box) {
		t.Helper()
		for script, may := range map[string]bool{
			"cat FILES/base":               true,
			"echo x >> FILES/disk-NAME":    true,
			"head -c 1 /usr/bin/true":      true,
			"echo x > DIR/new; rm DIR/new": true,
			"cat FILES/secret":             false,
			"echo x >> FILES/base":         false,
			"echo x > FILES/new":           false,
			"rm FILES/secret":              false,
			"ls FILES":                     false,
			"cat /etc/passwd":              false,
		} {
			script = strings.NewReplacer("FILES", r.Files, "DIR", b.Dir, "NAME", filepath.Base(b.Dir)).Replace(script)
			res, err := b.Run(r.Ctx, guest.Command{Script: script, Limit: 1 << 20})
			if err != nil || (res.ExitCode == 0) != may {
				t.Errorf("%s: exit code %d, %v: %s%s", script, res.ExitCode, err, res.Stdout, res.Stderr)
			}
		}
	}
	b := r.Start(r.Config("m"))
	look(b)
	state := r.Save(b)
	restored := r.Config("restored")
	restored.Restore = state
	look(r.Start(restored))

	if err := tap.Try(t.Context()); err != nil {
		t.Skip("no TAP can be made here: ", err)
	}
	wired := r.Config("wired")
	wired.NICs = []vmm.NIC{{ID: "net1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	look(r.Start(wired))
}
