package microvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen has a socket whose connections are handled one after the other.
func listen(t *testing.T, handle func(n int, c net.Conn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mv")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-over
		os.RemoveAll(dir)
	})
	go func() {
		defer close(over)
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			handle(n, c)
		}
	}()
	return path
}

func TestVsock(t *testing.T) {
	path := listen(t, func(n int, c net.Conn) {
		defer c.Close()
		line, _ := bufio.NewReader(c).ReadString('\n')
		switch {
		case line != "CONNECT 1024\n":
			fmt.Fprintf(c, "what is %q\n", line)
		case n < 4: // nobody listens yet
		case n == 4:
			io.WriteString(c, "NO\n")
		default:
			io.WriteString(c, "OK 1073741967\nfirst")
		}
	})
	v := &Vsock{Path: path, Port: 1024, Gone: make(chan struct{})}
	conn, err := v.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Nothing of what the guest says is lost, and nothing of the handshake is left.
	if got, err := io.ReadAll(conn); string(got) != "first" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestVsockOfAVMMThatIsGone(t *testing.T) {
	gone := make(chan struct{})
	v := &Vsock{Path: filepath.Join(t.TempDir(), "none"), Port: 1, Gone: gone}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := v.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
	close(gone)
	if _, err := v.Dial(t.Context()); err != net.ErrClosed {
		t.Errorf("got %v", err)
	}
}

// A connection that is silent when the VMM ends does not hold anybody up.
func TestVsockEndsWithVMM(t *testing.T) {
	gone, silent := make(chan struct{}), make(chan net.Conn, 1)
	path := listen(t, func(_ int, c net.Conn) {
		select {
		case silent <- c:
			close(gone)
		default:
			c.Close()
		}
	})
	v := &Vsock{Path: path, Port: 1, Gone: gone}
	v.patience.Store(int64(time.Hour))
	if _, err := v.Dial(t.Context()); err != net.ErrClosed {
		t.Errorf("got %v", err)
	}
	(<-silent).Close()
}

// Nobody connects before the VMM has said that the guest's driver is up. Where it never says
// so, Dial ends as on a silent guest.
func TestVsockWaitsForDriver(t *testing.T) {
	up, early := make(chan struct{}), make(chan bool, 1)
	path := listen(t, func(_ int, c net.Conn) {
		defer c.Close()
		select {
		case <-up:
		default:
			early <- true
		}
		bufio.NewReader(c).ReadString('\n')
		io.WriteString(c, "OK 1\n")
	})
	v := &Vsock{Path: path, Port: 1024, Gone: make(chan struct{})}
	v.Expect(up)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := v.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "its driver is not up yet") {
		t.Errorf("got %v", err)
	}
	close(up)
	conn, err := v.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if len(early) > 0 {
		t.Error("it has connected before")
	}
	gone := make(chan struct{})
	v = &Vsock{Path: path, Port: 1024, Gone: gone}
	v.Expect(make(chan struct{}))
	close(gone)
	if conn, err := v.Dial(t.Context()); err == nil {
		conn.Close() // it may have been there at the last moment
	} else if err != net.ErrClosed {
		t.Errorf("got %v", err)
	}
}

func TestConsole(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Said
	}{
		{"", Said{}},
		{"[    5.123456] reboot: System halted\r\n", Said{Halted: true}},
		{"reboot: Power down\n", Said{Halted: true}},
		{"[ 1234.000000] reboot: Restarting system\n", Said{Restarted: true}},
		{"[    1.5] Kernel panic - not syncing: x\n[    1.6] reboot: Restarting system with command 'x'\n", Said{Panicked: true, Restarted: true}},
		{"somebody says reboot: System halted\n", Said{}},
		{"[    1.5] reboot: System halted", Said{}}, // it may go on
		{strings.Repeat("x", 5000) + "\n[    1.5] reboot: System halted\n", Said{Halted: true}},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader} {
			c := NewConsole()
			read := make(chan string)
			go func() {
				b, _ := io.ReadAll(c.Reader())
				read <- string(b)
			}()
			halts := 0
			got := c.Copy(wrap(strings.NewReader(tt.text)), func() { halts++ })
			c.End()
			if text := <-read; got != tt.want || text != tt.text || halts != map[bool]int{true: 1}[tt.want.Halted] {
				t.Errorf("%.60q %s: %+v, %d halts, read %.60q", tt.text, name, got, halts, text)
			}
		}
	}
	// Nobody reads: what is said is lost, and holds up nothing.
	c := NewConsole()
	c.Reader().Close()
	c.Copy(strings.NewReader("lost\n"), nil)
}

