package guest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// impatient is a client for which nothing may take long.
var impatient = guest.Options{
	PingAfter: 20 * time.Millisecond, PingTimeout: 60 * time.Millisecond, LastWords: 5 * time.Millisecond,
	Grace: 20 * time.Millisecond, AgentTimeout: 100 * time.Millisecond, GreetTimeout: 100 * time.Millisecond, Stall: 50 * time.Millisecond,
}

// welcomeAnd answers Hello, and sends frames in the same write.
func (a *scripted) welcomeAnd(frames ...wire.Frame) {
	a.t.Helper()
	var buf bytes.Buffer
	w := wire.NewWriter(&buf)
	w.Restart(a.welcomeFrame(wire.Info{Version: wire.Version, Instance: "i"}))
	for _, f := range frames {
		f.Seq = 1
		w.Send(f)
	}
	w.Close()
	a.conn.Write(buf.Bytes())
}

// A session that ends while its guest is greeted ends the greeting, too: Close waits
// for no guest.
func TestSessionEndsInTheGreeting(t *testing.T) {
	for _, f := range []wire.Frame{
		{Type: wire.Pong, Stream: 77},
		{Type: wire.Result, Stream: 1, Payload: []byte("{}")},
		{Type: wire.Open, Stream: 99, Payload: []byte("x\x00{}\x00")},
		{Type: wire.Announce, Payload: []byte(`{"instance":"new"}`)},
	} {
		t.Run(f.Type.String(), func(t *testing.T) {
			var c *guest.Client
			over, greeted := make(chan struct{}), make(chan error, 1)
			opt := guest.Options{Greet: func(ctx context.Context, _ wire.Info) error {
				<-over
				<-ctx.Done()
				err := c.Identity(ctx, wire.Identity{Hostname: "m"})
				greeted <- err
				return err
			}}
			a, made := newScripted(t, opt)
			c = made
			close(over)
			a.welcomeAnd(f)
			if err := <-greeted; err == nil || !strings.HasPrefix(err.Error(), "m: ") {
				t.Errorf("error %v", err)
			}
			closed := make(chan struct{})
			go func() { c.Close(nil); close(closed) }()
			select {
			case <-closed:
			case <-time.After(patience):
				t.Fatal("Close waits for the guest")
			}
		})
	}
}

// An agent that is there and does not do its work ends with an error that says what
// was seen of it, though its guest answers pings.
func TestOverdue(t *testing.T) {
	answerPings := func(a *scripted) {
		for {
			f, err := a.dec.Next()
			if err != nil {
				return
			}
			if f.Type == wire.Ping {
				a.send(wire.Frame{Type: wire.Pong, Stream: f.Stream})
			}
		}
	}
	announce := wire.Frame{Type: wire.Announce, Payload: []byte(`{"instance":"i"}`)}
	for _, tt := range []struct {
		name  string
		agent func(*scripted)
		do    func(context.Context, *guest.Client) error
		want  []string
	}{
		{"never a result", func(a *scripted) { a.welcome(); answerPings(a) }, func(ctx context.Context, c *guest.Client) error {
			_, err := c.Run(ctx, guest.Command{Script: "true", Timeout: 100 * time.Millisecond})
			return err
		}, []string{"exec: ", "last seen: a pong frame, "}},
		{"never a last attempt", func(a *scripted) { a.welcome(); answerPings(a) }, func(ctx context.Context, c *guest.Client) error {
			_, err := c.RunUntil(ctx, guest.Command{Script: "true"}, guest.UntilOptions{Timeout: 100 * time.Millisecond})
			return err
		}, []string{"until: ", "last seen: a pong frame, "}},
		{"a copy that stands still", func(a *scripted) { a.welcome(); answerPings(a) }, func(ctx context.Context, c *guest.Client) error {
			_, err := c.CopyOut(ctx, "/x", rootOf(t, t.TempDir()))
			return err
		}, []string{"get-tar: "}},
		{"never an identity", func(a *scripted) { a.welcome(); answerPings(a) }, func(ctx context.Context, c *guest.Client) error {
			return c.Identity(ctx, wire.Identity{})
		}, []string{"identity: "}},
		{"never a welcome", func(a *scripted) { a.w.Restart(announce); answerPings(a) }, func(ctx context.Context, c *guest.Client) error {
			_, err := c.Ready(ctx)
			return err
		}, []string{"wait for the agent: ", "announced itself 1 times"}},
		{"only announcements", func(a *scripted) {
			for {
				if _, err := a.conn.Read(make([]byte, 4096)); err != nil {
					return
				}
				a.w.Restart(announce)
			}
		}, func(ctx context.Context, c *guest.Client) error {
			_, err := c.Ready(ctx)
			return err
		}, []string{"wait for the agent: ", "announced itself"}},
		{"nothing at all", func(a *scripted) { a.expect(wire.Hello) }, func(ctx context.Context, c *guest.Client) error {
			return c.Echo(ctx)
		}, []string{"wait for the agent: ", "has not answered yet"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opt := impatient
			opt.PingTimeout = time.Minute
			a, c := newScripted(t, opt)
			var agent sync.WaitGroup
			agent.Go(func() { tt.agent(a) })
			err := tt.do(testContext(t), c)
			var late *guest.OverdueError
			if !errors.As(err, &late) {
				t.Errorf("error %v (%T), want an OverdueError", err, err)
			}
			for _, want := range append(tt.want, "m: ") {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q in it", err, want)
				}
			}
			c.Close(nil)
			agent.Wait()
		})
	}
}

