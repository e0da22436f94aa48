package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// A Server answers one host. The zero value works.
type Server struct {
	Log   func(format string, args ...any) // default: nothing is logged
	Ready func()                           // called when an Identity has been applied
	Stage Stage                            // nil: the agent serves the guest that it runs in

	instance string
	shell    *shell
	init     initState
	w        *wire.Writer
	session  string
	mux      *wire.Mux
	ops      sync.WaitGroup
}

var errSessionOver = errors.New("the session is over")

// Serve serves the stream until it ends or ctx does, and then kills what it
// has started. Bytes that make no sense end the session, not Serve.
func (s *Server) Serve(ctx context.Context, stream io.ReadWriteCloser) error {
	if s.Log == nil {
		s.Log = func(string, ...any) {}
	}
	if s.Ready == nil {
		s.Ready = func() {}
	}
	s.instance = rand.Text()
	s.shell = newShell(s.Log)
	defer s.shell.close()
	s.w = wire.NewWriter(stream)
	defer s.w.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	defer s.ops.Wait()
	defer s.drop()

	s.w.Restart(message(wire.Announce, s.announcement()))
	dec := wire.NewDecoder(stream)
	for {
		f, err := dec.Next()
		if err == nil {
			err = s.handle(f)
		}
		var bad *wire.FormatError
		switch {
		case errors.As(err, &bad):
			s.Log("%v; waiting for the host to begin again", err)
			s.drop()
		case err != nil:
			stream.Close()
			return err
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

// drop ends the session: its operations stop, and nothing of it is sent any more.
func (s *Server) drop() {
	if s.mux != nil {
		s.mux.Close(errSessionOver)
		s.mux = nil
	}
}

func (s *Server) handle(f wire.Frame) error {
	switch f.Type {
	case wire.Preamble:
		return nil
	case wire.Hello:
		return s.hello(f)
	case wire.Ping:
		s.w.Send(wire.Frame{Type: wire.Pong, Stream: f.Stream})
		return nil
	}
	if s.mux == nil {
		return nil // the rest of a session that is over
	}
	return s.mux.Handle(f)
}

func (s *Server) hello(f wire.Frame) error {
	var m wire.HelloMessage
	if err := json.Unmarshal(f.Payload, &m); err != nil {
		return &wire.FormatError{Reason: "hello: " + err.Error()}
	}
	welcome := message(wire.Welcome, wire.WelcomeMessage{Session: m.Session, Info: s.info()})
	if s.mux != nil && s.session == m.Session {
		s.w.Send(welcome)
		return nil
	}
	s.drop()
	s.session = m.Session
	s.mux = wire.NewMux(s.w, func(stream *wire.Stream, r wire.Request) {
		s.ops.Go(func() { s.serve(stream, r) })
	})
	s.w.Restart(welcome)
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

// serve runs one operation.
func (s *Server) serve(stream *wire.Stream, r wire.Request) {
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
	case wire.OpIdentity, wire.OpClock, wire.OpEcho:
	default:
		if err := s.init.await(ctx); err != nil {
			return nil, err
		}
	}
	switch r.Op {
	case wire.OpExec:
		return do(r, func(q wire.ExecRequest) (any, error) { return s.shell.exec(stream, q, r.Body) })
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
		return do(r, func(q wire.PortRequest) (any, error) { return waitPort(ctx, q) })
	case wire.OpWaitSocket:
		return do(r, func(q wire.SocketRequest) (any, error) { return waitSocket(ctx, q) })
	case wire.OpWaitTTY:
		return do(r, func(q wire.TTYRequest) (any, error) { return waitTTY(ctx, q) })
	case wire.OpWaitX:
		return do(r, func(q wire.WindowRequest) (any, error) { return waitX(ctx, q) })
	case wire.OpEcho:
		return nil, nil
	case wire.OpPutTar:
		return do(r, func(q wire.CopyRequest) (any, error) { return putTar(stream, string(q.Path)) })
	case wire.OpGetTar:
		return do(r, func(q wire.CopyRequest) (any, error) { return getTar(stream, string(q.Path)) })
	case wire.OpConnect:
		return do(r, func(q wire.ConnectRequest) (any, error) { return nil, connect(stream, q) })
	case wire.OpIdentity:
		return do(r, func(q wire.Identity) (any, error) {
			if err := applyIdentity(q, "/"); err != nil {
				return nil, err
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
	case wire.OpSync:
		unix.Sync()
		return nil, nil
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
	}
	return &wire.Error{Kind: wire.KindFailed, Message: err.Error()}
}

func errorf(kind, format string, args ...any) error {
	return &wire.Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}
