package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest/internal/supervise"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/qemu/qmp"
)

// patience is how long a test waits for what should take a moment, on a host
// that may be busy with something else.
const patience = 2 * time.Minute

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newHost is a supervisor for one test.
func newHost(t *testing.T) vmm.Host {
	t.Helper()
	root, err := os.MkdirTemp("", "qemu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	s, err := supervise.Start(t.Context(), supervise.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return vmm.Host{Supervisor: s, Accel: "tcg"}
}

// a guest is a machine with somebody who reads its console.
type guest struct {
	*machine
	t       *testing.T
	console *bufio.Scanner
}

func start(t *testing.T, config vmm.Config) *guest {
	t.Helper()
	return startOn(t, newHost(t), config)
}

func startOn(t *testing.T, host vmm.Host, config vmm.Config) *guest {
	t.Helper()
	config.Name, config.Dir, config.Boot.(*vmm.Hardware).Memory = "web", host.Supervisor.Dir(), 16
	vm, err := (&backend{}).Start(t.Context(), host, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		vm.Kill()
		vm.Console().Close()
	})
	return &guest{vm.(*machine), t, bufio.NewScanner(vm.Console())}
}

// startHalted starts a machine that runs and does nothing.
func startHalted(t *testing.T) *guest {
	t.Helper()
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().print("ready\n").halt().write(t)}})
	g.expect("ready")
	return g
}

// expect reads the console up to a line.
func (g *guest) expect(line string) {
	g.t.Helper()
	watch := time.AfterFunc(patience, func() { g.process.Kill() })
	defer watch.Stop()
	for g.console.Scan() {
		if g.console.Text() == line {
			return
		}
	}
	g.t.Fatalf("the console ends before %q: %v, %+v", line, g.console.Err(), g.Exit())
}

// wait waits for the end, and returns what else was on the console.
func (g *guest) wait() (rest string) {
	g.t.Helper()
	select {
	case <-g.Done():
	case <-time.After(patience):
		g.t.Fatal("it goes on")
	}
	for g.console.Scan() {
		rest += g.console.Text() + "\n"
	}
	if err := g.console.Err(); err != nil {
		g.t.Errorf("console: %v", err)
	}
	return rest
}

func (g *guest) expectExit(reason vmm.ExitReason) {
	g.t.Helper()
	g.wait()
	if got := g.Exit(); got.Reason != reason {
		g.t.Errorf("got %+v, want %q", got, reason)
	}
}

// poll waits for what gives no event.
func (g *guest) poll(what string, ok func() bool) {
	g.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			g.t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// must fails the test on an error of an operation.
func (g *guest) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

func TestExit(t *testing.T) {
	for _, tt := range []struct {
		name, machine string
		program       *program
		want          vmm.ExitReason
	}{
		{"power off", "q35", kernel().powerOff(), vmm.PoweredOff},
		{"power off", "microvm", kernel().powerOffMicroVM(), vmm.PoweredOff},
		{"reset", "q35", kernel().reset(), vmm.Reset},
		{"triple fault", "q35", kernel().tripleFault(), vmm.Reset},
		{"triple fault", "microvm", kernel().tripleFault(), vmm.Reset},
		{"panic", "q35", kernel().panicked(), vmm.Panicked},
		{"panic", "microvm", kernel().panicked(), vmm.Panicked},
	} {
		t.Run(tt.name+" "+tt.machine, func(t *testing.T) {
			g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: tt.program.write(t), Type: tt.machine}})
			g.expectExit(tt.want)
		})
	}
}

func TestKernelGetsItsCommandLine(t *testing.T) {
	for _, machine := range []string{"q35", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			g := start(t, vmm.Config{
				Boot: &vmm.Hardware{Kernel: kernel().print("hello\n").printCommandLine().print("\n").tripleFault().write(t), Cmdline: "root=/dev/null a,b", Type: machine},
			})
			g.expect("hello")
			line, _, _ := strings.Cut(g.wait(), "\n")
			if !strings.HasPrefix(line, "console=ttyS0 ") || !strings.HasSuffix(line, " root=/dev/null a,b") {
				t.Errorf("got %q", line)
			}
		})
	}
}

func TestConsoleIsTheGuestsAlone(t *testing.T) {
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().print("first\r\nlast").powerOff().write(t)}})
	if got := g.wait(); got != "first\nlast\n" { // a line for each, without its end
		t.Errorf("got %q", got)
	}
}

func TestBootFromDisk(t *testing.T) {
	disk := bootSector().print("hello\n").powerOff().writeDisk(t)
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Disks: []vmm.Disk{{Serial: "root", Path: disk, ReadOnly: true}}}})
	g.expect("hello")
	g.expectExit(vmm.PoweredOff)
}

