package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// A Server answers one host, over one connection after the other. The zero value works.
type Server struct {
	Log   func(format string, args ...any) // default: nothing is logged
	Ready func()                           // called when an Identity has been applied
	Stage Stage                            // nil: the agent serves the guest that it runs in

	once     sync.Once
	instance string
	shell    *shell
	init     initState
	ops      sync.WaitGroup
	jobs     jobs
	logins   logins

	mu      sync.Mutex // held while a frame is handled: connections take turns
	session *session   // nil: none yet
	carrier *conn      // what carries the session; nil: nothing does
	past    []string   // the last sessions that are over
}

// A session is what one host does here. It goes on without a connection.
type session struct {
	id  string
	try uint32 // of the connection that carries it, or did last
	mux *wire.Mux
}

// A conn is one connection, which may be a host's, or a ghost: one that was given up
// before it came here.
type conn struct {
	stream io.ReadWriteCloser
	w      *wire.Writer
	hello  wire.HelloMessage // the last one that came
	over   chan struct{}     // closed when ServeListener has ended it
}

func (s *Server) newConn(stream io.ReadWriteCloser) *conn {
	return &conn{stream: stream, w: wire.NewWriter(stream), over: make(chan struct{})}
}

var errSessionOver = errors.New("the session is over")

// setUp makes what the server has for its whole life.
func (s *Server) setUp() {
	s.once.Do(func() {
		if s.Log == nil {
			s.Log = func(string, ...any) {}
		}
		if s.Ready == nil {
			s.Ready = func() {}
		}
		s.instance = rand.Text()
		s.shell = newShell(s.Log)
		s.shell.remote, _ = s.Stage.(Starter)
	})
}

// Serve serves a stream that has no connections, such as a virtio serial port, until it
// ends or ctx does: it tells the host on the other end, if there is one, that an agent
// is there. What the host has under way goes on with the next stream.
func (s *Server) Serve(ctx context.Context, stream io.ReadWriteCloser) error {
	return s.serve(ctx, s.newConn(stream), true)
}

// ServeConn is Serve for a connection that a host has made and begins.
func (s *Server) ServeConn(ctx context.Context, stream io.ReadWriteCloser) error {
	return s.serve(ctx, s.newConn(stream), false)
}

// Close ends what the server has started and waits until it is gone, but for
// what runs in the background of the guest. Every Serve has to have returned.
func (s *Server) Close() {
	s.setUp()
	s.mu.Lock()
	s.drop()
	s.mu.Unlock()
	s.jobs.close()
	s.ops.Wait()
	s.jobs.running.Wait()
	s.shell.close()
}

func (s *Server) serve(ctx context.Context, c *conn, announce bool) error {
	s.setUp()
	defer c.w.Close()
	defer c.stream.Close()
	stop := context.AfterFunc(ctx, func() { c.stream.Close() })
	defer stop()
	defer s.left(c)
	if announce {
		s.announce(c)
	}
	dec := wire.NewDecoder(c.stream)
	for {
		f, err := dec.Next()
		var bad *wire.FormatError
		switch {
		case errors.As(err, &bad):
			s.garbage(c, bad)
		case err != nil:
			return err
		default:
			s.take(c, f)
		}
	}
}

func message(t wire.Type, v any) wire.Frame {
	p, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of strings and numbers
	}
	return wire.Frame{Type: t, Payload: p}
}

func (s *Server) announce(c *conn) {
	c.w.Restart(message(wire.Announce, s.announcement()))
}

// left is the end of a connection. The session waits for the next one.
func (s *Server) left(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.carrier == c {
		s.session.mux.Detach()
		s.carrier = nil
	}
}

// garbage has the host begin again where it was before bytes that make no sense.
func (s *Server) garbage(c *conn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.carrier != c {
		return // nobody's, or a ghost's
	}
	s.Log("%v; the host shall begin again", err)
	s.session.mux.Detach()
	s.announce(c)
}

// maxPast is how many sessions the agent remembers to be over: the hosts of
// connections that arrive late.
const maxPast = 16

