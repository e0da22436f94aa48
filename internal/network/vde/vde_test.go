package vde

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/network"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// A lan is a switch with a VDE socket.
type lan struct {
	*network.Switch
	hub *Hub
	mu  sync.Mutex
	log []string // guarded by mu
}

func newLAN(t testing.TB) *lan {
	l := &lan{Switch: network.New("lan", network.Options{})}
	var bus event.Bus
	bus.Subscribe(func(r event.Record) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if e, ok := r.Event.(event.Log); ok {
			l.log = append(l.log, e.Text)
		}
	})
	var err error
	l.hub, err = Listen(event.WithBus(context.Background(), &bus), filepath.Join(shortDir(t), "vde"), l.plug)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.hub.Close(); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(l.hub.Dir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the directory is still there: %v", err)
		}
	})
	return l
}

func (l *lan) plug(ctx context.Context, p Plug) (Port, error) {
	return l.AttachDatagram(ctx, network.NIC{Machine: p.Description, ID: fmt.Sprint("vde", p.Number)}, p.Conn)
}

func (l *lan) logged() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.log, "\n")
}

// shortDir is a temporary directory whose name leaves room for sockets.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A client is a program that uses libvdeplug.
type client struct {
	t       testing.TB
	control *net.UnixConn
	data    *net.UnixConn
}

// plugIn does what vde_open does.
func plugIn(t testing.TB, dir, description string) *client {
	t.Helper()
	c := &client{t: t, control: dial(t, dir)}
	path := filepath.Join(dir, fmt.Sprintf(".%05d-%05d", os.Getpid(), nextSocket()))
	c.data = listenData(t, path)
	c.control.Write(encode(path, description))
	answer := make([]byte, 110)
	if _, err := io.ReadFull(c.control, answer); err != nil {
		t.Fatal(err)
	}
	c.connect(text(answer[2:]))
	return c
}

func (c *client) connect(path string) {
	raw, err := c.data.SyscallConn()
	if err != nil {
		c.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.Connect(int(fd), &unix.SockaddrUnix{Name: path}) })
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) close() {
	c.control.Close()
	c.data.Close()
}

func dial(t testing.TB, dir string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "ctl")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func listenData(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

var nextSocket = func() func() int {
	n := 0
	return func() int { n++; return n }
}()

// encode is a request.
func encode(path, description string) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 0xfeedface)
	b = binary.NativeEndian.AppendUint32(b, 3)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint16(b, unix.AF_UNIX)
	b = append(b, path...)
	b = append(b, make([]byte, 122-len(b))...)
	return append(b, description...)
}

func (c *client) send(f []byte) {
	c.t.Helper()
	if _, err := c.data.Write(f); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) expect(want []byte) {
	c.t.Helper()
	buf := make([]byte, 70000)
	n, err := c.data.Read(buf)
	if err != nil || !bytes.Equal(buf[:n], want) {
		c.t.Fatalf("received %.40q, %v; want %.40q", buf[:n], err, want)
	}
}

