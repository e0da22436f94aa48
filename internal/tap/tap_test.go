package tap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/network/vde"
	"github.com/attest-vm/attest/internal/supervise"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// supervisor also skips the test where it cannot be: what an ordinary user gets
// then is in TestRemedies.
func supervisor(t *testing.T) *supervise.Supervisor {
	t.Helper()
	if f, err := os.OpenFile(tunDevice, os.O_RDWR, 0); err == nil {
		f.Close()
	} else if os.Geteuid() != 0 {
		t.Skip("this user may not make a TAP here: ", err)
	}
	root, err := os.MkdirTemp("", "tap")
	if err != nil {
		t.Fatal(err)
	}
	s, err := supervise.Start(t.Context(), supervise.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(root)
	})
	return s
}

func newSwitch(t *testing.T) *network.Switch {
	s := network.New("lan", network.Options{})
	t.Cleanup(func() { s.Close() })
	return s
}

// A program runs in a namespace whose TAPs are ports.
type program struct {
	*supervise.Process
	out *os.File
}

func start(t *testing.T, sup *supervise.Supervisor, sw *network.Switch, script string, links ...Link) *program {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	t.Cleanup(func() { r.Close() })
	c := supervise.Command{Path: "sh", Args: []string{"sh", "-c", script}, Stdout: w, Stderr: w}
	p, taps, err := Start(t.Context(), sup, c, links)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range taps {
		port, err := sw.AttachTAP(t.Context(), network.NIC{Machine: script, ID: links[i].Name}, f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { port.Close() })
	}
	return &program{p, r}
}

// output waits for the end of a program that must succeed.
func (p *program) output(t *testing.T) string {
	t.Helper()
	out, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if !p.Status().Success() {
		t.Fatalf("%v: %s", p.Status(), out)
	}
	return string(out)
}

func address(number int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("192.168.1.%d/24", number)), netip.MustParsePrefix(fmt.Sprintf("2001:db8:1::%d/64", number)),
	}
}

// TestPrograms has two programs in a namespace each, who know nothing of the
// switch between them.
func TestPrograms(t *testing.T) {
	sup, sw := supervisor(t), newSwitch(t)
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x12, 1, 7}
	start(t, sup, sw, "exec sleep 1000", Link{Name: "eth1", Addresses: address(1), MAC: mac, MTU: 9000})
	p := start(t, sup, sw, `
		ping -q -c 3 -i 0.2 -W 60 192.168.1.1 &&
		ping -q -c 3 -i 0.2 -W 60 2001:db8:1::1 &&
		ping -q -c 1 -s 8900 -M do -W 60 192.168.1.1 &&
		ip neigh show 192.168.1.1 && id -u && ip -o link`,
		Link{Name: "eth1", Addresses: address(2), MTU: 9000}, Link{Name: "idle"})
	out := p.output(t)
	for _, want := range []string{"3 packets transmitted, 3 received", "1 packets transmitted, 1 received", mac.String(), "\n0\n", " lo: ", " idle: "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if n := strings.Count(out, "link/ether"); n != 2 {
		t.Errorf("%d interfaces: %s", n, out)
	}
}