func TestWrittenDataOutlivesKill(t *testing.T) {
	disk := bootSector().writeSector(1).print("written\n").halt().writeDisk(t)
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Disks: []vmm.Disk{{Serial: "root", Path: disk, Format: "raw"}}}})
	g.expect("written")
	g.must(g.Kill())
	data, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data[512:1024], data[:512]) {
		t.Errorf("sector 1 is not what was written: %x…", data[512:544])
	}
}

func TestSharedReadOnlyDisk(t *testing.T) {
	disk := bootSector().print("hello\n").halt().writeDisk(t)
	for range 2 { // at the same time
		start(t, vmm.Config{Boot: &vmm.Hardware{Disks: []vmm.Disk{{Serial: "root", Path: disk, ReadOnly: true}}}}).expect("hello")
	}
}

func TestKill(t *testing.T) {
	g := startHalted(t)
	if g.Exit() != (vmm.Exit{}) {
		t.Errorf("it runs, and its exit is %+v", g.Exit())
	}
	g.must(g.Kill())
	select {
	case <-g.Done():
	default:
		t.Error("not done after Kill")
	}
	if err := syscall.Kill(g.process.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the process is there: %v", err)
	}
	g.expectExit(vmm.Killed)
	g.must(g.Kill())
	for name, err := range map[string]error{
		"Reset": g.Reset(t.Context()), "PressPower": g.PressPower(t.Context()), "Pause": g.Pause(t.Context()),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "web: ") {
			t.Errorf("%s of a machine that is gone: %v", name, err)
		}
	}
	if _, err := g.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial: %v", err)
	}
	g.must(g.Crash(t.Context())) // it is what was wanted
}

func TestKillAfterTheEndChangesNothing(t *testing.T) {
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().powerOff().write(t)}})
	<-g.process.Done()
	g.must(g.Kill())
	g.expectExit(vmm.PoweredOff)
}

func TestSignals(t *testing.T) {
	for sig, want := range map[syscall.Signal]vmm.ExitReason{
		syscall.SIGTERM: vmm.Killed, // QEMU ends by itself
		syscall.SIGKILL: vmm.Killed,
		syscall.SIGSEGV: vmm.Broken, // what a bug of QEMU's looks like
	} {
		t.Run(fmt.Sprint(sig), func(t *testing.T) {
			g := startHalted(t)
			g.must(g.process.Signal(sig))
			g.expectExit(want)
		})
	}
}

func TestCrash(t *testing.T) {
	g := startHalted(t)
	g.must(g.Crash(t.Context()))
	g.expectExit(vmm.Quit)
}

func TestPressPower(t *testing.T) {
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().waitForPowerButton().powerOff().write(t)}})
	g.expect("ready")
	g.must(g.PressPower(t.Context()))
	g.expectExit(vmm.PoweredOff)
}

func TestPauseAndResume(t *testing.T) {
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().print("ready\n").count().write(t)}})
	g.expect("ready")
	g.must(g.Pause(t.Context()))
	before := g.counter()
	if after := g.counter(); after != before {
		t.Errorf("paused, and it counts on: %s, %s", before, after)
	}
	g.must(g.Pause(t.Context())) // again
	g.must(g.Resume(t.Context()))
	g.poll("it counts on", func() bool { return g.counter() != before })
}

// counter is the guest's memory, in the monitor's words.
func (g *guest) counter() string {
	out, err := g.MonitorCommand(g.t.Context(), fmt.Sprintf("xp /1wx %#x", counterAddr))
	g.must(err)
	if !strings.Contains(out, ": 0x") {
		g.t.Fatalf("the monitor says %q", out)
	}
	return out
}

func TestReset(t *testing.T) {
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().print("boot\n").halt().write(t)}, AllowReboot: true})
	for range 3 {
		g.expect("boot")
		g.must(g.Reset(t.Context()))
	}
	g.expect("boot")
	g.must(g.AllowReboot(t.Context(), false))
	g.must(g.Reset(t.Context()))
	g.expectExit(vmm.Reset)
}

func TestReboot(t *testing.T) {
	for _, machine := range []string{"q35", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			g := start(t, vmm.Config{Boot: &vmm.Hardware{Type: machine, Kernel: kernel().print("boot\n").tripleFault().write(t)}, AllowReboot: true})
			for range 3 {
				g.expect("boot")
			}
			g.must(g.AllowReboot(t.Context(), false))
			g.expectExit(vmm.Reset)
		})
	}
}

func TestAllowRebootLater(t *testing.T) {
	g := start(t, vmm.Config{Boot: &vmm.Hardware{Kernel: kernel().print("boot\n").waitForPowerButton().reset().write(t)}})
	g.expect("ready")
	g.must(g.AllowReboot(t.Context(), true))
	g.must(g.PressPower(t.Context()))
	g.expect("boot")
}

// TestSetLink has a network card on a stream, and one on packets.
func TestSetLink(t *testing.T) {
	for netdev, typ := range map[string]int{"stream": unix.SOCK_STREAM, "dgram": unix.SOCK_SEQPACKET} {
		t.Run(netdev, func(t *testing.T) { testSetLink(t, netdev, typ) })
	}
}