// drop ends the session: its operations stop, and nothing of it is sent any more.
// Called with mu held.
func (s *Server) drop() {
	if s.session == nil {
		return
	}
	s.session.mux.Close(errSessionOver)
	s.session.mux.Detach()
	s.past = append(s.past, s.session.id)
	s.past = s.past[max(0, len(s.past)-maxPast):]
	s.session, s.carrier = nil, nil
}

// take handles a frame of a connection.
func (s *Server) take(c *conn, f wire.Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch f.Type {
	case wire.Preamble:
	case wire.Hello:
		err = s.hello(c, f)
	case wire.Start:
		err = s.start(c, f)
	case wire.Ping:
		s.ping(func() { c.w.Send(wire.Frame{Type: wire.Pong, Stream: f.Stream}) })
	default:
		if s.carrier == c { // otherwise it is the rest of a session that is over, or comes again
			err = s.session.mux.Handle(f)
		}
	}
	if err == nil {
		return
	}
	s.Log("%v; the session is over", err)
	if s.carrier == c {
		s.drop()
		s.announce(c)
	}
}

// hello answers with what the agent knows of the session. Nothing changes yet: the
// host may be gone.
func (s *Server) hello(c *conn, f wire.Frame) error {
	c.hello = wire.HelloMessage{}
	if err := json.Unmarshal(f.Payload, &c.hello); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	m := wire.WelcomeMessage{Session: c.hello.Session, Try: c.hello.Try, Info: s.info(), Over: slices.Contains(s.past, c.hello.Session)}
	if s.session != nil && s.session.id == m.Session {
		m.Received = s.session.mux.Received()
	}
	if s.carrier == c {
		s.session.mux.Detach() // until the host starts
	}
	c.w.Restart(message(wire.Welcome, m))
	return nil
}

// start has the connection carry the session of its Hello. Only a host that is there
// gets so far; its other connections are left to themselves.
func (s *Server) start(c *conn, f wire.Frame) error {
	var m wire.StartMessage
	if err := json.Unmarshal(f.Payload, &m); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	h := c.hello
	if h.Version != wire.Version || slices.Contains(s.past, h.Session) || s.session != nil && s.session.id == h.Session && h.Try < s.session.try {
		return nil // it came too late
	}
	if s.session != nil && s.session.id != h.Session {
		s.drop()
	}
	if s.session == nil {
		s.session = &session{id: h.Session, mux: wire.NewMux(func(stream *wire.Stream, r wire.Request) {
			s.ops.Go(func() { s.run(stream, r) })
		})}
	}
	s.session.try, s.carrier = h.Try, c
	if err := s.session.mux.Attach(c.w, m.Received); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return nil
}

func (s *Server) info() wire.Info {
	i := wire.Info{Version: wire.Version, Instance: s.instance}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	i.BootID = strings.TrimSpace(string(boot))
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		i.Kernel = unix.ByteSliceToString(u.Release[:])
		i.Hostname = unix.ByteSliceToString(u.Nodename[:])
	}
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) == nil {
		i.Uptime = time.Duration(t.Nano())
	}
	if s.Stage != nil {
		s.Stage.Info(&i)
	}
	return i
}

// run runs one operation.
func (s *Server) run(stream *wire.Stream, r wire.Request) {
	result, err := s.perform(stream, r)
	reply := wire.Reply{Result: result}
	if err != nil {
		reply.Error = asError(stream.Context(), err)
	}
	stream.Finish(reply)
}