// A machine is a VMM on a stream socket.
type machine struct {
	*network.Port
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func (l *lan) machine(t testing.TB) *machine {
	port, conn, err := l.Attach(t.Context(), network.NIC{Machine: "stream", ID: "net1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &machine{port, t, conn, bufio.NewReader(conn)}
}

func (m *machine) send(f []byte) {
	m.t.Helper()
	if _, err := m.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) expect(want []byte) {
	m.t.Helper()
	var prefix [4]byte
	_, err := io.ReadFull(m.in, prefix[:])
	got := make([]byte, binary.BigEndian.Uint32(prefix[:]))
	if err == nil {
		_, err = io.ReadFull(m.in, got)
	}
	if err != nil || !bytes.Equal(got, want) {
		m.t.Fatalf("received %.40q, %v; want %.40q", got, err, want)
	}
}

// frame is a broadcast.
func frame(from byte, text string) []byte {
	return append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, from, 0x08, 0x00}, text...)
}

func TestClientsTalkToMachines(t *testing.T) {
	l := newLAN(t)
	m := l.machine(t)
	a, b := plugIn(t, l.hub.Dir(), "QEMU user=me PID=1"), plugIn(t, l.hub.Dir(), "")
	for i := range 100 {
		hello := frame(1, strings.Repeat("hello", i*90))
		a.send(hello)
		m.expect(hello)
		b.expect(hello)
		answer := frame(2, strings.Repeat("answer", i))
		m.send(answer)
		a.expect(answer)
		b.expect(answer)
	}
	if got := l.Ports()[1].NIC(); got.Machine != "QEMU user=me PID=1" || got.ID != "vde1" {
		t.Errorf("the port is %+v", got)
	}
}

// TestClientGoesAway: killed programs close nothing in order and remove nothing.
func TestClientGoesAway(t *testing.T) {
	l := newLAN(t)
	for range 3 {
		c := plugIn(t, l.hub.Dir(), "")
		hello := frame(1, "hello")
		m := l.machine(t)
		c.send(hello)
		m.expect(hello)
		port := l.Ports()[0]
		m.Close()
		c.control.Close() // its data socket stays open, and the file there
		<-port.Done()
		l.awaitSockets(t, 1)
	}
	if log := l.logged(); log != "" {
		t.Errorf("logged: %s", log)
	}
}

// awaitSockets waits until there are n files in the hub's directory.
func (l *lan) awaitSockets(t testing.TB, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		files, err := os.ReadDir(l.hub.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if len(files) == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d files, want %d: %v", len(files), n, files)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestClientThatDoesNotRead(t *testing.T) {
	l := newLAN(t)
	plugIn(t, l.hub.Dir(), "deaf")
	m, other := l.machine(t), plugIn(t, l.hub.Dir(), "")
	for l.Ports()[0].Stats().ToMachine.Lost.Overrun == 0 {
		f := frame(1, strings.Repeat("x", 9000))
		m.send(f)
		other.expect(f)
	}
}

func TestPortIsClosed(t *testing.T) {
	l := newLAN(t)
	c := plugIn(t, l.hub.Dir(), "")
	l.Ports()[0].Close()
	if n, err := c.control.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client's control connection: %d, %v", n, err)
	}
	l.awaitSockets(t, 1)
}

func TestRefusedClients(t *testing.T) {
	l := newLAN(t)
	elsewhere := filepath.Join(shortDir(t), ".1-1")
	listenData(t, elsewhere)
	inside := func(name string) string { return l.hub.Dir() + "/" + name }
	good := encode(inside(".1-1"), "x")
	change := func(at int, to byte) []byte { b := bytes.Clone(good); b[at] = to; return b }
	for name, tt := range map[string]struct {
		request []byte
		want    string
	}{
		"garbage":           {bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 100), "not VDE's plug protocol: it begins with 0x20544547"},
		"short":             {good[:60], "a request of 60 bytes"},
		"version":           {change(4, 2), "version 2"},
		"type":              {change(8, 7), "unknown type 7"},
		"family":            {change(12, 2), "address family 2"},
		"no path":           {encode("", "x"), "without a path"},
		"nobody there":      {encode(inside(".1-1"), "x"), "connect to its data socket"},
		"elsewhere":         {encode(elsewhere, "x"), "not in the directory"},
		"relative":          {encode("../.1-1", "x"), "not in the directory"},
		"nowhere":           {encode("/no/such/dir/.1-1", "x"), "not in the directory"},
		"the hub's own":     {encode(inside("ctl"), "x"), "does not have a client's name"},
		"the directory":     {encode(inside("."), "x"), "does not have a client's name"},
		"the directory's":   {encode(inside(".."), "x"), "does not have a client's name"},
		"a path to the end": {encode(inside("."+strings.Repeat("y", 108-len(l.hub.Dir())-len("/."))), "x"), "connect to its data socket"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, l.hub.Dir())
			conn.Write(tt.request)
			conn.CloseWrite()
			if b, err := io.ReadAll(conn); len(b) > 0 {
				t.Errorf("it got an answer: %q, %v", b, err)
			}
			deadline := time.Now().Add(patience)
			for !strings.Contains(l.logged(), tt.want) {
				if time.Now().After(deadline) {
					t.Fatalf("logged %q, want %q", l.logged(), tt.want)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	c, m := plugIn(t, l.hub.Dir(), ""), l.machine(t)
	c.send(frame(1, "still here"))
	m.expect(frame(1, "still here"))
}

// A client that tries again and again fills no report: what goes wrong is told for the
// first ones, and counted.
func TestWarningsAreBounded(t *testing.T) {
	l := newLAN(t)
	const clients = maxWarnings + 1 + 150
	for range clients {
		conn := dial(t, l.hub.Dir())
		conn.Write(bytes.Repeat([]byte("garbage "), 100))
		conn.CloseWrite()
		io.ReadAll(conn) // to the end of the connection
		conn.Close()
	}
	for deadline := time.Now().Add(patience); l.hub.warned.Load() < clients; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("of %d clients %d were served", clients, l.hub.warned.Load())
		}
	}
	if err := l.hub.Close(); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.log); n != maxWarnings+2 || !strings.HasSuffix(l.log[n-1], "something went wrong with 150 more clients") {
		t.Errorf("%d lines, the last: %s", n, l.log[n-1])
	}
}

