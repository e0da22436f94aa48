package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// A cut ends a connection when that many frames have passed in one direction, with so
// many bytes of the next one. What is on its way in the other direction is lost.
type cut struct {
	toAgent bool
	frames  int
	keep    int
}

// A cable connects clients with an agent, and is cut again and again.
type cable struct {
	t     testing.TB
	agent *agent.Server
	ctx   context.Context
	serve func(context.Context, io.ReadWriteCloser) error
	all   sync.WaitGroup

	mu     sync.Mutex
	cuts   []cut
	passed int // in the direction of cuts[0], since the last cut
	made   int // connections
	hello  wire.HelloMessage
}

func (c *cable) lastHello() wire.HelloMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hello
}

// newCable starts an agent. It ends with the test, after its clients.
func newCable(t testing.TB) *cable {
	ctx, cancel := context.WithCancel(context.Background())
	c := &cable{t: t, agent: &agent.Server{}, ctx: ctx}
	c.serve = c.agent.ServeConn
	t.Cleanup(func() {
		cancel()
		c.all.Wait()
		c.agent.Close()
	})
	return c
}

func (c *cable) client(opt guest.Options) *guest.Client { return guest.New("m", c.dial, opt) }

// dial makes a connection to the agent.
func (c *cable) dial(context.Context) (net.Conn, error) {
	host, a := socketpair(c.t)
	b, theirs := socketpair(c.t)
	c.mu.Lock()
	c.made++
	c.mu.Unlock()
	c.all.Go(func() { c.serve(c.ctx, theirs) })
	end := func() {
		a.Close()
		b.Close()
	}
	c.all.Go(func() { defer end(); c.carry(true, a, b) })
	c.all.Go(func() { defer end(); c.carry(false, b, a) })
	return host, nil
}

// preamble is what a session begins with.
var preamble = func() []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Restart(wire.Frame{Type: wire.Hello})
	w.Close()
	return b.Bytes()[:16]
}()

// carry passes frames on until the connection is cut.
func (c *cable) carry(toAgent bool, from, to net.Conn) {
	dec := wire.NewDecoder(from)
	for {
		f, err := dec.Next()
		if err != nil {
			return
		}
		if f.Type == wire.Hello {
			c.mu.Lock()
			c.hello = wire.HelloMessage{}
			json.Unmarshal(f.Payload, &c.hello)
			c.mu.Unlock()
		}
		b := preamble
		if f.Type != wire.Preamble {
			b = wire.AppendFrame(nil, f)
		}
		keep, cut := c.pass(toAgent)
		if cut {
			b = b[:min(len(b), keep)]
		}
		if _, err := to.Write(b); err != nil || cut {
			return
		}
	}
}

func (c *cable) pass(toAgent bool) (keep int, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.cuts) == 0 || c.cuts[0].toAgent != toAgent {
		return 0, false
	}
	if c.passed++; c.passed <= c.cuts[0].frames {
		return 0, false
	}
	keep = c.cuts[0].keep
	c.cuts, c.passed = c.cuts[1:], 0
	return keep, true
}

func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// Whatever is cut wherever, what is under way comes to the same end as on a whole
// cable: nothing is lost, nothing happens twice.
func TestCutsChangeNothing(t *testing.T) {
	c := newCable(t)
	rapid.Check(t, func(t *rapid.T) {
		cuts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) cut {
			return cut{rapid.Bool().Draw(t, "to agent"), rapid.IntRange(0, 30).Draw(t, "frames"), rapid.IntRange(0, 40).Draw(t, "bytes")}
		}), 0, 12).Draw(t, "cuts")
		c.mu.Lock()
		c.cuts, c.passed = cuts, 0
		c.mu.Unlock()
		m := c.client(guest.Options{})
		defer m.Close(nil)
		dir, err := os.MkdirTemp("", "cuts")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		for _, err := range workload(testContext(c.t), m, dir) {
			t.Error(err)
		}
	})
}

