package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// pair is a host's Mux and an agent's, connected; serve runs each stream that
// the host opens.
func pair(t interface{ Cleanup(func()) }, serve func(*Stream, Request)) (host *Mux) {
	a, b := net.Pipe()
	var all sync.WaitGroup
	wa, wb := NewWriter(a), NewWriter(b)
	host = NewMux(nil)
	agent := NewMux(func(s *Stream, r Request) { all.Go(func() { serve(s, r) }) })
	wa.Restart(Frame{Type: Hello})
	wb.Restart(Frame{Type: Welcome})
	host.Attach(wa, 0)
	agent.Attach(wb, 0)
	for _, side := range []struct {
		conn net.Conn
		mux  *Mux
	}{{a, host}, {b, agent}} {
		all.Go(func() {
			d := NewDecoder(side.conn)
			for {
				f, err := d.Next()
				if err == nil && f.Type > Start {
					err = side.mux.Handle(f)
				}
				if err != nil {
					side.mux.Close(err)
					side.conn.Close()
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		a.Close()
		b.Close()
		all.Wait()
		wa.Close()
		wb.Close()
	})
	return host
}

// A slow reader of one channel stops its own writer, and nobody else.
func TestSlowConsumerBlocksOnlyItself(t *testing.T) {
	host := pair(t, func(s *Stream, r Request) {
		n, _ := s.Write(Stdout, make([]byte, 8<<20))
		s.Finish(Reply{Result: n})
	})
	slow, err := host.Open("flood", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1)
	if _, err := slow.Read(Stdout, buf); err != nil {
		t.Fatal(err)
	}
	fast, err := host.Open("flood", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, fast.Reader(Stdout)); err != nil || n != 8<<20 {
		t.Fatalf("the fast one got %d bytes, %v", n, err)
	}
	select {
	case <-slow.Done():
		t.Fatal("the slow one ended although nobody read its output")
	default:
	}
	slow.mu.Lock()
	held := slow.in[Stdout].size
	slow.mu.Unlock()
	if held > Window {
		t.Fatalf("%d bytes are held for the slow one, the window is %d", held, Window)
	}
	if n, err := io.Copy(io.Discard, slow.Reader(Stdout)); err != nil || n != 8<<20-1 {
		t.Fatalf("the slow one got %d bytes, %v", n, err)
	}
}

// Many streams at once, both ways, pieces of any size: everything arrives, in
// order, where it belongs.
func TestNothingIsMixed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		streams := rapid.IntRange(1, 4).Draw(t, "streams")
		size := rapid.SampledFrom([]int{0, 1, 1000, Window + 17}).Draw(t, "size")
		seed := rapid.Uint64().Draw(t, "seed")
		content := func(stream, channel int) []byte {
			b := make([]byte, size)
			rand.NewChaCha8([32]byte{byte(stream), byte(channel), byte(seed)}).Read(b)
			return b
		}
		write := func(s *Stream, channel int, b []byte) {
			pieces := rand.New(rand.NewPCG(seed, uint64(channel)))
			for len(b) > 0 {
				n := min(len(b), 1+pieces.IntN(100_000))
				if _, err := s.Write(channel, b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
			s.CloseWrite(channel)
		}
		host := pair(t, func(s *Stream, r Request) {
			var id int
			json.Unmarshal(r.Args, &id)
			var w sync.WaitGroup
			var got []byte
			w.Go(func() { got, _ = io.ReadAll(s.Reader(Stdin)) })
			w.Go(func() { write(s, Stdout, content(id, Stdout)) })
			w.Go(func() { write(s, Stderr, content(id, Stderr)) })
			w.Wait()
			s.Finish(Reply{Result: bytes.Equal(got, content(id, Stdin)) && string(r.Body) == fmt.Sprint(id)})
		})
		var w sync.WaitGroup
		errs := make(chan error, streams)
		for id := range streams {
			w.Go(func() {
				s, err := host.Open("x", id, []byte(fmt.Sprint(id)))
				if err != nil {
					errs <- err
					return
				}
				go write(s, Stdin, content(id, Stdin))
				var stderr []byte
				var one sync.WaitGroup
				one.Go(func() { stderr, _ = io.ReadAll(s.Reader(Stderr)) })
				stdout, err := io.ReadAll(s.Reader(Stdout))
				one.Wait()
				<-s.Done()
				result, resultErr := s.Result()
				switch {
				case errors.Join(err, resultErr) != nil:
					errs <- errors.Join(err, resultErr)
				case string(result) != `{"result":true}`:
					errs <- fmt.Errorf("stream %d: the agent got something else: %s", id, result)
				case !bytes.Equal(stdout, content(id, Stdout)) || !bytes.Equal(stderr, content(id, Stderr)):
					errs <- fmt.Errorf("stream %d: the host got something else", id)
				}
			})
		}
		w.Wait()
		close(errs)
		for err := range errs {
			t.Error(err)
		}
	})
}

func TestRestartIsInOrder(t *testing.T) {
	host := pair(t, func(s *Stream, r Request) {
		s.Write(Stdout, []byte("first"))
		s.Restart(Stdout)
		s.Restart(Stdout)
		s.Write(Stdout, []byte("second"))
		s.Finish(Reply{})
	})
	s, err := host.Open("x", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	first, err := io.ReadAll(s.Reader(Stdout))
	if !errors.Is(err, ErrRestart) || string(first) != "first" {
		t.Fatalf("read %q, %v", first, err)
	}
	var second []byte
	for {
		b, err := io.ReadAll(s.Reader(Stdout))
		second = append(second, b...)
		if err == nil {
			break
		}
	}
	if string(second) != "second" {
		t.Fatalf("read %q", second)
	}
}

func TestCancelReachesTheAgent(t *testing.T) {
	host := pair(t, func(s *Stream, r Request) {
		<-s.Context().Done()
		s.Finish(Reply{Result: "ended"})
	})
	s, err := host.Open("x", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("no longer wanted")
	s.Cancel(cause)
	if _, err := s.Read(Stdout, make([]byte, 1)); err != cause {
		t.Errorf("read: %v", err)
	}
	if got := context.Cause(s.Context()); got != cause {
		t.Errorf("the stream ended with %v", got)
	}
	select {
	case <-s.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("no result")
	}
	if result, _ := s.Result(); string(result) != `{"result":"ended"}` {
		t.Errorf("result %s", result)
	}
}

// What the other side must not do is an error, and never a panic.
func TestBrokenRules(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame Frame
	}{
		{"a result for a stream that is not open", Frame{Type: Result, Stream: 9}},
		{"data for a stream that is not open", Frame{Type: Data, Stream: 9}},
		{"an open frame", Frame{Type: Open, Stream: 2, Payload: []byte("x\x00{}\x00")}},
		{"a cancel frame", Frame{Type: Cancel, Stream: 1}},
		{"a channel that does not exist", Frame{Type: Data, Channel: 99, Stream: 1}},
		{"credit beyond the window", Frame{Type: Credit, Stream: 1, Payload: []byte{0, 0, 0, 1}}},
		{"credit of no number", Frame{Type: Credit, Stream: 1, Payload: []byte{1}}},
		{"a hello in a stream", Frame{Type: Welcome, Stream: 1}},
		{"a frame before its time", Frame{Type: Data, Stream: 1, Seq: 2}},
		{"an ack of what was not sent", Frame{Type: Ack, Stream: 2}},
		{"such an ack in a frame", Frame{Type: Data, Stream: 1, Ack: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMux(nil)
			if _, err := m.Open("x", nil, nil); err != nil {
				t.Fatal(err)
			}
			var bad *FormatError
			if tt.frame.Seq == 0 {
				tt.frame.Seq = 1
			}
			if err := m.Handle(tt.frame); !errors.As(err, &bad) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A host that is sent any frames reports them or ignores them.
func FuzzMux(f *testing.F) {
	f.Add([]byte{byte(Data), Stdout, 1, 5, 'h', 'e', 'l', 'l', 'o', byte(Result), 0, 1, 2, '{', '}'})
	f.Add([]byte{byte(Restart), Stdout, 1, 0, byte(EOF), Stdout, 1, 0, byte(Data), Stdout, 1, 1, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, accept := range []func(*Stream, Request){nil, func(s *Stream, _ Request) { s.Finish(Reply{}) }} {
			w := NewWriter(io.Discard)
			m := NewMux(accept)
			m.Attach(w, 0)
			if accept == nil {
				if _, err := m.Open("x", nil, nil); err != nil {
					t.Fatal(err)
				}
			}
			seq := uint32(0)
			for rest := b; len(rest) >= 4; {
				n := min(int(rest[3]), len(rest)-4)
				seq++
				if m.Handle(Frame{Type: Type(rest[0]), Channel: rest[1], Stream: uint32(rest[2]), Seq: seq, Payload: rest[4 : 4+n]}) != nil {
					break
				}
				rest = rest[4+n:]
			}
			m.Close(io.ErrUnexpectedEOF)
			w.Close()
		}
	})
}

// However often the connection of a session is cut, and wherever, its streams carry
// the same bytes to the same results, and neither side keeps more than it may.
func TestSessionOutlivesConnections(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lives := rapid.SliceOfN(rapid.IntRange(0, 400_000), 0, 12).Draw(t, "bytes that pass before each cut")
		size := rapid.SampledFrom([]int{10, 1000, Window + 17}).Draw(t, "size")
		var serving sync.WaitGroup
		agent := NewMux(func(s *Stream, r Request) {
			serving.Go(func() {
				s.Write(Stdout, []byte("of an attempt that has failed"))
				s.Restart(Stdout)
				n, _ := io.Copy(s.Writer(Stdout), s.Reader(Stdin))
				s.CloseWrite(Stdout)
				s.Finish(Reply{Result: n})
			})
		})
		host := NewMux(nil)
		connected, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(connected)
			for _, n := range append(lives, -1) {
				connect(host, agent, n, done)
			}
		}()
		const streams = 3
		var all sync.WaitGroup
		errs := make(chan error, streams)
		for i := range streams {
			all.Go(func() { errs <- echo(host, bytes.Repeat([]byte{byte('a' + i)}, size)) })
		}
		for range streams {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		for _, m := range []*Mux{host, agent} {
			m.order.mu.Lock()
			if m.order.size > MaxUnacked+MaxPayload {
				t.Errorf("%d bytes are kept", m.order.size)
			}
			m.order.mu.Unlock()
		}
		host.Close(io.ErrClosedPipe)
		agent.Close(io.ErrClosedPipe)
		close(done)
		<-connected
		all.Wait()
		serving.Wait()
	})
}

// echo sends b and gets it back.
func echo(host *Mux, b []byte) error {
	s, err := host.Open("echo", nil, nil)
	if err != nil {
		return err
	}
	go func() {
		s.Write(Stdin, b)
		s.CloseWrite(Stdin)
	}()
	var got []byte
	restarts, buf := 0, make([]byte, 10_000)
	for err == nil {
		var n int
		if n, err = s.Read(Stdout, buf); err == ErrRestart {
			restarts, got, err = restarts+1, nil, nil
		}
		got = append(got, buf[:n]...)
	}
	<-s.Done()
	result, _ := s.Result()
	if err != io.EOF || restarts != 1 || !bytes.Equal(got, b) || string(result) != fmt.Sprintf(`{"result":%d}`, len(b)) {
		return fmt.Errorf("%d bytes of %d, %d restarts, result %s: %v", len(got), len(b), restarts, result, err)
	}
	return nil
}

// connect carries a session until that many bytes have passed, or done is closed.
func connect(host, agent *Mux, bytes int, done <-chan struct{}) {
	a, b := net.Pipe()
	left := &budget{left: bytes, end: func() { a.Close(); b.Close() }}
	wa, wb := NewWriter(left.limit(a)), NewWriter(left.limit(b))
	wa.Restart(Frame{Type: Hello})
	wb.Restart(Frame{Type: Hello})
	// As after Hello and Welcome: both know what the other has.
	atHost, atAgent := host.Received(), agent.Received()
	if host.Attach(wa, atAgent) != nil || agent.Attach(wb, atHost) != nil {
		panic("the session cannot go on")
	}
	var all sync.WaitGroup
	for mux, conn := range map[*Mux]net.Conn{host: a, agent: b} {
		all.Go(func() {
			defer left.end()
			d := NewDecoder(conn)
			for {
				f, err := d.Next()
				if err == nil && f.Type > Start {
					err = mux.Handle(f)
				}
				if err != nil {
					return
				}
			}
		})
	}
	cut := make(chan struct{})
	go func() { all.Wait(); close(cut) }()
	select {
	case <-cut:
	case <-done:
		left.end()
		<-cut
	}
	host.Detach()
	agent.Detach()
	wa.Close()
	wb.Close()
}

// A budget ends a connection when so many bytes have passed, in both directions.
type budget struct {
	mu   sync.Mutex
	left int // negative: without end
	end  func()
}

func (b *budget) limit(w io.Writer) io.Writer { return budgetWriter{b, w} }

type budgetWriter struct {
	b *budget
	w io.Writer
}

func (w budgetWriter) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	n := len(p)
	if w.b.left >= 0 {
		n = min(n, w.b.left)
		w.b.left -= n
	}
	w.b.mu.Unlock()
	k, err := w.w.Write(p[:n])
	if n < len(p) {
		w.b.end()
		return k, io.ErrClosedPipe
	}
	return k, err
}