func testSetLink(t *testing.T, netdev string, typ int) {
	ours, theirs := typedPair(t, typ)
	go io.Copy(io.Discard, ours) // what the firmware may send
	config := vmm.Config{
		Boot: &vmm.Hardware{Kernel: kernel().print("ready\n").halt().write(t)},
		NICs: []vmm.NIC{{ID: "net1", MAC: net.HardwareAddr{0x52, 0x54, 0, 0x12, 1, 1}, Link: cable{theirs}}},
	}
	host := newHost(t)
	host.Packets = typ == unix.SOCK_SEQPACKET
	g := startOn(t, host, config)
	g.expect("ready")
	g.must(g.SetLink(t.Context(), "net1", false))
	g.must(g.SetLink(t.Context(), "net1", true))
	err := g.SetLink(t.Context(), "net2", false)
	if refused := (*qmp.Error)(nil); !errors.As(err, &refused) || refused.Class != "DeviceNotFound" {
		t.Errorf("got %v", err)
	}
	if out, err := g.MonitorCommand(t.Context(), "info network"); err != nil || !strings.Contains(out, "52:54:00:12:01:01") || !strings.Contains(out, "type="+netdev) {
		t.Errorf("got %q, %v", out, err)
	}
	g.must(g.Kill())
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the network's connection does not end with the machine: %v", err)
	}
}

func TestLossOfTheMonitor(t *testing.T) {
	g := startHalted(t)
	g.monitor.Close()
	if err := g.Pause(t.Context()); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("got %v", err)
	}
	select {
	case <-g.Done():
		t.Errorf("it is gone: %+v", g.Exit())
	default:
	}
	g.must(g.Kill())
	g.expectExit(vmm.Killed)
}

// A host without space has QEMU stop the vCPUs: the machine ends, and the host is to
// blame. The event is as QEMU 7.2 sends it.
func TestNoSpaceForADisk(t *testing.T) {
	g := startHalted(t)
	g.event(qmp.Event{Name: "BLOCK_IO_ERROR", Data: []byte(`{"device": "", "node-name": "disk0", "operation": "write", "action": "report", "nospace": false, "reason": "Input/output error"}`)})
	if out, err := g.MonitorCommand(t.Context(), "info status"); err != nil || !strings.Contains(out, "running") {
		t.Fatalf("an error that the guest sees: %q, %v", out, err)
	}
	g.event(qmp.Event{Name: "BLOCK_IO_ERROR", Data: []byte(`{"device": "", "node-name": "disk0", "operation": "write", "action": "stop", "nospace": true, "reason": "No space left on device"}`)})
	g.expectExit(vmm.Broken)
	if got := g.Exit().Detail; got != "this host cannot write its disk: No space left on device" {
		t.Errorf("got %q", got)
	}
}

func TestStuckMonitor(t *testing.T) {
	g := startHalted(t)
	g.must(g.process.Signal(syscall.SIGSTOP))
	g.poll("the process is stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.process.Pid()))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "web: ") {
		t.Errorf("got %v", err)
	}
	g.must(g.Kill())
	g.expectExit(vmm.Killed)
}

func TestSupervisorsEndIsTheMachines(t *testing.T) {
	host := newHost(t)
	vm, err := (&backend{}).Start(t.Context(), host, vmm.Config{
		Name: "web",
		Dir:  host.Supervisor.Dir(),
		Boot: &vmm.Hardware{Memory: 16, Kernel: kernel().halt().write(t)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Console().Close()
	if err := host.Supervisor.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-vm.Done():
	case <-time.After(patience):
		t.Fatal("not noticed")
	}
	if got := vm.Exit().Reason; got != vmm.Killed {
		t.Errorf("got %q", got)
	}
}

// A cable leads to one connection, or cannot be had.
type cable struct{ conn net.Conn }

var errNoCable = errors.New("there is no cable")

func (c cable) Stream() (*net.UnixConn, error) {
	if c.conn == nil {
		return nil, errNoCable
	}
	return c.conn.(*net.UnixConn), nil
}

func (c cable) Packets() (*net.UnixConn, error) { return c.Stream() }

func (c cable) TAP(*os.File) error { return errNoCable }

// connPair is a network's connection and a machine's.
// TestAgentChannelOfAMachine reaches the port of a real machine. Nobody opens it in
// the guest, so what is sent waits, and reading waits too.
func TestAgentChannelOfAMachine(t *testing.T) {
	g := startHalted(t)
	conn, err := g.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Error(err)
	}
	ended := make(chan error)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}()
	g.must(g.Kill())
	if err := <-ended; err == nil {
		t.Error("reading goes on after the machine's end")
	}
	conn.Close()
}

func connPair(t *testing.T) (ours, theirs net.Conn) { return typedPair(t, unix.SOCK_STREAM) }

func typedPair(t *testing.T, typ int) (ours, theirs net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) net.Conn {
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	return conn(fds[0]), conn(fds[1])
}