// A machine that stands still on purpose has its time later.
func TestLimitsStandStillWithTheGuest(t *testing.T) {
	opt := impatient
	opt.PingTimeout = time.Minute
	a, c := newScripted(t, opt)
	a.welcome()
	if _, err := c.Ready(testContext(t)); err != nil {
		t.Fatal(err)
	}
	c.Hold(true)
	done := make(chan error, 1)
	go func() { done <- c.Echo(testContext(t)) }()
	f := a.expect(wire.Open)
	select {
	case err := <-done:
		t.Fatalf("ended while the guest stood still: %v", err)
	case <-time.After(4 * opt.Stall): // more would prove no more
	}
	a.send(wire.Frame{Type: wire.Result, Stream: f.Stream, Payload: []byte(`{}`)})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Numbers that no command has do not reach anybody.
func TestImplausibleResults(t *testing.T) {
	for _, result := range []string{
		`{"exit_code":-9223372036854775808}`, `{"exit_code":256}`, `{"exit_code":1,"duration":-1}`,
		`{"exit_code":0,"pid":-1}`, `{"exit_code":129,"signal":"\u001b[2J"}`, `{"exit_code":"<script>"}`,
	} {
		a, c := newScripted(t, guest.Options{})
		a.welcome()
		done := make(chan error, 1)
		go func() {
			r, err := c.Run(testContext(t), guest.Command{Script: "true"})
			if r.ExitCode != 0 || r.Signal != "" || r.Pid != 0 {
				t.Errorf("%s: got %+v", result, r)
			}
			done <- err
		}()
		f := a.expect(wire.Open)
		a.send(wire.Frame{Type: wire.Result, Stream: f.Stream, Payload: []byte(`{"result":` + result + `}`)})
		wantError[*guest.ProtocolError](t, done, "exec: ")
	}
}

// What an agent says of a failure does nothing to a terminal.
func TestErrorsAreHarmless(t *testing.T) {
	a, c := newScripted(t, guest.Options{})
	a.welcome()
	done := make(chan error, 1)
	go func() { done <- c.Echo(testContext(t)) }()
	f := a.expect(wire.Open)
	a.send(wire.Frame{Type: wire.Result, Stream: f.Stream, Payload: []byte(`{"error":{"kind":"failed","message":"\u001b]0;title\u0007no \u202efile\u0000"}}`)})
	if err := <-done; err == nil || err.Error() != `m: echo: no \u202efile\x00` {
		t.Errorf("got %q", err)
	}
}

// FuzzClient lets a guest do what it likes: whatever is asked of it ends, with an
// error that names the machine or a result that can be, and so does the client.
func FuzzClient(f *testing.F) {
	for _, seed := range hostileAgents {
		f.Add([]byte(seed))
	}
	root := rootOf(f, f.TempDir())
	f.Fuzz(func(t *testing.T, script []byte) {
		host, theirs := socketpair(t)
		var agent sync.WaitGroup
		agent.Go(func() { newHostile(theirs).run(script) })
		var c *guest.Client
		made := make(chan struct{})
		opt := impatient
		for _, limit := range []*time.Duration{&opt.PingAfter, &opt.PingTimeout, &opt.AgentTimeout, &opt.GreetTimeout, &opt.Stall} {
			*limit /= 4 // so that there are many guests a second
		}
		opt.Greet = func(ctx context.Context, _ wire.Info) error {
			<-made
			return c.Identity(ctx, wire.Identity{Hostname: "m"})
		}
		c = guest.New("m", dialOnce(host), opt)
		close(made)

		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		ask := func(what string, do func() error) {
			all.Go(func() {
				if err := do(); err != nil && !strings.HasPrefix(err.Error(), "m: ") && !errors.Is(err, guest.ErrNotYet) {
					t.Errorf("%s: the error does not name the machine: %v", what, err)
				}
			})
		}
		limited := context.Background() // these have limits of their own
		ask("run", func() error {
			r, err := c.Run(limited, guest.Command{Script: "true", Timeout: 10 * time.Millisecond, Limit: 1 << 20})
			if r.ExitCode < 0 || r.ExitCode > 255 {
				t.Errorf("exit code %d", r.ExitCode)
			}
			return err
		})
		ask("until", func() error {
			r, err := c.RunUntil(limited, guest.Command{Script: "true", Limit: 1 << 20}, guest.UntilOptions{Timeout: 10 * time.Millisecond})
			if r.Tries < 0 {
				t.Errorf("%d tries", r.Tries)
			}
			return err
		})
		ask("copy", func() error { _, err := c.CopyOut(limited, "/x", root); return err })
		ask("clock", func() error { return c.SetClock(limited) })
		ask("port", func() error { _, err := c.WaitPort(ctx, "localhost", 80, "", true, false); return err })
		ask("unit", func() error { _, err := c.WaitUnit(ctx, "x.service", "", false); return err })
		ask("window", func() error { _, err := c.WaitX(ctx, wire.WindowRequest{}); return err })
		ask("picture", func() error { _, _, err := c.Picture(limited, wire.PictureRequest{}); return err })
		ask("tty", func() error { _, err := c.WaitTTY(ctx, 1, "x"); return err })
		ask("terminal", func() error {
			_, err := c.Terminal(ctx, guest.Terminal{Input: strings.NewReader("x\n"), Output: io.Discard})
			return err
		})
		ask("adopt", func() error {
			p, err := c.Adopt(ctx, "x", guest.Adoption{Limit: 1 << 20})
			if err == nil {
				_, err = p.Wait()
			}
			return err
		})
		ask("restart", func() error { _, err := c.ReadyAgain(ctx, wire.Info{Instance: "i"}); return err })
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			all.Wait()
			c.Close(nil)
			theirs.Close()
			agent.Wait()
		}()
		select {
		case <-ended:
		case <-time.After(patience):
			panic("something waits for the guest")
		}
	})
}

