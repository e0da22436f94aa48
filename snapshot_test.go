package attest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

func TestForkGoesOn(t *testing.T) {
	s := newStage(t, mock.Options{})
	l := s.lab(t, "a", "b")
	a := l.Machine("a")
	prints(t, a, "true", "")
	s.started(t, 1).Say("something\n")
	if err := a.WaitForConsoleText(limited(t), "something"); err != nil {
		t.Fatal(err)
	}
	fork, err := l.Fork(s.context(t))
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, fork)
	prints(t, fork.Machine("a"), "echo here", "here\n")
	prints(t, a, "echo there", "there\n") // the original goes on
	vm := s.started(t, 2)
	if vm.Config().Restore == nil || vm.Identity().Hostname != "a" || s.starts() != 2 {
		t.Errorf("the fork is %+v, %+v, of %d starts", vm.Config(), vm.Identity(), s.starts())
	}
	if text := fork.Machine("a").ConsoleLog(); !strings.Contains(text, "something") {
		t.Errorf("its console said %q", text)
	}
	if fork.Machine("b").IsUp() {
		t.Error("a machine that was never started is up")
	}
}

// A save that fails is an error of the host's, and the lab goes on.
func TestSaveFails(t *testing.T) {
	s := newStage(t, mock.Options{Starting: func(_ context.Context, c vmm.Config) (mock.Faults, error) {
		if c.Name == "b" {
			return mock.Faults{SaveError: "no space"}, nil
		}
		return mock.Faults{}, nil
	}})
	l := s.lab(t, "a", "b")
	for _, m := range l.Machines() {
		prints(t, m, "true", "")
	}
	_, err := l.Snapshot(limited(t))
	var infra *InfraError
	if !errors.As(err, &infra) || infra.Machine != "b" || !strings.Contains(err.Error(), "no space") {
		t.Errorf("got %v", err)
	}
	for _, m := range l.Machines() {
		prints(t, m, "echo on", "on\n")
	}
}

// A fork whose machine does not go on is no lab, and nothing of it is left.
func TestForkFails(t *testing.T) {
	s := newStage(t, mock.Options{Starting: func(_ context.Context, c vmm.Config) (mock.Faults, error) {
		if c.Name == "b" {
			return mock.Faults{RestoreError: "bad state"}, nil
		}
		return mock.Faults{}, nil
	}})
	l := s.lab(t, "a", "b")
	for _, m := range l.Machines() {
		prints(t, m, "true", "")
	}
	fork, err := l.Fork(s.context(t))
	var start *vmm.StartError
	if fork != nil && err == nil || !errors.As(err, &start) || start.Machine != "b" {
		t.Errorf("got %v, %v", fork, err)
	}
	if s.starts() == 3 {
		<-s.started(t, 3).Done()
	}
}

// A machine that was restored dead is one that does not answer, after its limit.
func TestRestoredDead(t *testing.T) {
	s := newStage(t, faulty(mock.Faults{Dead: true}))
	l := s.open(t, LabConfig{Machines: []MachineConfig{{Name: "a", Backend: s.backend, Boot: BootCold, BootTimeout: patience}}})
	a := l.Machine("a")
	prints(t, a, "true", "")
	if err := a.SnapshotCreate(limited(t), "here"); err != nil {
		t.Fatal(err)
	}
	a.config.BootTimeout = 50 * time.Millisecond
	if err := a.SnapshotRestore(limited(t), "here"); err != nil {
		t.Fatal(err)
	}
	_, err := a.Succeed(limited(t), "true")
	var boot *BootError
	if !errors.As(err, &boot) || !strings.Contains(boot.Reason, "did not answer") {
		t.Errorf("got %v", err)
	}
}

// A machine that had ended by itself is as much down in a fork, also for who waits
// for its console.
func TestForkOfADownMachine(t *testing.T) {
	s := newStage(t, mock.Options{})
	l := s.lab(t, "a")
	prints(t, l.Machine("a"), "true", "")
	vm := s.started(t, 1)
	vm.Say("last words\n")
	vm.End(vmm.PoweredOff, "")
	<-vm.Done()
	s.awaitState(t, "a stopped")
	fork, err := l.Fork(s.context(t))
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, fork)
	a := fork.Machine("a")
	if err := a.WaitForConsoleText(limited(t), "last words"); err != nil {
		t.Errorf("what it had said: %v", err)
	}
	var down *DownError
	if err := a.WaitForConsoleText(limited(t), "never"); !errors.As(err, &down) || down.Reason != "powered off" {
		t.Errorf("what it will not say: %v", err)
	}
	if _, err := a.Succeed(limited(t), "true"); !errors.As(err, &down) {
		t.Errorf("a command: %v", err)
	}
}

