package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
)

// Window is the credit, in bytes, with which a channel starts.
const Window = 256 << 10

// The channels of a stream.
const (
	Stdin  = 0 // to the agent
	Stdout = 1 // to the host
	Stderr = 2 // to the host
	Script = 3 // to the agent: the text of a command that does not fit into Open
	Resize = 4 // to the agent: the sizes of a terminal

	channels = 5
)

// ErrRestart is returned by Stream.Read once where the other side called
// Stream.Restart: what was read so far belongs to an earlier attempt.
var ErrRestart = errors.New("a new attempt begins")

// A Mux carries the streams of one session, from one connection to the next.
type Mux struct {
	order  order
	accept func(*Stream, Request) // nil on the side that opens

	mu      sync.Mutex
	streams map[uint32]*Stream
	last    uint32
	err     error
}

// A Request is what Open carries.
type Request struct {
	Op   string
	Args json.RawMessage // the operation's request, such as ExecRequest
	Body []byte          // raw bytes that belong to it
}

// NewMux returns a Mux that has no connection yet. On the agent's side accept is
// called, in the reader's goroutine, with every stream that the host opens.
func NewMux(accept func(*Stream, Request)) *Mux {
	return &Mux{order: order{first: 1}, accept: accept, streams: map[uint32]*Stream{}}
}

// Attach has the session carried by another connection, whose other side has
// received that many frames of it: what followed them is sent again. It is an error if that
// cannot be: the other side has gone back in time, or lies.
func (m *Mux) Attach(w *Writer, received uint32) error { return m.order.attach(w, received) }

// Detach keeps what is sent until Attach.
func (m *Mux) Detach() { m.order.detach() }

// Received is how many frames of the session have come: what the other side
// attaches with.
func (m *Mux) Received() uint32 {
	m.order.mu.Lock()
	defer m.order.mu.Unlock()
	return m.order.received
}

// A Stream is one operation under way. Each channel has at most one goroutine
// that reads it, and one that writes it.
type Stream struct {
	id     uint32
	mux    *Mux
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the result is there, or err
	moved  atomic.Uint64 // how often something of it has moved

	mu       sync.Mutex
	in       [channels]inbox
	out      [channels]outbox
	signal   func(syscall.Signal)
	signals  []syscall.Signal // that came before there was a signal function
	finished bool
	result   []byte
	err      error
}

type inbox struct {
	parts  [][]byte // nil is a restart
	eof    bool
	size   int   // bytes in parts
	total  int64 // bytes that have come
	unpaid int   // bytes consumed since the last Credit
	notify chan struct{}
}

type outbox struct {
	credit int
	total  int64 // bytes that were sent
	notify chan struct{}
}