// A hostile agent follows a script of bytes.
type hostile struct {
	conn net.Conn
	dec  *wire.Decoder

	mu      sync.Mutex
	session string
	try     uint32
	seq     uint32
	streams []uint32
	ping    uint32
}

func newHostile(conn net.Conn) *hostile { return &hostile{conn: conn, dec: wire.NewDecoder(conn)} }

// listen notes what the host says.
func (h *hostile) listen() {
	for {
		f, err := h.dec.Next()
		if err != nil {
			return
		}
		h.mu.Lock()
		switch f.Type {
		case wire.Hello:
			var m wire.HelloMessage
			json.Unmarshal(f.Payload, &m)
			if h.session != m.Session {
				h.session, h.seq = m.Session, 0
			}
			h.try = m.Try
		case wire.Open:
			h.streams = append(h.streams, f.Stream)
		case wire.Ping:
			h.ping = f.Stream
		}
		h.mu.Unlock()
	}
}

// number counts the frames of the session.
func (h *hostile) number() uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	return h.seq
}

// What a hostile agent can do, one letter each.
const (
	doWait     = 'w' // a moment, so that the host has its turn
	doWelcome  = 'W'
	doOld      = 'O' // a welcome of another version
	doAnnounce = 'A'
	doPong     = 'P'
	doFrame    = 'F' // type, channel, stream and length follow, and the payload
	doResult   = 'R' // of the stream that was opened as the n-th: n and a length follow, and JSON
	doBytes    = 'B' // a length follows, and bytes
	doHalf     = 'H' // half a frame
	doCut      = 'X' // the end of the connection
)

