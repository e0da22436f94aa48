package mock

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// startProcess starts a machine of processes. Without namespaces there is no such
// machine here, and Check has to say so.
func startProcess(t *testing.T, c vmm.Config) *started {
	t.Helper()
	s := &started{}
	c.Boot = &vmm.Mock{}
	b := New(Options{Started: func(m *Machine) { s.Machine = m }})
	if err := b.Check(c); err != nil {
		var missing *doctor.MissingError
		if !errors.As(err, &missing) || missing.Remedy == "" {
			t.Fatalf("a host without namespaces is %v", err)
		}
		t.Skipf("%v", err)
	}
	sup, err := supervise.Start(t.Context(), supervise.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sup.Close() })
	c.Dir = t.TempDir()
	if c.Name == "" {
		c.Name = "m"
	}
	if s.vm, err = b.Start(testContext(t), vmm.Host{Supervisor: sup}, c); err != nil {
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

func (s *started) expect(t *testing.T, command, want string) {
	t.Helper()
	r, err := s.client.Run(testContext(t), guest.Command{Script: command})
	if err != nil || r.ExitCode != 0 || string(r.Stdout) != want {
		t.Errorf("%s: exit code %d, %q, %q, %v; want %q", command, r.ExitCode, r.Stdout, r.Stderr, err, want)
	}
}

// Processes have a host name, files, processes, users' rights and a power switch
// of their own.
func TestProcess(t *testing.T) {
	name, _ := os.Hostname()
	before, _ := os.ReadFile("/etc/hosts")
	s := startProcess(t, vmm.Config{AllowReboot: true})
	ctx := testContext(t)
	info := s.ready(t)
	if err := s.client.Identity(ctx, wire.Identity{
		Hostname: "inside", MachineID: strings.Repeat("a", 32), Entropy: make([]byte, 64),
		Hosts: []wire.Host{{Name: "other", Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.2")}}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.client.SetClock(ctx); err != nil {
		t.Error(err)
	}
	if err := s.client.Settle(ctx, time.Minute); err != nil {
		t.Error(err)
	}
	for _, test := range [][2]string{
		{"hostname; cat /etc/machine-id", "inside\n" + strings.Repeat("a", 32) + "\n"},
		{"grep other /etc/hosts", "192.168.1.2 other\n"},
		{"cat /proc/1/comm; id -u; pwd", "attest-init\n0\n/tmp\n"},
		{"mkdir /etc/new; echo kept > /etc/new/kept; echo '# more' >> /etc/profile; echo kept > /root/kept; echo lost > /tmp/lost; cat /root/kept", "kept\n"},
		{"ls /home; ls -d /sys/class/net/*", "/sys/class/net/lo\n"},
		{"! touch /usr/x /etc/alternatives/x 2>/dev/null; awk 'BEGIN { print 3 }'; ! date -s @0 >/dev/null 2>&1; ! test -w /proc/sysrq-trigger || ! echo c > /proc/sysrq-trigger", "3\n"},
		{"echo to the console > /dev/console; echo to the log > /dev/kmsg", ""},
		{"sleep 1000 >/dev/null 2>&1 & echo started", "started\n"},
	} {
		s.expect(t, test[0], test[1])
	}
	if now, _ := os.Hostname(); now != name {
		t.Errorf("the host is called %s now", now)
	}
	if now, _ := os.ReadFile("/etc/hosts"); string(now) != string(before) {
		t.Errorf("the host's /etc/hosts is\n%s", now)
	}
	if err := s.client.Reboot(ctx); err != nil && !isGone(err) {
		t.Fatal(err)
	}
	again, err := s.client.ReadyAgain(ctx, info)
	if err != nil || again.BootID == info.BootID {
		t.Fatalf("%+v after %+v, %v", again, info, err)
	}
	s.expect(t, "cat /root/kept /etc/new/kept; tail -n 1 /etc/profile; ls /tmp; pgrep -c sleep || :", "kept\nkept\n# more\n0\n")
	if err := s.client.Poweroff(ctx); err != nil && !isGone(err) {
		t.Fatal(err)
	}
	if exit := s.ended(t); exit.Reason != vmm.PoweredOff {
		t.Errorf("ended with %+v", exit)
	}
	buf := make([]byte, 4096)
	n, _ := s.vm.Console().Read(buf)
	for _, want := range []string{"mock: m boots\n", "to the console\n", "to the log\n"} {
		if !strings.Contains(string(buf[:n]), want) {
			t.Errorf("the console said %q, and not %q", buf[:n], want)
		}
	}
}

func TestProcessEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*started) error
		want vmm.ExitReason
	}{
		{"kill", func(s *started) error { return s.vm.Kill() }, vmm.Killed},
		{"crash", func(s *started) error { return s.vm.(vmm.Crasher).Crash(t.Context()) }, vmm.Quit},
		{"power button", func(s *started) error { return s.vm.(vmm.PowerButton).PressPower(t.Context()) }, vmm.PoweredOff},
		{"reset", func(s *started) error { return s.vm.(vmm.Rebooter).Reset(t.Context()) }, vmm.Reset},
		{"panic", func(s *started) error { return s.client.Panic(t.Context()) }, vmm.Panicked},
		{"reboot -f", func(s *started) error {
			_, err := s.client.Start(t.Context(), guest.Command{Script: `python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x1234567)'`})
			return err
		}, vmm.Reset},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "reboot -f" {
				if _, err := os.Stat("/usr/bin/python3"); err != nil {
					t.Skip("no Python that could call reboot(2)")
				}
			}
			s := startProcess(t, vmm.Config{})
			s.ready(t)
			if err := test.end(s); err != nil && !isGone(err) {
				t.Fatal(err)
			}
			if exit := s.ended(t); exit.Reason != test.want {
				t.Errorf("ended with %+v, want %s", exit, test.want)
			}
		})
	}
}

