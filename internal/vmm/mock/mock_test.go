package mock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what takes milliseconds on a host that is not busy.
const patience = time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A started is a machine of a test, with a client of its agent.
type started struct {
	*Machine
	vm     vmm.VM
	client *guest.Client
}

// start starts a machine of a backend with these options. It ends with the test.
func start(t *testing.T, o Options, c vmm.Config) *started {
	t.Helper()
	return startOn(t, vmm.Host{}, o, c)
}

func startOn(t *testing.T, host vmm.Host, o Options, c vmm.Config) *started {
	t.Helper()
	if c.Boot == nil {
		c.Boot = &vmm.Mock{}
	}
	s := &started{}
	o.Started = func(m *Machine) { s.Machine = m }
	if c.Name == "" {
		c.Name = "m"
	}
	var err error
	if s.vm, err = New(o).Start(testContext(t), host, c); err != nil {
		t.Fatal(err)
	}
	s.client = guest.New(c.Name, s.vm.Dial, guest.Options{Reconnect: time.Second})
	t.Cleanup(func() {
		s.client.Close(nil)
		s.vm.Kill()
		s.vm.Console().Close()
	})
	return s
}

func (s *started) ready(t *testing.T) wire.Info {
	t.Helper()
	info, err := s.client.Ready(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// run runs a command and returns its outcome as text.
func (s *started) run(t *testing.T, command string) string {
	t.Helper()
	r, err := s.client.Run(testContext(t), guest.Command{Script: command})
	return fmt.Sprintf("%d %q %q %v", r.ExitCode, r.Stdout, r.Stderr, err)
}

// ended waits for the end and says how it was.
func (s *started) ended(t *testing.T) vmm.Exit {
	t.Helper()
	select {
	case <-s.vm.Done():
	case <-testContext(t).Done():
		t.Fatal("the machine does not end")
	}
	return s.vm.Exit()
}

func TestCommandsOfTheHost(t *testing.T) {
	s := start(t, Options{InProcess: true}, vmm.Config{})
	info := s.ready(t)
	if info.Kernel != kernel || info.Instance == "" || info.BootID == "" {
		t.Errorf("%+v", info)
	}
	if got, want := s.run(t, "echo out; echo err >&2; exit 3"), `3 "out\n" "err\n" <nil>`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// An agent in this process that is told who it is, what time it is and to power
// off does nothing of that to the host.
func TestHostIsLeftAlone(t *testing.T) {
	name, _ := os.Hostname()
	hosts, _ := os.ReadFile("/etc/hosts")
	s := start(t, Options{InProcess: true}, vmm.Config{})
	ctx := testContext(t)
	id := wire.Identity{Hostname: "not-the-hosts", MachineID: strings.Repeat("a", 32), Hosts: []wire.Host{{Name: "other"}}, Time: time.Now().Add(-time.Hour), Entropy: make([]byte, 64)}
	if err := s.client.Identity(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := s.client.SetClock(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Identity(ctx, wire.Identity{MachineID: strings.Repeat("b", 32)}); err != nil {
		t.Fatal(err)
	}
	if now, _ := os.Hostname(); now != name {
		t.Errorf("the host is called %s now", now)
	}
	if now, _ := os.ReadFile("/etc/hosts"); string(now) != string(hosts) {
		t.Errorf("the host has other hosts now:\n%s", now)
	}
	got := s.Identity()
	if got.Hostname != "not-the-hosts" || got.MachineID != strings.Repeat("b", 32) || len(got.Hosts) != 1 || got.Entropy != nil {
		t.Errorf("it is %+v", got)
	}
	if err := s.client.Poweroff(ctx); err != nil && !isGone(err) {
		t.Error(err)
	}
	if exit := s.ended(t); exit.Reason != vmm.PoweredOff {
		t.Errorf("ended with %+v", exit)
	}
}

// isGone reports whether an operation's answer was lost in the end that it asked for.
func isGone(err error) bool {
	var gone *guest.DisconnectedError
	var again *guest.RestartedError
	return errors.As(err, &gone) || errors.As(err, &again)
}

func TestEnds(t *testing.T) {
	for _, reason := range []vmm.ExitReason{vmm.PoweredOff, vmm.Reset, vmm.Panicked, vmm.Killed, vmm.Quit, vmm.Broken} {
		s := start(t, Options{InProcess: true}, vmm.Config{})
		s.ready(t)
		s.Say("last words\n")
		s.End(reason, "for a reason")
		if exit := s.ended(t); exit.Reason != reason || exit.Detail != "for a reason" {
			t.Errorf("%s: ended with %+v", reason, exit)
		}
		text, err := io.ReadAll(s.vm.Console())
		if err != nil || !strings.HasPrefix(string(text), "mock: m boots\nlast words\n") || strings.Contains(string(text), "Kernel panic") != (reason == vmm.Panicked) {
			t.Errorf("%s: the console said %q, %v", reason, text, err)
		}
		if _, err := s.vm.Dial(testContext(t)); err == nil {
			t.Errorf("%s: it answers still", reason)
		}
	}
}

func TestReboot(t *testing.T) {
	s := start(t, Options{InProcess: true}, vmm.Config{AllowReboot: true})
	for boot := 1; boot <= 3; boot++ {
		before := s.ready(t)
		if err := s.client.Reboot(testContext(t)); err != nil && !isGone(err) {
			t.Fatal(err)
		}
		after, err := s.client.ReadyAgain(testContext(t), before)
		if err != nil || after.BootID == before.BootID {
			t.Fatalf("boot %d: %+v after %+v, %v", boot, after, before, err)
		}
	}
	if s.Boots() != 4 {
		t.Errorf("%d boots", s.Boots())
	}
	if err := s.AllowReboot(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	s.Machine.Reset(t.Context())
	if exit := s.ended(t); exit.Reason != vmm.Reset {
		t.Errorf("ended with %+v", exit)
	}
}

// A machine that stands still, or whose guest hangs, answers when that is over.
func TestStandstill(t *testing.T) {
	s := start(t, Options{InProcess: true}, vmm.Config{Paused: true})
	for name, stop := range map[string]func(bool){
		"paused": func(on bool) {
			if err := s.setPaused(on); err != nil {
				t.Fatal(err)
			}
		},
		"hangs": s.Hang,
	} {
		stop(true)
		s.setPaused(name == "paused")
		answered := make(chan error, 1)
		go func() { answered <- s.client.Echo(testContext(t)) }()
		select {
		case err := <-answered:
			t.Fatalf("%s: it answers: %v", name, err)
		case <-time.After(50 * time.Millisecond): // nothing tells that nothing comes
		}
		stop(false)
		if err := <-answered; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.Hang(true)
	if err := s.vm.Kill(); err != nil { // also then
		t.Error(err)
	}
}

// save pauses a machine and saves it.
func save(t *testing.T, s *started) (*vmm.State, error) {
	t.Helper()
	memory, err := vmm.MemoryFile("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	if err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	device, err := s.Save(testContext(t), memory)
	return &vmm.State{Memory: memory, Device: device}, err
}

func TestRestore(t *testing.T) {
	config := vmm.Config{Boot: &vmm.Mock{Memory: 64}}
	s := start(t, Options{InProcess: true}, config)
	before := s.ready(t)
	if err := s.client.Identity(testContext(t), wire.Identity{Hostname: "it"}); err != nil {
		t.Fatal(err)
	}
	state, err := save(t, s)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := state.Memory.Stat(); err != nil || st.Size() != 64<<20 {
		t.Errorf("the memory: %+v, %v", st, err)
	}
	config.Restore, config.Paused = state, true
	for range 2 { // any number of them
		again := start(t, Options{InProcess: true}, config)
		again.Resume(t.Context())
		if after := again.ready(t); after.Instance != before.Instance || after.BootID != before.BootID || after.Hostname != "it" {
			t.Errorf("%+v goes on as %+v", before, after)
		}
	}
	s.Resume(t.Context())
	if err := s.client.Echo(testContext(t)); err != nil {
		t.Errorf("the one that was saved: %v", err)
	}
	dead := start(t, Options{InProcess: true, Starting: func(context.Context, vmm.Config) (Faults, error) { return Faults{Dead: true}, nil }}, config)
	dead.Resume(t.Context())
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := dead.client.Ready(short); err == nil {
		t.Error("a dead one answers")
	}
	other, err := save(t, start(t, Options{InProcess: true}, config))
	if err != nil {
		t.Fatal(err)
	}
	mixed := start(t, Options{InProcess: true}, vmm.Config{})
	mixed.ready(t)
	third, err := save(t, mixed)
	if err != nil {
		t.Fatal(err)
	}
	other.Device = third.Device
	config.Restore = other
	if _, err := New(Options{InProcess: true}).Start(t.Context(), vmm.Host{}, config); err == nil {
		t.Error("the memory of one goes on with the devices of another")
	}
}

func TestFaults(t *testing.T) {
	with := func(f Faults) Options {
		return Options{InProcess: true, Starting: func(context.Context, vmm.Config) (Faults, error) { return f, nil }}
	}
	var startError *vmm.StartError
	_, err := New(with(Faults{StartError: "no such device"})).Start(t.Context(), vmm.Host{}, vmm.Config{Name: "m", Boot: &vmm.Mock{}})
	if !errors.As(err, &startError) || startError.Output != "no such device" || startError.Machine != "m" {
		t.Errorf("start: %v", err)
	}
	refused := errors.New("refused")
	_, err = New(Options{InProcess: true, Starting: func(context.Context, vmm.Config) (Faults, error) { return Faults{}, refused }}).Start(t.Context(), vmm.Host{}, vmm.Config{Boot: &vmm.Mock{}})
	if !errors.Is(err, refused) {
		t.Errorf("start: %v", err)
	}
	s := start(t, with(Faults{SaveError: "no space"}), vmm.Config{Boot: &vmm.Mock{Memory: 8}})
	state, err := save(t, s)
	if err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("save: %v", err)
	}
	if st, err := state.Memory.Stat(); err != nil || st.Size() != 4<<20 {
		t.Errorf("half of 8 MiB are %+v, %v", st, err)
	}
	_, err = New(with(Faults{RestoreError: "bad state"})).Start(t.Context(), vmm.Host{}, vmm.Config{Boot: &vmm.Mock{}, Restore: state})
	if !errors.As(err, &startError) || startError.Output != "bad state" {
		t.Errorf("restore: %v", err)
	}
	slow := start(t, with(Faults{Delay: Duration(30 * time.Millisecond)}), vmm.Config{})
	slow.ready(t)
	begun := time.Now()
	if err := slow.client.Echo(testContext(t)); err != nil || time.Since(begun) < 30*time.Millisecond {
		t.Errorf("a slow answer after %v, %v", time.Since(begun), err)
	}
}

// Callers find out by vmm.As what a machine can do.
func TestLimit(t *testing.T) {
	abilities := func(vm vmm.VM) (has []string) {
		_, pauser := vmm.As[vmm.Pauser](vm)
		_, snapshotter := vmm.As[vmm.Snapshotter](vm)
		_, rebooter := vmm.As[vmm.Rebooter](vm)
		_, button := vmm.As[vmm.PowerButton](vm)
		_, interrupter := vmm.As[vmm.Interrupter](vm)
		_, waker := vmm.As[vmm.Waker](vm)
		_, crasher := vmm.As[vmm.Crasher](vm)
		_, links := vmm.As[vmm.LinkSetter](vm)
		_, keyboard := vmm.As[vmm.Keyboarder](vm)
		_, pointer := vmm.As[vmm.Pointer](vm)
		_, screen := vmm.As[vmm.Screener](vm)
		_, writer := vmm.As[vmm.ConsoleWriter](vm)
		_, monitor := vmm.As[vmm.Monitor](vm)
		_, events := vmm.As[vmm.EventSource](vm)
		for _, a := range []struct {
			name string
			ok   bool
		}{
			{"pause", pauser}, {"save", snapshotter}, {"reset", rebooter}, {"power", button}, {"nmi", interrupter}, {"sleep", waker}, {"crash", crasher},
			{"links", links}, {"keys", keyboard}, {"pointer", pointer}, {"screen", screen}, {"console", writer}, {"monitor", monitor}, {"events", events},
		} {
			if a.ok {
				has = append(has, a.name)
			}
		}
		return has
	}
	all := abilities(&Machine{})
	if len(all) != 14 {
		t.Errorf("a whole machine can %v", all)
	}
	lack := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(n string) bool { return slices.Contains(names, n) })
	}
	for _, test := range []struct {
		without []Group
		want    []string
	}{
		{nil, all},
		{[]Group{Saving}, lack("save")},
		{[]Group{Pausing}, lack("save", "pause")},
		{[]Group{Reset}, lack("reset")},
		{[]Group{Buttons}, lack("power", "nmi")},
		{[]Group{Sleep}, lack("sleep")},
		{[]Group{Crashing}, lack("crash")},
		{[]Group{Links}, lack("links")},
		{[]Group{Power}, lack("power")},
		{[]Group{Keyboard, Events, Links}, lack("keys", "events", "links")},
		{[]Group{Saving, NMI, Screen, Pointer, Monitor}, lack("save", "nmi", "screen", "pointer", "monitor")},
		{[]Group{Devices}, lack("keys", "screen", "pointer", "console")},
		{[]Group{Control, Input}, lack("monitor", "events", "console")},
		{unlikeProcesses, []string{"reset", "power", "crash", "links"}},
		{everyGroup, nil},
		{[]Group{All}, nil},
	} {
		if got := abilities(limit(&Machine{}, test.without)); !slices.Equal(got, test.want) {
			t.Errorf("without %v: %v, want %v", test.without, got, test.want)
		}
	}
	if _, ok := New(Options{}).(vmm.Fingerprinter); ok {
		t.Error("machines without Warm are kept")
	}
	if _, ok := New(Options{Warm: true}).(vmm.Fingerprinter); !ok {
		t.Error("machines with Warm are not kept")
	}
	offers := New(Options{InProcess: true, Without: []Group{Devices}}).(vmm.Offerer)
	for _, c := range []vmm.Capability{vmm.CanPause, vmm.CanReset, vmm.CanInteract, vmm.CanTell} {
		if ok, _ := offers.Offers(vmm.Config{}, c); !ok {
			t.Errorf("%s is not offered", c)
		}
	}
	for _, c := range []vmm.Capability{vmm.CanType, vmm.CanShow, vmm.CanListen} {
		if ok, _ := offers.Offers(vmm.Config{}, c); ok {
			t.Errorf("%s is offered", c)
		}
	}
}

func TestDevices(t *testing.T) {
	s := start(t, Options{InProcess: true}, vmm.Config{})
	ctx := testContext(t)
	file := t.TempDir() + "/screen.png"
	for _, err := range []error{
		s.WriteConsole(ctx, []byte("root\n")), s.Keys(ctx, []string{"ctrl", "a"}, true), s.Keys(ctx, []string{"ctrl", "a"}, false),
		s.Screenshot(ctx, file, vmm.PNG), s.Pause(ctx), s.Resume(ctx),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if got := fmt.Sprint(s.Typed(), s.Pressed()); got != "root\n [+ctrl+a -ctrl+a]" && got != "root\n[+ctrl+a -ctrl+a]" {
		t.Errorf("typed %q", got)
	}
	if png, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(png), "\x89PNG") {
		t.Errorf("the screenshot is %q, %v", png, err)
	}
	if _, err := s.MonitorCommand(ctx, "info status"); err == nil {
		t.Error("the monitor knows a command")
	}
	if err := s.InjectNMI(ctx); err != nil {
		t.Error(err)
	}
	if exit := s.ended(t); exit.Reason != vmm.Panicked {
		t.Errorf("ended with %+v", exit)
	}
	var events []string
	for n := int64(0); ; {
		e, next, err := s.Events().Next(ctx, n)
		if err != nil {
			break
		}
		events, n = append(events, e.Name), next
	}
	if got := strings.Join(events, " "); got != "STOP RESUME SHUTDOWN" {
		t.Errorf("events: %s", got)
	}
}