// TestVMMsTAP has VDE's own client as the VMM: it opens the TAP by its name and
// carries frames between it and another switch. They come out as they went in, and
// nothing else does.
func TestVMMsTAP(t *testing.T) {
	if _, err := exec.LookPath("vde_plug2tap"); err != nil {
		t.Fatalf("%v; scripts/setup test installs it", err)
	}
	sup, near, far := supervisor(t), newSwitch(t), newSwitch(t)
	plugged := make(chan *network.Port, 1)
	hub, err := vde.Listen(context.Background(), filepath.Join(sup.Dir(), "vde"), func(ctx context.Context, p vde.Plug) (vde.Port, error) {
		port, err := far.AttachDatagram(ctx, network.NIC{Machine: "plug2tap", ID: "vde"}, p.Conn)
		plugged <- port
		return port, err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	a, b := machine(t, near), machine(t, far)
	p := start(t, sup, near, "exec vde_plug2tap -s "+hub.Dir()+" tap0", Link{Name: "tap0", ForVMM: true})
	select {
	case <-plugged:
	case <-p.Done():
		out, _ := io.ReadAll(p.out)
		t.Fatalf("%v: %s", p.Status(), out)
	}
	ends := []struct{ from, to *peer }{{a, b}, {b, a}}
	// It is on the TAP when something comes through.
	for hello := frame(1, 0x0800, "hello"); ; {
		b.send(hello)
		if got, err := a.receive(time.Second); err == nil {
			if !bytes.Equal(got, hello) {
				t.Fatalf("received %x", got)
			}
			break
		}
		select {
		case <-p.Done():
			out, _ := io.ReadAll(p.out)
			t.Fatalf("%v: %s", p.Status(), out)
		default:
		}
	}
	for i := range 50 {
		for _, e := range ends {
			for _, f := range [][]byte{
				frame(1, 0x0806, strings.Repeat("arp", 10)),
				frame(1, 0x86dd, strings.Repeat("x", 1500)),
				frame(2, 0x8100, "\x00\x2a\x08\x00"+strings.Repeat("tagged", i+1)),
				append([]byte{0x01, 0x80, 0xc2, 0, 0, 0x0e}, frame(1, 0x88cc, "lldp"+strings.Repeat(" ", 60))[6:]...),
				append([]byte{0x01, 0, 0x5e, 0, 0, 0x16}, frame(1, 0x0800, igmpReport)[6:]...),
				append([]byte{2, 0, 0, 0, 0, 9}, frame(1, 0x0800, "to a stranger"+strings.Repeat(" ", 60))[6:]...),
			} {
				e.from.send(f)
				got, err := e.to.receive(patience)
				for err == nil && bytes.HasSuffix(got, []byte("hello")) {
					got, err = e.to.receive(patience) // one of those that were not waited for
				}
				if err != nil || !bytes.Equal(got, f) {
					t.Fatalf("received %.60x, %v; want %.60x", got, err, f)
				}
			}
		}
	}
}

// igmpReport is an IPv4 packet by which a host joins 239.1.1.1 (IGMPv3).
const igmpReport = "\x46\xc0\x00\x28\x00\x00\x40\x00\x01\x02\x42\xfa\xc0\xa8\x01\x01\xe0\x00\x00\x16\x94\x04\x00\x00" +
	"\x22\x00\xea\xfc\x00\x00\x00\x01\x04\x00\x00\x00\xef\x01\x01\x01"

func frame(from byte, typ uint16, payload string) []byte {
	f := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, from}
	return append(binary.BigEndian.AppendUint16(f, typ), payload...)
}

// A peer is a VMM on a stream socket.
type peer struct {
	t    *testing.T
	conn net.Conn
}

func machine(t *testing.T, sw *network.Switch) *peer {
	_, conn, err := sw.Attach(t.Context(), network.NIC{Machine: "peer", ID: "net1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &peer{t, conn}
}

func (p *peer) send(f []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) receive(limit time.Duration) ([]byte, error) {
	p.conn.SetReadDeadline(time.Now().Add(limit))
	var prefix [4]byte
	if _, err := io.ReadFull(p.conn, prefix[:]); err != nil {
		return nil, err
	}
	f := make([]byte, binary.BigEndian.Uint32(prefix[:]))
	_, err := io.ReadFull(p.conn, f)
	return f, err
}

// The interface of a namespace can be turned off and on; its port stays.
func TestInterfaceGoesDown(t *testing.T) {
	sup, sw := supervisor(t), newSwitch(t)
	m := machine(t, sw)
	p := start(t, sup, sw, "ip link set eth1 down && echo down && read -r x < /proc/self/fd/0; exec sleep 1000", Link{Name: "eth1", Addresses: address(1)})
	if got, err := readLine(p.out); err != nil || got != "down" {
		t.Fatalf("%q, %v", got, err)
	}
	for range 10 {
		m.send(frame(1, 0x0800, "anybody there?"))
	}
	ports := sw.Ports()
	for ports[1].Stats().ToMachine.Frames < 10 {
		time.Sleep(time.Millisecond)
	}
	if err := ports[1].Err(); err != nil {
		t.Error(err)
	}
}

func readLine(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil {
			return string(line), err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
}

// The end of the supervisor, killed as it may be, is the end of the programs.
func TestNothingIsLeft(t *testing.T) {
	sup, sw := supervisor(t), newSwitch(t)
	p := start(t, sup, sw, "sleep 1000 & exec sleep 1000", Link{Name: "eth1"}, Link{Name: "tap0", ForVMM: true})
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if own, _ := os.Readlink("/proc/self/ns/net"); own == ns {
		t.Error("it is in our network namespace")
	}
	if err := sup.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if other, _ := os.Readlink("/proc/" + e.Name() + "/ns/net"); other == ns {
			t.Errorf("process %s is still in the namespace", e.Name())
		}
	}
}

func TestProgramThatDoesNotStart(t *testing.T) {
	sup := supervisor(t)
	for _, tt := range []struct {
		path string
		want error
	}{{"/no/such/program", os.ErrNotExist}, {"no-such-program", exec.ErrNotFound}, {"/etc/passwd", os.ErrPermission}} {
		_, _, err := Start(t.Context(), sup, supervise.Command{Path: tt.path}, []Link{{Name: "eth1"}})
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.path, err)
		}
	}
	var unavailable *UnavailableError
	_, _, err := Start(t.Context(), sup, supervise.Command{Path: "true"}, []Link{{Name: "eth1"}, {Name: "eth1"}})
	if !errors.As(err, &unavailable) || !errors.Is(err, unix.EBUSY) {
		t.Errorf("two interfaces of one name: %v", err)
	}
	_, _, err = Start(t.Context(), sup, supervise.Command{Path: "true"}, []Link{{Name: "a-name-that-is-too-long"}})
	if !errors.As(err, &unavailable) {
		t.Errorf("a long name: %v", err)
	}
}

func TestTry(t *testing.T) {
	t.Setenv("ATTEST_STATE_DIR", filepath.Dir(supervisor(t).Dir()))
	if err := Try(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRemedies(t *testing.T) {
	for _, tt := range []struct {
		step    string
		err     error
		setting string // that has the value
		value   string
		want    string
	}{
		{openStep, unix.ENOENT, "", "", "modprobe tun"},
		{openStep, unix.ENODEV, "", "", "--device /dev/net/tun"},
		{openStep, unix.ENOENT, "", "", "extra-sandbox-paths = /dev/net/tun"},
		{openStep, unix.EACCES, "", "", "chmod 666 /dev/net/tun"},
		{openStep, unix.EPERM, "kernel.apparmor_restrict_unprivileged_userns", "1", "--device /dev/net/tun"},
		{tapStep + "tap0", unix.EPERM, "kernel.apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{tapStep + "tap0", unix.EPERM, "", "", "--cap-add NET_ADMIN"},
		{tapStep + "tap0", unix.EBUSY, "", "", ""},
		{namespaceStep, unix.EPERM, "kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{namespaceStep, unix.EPERM, "", "", "seccomp=unconfined"},
		{namespaceStep, unix.ENOSYS, "", "", "seccomp=unconfined"},
		{namespaceStep, unix.ENOSPC, "", "", "user.max_user_namespaces"},
		{namespaceStep, unix.EMFILE, "", "", ""},
		{"make a bridge", unix.EOPNOTSUPP, "", "", "modprobe bridge"},
	} {
		got := remedy(tt.step, os.NewSyscallError("x", tt.err), func(name string) string {
			if name == tt.setting {
				return tt.value
			}
			return ""
		})
		if !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
			t.Errorf("%s: %v: %q, want %q", tt.step, tt.err, got, tt.want)
		}
	}
}