func TestCloseWithClients(t *testing.T) {
	l := newLAN(t)
	a := plugIn(t, l.hub.Dir(), "")
	silent := dial(t, l.hub.Dir()) // has not said what it wants
	if err := l.hub.Close(); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{a.control, silent} {
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes", n)
		}
	}
	if n := len(l.Ports()); n != 0 {
		t.Errorf("%d ports are left", n)
	}
}

func TestDirectory(t *testing.T) {
	l := newLAN(t)
	if info, err := os.Stat(l.hub.Dir()); err != nil || info.Mode() != os.ModeDir|0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	var long *DirTooLongError
	dir := filepath.Join(shortDir(t), strings.Repeat("x", 90))
	if _, err := Listen(t.Context(), dir, nil); !errors.As(err, &long) || !strings.Contains(err.Error(), "ATTEST_STATE_DIR") {
		t.Errorf("too long a name: %v", err)
	}
	if _, err := Listen(t.Context(), l.hub.Dir(), nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("a directory that is there: %v", err)
	}
}

// TestLongestDirectory holds the arithmetic to what the kernel says.
func TestLongestDirectory(t *testing.T) {
	dir := shortDir(t)
	dir += "/" + strings.Repeat("d", maxDir-len(dir)-1)
	h, err := Listen(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	listenData(t, dir+"/.1234567-00000")
}

// TestVDEPlug talks to a machine through VDE's own client.
func TestVDEPlug(t *testing.T) {
	path, err := exec.LookPath("vde_plug")
	if err != nil {
		t.Fatalf("%v; scripts/setup test installs it", err)
	}
	l := newLAN(t)
	m := l.machine(t)
	cmd := exec.Command(path, l.hub.Dir())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	// Its standard streams carry each frame after its length in two bytes.
	hello := frame(1, "hello from vde_plug")
	if _, err := in.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(hello))), hello...)); err != nil {
		t.Fatal(err)
	}
	m.expect(hello)
	if got := l.Ports()[1].NIC().Machine; !strings.HasPrefix(got, "vdeplug: user=") {
		t.Errorf("it says that it is %q", got)
	}
	answer := frame(2, "hello, vde_plug")
	m.send(answer)
	got := make([]byte, 2+len(answer))
	if _, err := io.ReadFull(out, got); err != nil || !bytes.Equal(got[2:], answer) {
		t.Errorf("it received %q, %v", got, err)
	}
	port := l.Ports()[1]
	cmd.Process.Kill()
	<-port.Done()
	l.awaitSockets(t, 1)
}

func FuzzParseRequest(f *testing.F) {
	f.Add(encode("/run/x/.1-1", "QEMU user=root PID=12"))
	f.Add(encode(strings.Repeat("p", 108), strings.Repeat("d", 128)))
	f.Add([]byte{0xce, 0xfa, 0xed, 0xfe})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		if r.socket == "" || len(r.socket) > 108 || len(r.description) > 128 || strings.ContainsRune(r.socket+r.description, 0) {
			t.Errorf("%+v of %q", r, b)
		}
	})
}

// FuzzHandshake sends anything to a hub that goes on serving.
func FuzzHandshake(f *testing.F) {
	l := newLAN(f)
	f.Add(encode(l.hub.Dir()+"/.1-1", "x"), uint8(3))
	f.Add(encode(l.hub.Dir()+"/ctl", "x"), uint8(200))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		conn := dial(t, l.hub.Dir())
		defer conn.Close()
		first := b[:min(len(b), int(cut))]
		conn.Write(first)
		conn.Write(b[len(first):])
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
		c := plugIn(t, l.hub.Dir(), "")
		defer c.close()
		m := l.machine(t)
		defer m.Close()
		c.send(frame(1, "still here"))
		m.expect(frame(1, "still here"))
	})
}