// Checkpoints take the lab back, and what was under way ends.
func TestCheckpoint(t *testing.T) {
	s := newStage(t, mock.Options{})
	l := s.lab(t, "a")
	a := l.Machine("a")
	ctx := limited(t)
	prints(t, a, "true", "")
	if err := l.Checkpoint(ctx, "before"); err != nil {
		t.Fatal(err)
	}
	if err := a.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Restore(ctx, "before"); err != nil {
			t.Fatal(err)
		}
		prints(t, a, "echo back", "back\n")
	}
}

// A warm start is restored from a machine that has booted before, and boots if
// that does not go on.
func TestTemplate(t *testing.T) {
	var mu sync.Mutex
	refuse := ""
	s := newStage(t, mock.Options{Warm: true, Starting: func(context.Context, vmm.Config) (mock.Faults, error) {
		mu.Lock()
		defer mu.Unlock()
		return mock.Faults{RestoreError: refuse}, nil
	}})
	config := LabConfig{Machines: []MachineConfig{{Name: "a", Backend: s.backend, Memory: minMemory}}}
	ctx := event.WithBus(t.Context(), event.BusOf(s.context(t))) // no deadline: there is time to make one
	open := func() *Machine {
		l, err := testHost.NewLab(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		closeLab(t, l)
		m := l.Machine("a")
		if _, err := m.Succeed(ctx, "true"); err != nil {
			t.Fatal(err)
		}
		return m
	}
	first := open() // makes it, and is restored from it
	second := open()
	if s.starts() != 3 {
		t.Fatalf("%d starts, want one of the template and two restored", s.starts())
	}
	for n, m := range map[int]*Machine{2: first, 3: second} {
		vm := s.started(t, n)
		if id := vm.Identity(); vm.Config().Restore == nil || id.MachineID != m.id || id.Hostname != "a" {
			t.Errorf("start %d is %+v, want machine-id %s", n, id, m.id)
		}
	}
	mu.Lock()
	refuse = "not today"
	mu.Unlock()
	open()
	if vm := s.started(t, 4); vm.Config().Restore != nil {
		t.Error("it was restored")
	}
	if !strings.Contains(s.warnings(), "a boots, because it cannot start from its snapshot") {
		t.Errorf("warnings: %s", s.warnings())
	}
}

// A machine that is added to a lab that runs has the next addresses, whatever its name is.
// The others know it then, and it is in forks of the lab. On a real guest that is in
// internal/operation/testdata/every_operation.star.
func TestCreateMachine(t *testing.T) {
	s := newStage(t, mock.Options{})
	l := s.lab(t, "zoe")
	prints(t, l.Machine("zoe"), "true", "")
	adam, err := l.CreateMachine(limited(t), MachineConfig{Name: "adam", Backend: s.backend, Boot: BootCold})
	if err != nil {
		t.Fatal(err)
	}
	prints(t, adam, "true", "")
	knows := func(start int, hostname string) {
		t.Helper()
		id := s.started(t, start).Identity()
		var hosts []string
		for _, h := range id.Hosts {
			hosts = append(hosts, h.Name)
		}
		if slices.Sort(hosts); id.Hostname != hostname || !slices.Equal(hosts, []string{"adam", "zoe"}) {
			t.Errorf("start %d: %s knows %v", start, id.Hostname, hosts)
		}
	}
	knows(1, "zoe")
	knows(2, "adam")
	for name, want := range map[string]string{"zoe": "192.168.1.1", "adam": "192.168.1.2"} {
		if got := l.Machine(name).Addresses()[0].String(); got != want {
			t.Errorf("%s has %s, want %s", name, got, want)
		}
	}
	for _, c := range []MachineConfig{{Name: "ADAM", Backend: s.backend}, {Name: "no name", Backend: s.backend}, {Name: "eve"}} {
		_, err := l.CreateMachine(limited(t), c)
		if e := (*ConfigError)(nil); !errors.As(err, &e) {
			t.Errorf("%+v: got %v", c, err)
		}
	}
	fork, err := l.Fork(s.context(t))
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, fork)
	prints(t, fork.Machine("adam"), "echo here", "here\n")
	if n := len(l.Machines()) + len(fork.Machines()); n != 4 {
		t.Errorf("the lab and its fork have %d machines", n)
	}
}