func newStream(m *Mux, id uint32) *Stream {
	s := &Stream{id: id, mux: m, done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	for i := range channels {
		s.in[i].notify = make(chan struct{}, 1)
		s.out[i] = outbox{credit: Window, notify: make(chan struct{}, 1)}
	}
	return s
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Open begins an operation: its name, its request as JSON, and raw bytes that
// belong to it. All three must fit into one frame.
func (m *Mux) Open(op string, args any, body []byte) (*Stream, error) {
	a, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	// name NUL json NUL body: neither of the first two contains a NUL.
	payload := make([]byte, 0, len(op)+len(a)+len(body)+2)
	payload = append(append(payload, op...), 0)
	payload = append(append(payload, a...), 0)
	payload = append(payload, body...)
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("%s: a request of %d bytes, the limit is %d", op, len(payload), MaxPayload)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, m.err
	}
	m.last++
	s := newStream(m, m.last)
	m.streams[s.id] = s
	m.order.send(Frame{Type: Open, Stream: s.id, Payload: payload})
	return s, nil
}

func parseRequest(p []byte) (r Request, err error) {
	var parts [2][]byte
	for i := range parts {
		n := 0
		for n < len(p) && p[n] != 0 {
			n++
		}
		if n == len(p) {
			return r, formatErrorf("open: the request has no end")
		}
		parts[i], p = p[:n:n], p[n+1:]
	}
	r = Request{Op: string(parts[0]), Args: append(json.RawMessage(nil), parts[1]...)}
	if !json.Valid(r.Args) {
		return r, formatErrorf("open: the request is not JSON")
	}
	if len(p) > 0 {
		r.Body = append(r.Body, p...)
	}
	return r, nil
}

// Handle processes a frame of this session, which must not be done by two
// goroutines at a time. An error is a *FormatError: the other side broke the rules.
func (m *Mux) Handle(f Frame) error {
	if f.Type == Ack {
		return m.order.ack(f)
	}
	if !f.Type.numbered() {
		return formatErrorf("%s frame in a session", f.Type)
	}
	if fresh, err := m.order.arrived(f); err != nil || !fresh {
		return err
	}
	if f.Type == Open {
		return m.opened(f)
	}
	m.mu.Lock()
	s := m.streams[f.Stream]
	if s != nil && f.Type == Result {
		delete(m.streams, f.Stream)
	}
	m.mu.Unlock()
	if s == nil {
		if m.accept != nil {
			return nil // the host did not know yet that the stream had ended
		}
		return formatErrorf("%s frame for stream %d, which is not open", f.Type, f.Stream)
	}
	return s.handle(f)
}

func (m *Mux) opened(f Frame) error {
	if m.accept == nil {
		return formatErrorf("open frame from the agent")
	}
	r, err := parseRequest(f.Payload)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if m.streams[f.Stream] != nil {
		m.mu.Unlock()
		return formatErrorf("stream %d is open already", f.Stream)
	}
	s := newStream(m, f.Stream)
	m.streams[s.id] = s
	m.mu.Unlock()
	m.accept(s, r)
	return nil
}

// Close ends all streams with err, and the later ones.
func (m *Mux) Close(err error) {
	m.mu.Lock()
	if m.err == nil {
		m.err = err
	}
	streams := m.streams
	m.streams = map[uint32]*Stream{}
	m.mu.Unlock()
	for _, s := range streams {
		s.fail(err)
	}
}

// Abort gives up every operation under way; their streams end with err, and the
// session goes on.
func (m *Mux) Abort(err error) {
	m.mu.Lock()
	streams := slices.Collect(maps.Values(m.streams))
	m.mu.Unlock()
	for _, s := range streams {
		s.Cancel(err)
	}
}

func (s *Stream) handle(f Frame) error {
	s.moved.Add(1)
	toAgent := f.Type == Cancel || f.Type == Signal
	if toAgent != (s.mux.accept != nil) && (toAgent || f.Type == Result) {
		return formatErrorf("%s frame from the wrong side", f.Type)
	}
	switch f.Type {
	case Cancel:
		s.abort(context.Canceled)
		return nil
	case Signal:
		s.mu.Lock()
		fn := s.signal
		if fn == nil && len(s.signals) < maxEarly {
			s.signals = append(s.signals, syscall.Signal(f.Channel))
		}
		s.mu.Unlock()
		if fn != nil {
			fn(syscall.Signal(f.Channel))
		}
		return nil
	case Result:
		s.finish(append([]byte{}, f.Payload...), nil)
		return nil
	}
	if f.Channel >= channels {
		return formatErrorf("%s frame for channel %d", f.Type, f.Channel)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	in, out := &s.in[f.Channel], &s.out[f.Channel]
	switch f.Type {
	case Data:
		if in.size+in.unpaid+len(f.Payload) > Window {
			return formatErrorf("more data on channel %d than there was credit for", f.Channel)
		}
		if in.eof {
			return formatErrorf("data after the end of channel %d", f.Channel)
		}
		in.size += len(f.Payload)
		in.total += int64(len(f.Payload))
		if len(f.Payload) > 0 {
			in.parts = append(in.parts, append([]byte{}, f.Payload...))
		}
	case Restart:
		if n := len(in.parts); n == 0 || in.parts[n-1] != nil {
			in.parts = append(in.parts, nil)
		}
	case EOF:
		in.eof = true
	case Credit:
		if len(f.Payload) != 4 {
			return formatErrorf("credit frame of %d bytes", len(f.Payload))
		}
		n := binary.BigEndian.Uint32(f.Payload)
		if uint64(out.credit)+uint64(n) > Window {
			return formatErrorf("credit of %d bytes on channel %d exceeds the window", n, f.Channel)
		}
		out.credit += int(n)
		wake(out.notify)
		return nil
	default:
		return formatErrorf("%s frame for stream %d", f.Type, f.Stream)
	}
	wake(in.notify)
	return nil
}

// Moved counts what has moved in either direction: one that does not grow is a
// stream that stands still.
func (s *Stream) Moved() uint64 { return s.moved.Load() }

// Received is how many bytes of a channel have come, with those that nobody has read.
func (s *Stream) Received(channel int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in[channel].total
}

// Sent is how many bytes were written to a channel.
func (s *Stream) Sent(channel int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out[channel].total
}

// Unacked is what was written to a channel and may not have arrived, of a stream whose
// session is over.
func (s *Stream) Unacked(channel int) []byte { return s.mux.order.unacked(s.id, uint8(channel)) }

// Context ends when the operation is given up (Cancel), has its result, or the
// session ends.
func (s *Stream) Context() context.Context { return s.ctx }

// Err is why the operation was given up or its session has ended, if so.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// OnSignal sets what Signal frames do, those included that came before.
func (s *Stream) OnSignal(fn func(syscall.Signal)) {
	s.mu.Lock()
	s.signal = fn
	early := s.signals
	s.signals = nil
	s.mu.Unlock()
	for _, sig := range early {
		if fn != nil {
			fn(sig)
		}
	}
}

// maxEarly is how many signals wait for a command that is being started.
const maxEarly = 16

// abort ends reads and writes on the agent's side; Finish still works.
func (s *Stream) abort(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abortLocked(cause)
}

func (s *Stream) abortLocked(cause error) {
	if s.err == nil && !s.finished {
		s.err = cause
	}
	s.wakeAll()
	s.cancel(cause)
}

func (s *Stream) wakeAll() {
	for i := range channels {
		wake(s.in[i].notify)
		wake(s.out[i].notify)
	}
}

func (s *Stream) fail(err error) { s.finish(nil, err) }

func (s *Stream) finish(result []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return
	}
	s.finished = true
	s.result = result
	if s.err == nil {
		s.err = err
	}
	for i := range channels {
		s.in[i].eof = true
	}
	s.wakeAll()
	close(s.done)
	s.cancel(err)
}

// Read reads a channel: io.EOF at its end, ErrRestart once per restart,
// another error when the operation was given up or the session ended.
func (s *Stream) Read(channel int, p []byte) (int, error) {
	in := &s.in[channel]
	for {
		s.mu.Lock()
		switch {
		case s.err != nil:
			defer s.mu.Unlock()
			return 0, s.err
		case len(in.parts) > 0 && in.parts[0] == nil:
			in.parts = in.parts[1:]
			s.mu.Unlock()
			return 0, ErrRestart
		case len(in.parts) > 0:
			n := copy(p, in.parts[0])
			if in.parts[0] = in.parts[0][n:]; len(in.parts[0]) == 0 {
				in.parts = in.parts[1:]
			}
			s.consumed(channel, n)
			s.moved.Add(1)
			s.mu.Unlock()
			return n, nil
		case in.eof:
			s.mu.Unlock()
			return 0, io.EOF
		}
		s.mu.Unlock()
		<-in.notify
	}
}

// consumed gives credit back, half a window at a time.
func (s *Stream) consumed(channel, n int) {
	in := &s.in[channel]
	in.size -= n
	in.unpaid += n
	if in.unpaid < Window/2 || in.eof {
		return
	}
	s.mux.order.send(Frame{Type: Credit, Channel: uint8(channel), Stream: s.id,
		Payload: binary.BigEndian.AppendUint32(nil, uint32(in.unpaid))})
	in.unpaid = 0
}

// Write sends p on a channel, as its credit allows.
func (s *Stream) Write(channel int, p []byte) (int, error) {
	out := &s.out[channel]
	sent := 0
	for sent < len(p) {
		s.mu.Lock()
		if err := s.writeErr(); err != nil {
			s.mu.Unlock()
			return sent, err
		}
		n := min(len(p)-sent, out.credit, MaxPayload)
		var room <-chan struct{}
		if n > 0 {
			room = s.mux.order.sendData(Frame{Type: Data, Channel: uint8(channel), Stream: s.id, Payload: p[sent : sent+n]})
			if room == nil {
				out.credit -= n
				out.total += int64(n)
				sent += n
			}
		}
		s.mu.Unlock()
		if n == 0 || room != nil {
			select {
			case <-out.notify:
			case <-room:
			}
		}
	}
	return sent, nil
}

func (s *Stream) writeErr() error {
	if s.err != nil {
		return s.err
	}
	if s.finished {
		return io.ErrClosedPipe
	}
	return nil
}

func (s *Stream) control(t Type, channel uint8) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writeErr() == nil {
		s.mux.order.send(Frame{Type: t, Channel: channel, Stream: s.id})
	}
}