var hostileAgents = []string{
	"", "X", "WX", "wWwX", "AAAAAAAA", "AWAWAWAW", "wWP", "wWPwWP", "wWwPPPP", "O", "wOAO",
	"wWF\x0f\x00\x01\x02{}", "wWF\x07\x00\xff\x00", "wWF\x06\x00\x01\x02{}",
	"wWwR\x00\x0d{\"result\":{}}R\x01\x0d{\"result\":{}}R\x02\x0d{\"result\":{}}wwww",
	"wWwR\x00\x0d{\"result\":{}}wR\x01\x1f{\"result\":{\"exit_code\":-12345}}",
	"wWwR\x00\x0d{\"result\":{}}wR\x02\x05[[[[[R\x03\x04nullR\x04\x02{}R\x05\x24{\"error\":{\"kind\":\"x\",\"message\":\"y\"}}",
	"wWwR\x00\x02{}wF\x09\x01\x02\x03abcF\x0b\x01\x02\x00F\x0c\x01\x02\x04\xff\xff\xff\xffR\x01\x02{}",
	"wWB\x10garbage garbage.wW", "wWHwWw", "wWwH", "B\x20[    1.234567] kernel: some words\n",
}

func (h *hostile) run(script []byte) {
	var listener sync.WaitGroup
	listener.Go(h.listen)
	defer listener.Wait() // until the host closes
	next := func() (b byte) {
		if len(script) > 0 {
			b, script = script[0], script[1:]
		}
		return b
	}
	take := func(n int) (p []byte) {
		n = min(n, len(script))
		p, script = script[:n], script[n:]
		return p
	}
	var out bytes.Buffer
	for steps := 0; len(script) > 0 && steps < 200; steps++ {
		out.Reset()
		w := wire.NewWriter(&out)
		h.mu.Lock()
		session, try, streams, ping := h.session, h.try, h.streams, h.ping
		h.mu.Unlock()
		version := wire.Version - 1
		switch next() {
		case doWait:
			time.Sleep(2 * time.Millisecond)
		case doWelcome:
			version = wire.Version
			fallthrough
		case doOld:
			p, _ := json.Marshal(wire.WelcomeMessage{Session: session, Try: try, Info: wire.Info{Version: version, Instance: "i"}})
			w.Restart(wire.Frame{Type: wire.Welcome, Payload: p})
		case doAnnounce:
			w.Restart(wire.Frame{Type: wire.Announce, Payload: []byte(`{"instance":"i"}`)})
		case doPong:
			w.Send(wire.Frame{Type: wire.Pong, Stream: ping})
		case doFrame:
			f := wire.Frame{Type: wire.Type(next()), Channel: next(), Stream: uint32(next())}
			if f.Type >= wire.Open {
				f.Seq = h.number()
			}
			f.Payload = take(int(next()))
			w.Send(f)
		case doResult:
			if n := int(next()); len(streams) > 0 {
				w.Send(wire.Frame{Type: wire.Result, Stream: streams[n%len(streams)], Seq: h.number(), Payload: take(int(next()))})
			}
		case doBytes:
			p := take(int(next()))
			w.Close()
			out.Write(p)
		case doHalf:
			b := wire.AppendFrame(nil, wire.Frame{Type: wire.Data, Channel: wire.Stdout, Stream: 1, Payload: make([]byte, 100)})
			w.Close()
			out.Write(b[:50])
		case doCut:
			w.Close()
			h.conn.Close()
			return
		}
		w.Close()
		if _, err := h.conn.Write(out.Bytes()); err != nil {
			return
		}
	}
}