// Machines can be created while others make the templates that they start from.
func TestCreateMachineBesideWarmStart(t *testing.T) {
	s := newStage(t, mock.Options{Warm: true})
	ctx := event.WithBus(t.Context(), event.BusOf(s.context(t)))
	l, err := testHost.NewLab(ctx, LabConfig{Machines: []MachineConfig{{Name: "a", Backend: s.backend, Memory: minMemory}, {Name: "b", Backend: s.backend, Memory: minMemory}}})
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, l)
	var wg sync.WaitGroup
	for _, m := range l.Machines() {
		wg.Go(func() {
			if _, err := m.Succeed(ctx, "true"); err != nil {
				t.Error(err)
			}
		})
	}
	for _, name := range []string{"c", "d", "e"} {
		wg.Go(func() {
			m, err := l.CreateMachine(ctx, MachineConfig{Name: name, Backend: s.backend, Boot: BootCold})
			if err == nil {
				_, err = m.Succeed(ctx, "true")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := len(l.Machines()); got != 5 {
		t.Errorf("%d machines", got)
	}
	// All know all, whenever they have booted.
	for n := range s.starts() {
		if vm := s.started(t, n+1); vm.Exit().Reason == vmm.Running && len(vm.Identity().Hosts) != 5 {
			t.Errorf("%s knows %v", vm.Config().Name, vm.Identity().Hosts)
		}
	}
}

// A machine whose boot does not end, or whose look at it is killed, is not saved: it boots, with a
// warning that says what is in the way, and the cache gets nothing.
func TestNoTemplateOfAHalfBootedMachine(t *testing.T) {
	for _, look := range []string{"sleep 1000", "sleep 0.3; kill -9 $$"} {
		t.Run(look, func(t *testing.T) { noTemplateOfAHalfBooted(t, look) })
	}
}

func noTemplateOfAHalfBooted(t *testing.T, look string) {
	defer func(limit, pause time.Duration, booted, jobs string) {
		settleLimit, bootLook, bootedScript, jobsScript = limit, pause, booted, jobs
	}(settleLimit, bootLook, bootedScript, jobsScript)
	settleLimit, bootLook, bootedScript = time.Second, 10*time.Millisecond, look
	jobsScript = `printf '7 slow.service start running\n8 multi-user.target start waiting\n'`
	s := newStage(t, mock.Options{Warm: true})
	ctx := event.WithBus(t.Context(), event.BusOf(s.context(t))) // no deadline: there is time to make one
	l, err := testHost.NewLab(ctx, LabConfig{Machines: []MachineConfig{{Name: "a", Backend: s.backend, Memory: minMemory}}})
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, l)
	m := l.Machine("a")
	if out, err := m.Succeed(ctx, "echo booted"); out != "booted\n" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	if said := s.warnings(); !strings.Contains(said, "its boot is not over, systemd is starting slow.service (") {
		t.Errorf("warned of %q", said)
	}
	if !s.progressed("snapshot of a", "booting; systemd is starting slow.service") {
		t.Error("nobody said what the boot waits for")
	}
	if s.started(t, 2).Config().Restore != nil {
		t.Error("it did not boot")
	}
	p, err := m.plan(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if testHost.snapshots.Has(m.templateFits(p)) {
		t.Error("it is in the cache")
	}
}

// Machines of a lab that have never booted do so at once.
func TestWarmUp(t *testing.T) {
	var mu sync.Mutex
	booting, most := 0, 0
	var together sync.WaitGroup
	together.Add(2)
	s := newStage(t, mock.Options{Warm: true, Starting: func(context.Context, vmm.Config) (mock.Faults, error) {
		mu.Lock()
		booting++
		most = max(most, booting)
		mu.Unlock()
		together.Done()
		together.Wait() // neither goes on before the other one boots, too
		mu.Lock()
		booting--
		mu.Unlock()
		return mock.Faults{}, nil
	}})
	ctx := event.WithBus(t.Context(), event.BusOf(s.context(t)))
	var config LabConfig
	for _, name := range []string{"a", "b"} {
		config.Machines = append(config.Machines, MachineConfig{Name: name, Backend: s.backend, Memory: minMemory})
	}
	l, err := testHost.NewLab(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, l)
	if err := l.WarmUp(ctx); err != nil {
		t.Fatal(err)
	}
	if most != 2 || s.starts() != 2 {
		t.Errorf("%d starts, %d at once", s.starts(), most)
	}
	for n := range 3 {
		if want := fmt.Sprintf("%d of 2 machines booted once", n); !s.progressed("first boots", want) {
			t.Errorf("nobody said %q", want)
		}
	}
	if s.progressed("snapshot of", "") {
		t.Error("each machine has a line of its own, too")
	}
	if err := l.WarmUp(ctx); err != nil || s.starts() != 2 {
		t.Errorf("again: %d starts, %v", s.starts(), err)
	}
}

// A boot that no other could better is not tried again: the machine's own start has its
// error, whether all machines were warmed up before or not.
func TestHopelessBootIsNotRepeated(t *testing.T) {
	for _, before := range []bool{false, true} {
		t.Run(fmt.Sprint("warmed up before ", before), func(t *testing.T) {
			s := newStage(t, mock.Options{Warm: true, Starting: func(context.Context, vmm.Config) (mock.Faults, error) {
				return mock.Faults{Silent: true}, nil
			}, Started: func(m *mock.Machine) {
				m.Say("Kernel panic - not syncing: no root\n")
				m.End(vmm.Reset, "")
			}})
			ctx := event.WithBus(t.Context(), event.BusOf(s.context(t)))
			l, err := testHost.NewLab(ctx, LabConfig{Machines: []MachineConfig{{Name: "a", Backend: s.backend, Memory: minMemory}, {Name: "b", Backend: s.backend, Memory: minMemory}}})
			if err != nil {
				t.Fatal(err)
			}
			closeLab(t, l)
			if before {
				if err := l.WarmUp(ctx); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range l.Machines() {
				for range 2 {
					_, err := m.Succeed(ctx, "true")
					var boot *BootError
					if !errors.As(err, &boot) || !strings.Contains(boot.Reason, "no root") || StatusOf(err) != BootFailed {
						t.Errorf("%s: %v", m.Name(), err)
					}
				}
			}
			if s.starts() != 2 {
				t.Errorf("two machines booted %d times", s.starts())
			}
		})
	}
}

// What is to be written to files is of machines that have booted, or an error.
func TestSettleLab(t *testing.T) {
	defer func(limit time.Duration, booted, jobs string) {
		settleLimit, bootedScript, jobsScript = limit, booted, jobs
	}(settleLimit, bootedScript, jobsScript)
	bootedScript, jobsScript = "exit 0", "echo 7 slow.service start running"
	s := newStage(t, mock.Options{})
	l := s.lab(t, "a", "off")
	ctx := limited(t)
	prints(t, l.Machine("a"), "echo up", "up\n")
	if err := l.settle(ctx); err != nil {
		t.Error(err)
	}
	settleLimit, bootedScript = 100*time.Millisecond, "sleep 1000"
	err := l.settle(ctx)
	var late *StillBootingError
	if !errors.As(err, &late) || late.Machine != "a" || !slices.Equal(late.Units, []string{"slow.service"}) || StatusOf(err) != BootFailed {
		t.Errorf("got %v", err)
	}
	if l.Machine("off").IsUp() || s.starts() != 1 {
		t.Error("a machine that was off was started")
	}
}

// A maker is a VM that is saved, possibly to a file of its own kind.
type maker struct {
	vmm.Pauser
	own *os.File
}

func (m maker) MemoryFile(context.Context) (*os.File, error) { return m.own, nil }

func (maker) Save(_ context.Context, memory *os.File) (device []byte, err error) {
	_, err = memory.WriteString("memory")
	return []byte("device"), err
}

// A memory is a file that others cannot change, or of the kind that the VMM asks for, which the
// others get read-only.
func TestMemoryOfASavedMachine(t *testing.T) {
	own, err := os.Create(filepath.Join(t.TempDir(), "own"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []*os.File{nil, own} {
		s, err := save(t.Context(), maker{own: want})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Memory.Close()
		if want != nil && s.Memory != want {
			t.Errorf("it was saved to %s", s.Memory.Name())
		}
		b := make([]byte, 6)
		if _, err := s.Memory.ReadAt(b, 0); err != nil || string(b) != "memory" || string(s.Device) != "device" {
			t.Errorf("%q, %q, %v", b, s.Device, err)
		}
		if _, err := s.Memory.WriteAt(b, 0); (err == nil) != (want != nil) {
			t.Errorf("writing to %s: %v", s.Memory.Name(), err)
		}
	}
}