// CloseWrite ends a channel.
func (s *Stream) CloseWrite(channel int) { s.control(EOF, uint8(channel)) }

// Restart tells the other side that a new attempt begins on this channel. It waits
// as Write does when nothing gets through: there may be any number of attempts.
func (s *Stream) Restart(channel int) {
	for {
		s.mu.Lock()
		if s.writeErr() != nil {
			s.mu.Unlock()
			return
		}
		room := s.mux.order.sendData(Frame{Type: Restart, Channel: uint8(channel), Stream: s.id})
		s.mu.Unlock()
		if room == nil {
			return
		}
		select {
		case <-room:
		case <-s.out[channel].notify:
		}
	}
}

// Signal sends a signal to the command of this stream.
func (s *Stream) Signal(sig syscall.Signal) { s.control(Signal, uint8(sig)) }

// Cancel gives the operation up: the agent ends it soon, with a result that
// nobody waits for. Reads and writes return cause.
func (s *Stream) Cancel(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writeErr() == nil {
		s.mux.order.send(Frame{Type: Cancel, Stream: s.id})
	}
	s.abortLocked(cause) // before the result can come
}

// Finish sends the outcome of an operation; the stream is over. The agent calls
// it exactly once, after its writers have ended.
func (s *Stream) Finish(result any) {
	payload, err := json.Marshal(result)
	if err == nil && len(payload) > MaxPayload {
		err = fmt.Errorf("a result of %d bytes, the limit is %d", len(payload), MaxPayload)
	}
	if err != nil {
		payload, _ = json.Marshal(Reply{Error: &Error{Kind: KindFailed, Message: err.Error()}})
	}
	m := s.mux
	m.mu.Lock()
	if m.streams[s.id] == s { // otherwise the session is over
		delete(m.streams, s.id)
		m.order.send(Frame{Type: Result, Stream: s.id, Payload: payload})
	}
	m.mu.Unlock()
	s.finish(nil, nil)
}

// Done is closed when Result has an answer.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Result is the outcome as JSON, or why there is none. Call it after Done.
func (s *Stream) Result() (json.RawMessage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.result != nil {
		return s.result, nil
	}
	return nil, s.err
}

// Reader is a channel as an io.Reader; a restart is an error.
func (s *Stream) Reader(channel int) io.Reader { return streamReader{s, channel} }

// Writer is a channel as an io.Writer.
func (s *Stream) Writer(channel int) io.Writer { return streamWriter{s, channel} }

type streamReader struct {
	s       *Stream
	channel int
}

func (r streamReader) Read(p []byte) (int, error) { return r.s.Read(r.channel, p) }

type streamWriter struct {
	s       *Stream
	channel int
}

func (w streamWriter) Write(p []byte) (int, error) { return w.s.Write(w.channel, p) }