// workload does everything at once that a client can do, and reports what comes of it.
func workload(ctx context.Context, m *guest.Client, dir string) (errs []error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	do := func(what string, fn func() error) {
		all.Go(func() {
			if err := fn(); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("%s: %w", what, err))
				mu.Unlock()
			}
		})
	}
	for i := range 3 {
		do("command", func() error {
			r, err := m.Run(ctx, guest.Command{Script: fmt.Sprintf("for i in 1 2 3 4 5 6 7 8; do echo out%d-$i; echo err%d-$i >&2; echo x >>%s/times; done; exit %d", i, i, dir, i+1)})
			var out, stderr strings.Builder
			for k := 1; k <= 8; k++ {
				fmt.Fprintf(&out, "out%d-%d\n", i, k)
				fmt.Fprintf(&stderr, "err%d-%d\n", i, k)
			}
			return same(err, r.ExitCode, i+1, r.Stdout, out.String(), r.Stderr, stderr.String())
		})
	}
	do("cat", func() error {
		input := content(1, 700_000)
		r, err := m.Run(ctx, guest.Command{Script: "cat", Stdin: bytes.NewReader(input)})
		return same(err, r.ExitCode, 0, sha256.Sum256(r.Stdout), sha256.Sum256(input))
	})
	do("until", func() error {
		r, err := m.RunUntil(ctx, guest.Command{Script: fmt.Sprintf("echo try >>%s/tries; wc -l <%s/tries; test $(wc -l <%s/tries) -ge 3", dir, dir, dir)}, guest.UntilOptions{})
		return same(err, r.Tries, 3, string(r.Stdout), "3\n")
	})
	do("copy", func() error {
		sent := content(2, 500_000)
		if err := os.WriteFile(filepath.Join(dir, "in"), sent, 0o644); err != nil {
			return err
		}
		if _, err := m.CopyIn(ctx, filepath.Join(dir, "in"), dir+"/guest/in"); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, "out"), 0o755); err != nil {
			return err
		}
		root, err := os.OpenRoot(filepath.Join(dir, "out"))
		if err != nil {
			return err
		}
		defer root.Close()
		if _, err := m.CopyOut(ctx, dir+"/guest/in", root); err != nil {
			return err
		}
		got, err := root.ReadFile("in")
		return same(err, sha256.Sum256(got), sha256.Sum256(sent))
	})
	do("wait", func() error { _, err := m.WaitFile(ctx, dir+"/flag", false); return err })
	do("flag", func() error {
		r, err := m.Run(ctx, guest.Command{Script: "sleep 0.05; touch " + dir + "/flag"})
		return same(err, r.ExitCode, 0)
	})
	do("signal", func() error {
		out, w := io.Pipe()
		p, err := m.Start(ctx, guest.Command{Argv: []string{"sh", "-c", "echo ready; exec sleep 1000"}, Stdout: w})
		if err != nil {
			return err
		}
		io.ReadFull(out, make([]byte, 6))
		p.Signal(15)
		r, err := p.Wait()
		return same(err, r.Signal, "SIGTERM")
	})
	do("terminal", func() error {
		keys, typist := io.Pipe()
		go io.WriteString(typist, "echo $((6*7))-$(tty | wc -l); exit 5\n")
		var shown screen
		r, err := m.Terminal(ctx, guest.Terminal{Input: keys, Output: &shown, Type: "dumb", Size: wire.TerminalSize{Rows: 24, Columns: 80}})
		typist.Close()
		if n := strings.Count(shown.String(), "42-1"); err == nil && n != 1 {
			err = fmt.Errorf("%d answers on the terminal: %q", n, shown.String())
		}
		return same(err, r.ExitCode, 5)
	})
	all.Wait()
	times, err := os.ReadFile(filepath.Join(dir, "times"))
	if err := same(err, len(times), 3*8*2); err != nil {
		errs = append(errs, fmt.Errorf("how often the commands ran: %w", err))
	}
	return errs
}

// same compares pairs of what there is and what is wanted.
func same(err error, pairs ...any) error {
	for i := 0; err == nil && i < len(pairs); i += 2 {
		got, want := fmt.Sprintf("%s", pairs[i]), fmt.Sprintf("%s", pairs[i+1])
		if got != want {
			err = fmt.Errorf("got %.200q, want %.200q", got, want)
		}
	}
	return err
}