func (s *Server) operation(stream *wire.Stream, r wire.Request) (any, error) {
	ctx := stream.Context()
	switch r.Op { // all others wait for process 1, which waits for the first of these
	case wire.OpIdentity, wire.OpClock, wire.OpEcho, wire.OpLay:
	default:
		if err := s.init.await(ctx); err != nil {
			return nil, err
		}
	}
	switch r.Op {
	case wire.OpExec:
		return do(r, func(q wire.ExecRequest) (any, error) {
			if q.Job != "" {
				return s.startJob(stream, q, r.Body)
			}
			return s.shell.exec(stream, q, r.Body)
		})
	case wire.OpJobs:
		return s.jobs.list(), nil
	case wire.OpAdopt:
		return do(r, func(q wire.AdoptRequest) (any, error) { return s.adopt(stream, q) })
	case wire.OpUntil:
		return do(r, func(q wire.UntilRequest) (any, error) { return s.shell.until(stream, q, r.Body) })
	case wire.OpTerminal:
		return do(r, func(q wire.TerminalRequest) (any, error) { return s.shell.terminal(stream, q) })
	case wire.OpWarm:
		return nil, s.shell.warm(ctx)
	case wire.OpWaitUnit:
		return do(r, func(q wire.UnitRequest) (any, error) { return s.waitUnit(ctx, q) })
	case wire.OpWaitFile:
		return do(r, func(q wire.FileRequest) (any, error) { return waitFile(ctx, q) })
	case wire.OpWaitPort:
		return do(r, func(q wire.PortRequest) (any, error) { return s.waitServicePort(ctx, q) })
	case wire.OpWaitSocket:
		return do(r, func(q wire.SocketRequest) (any, error) { return waitSocket(ctx, q) })
	case wire.OpWaitTTY:
		return do(r, func(q wire.TTYRequest) (any, error) { return waitTTY(ctx, q) })
	case wire.OpWaitX:
		return do(r, func(q wire.WindowRequest) (any, error) { return waitX(ctx, q) })
	case wire.OpPicture:
		return do(r, func(q wire.PictureRequest) (any, error) { return takePicture(ctx, q, stream.Writer(wire.Stdout)) })
	case wire.OpEcho:
		return nil, nil
	case wire.OpLook:
		return s.look(ctx), nil
	case wire.OpPutTar:
		return do(r, func(q wire.CopyRequest) (any, error) { return putTar(stream, string(q.Path)) })
	case wire.OpGetTar:
		return do(r, func(q wire.CopyRequest) (any, error) { return getTar(stream, string(q.Path)) })
	case wire.OpLay:
		return do(r, func(q wire.LayRequest) (any, error) { return lay(stream, q) })
	case wire.OpConnect:
		return do(r, func(q wire.ConnectRequest) (any, error) { return nil, connect(stream, q) })
	case wire.OpIdentity:
		return do(r, func(q wire.Identity) (any, error) {
			was, _ := os.Hostname()
			if err := applyIdentity(q, "/"); err != nil {
				return nil, err
			}
			if name, _ := os.Hostname(); name != was {
				s.shell.renew()
				s.logins.renew("/proc")
			}
			// The first time this is before the guest's init has started: a shell
			// takes a fraction of what it would take beside all that init starts.
			if err := s.shell.warm(ctx); err != nil {
				s.Log("no warm shell yet: %v", err)
			}
			s.Ready()
			return nil, nil
		})
	case wire.OpClock:
		return do(r, func(q wire.ClockRequest) (any, error) { return stepClock(q.Step) })
	case wire.OpSettle:
		return do(r, func(q wire.SettleRequest) (any, error) {
			unix.Sync()
			return nil, awaitRest(ctx, q.Limit, func() (int64, error) { return busyTicks("/proc/stat") })
		})
	case wire.OpSuspend:
		return nil, suspend(ctx)
	case wire.OpPower:
		return do(r, func(q wire.PowerRequest) (any, error) { return nil, s.power(ctx, q) })
	}
	return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("this agent has no operation %q", r.Op)}
}

// do decodes a request and runs fn.
func do[Q any](r wire.Request, fn func(Q) (any, error)) (any, error) {
	var q Q
	if err := json.Unmarshal(r.Args, &q); err != nil {
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: r.Op + ": " + err.Error()}
	}
	return fn(q)
}

// asError turns an error into what goes over the wire.
func asError(ctx context.Context, err error) *wire.Error {
	var e *wire.Error
	switch {
	case errors.As(err, &e):
		return e
	case ctx.Err() != nil:
		return &wire.Error{Kind: wire.KindCanceled, Message: err.Error()}
	case errors.Is(err, os.ErrNotExist):
		return &wire.Error{Kind: wire.KindNotFound, Message: err.Error()}
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return &wire.Error{Kind: wire.KindExhausted, Message: err.Error()}
	}
	return &wire.Error{Kind: wire.KindFailed, Message: err.Error()}
}

func errorf(kind, format string, args ...any) error {
	return &wire.Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}