func TestAPI(t *testing.T) {
	dir, err := os.MkdirTemp("", "mv")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	a := NewAPI(path, "/api", func(b []byte) string { return "because of " + string(b) })
	defer a.Close()
	gone := make(chan struct{})
	close(gone)
	if err := a.Await(t.Context(), gone); err != ErrGone {
		t.Errorf("got %v", err)
	}
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := a.Await(short, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "its API socket did not appear") {
		t.Errorf("got %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var got atomic.Value
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got.Store(fmt.Sprint(r.Method, " ", r.URL.Path, " ", r.ContentLength, " ", string(b)))
		switch r.URL.Path {
		case "/api/refused":
			w.WriteHeader(400)
			io.WriteString(w, "that")
		case "/api/nonsense":
			io.WriteString(w, "{")
		default:
			io.WriteString(w, `{"state":"Running"}`)
		}
	})}
	over := make(chan struct{})
	go func() {
		defer close(over)
		server.Serve(l)
	}()
	defer func() {
		server.Close()
		<-over
	}()
	if err := a.Await(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var state struct{ State string }
	if err := a.Do(t.Context(), "PUT", "/vm", map[string]int{"a": 1}, &state); err != nil || state.State != "Running" || got.Load() != `PUT /api/vm 7 {"a":1}` {
		t.Errorf("%v, %v, %v", err, state, got.Load())
	}
	var refused *RefusedError
	if err := a.Do(t.Context(), "PUT", "/refused", nil, nil); !errors.As(err, &refused) || err.Error() != "PUT /refused: because of that (status 400)" {
		t.Errorf("got %v", err)
	}
	if err := a.Do(t.Context(), "GET", "/nonsense", nil, &state); err == nil || !strings.Contains(err.Error(), `the answer "{" makes no sense`) {
		t.Errorf("got %v", err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := a.Do(ctx, "GET", "/vm", nil, nil); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

func TestDisksArgument(t *testing.T) {
	if got := DisksArgument([]vmm.Disk{{Serial: "attest-l0"}, {Serial: "attest-rw"}}); got != "attest.disks=attest-l0,attest-rw" {
		t.Errorf("got %q", got)
	}
}

func TestVersionBefore(t *testing.T) {
	for _, tt := range []struct {
		a, b Version
		want bool
	}{
		{Version{1, 7, 0}, Version{1, 7, 0}, false},
		{Version{1, 7, 9}, Version{1, 16, 0}, true},
		{Version{2, 0, 0}, Version{1, 16, 0}, false},
		{Version{1, 16, 0}, Version{1, 16, 1}, true},
	} {
		if got := tt.a.Before(tt.b); got != tt.want {
			t.Errorf("%v before %v: %v", tt.a, tt.b, got)
		}
	}
}

// A host that gives no TAPs cannot have machines with network cards. One that has no
// descriptors left is broken.
func TestWithoutTAP(t *testing.T) {
	c := vmm.Config{Name: "m"}
	forbids := fmt.Errorf("start: %w", &tap.UnavailableError{Step: "open /dev/net/tun", Err: unix.ENOENT, Remedy: "as root: modprobe tun"})
	var unsupported *vmm.UnsupportedError
	err := withoutTAP("x", c, forbids)
	const want = "m: a network card on this host is not supported by backend x: no TAP in a network namespace: open /dev/net/tun: no such file or directory; as root: modprobe tun"
	if !errors.As(err, &unsupported) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	for _, broken := range []error{&tap.UnavailableError{Step: "open /dev/net/tun", Err: unix.EMFILE}, unix.EMFILE} {
		if err := withoutTAP("x", c, broken); err != nil {
			t.Errorf("%v became %v", broken, err)
		}
	}
}