// After a cut the session is the same, and greeted once.
func TestSessionOutlivesItsConnection(t *testing.T) {
	c := newCable(t)
	greetings := 0
	m := c.client(guest.Options{Greet: func(context.Context, wire.Info) error { greetings++; return nil }})
	defer m.Close(nil)
	before, err := m.Ready(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		c.mu.Lock()
		c.cuts = []cut{{frames: 0}}
		c.mu.Unlock()
		if r, err := m.Run(testContext(t), guest.Command{Script: "echo there"}); err != nil || string(r.Stdout) != "there\n" {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	after, err := m.Ready(testContext(t))
	if err != nil || after.Instance != before.Instance || greetings != 1 || c.made != 6 {
		t.Errorf("%v; instance %s and %s, %d greetings, %d connections", err, before.Instance, after.Instance, greetings, c.made)
	}
}

// Connections that were given up and come late end no session that works: one that
// says nothing, one that ends, one that says Hello and no more, and those that start
// what is over.
func TestGhosts(t *testing.T) {
	c, ctx := newCable(t), testContext(t)
	old := c.client(guest.Options{})
	if err := old.Echo(ctx); err != nil { // so that the agent knows it
		t.Fatal(err)
	}
	past := c.lastHello()
	old.Close(nil)
	m := c.client(guest.Options{})
	defer m.Close(nil)
	input, typist := io.Pipe()
	out, w := io.Pipe()
	p, err := m.Start(ctx, guest.Command{Script: "echo ready; cat", Stdin: input, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	present := c.lastHello()
	start := wire.Frame{Type: wire.Start, Payload: []byte(`{"received":0}`)}
	hello := func(h wire.HelloMessage) wire.Frame {
		p, _ := json.Marshal(h)
		return wire.Frame{Type: wire.Hello, Payload: p}
	}
	early := present
	early.Try--
	for _, frames := range [][]wire.Frame{
		nil, {start}, {hello(past)}, {hello(past), start}, {hello(early), start}, {hello(present)},
		{hello(wire.HelloMessage{Session: "new", Version: wire.Version})},
		{hello(wire.HelloMessage{Session: "new", Version: wire.Version - 1}), start},
	} {
		host, theirs := socketpair(t)
		c.all.Go(func() { c.agent.ServeConn(c.ctx, theirs) })
		w := wire.NewWriter(host)
		w.Restart(wire.Frame{Type: wire.Ping, Stream: 1})
		w.Send(frames...)
		w.Send(wire.Frame{Type: wire.Ping, Stream: 2})
		var said []byte // until the agent has read all of it
		for pong := wire.AppendFrame(nil, wire.Frame{Type: wire.Pong, Stream: 2}); !bytes.Contains(said, pong); {
			b := make([]byte, 4096)
			n, err := host.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			said = append(said, b[:n]...)
		}
		defer w.Close()
		defer host.Close() // after what follows: it stays, and says no more
	}
	io.WriteString(typist, "still here\n")
	typist.Close()
	got := make([]byte, len("still here\n"))
	if _, err := io.ReadFull(out, got); err != nil {
		t.Fatal(err)
	}
	if r, err := p.Wait(); err != nil || r.ExitCode != 0 || string(got) != "still here\n" {
		t.Errorf("%+v, %v, %q", r, err, got)
	}
}

// An agent has a place for the connections of hosts that are there, however many
// others come.
func TestManyGhosts(t *testing.T) {
	c, ctx := newCable(t), testContext(t)
	l := make(listener)
	served := make(chan struct{})
	serving, stop := context.WithCancel(ctx)
	go func() { defer close(served); c.agent.ServeListener(serving, l) }()
	defer func() { stop(); <-served }()
	m := guest.New("m", func(ctx context.Context) (net.Conn, error) {
		host, theirs := socketpair(t)
		select {
		case l <- theirs:
			return host, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, guest.Options{})
	defer m.Close(nil)
	if err := m.Echo(ctx); err != nil {
		t.Fatal(err)
	}
	var first net.Conn
	for i := range 3 * agent.MaxGhosts {
		host, theirs := socketpair(t)
		defer host.Close()
		if l <- theirs; i == 0 {
			first = host
		}
	}
	first.SetReadDeadline(time.Now().Add(patience))
	if _, err := first.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the oldest ghost: %v, want EOF", err)
	}
	if err := m.Echo(ctx); err != nil {
		t.Error(err)
	}
}

// A listener gives the connections that are sent to it.
type listener chan net.Conn

func (l listener) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	select {
	case c := <-l:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// An agent of another build is refused by name.
func TestOlderAgent(t *testing.T) {
	a, c := newScripted(t, guest.Options{})
	done := make(chan error, 2)
	ctx := testContext(t)
	go func() { done <- c.Echo(ctx) }()
	a.w.Restart(a.welcomeFrame(wire.Info{Version: wire.Version - 1, Instance: "i"}))
	wantError[*guest.VersionError](t, done, fmt.Sprintf("an older build of attest: it speaks version %d of the protocol, this build version %d", wire.Version-1, wire.Version))
	go func() { done <- c.Echo(ctx) }() // and it stays so
	wantError[*guest.VersionError](t, done, "an older build")
}

// What an agent has lost is told, and not done again.
func TestAgentThatForgot(t *testing.T) {
	for _, tt := range []struct {
		name string
		info wire.Info
		over bool
		want string
	}{
		{"another boot", wire.Info{Version: wire.Version, Instance: "new", BootID: "other"}, false, "the guest restarted"},
		{"another agent", wire.Info{Version: wire.Version, Instance: "new", BootID: "b"}, false, "another one has taken over"},
		{"a session that is over", wire.Info{Version: wire.Version, Instance: "i", BootID: "b"}, true, "has ended the session"},
		{"a guest that went back in time", wire.Info{Version: wire.Version, Instance: "i", BootID: "b"}, false, "it has 0 frames"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, c := newScripted(t, guest.Options{})
			a.welcome()
			if _, err := c.Ready(testContext(t)); err != nil {
				t.Fatal(err)
			}
			done := run(t, c)
			f := a.expect(wire.Open)
			a.w.Send(wire.Frame{Type: wire.Ack, Stream: f.Seq}, wire.Frame{Type: wire.Announce, Payload: []byte(`{"instance":"i","boot_id":"b"}`)})
			w := a.welcomeFrame(tt.info)
			if tt.over {
				w.Payload = append(bytes.TrimSuffix(w.Payload, []byte("}")), `,"over":true}`...)
			}
			a.w.Restart(w)
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
			case <-testContext(t).Done():
				t.Fatal("nothing happened")
			}
		})
	}
}