// An agent that is killed is followed by another, in the same boot.
func TestProcessAgentKilled(t *testing.T) {
	s := startProcess(t, vmm.Config{})
	before := s.ready(t)
	s.client.Run(testContext(t), guest.Command{Script: `kill -9 $(pgrep -f attest-mock-agent)`})
	after, err := s.client.ReadyAgain(testContext(t), before)
	if err != nil || after.BootID != before.BootID {
		t.Errorf("%+v after %+v, %v", after, before, err)
	}
	s.expect(t, "echo here", "here\n")
}

// joined is one cable with a machine at each end.
type joined struct{ testLink }

func (j *joined) Stream() (*net.UnixConn, error) {
	if j.ours != nil {
		return j.ours.(*net.UnixConn), nil
	}
	return j.testLink.Stream()
}

// Two machines reach each other, one of them after a reboot, too.
func TestProcessNetwork(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TAPs on this host: %v", err)
	}
	between := &joined{}
	var machines [2]*started
	identity := func(i int) wire.Identity {
		return wire.Identity{Interfaces: []wire.Interface{{
			MAC: fmt.Sprintf("52:54:00:12:01:%02x", i+1), Name: "net1",
			Addresses: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.168.1.%d/24", i+1))},
		}}}
	}
	for i := range machines {
		mac, err := net.ParseMAC(identity(i).Interfaces[0].MAC)
		if err != nil {
			t.Fatal(err)
		}
		machines[i] = startProcess(t, vmm.Config{Name: fmt.Sprint("m", i), AllowReboot: true, NICs: []vmm.NIC{{ID: "net1", MAC: mac, Link: between}}})
		if err := machines[i].client.Identity(testContext(t), identity(i)); err != nil {
			t.Fatal(err)
		}
	}
	talk := func() {
		t.Helper()
		machines[1].expect(t, "rm -f /tmp/got; (exec 3<>/dev/tcp/192.168.1.1/9; cat <&3) 2>/dev/null || echo refused", "refused\n")
	}
	talk() // a port without a listener refuses: the frames went there and back
	before := machines[0].ready(t)
	if err := machines[0].client.Reboot(testContext(t)); err != nil && !isGone(err) {
		t.Fatal(err)
	}
	if _, err := machines[0].client.ReadyAgain(testContext(t), before); err != nil {
		t.Fatal(err)
	}
	if err := machines[0].client.Identity(testContext(t), identity(0)); err != nil {
		t.Fatal(err)
	}
	talk()
	// Without a cable not even a refusal comes.
	if err := machines[0].vm.(vmm.LinkSetter).SetLink(t.Context(), "net1", false); err != nil {
		t.Fatal(err)
	}
	machines[1].expect(t, "ip neigh flush all 2>/dev/null; timeout 0.3 bash -c ': <>/dev/tcp/192.168.1.1/9' 2>/dev/null || echo $?", "124\n")
}

// What a machine of processes cannot do is refused, and nothing is left of it.
func TestProcessRefuses(t *testing.T) {
	c := vmm.Config{Name: "m", Boot: &vmm.Mock{}, Dir: t.TempDir(), Paused: true}
	var unsupported *vmm.UnsupportedError
	if _, err := New(Options{}).Start(t.Context(), vmm.Host{}, c); !errors.As(err, &unsupported) {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	c = vmm.Config{Name: "m", Boot: &vmm.Command{Line: "run-m-vm"}}
	if err := New(Options{}).Check(c); !errors.As(err, &unsupported) {
		t.Errorf("got %v", err)
	}
}

// Whether a machine can be made is tried without a file of the host, which would stay when the
// try is killed.
func TestTryTouchesNothing(t *testing.T) {
	dir, old := t.TempDir(), time.Unix(1e9, 0)
	t.Setenv("TMPDIR", dir)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	if err := tryNamespaces(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || !info.ModTime().Equal(old) {
		t.Errorf("%s has changed (%v)", dir, err)
	}
}

// What init says before it ends has a remedy where something forbids it.
func TestRemedy(t *testing.T) {
	for said, want := range map[string]string{
		"attest-mock: mount tmpfs on /x: operation not permitted":    "namespaces",
		"attest-mock: make /usr read-only: function not implemented": "Linux 5.12",
		"attest-mock: mount overlay on /x: invalid argument":         "",
		"attest-mock: write /x/disk/etc/y: no space left on device":  "",
	} {
		if got := remedy(said); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", said, got, want)
		}
	}
}
