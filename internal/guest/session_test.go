package guest_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"net"
	"os"
	"os/signal"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

func TestMain(m *testing.M) {
	// What this process inherited is not for the commands of its agent.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		panic(err)
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP) // which nohup(1) has ignored
	flag.Parse()
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		checks.Value.Set("10") // each runs commands
	}
	goleak.VerifyTestMain(m)
}

// A scripted agent says what a test wants it to say.
type scripted struct {
	t    *testing.T
	conn net.Conn
	dec  *wire.Decoder
	w    *wire.Writer
	seq  uint32 // of the session's last frame
}

func newScripted(t *testing.T, opt guest.Options) (*scripted, *guest.Client) {
	t.Helper()
	host, theirs := socketpair(t)
	a := &scripted{t: t, conn: theirs, dec: wire.NewDecoder(theirs), w: wire.NewWriter(theirs)}
	c := guest.New("m", dialOnce(host), opt)
	t.Cleanup(func() {
		c.Close(nil)
		theirs.Close()
		a.w.Close()
	})
	return a, c
}

// expect reads up to the next frame of a type.
func (a *scripted) expect(typ wire.Type) wire.Frame {
	a.t.Helper()
	a.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		f, err := a.dec.Next()
		if err != nil {
			a.t.Fatalf("waiting for a %s frame: %v", typ, err)
		}
		if f.Type == typ {
			return f
		}
	}
}

// welcome answers the next Hello.
func (a *scripted) welcome() {
	a.t.Helper()
	a.w.Restart(a.welcomeFrame(wire.Info{Version: wire.Version, Instance: "i", BootID: "b"}))
}

// welcomeFrame is the answer to the next Hello.
func (a *scripted) welcomeFrame(info wire.Info) wire.Frame {
	a.t.Helper()
	var hello wire.HelloMessage
	if err := json.Unmarshal(a.expect(wire.Hello).Payload, &hello); err != nil {
		a.t.Fatal(err)
	}
	a.seq = 0
	p, _ := json.Marshal(wire.WelcomeMessage{Session: hello.Session, Try: hello.Try, Info: info})
	return wire.Frame{Type: wire.Welcome, Payload: p}
}

// send sends a frame, with its number if it has one.
func (a *scripted) send(f wire.Frame) {
	if f.Type >= wire.Open {
		a.seq++
		f.Seq = a.seq
	}
	a.w.Send(f)
}

// run starts a command and says how it ended.
func run(t *testing.T, c *guest.Client) <-chan error {
	done := make(chan error, 1)
	ctx := testContext(t)
	go func() {
		_, err := c.Run(ctx, guest.Command{Script: "true"})
		done <- err
	}()
	return done
}

func wantError[T error](t *testing.T, done <-chan error, text string) {
	t.Helper()
	var want T
	select {
	case err := <-done:
		if !errors.As(err, &want) || !strings.Contains(err.Error(), text) || !strings.HasPrefix(err.Error(), "m: ") {
			t.Errorf("error %v (%T), want %T with %q", err, err, want, text)
		}
	case <-time.After(patience):
		t.Fatal("nothing happened")
	}
}

func TestGarbageInASession(t *testing.T) {
	a, c := newScripted(t, guest.Options{})
	a.welcome()
	done := run(t, c)
	a.expect(wire.Open)
	a.conn.Write([]byte("[    1.234567] kernel: this is not a frame\n"))
	wantError[*guest.ProtocolError](t, done, "garbage on the guest channel")

	a.welcome() // the client has begun a new session by itself
	done = run(t, c)
	f := a.expect(wire.Open)
	a.send(wire.Frame{Type: wire.Result, Stream: f.Stream, Payload: []byte(`{"result":{"exit_code":0}}`)})
	if err := <-done; err != nil {
		t.Errorf("after the garbage: %v", err)
	}
}

