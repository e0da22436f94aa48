package attest

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/screen/glyph"
	"github.com/attest-vm/attest/internal/vmm"
	chfake "github.com/attest-vm/attest/internal/vmm/cloudhypervisor/fake"
	fcfake "github.com/attest-vm/attest/internal/vmm/firecracker/fake"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// Tests of this package have machines whose agent runs in the test's process
// (internal/vmm/mock): a boot takes a millisecond, and everything that can go
// wrong with a VMM can be made to.

// testHost is the host of all labs of mocks.
var testHost *Host

// TestMain opens testHost, with caches of its own.
func TestMain(m *testing.M) {
	fcfake.Main() // this binary is the VMM of TestForeignKernel, too
	chfake.Main()
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "at")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// The guests of mocks have their agents. This is one for those that take a program, which
	// cannot run there.
	agent := filepath.Join(dir, "agent")
	header, err := binary.Append(nil, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}, Version: uint32(elf.EV_CURRENT),
	})
	if err == nil {
		err = os.WriteFile(agent, header, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for name, value := range map[string]string{
		boot.BinaryEnv: agent, "XDG_CACHE_HOME": filepath.Join(dir, "cache"), "ATTEST_STATE_DIR": filepath.Join(dir, "s"),
		accel.Env: accel.KVM, // for time limits as they are written
	} {
		os.Setenv(name, value)
	}
	if testHost, err = OpenHost(context.Background(), HostConfig{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	testHost.glyphs = glyph.NewReader(consoleFonts)
	code := m.Run()
	if err := testHost.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// patience is how long a test waits for what takes milliseconds on a host that is
// not busy.
const patience = time.Minute

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A stage is a backend of mocks of one test, and what happened on it.
type stage struct {
	backend string

	mu       sync.Mutex
	machines []*mock.Machine // that were started
	records  []event.Record
	changed  chan struct{} // closed and replaced when something happens
}

var stages atomic.Int32

// newStage registers a backend for the test. At the test's end nothing of it may
// be left.
func newStage(t *testing.T, o mock.Options) *stage {
	t.Helper()
	current := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		goleak.VerifyNone(t, current)
		left, err := filepath.Glob(filepath.Join(testHost.scratch(), "*"))
		if more, _ := filepath.Glob(filepath.Join(testHost.StateDir(), "l*")); len(more)+len(left) > 0 || err != nil {
			t.Errorf("left behind: %v %v, %v", left, more, err)
		}
	})
	// Never the same name: templates of an earlier run are in the cache.
	s := &stage{backend: fmt.Sprint("mock-", t.Name(), "-", stages.Add(1)), changed: make(chan struct{})}
	o.Name, o.InProcess = s.backend, true
	started := o.Started
	o.Started = func(m *mock.Machine) {
		s.note(func() { s.machines = append(s.machines, m) })
		if started != nil {
			started(m)
		}
	}
	vmm.Register(mock.New(o))
	t.Cleanup(func() { vmm.Unregister(s.backend) })
	return s
}

func (s *stage) note(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	close(s.changed)
	s.changed = make(chan struct{})
}

// context is the test's, with a bus whose records the stage keeps.
func (s *stage) context(t *testing.T) context.Context {
	var bus event.Bus
	bus.Subscribe(func(r event.Record) { s.note(func() { s.records = append(s.records, r) }) })
	return event.WithBus(limited(t), &bus)
}

// lab makes a lab of machines with these names. It is closed with the test.
func (s *stage) lab(t *testing.T, names ...string) *Lab {
	t.Helper()
	config := LabConfig{OutDir: t.TempDir()}
	for _, n := range names {
		config.Machines = append(config.Machines, MachineConfig{Name: n, Backend: s.backend, Memory: minMemory, Boot: BootCold})
	}
	return s.open(t, config)
}

func (s *stage) open(t *testing.T, config LabConfig) *Lab {
	t.Helper()
	l, err := testHost.NewLab(s.context(t), config)
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, l)
	return l
}

func closeLab(t *testing.T, l *Lab) {
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
}

// started waits for the n-th start of all machines, from 1, and returns it.
func (s *stage) started(t *testing.T, n int) *mock.Machine {
	t.Helper()
	var m *mock.Machine
	s.await(t, fmt.Sprintf("start %d", n), func() bool {
		if len(s.machines) >= n {
			m = s.machines[n-1]
		}
		return m != nil
	})
	return m
}

// starts is how often machines were started.
func (s *stage) starts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.machines)
}

// await waits until something is so, with mu held.
func (s *stage) await(t *testing.T, what string, so func() bool) {
	t.Helper()
	ctx := limited(t)
	for {
		s.mu.Lock()
		ok, changed := so(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("waited for %s in vain; the events were %v", what, s.states())
		}
	}
}

// states are the states that machines went through, such as "a running".
func (s *stage) states() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var states []string
	for _, r := range s.records {
		if e, ok := r.Event.(event.MachineState); ok {
			states = append(states, e.Machine+" "+e.State)
		}
	}
	return states
}

// awaitState waits until a machine has been in a state.
func (s *stage) awaitState(t *testing.T, state string) {
	t.Helper()
	s.await(t, state, func() bool {
		return slices.ContainsFunc(s.records, func(r event.Record) bool {
			e, ok := r.Event.(event.MachineState)
			return ok && e.Machine+" "+e.State == state
		})
	})
}

// warnings are what was warned of.
func (s *stage) warnings() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, r := range s.records {
		if e, ok := r.Event.(event.Log); ok && e.Level == "warning" {
			all = append(all, e.Text)
		}
	}
	return strings.Join(all, "\n")
}

// progressed reports whether a work whose title begins so has said a message.
func (s *stage) progressed(title, message string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.records, func(r event.Record) bool {
		e, ok := r.Event.(event.Progress)
		return ok && strings.HasPrefix(e.Title, title) && strings.Contains(e.Message, message)
	})
}

// prints runs a command that has to print what is wanted.
func prints(t *testing.T, m *Machine, command, want string) {
	t.Helper()
	if got, err := m.Succeed(limited(t), command); err != nil || got != want {
		t.Errorf("%s: %s: %q, %v; want %q", m.Name(), command, got, err, want)
	}
}