func TestNothingButGarbage(t *testing.T) {
	a, c := newScripted(t, guest.Options{})
	done := make(chan error, 1)
	ctx := testContext(t)
	go func() {
		_, err := c.Ready(ctx)
		done <- err
	}()
	stop := make(chan struct{})
	defer func() { <-stop }()
	go func() {
		defer close(stop)
		for range 64 { // ends early when the client is closed
			if _, err := a.conn.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	go func() { // what the client says has to go somewhere
		for {
			if _, err := a.conn.Read(make([]byte, 4096)); err != nil {
				return
			}
		}
	}()
	wantError[*guest.ProtocolError](t, done, "without a preamble")
	c.Close(nil)
	a.conn.Close()
}

func TestFramesThatBreakTheRules(t *testing.T) {
	for _, f := range []wire.Frame{
		{Type: wire.Result, Stream: 99, Payload: []byte("{}")},
		{Type: wire.Open, Stream: 99, Payload: []byte("x\x00{}\x00")},
		{Type: wire.Pong, Stream: 77},
		{Type: wire.Welcome, Payload: []byte("not JSON")},
		{Type: wire.Result, Stream: 1, Payload: []byte("not JSON")},
	} {
		a, c := newScripted(t, guest.Options{})
		a.welcome()
		done := run(t, c)
		a.expect(wire.Open)
		a.send(f)
		wantError[*guest.ProtocolError](t, done, "")
	}
}

func TestRebootInASession(t *testing.T) {
	a, c := newScripted(t, guest.Options{})
	a.welcome()
	done := run(t, c)
	a.expect(wire.Open)
	// The old agent dies in the middle of a frame.
	a.conn.Write(wire.AppendFrame(nil, wire.Frame{Type: wire.Data, Channel: wire.Stdout, Stream: 1, Payload: make([]byte, 1000)})[:200])
	a.w.Restart(wire.Frame{Type: wire.Announce, Payload: []byte(`{"instance":"new"}`)})
	wantError[*guest.RestartedError](t, done, "the guest restarted")
	a.welcome()
	if _, err := c.Ready(testContext(t)); err != nil {
		t.Error(err)
	}
}

// An agent that was killed says by its boot id that the guest goes on.
func TestAgentKilled(t *testing.T) {
	a, c := newScripted(t, guest.Options{})
	a.welcome()
	done := run(t, c)
	a.expect(wire.Open)
	a.w.Restart(wire.Frame{Type: wire.Announce, Payload: []byte(`{"instance":"new","boot_id":"b"}`)})
	wantError[*guest.AgentError](t, done, "another one has taken over")
}

func TestUnresponsive(t *testing.T) {
	a, c := newScripted(t, guest.Options{PingAfter: 20 * time.Millisecond, PingTimeout: 100 * time.Millisecond})
	a.welcome()
	done := run(t, c)
	first := a.expect(wire.Open).Stream
	ping := a.expect(wire.Ping) // a slow guest answers this
	a.send(wire.Frame{Type: wire.Pong, Stream: ping.Stream})
	a.expect(wire.Ping) // a dead one does not
	wantError[*guest.UnresponsiveError](t, done, "does not respond")

	// It was only frozen: the session goes on.
	a.send(wire.Frame{Type: wire.Pong, Stream: ping.Stream})
	a.send(wire.Frame{Type: wire.Result, Stream: first, Payload: []byte(`{}`)})
	done = run(t, c)
	f := a.expect(wire.Open)
	a.send(wire.Frame{Type: wire.Result, Stream: f.Stream, Payload: []byte(`{"result":{"exit_code":0}}`)})
	if err := <-done; err != nil {
		t.Errorf("after it woke up: %v", err)
	}
}

func TestCloseTellsEverybodyWhy(t *testing.T) {
	cause := errors.New("the VMM exited: guest panicked")
	a, c := newScripted(t, guest.Options{})
	waiting := make(chan error, 1)
	ctx := testContext(t)
	go func() {
		_, err := c.Ready(ctx)
		waiting <- err
	}()
	a.welcome()
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
	done := run(t, c)
	a.expect(wire.Open)
	a.conn.Close() // the VMM's end goes first
	c.Close(cause)
	if err := <-done; !errors.Is(err, cause) || err.Error() != "m: the VMM exited: guest panicked" {
		t.Errorf("under way: %v", err)
	}
	if _, err := c.Ready(testContext(t)); !errors.Is(err, cause) {
		t.Errorf("later: %v", err)
	}
}

func TestChannelBreaks(t *testing.T) {
	a, c := newScripted(t, guest.Options{Reconnect: 20 * time.Millisecond})
	a.welcome()
	done := run(t, c)
	a.expect(wire.Open)
	a.conn.Close()
	wantError[*guest.DisconnectedError](t, done, "the guest channel is closed")
}

func TestReadySaysWhatItWaitsFor(t *testing.T) {
	_, c := newScripted(t, guest.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Ready(ctx)
	var wait *guest.WaitError
	if !errors.As(err, &wait) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the agent has not answered yet") {
		t.Errorf("error %v", err)
	}
}

// A new client finds an agent in mid-session, as after a restore from a
// snapshot: what the old session ran is dead, and the new one works.
func TestNewHostOldAgent(t *testing.T) {
	host, theirs := socketpair(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := agent.Server{}
		defer s.Close()
		s.Serve(ctx, theirs)
	}()
	defer func() { cancel(); <-done }()

	// The old host is gone in the middle of a frame; nobody closed anything.
	dec, w := wire.NewDecoder(host), wire.NewWriter(host)
	hello, _ := json.Marshal(wire.HelloMessage{Session: "old", Version: wire.Version})
	w.Restart(wire.Frame{Type: wire.Hello, Payload: hello})
	for {
		if f, err := dec.Next(); err != nil {
			t.Fatal(err)
		} else if f.Type == wire.Welcome {
			break
		}
	}
	w.Send(wire.Frame{Type: wire.Start, Payload: []byte("{}")})
	old := wire.NewMux(nil)
	old.Attach(w, 0)
	stream, err := old.Open(wire.OpExec, wire.ExecRequest{}, []byte("echo started; yes"))
	if err != nil {
		t.Fatal(err)
	}
	for { // it floods the channel
		f, err := dec.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == wire.Data {
			break
		}
	}
	w.Close()
	host.Write(wire.AppendFrame(nil, wire.Frame{Type: wire.Data, Channel: wire.Stdin, Payload: make([]byte, 100)})[:50])
	old.Close(errors.New("gone"))
	<-stream.Done()

	c := guest.New("m", dialOnce(host), guest.Options{})
	defer c.Close(nil)
	r, err := c.Run(testContext(t), guest.Command{Script: "echo new"})
	if err != nil || string(r.Stdout) != "new\n" {
		t.Fatalf("%+v, %v", r, err)
	}
}
