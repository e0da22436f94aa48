package protocol

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/session"
)

// Options are what a peer is served with.
type Options struct {
	Peer     string           // what the other side is called in errors
	Session  *session.Session // runs the operations
	Machines []string         // names of those there are at the beginning
	Version  string           // of attest
	OutDir   string           // where operations put files
	// Directories are those of this host that a machine's start command knows: its own,
	// and the one of all machines. Nil: the peer cannot ask.
	Directories func(machine string) (state, shared string, running bool, err error)
	// Patience is how long the peer may take until its hello; 0: 30 s.
	Patience time.Duration
}

// An End is how the peer says that its script has ended.
type End struct {
	Error *Thrown `json:"error,omitempty"` // nil: it has passed
}

// A Thrown is an error in the peer's language.
type Thrown struct {
	Class   string           `json:"class"`           // "ValueError"
	Message string           `json:"message"`         // without the class
	Error   int64            `json:"error,omitempty"` // ErrorData.Error of the operation that it comes from
	Status  event.Status     `json:"status,omitempty"`
	Exit    *int             `json:"exit,omitempty"`  // the script has ended its process on purpose, with this code
	Stack   []event.Position `json:"stack,omitempty"` // outermost first
	Source  string           `json:"source,omitempty"`
}

// A Server serves one peer.
type Server struct {
	options Options
	conn    *conn
	ctx     context.Context
	data    store
	scopes  scopes
	errors  failures
	work    sync.WaitGroup // what ends with ctx
	stopped context.Context
	stop    context.CancelCauseFunc

	mu     sync.Mutex
	late   *time.Timer // ends the connection when there was no hello
	hello  bool
	end    *End
	lastAt event.Position
}

// NewServer returns a Server of a stream, which it closes in the end.
func NewServer(stream io.ReadWriteCloser, o Options) *Server {
	s := &Server{options: o, conn: newConn(o.Peer, stream)}
	s.conn.handle = s.handle
	s.stopped, s.stop = context.WithCancelCause(context.Background())
	return s
}

// Serve serves until the peer closes the connection, and returns what it has said about the
// end of its script; nil if it said nothing. The error is a *PeerError of a peer that
// does not keep to the protocol, or the cause of ctx.
func (s *Server) Serve(ctx context.Context) (*End, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var end context.CancelCauseFunc
	s.ctx, end = context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(s.stopped, func() { end(context.Cause(s.stopped)) })()
	patience := cmp.Or(s.options.Patience, 30*time.Second)
	s.late = time.AfterFunc(patience, func() {
		cancel(&PeerError{Peer: s.options.Peer, Reason: fmt.Sprintf("has not said hello within %v", patience)})
	})
	defer s.late.Stop()
	err := s.conn.serve(ctx)
	cancel(errGone)
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end, err
}

// Interrupt ends all operations, those under way and those to come, with an error. The
// connection goes on, so that the peer can say how its script has ended.
func (s *Server) Interrupt(err error) { s.stop(err) }

// LastPosition is where the peer's script was when it asked for something last.
func (s *Server) LastPosition() event.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastAt
}

// A method answers one kind of request.
type method func(*Server, context.Context, json.RawMessage) (any, error)

var methods map[string]method

func init() {
	methods = map[string]method{
		"hello": on((*Server).doHello), "invoke": on((*Server).doInvoke), "release": on((*Server).doRelease), "log": on((*Server).doLog),
		"begin": on((*Server).doBegin), "watch": on((*Server).doWatch), "finish": on((*Server).doFinish),
		"fork": on((*Server).doFork), "directories": on((*Server).doDirectories),
		"read": on((*Server).doRead), "write": on((*Server).doWrite), "end": on((*Server).doEnd),
	}
}

// paramsError is a request whose parameters do not fit.
type paramsError struct{ error }

func (e paramsError) Status() event.Status { return event.Invalid }

// on makes a method of one that takes decoded parameters.
func on[P any](fn func(*Server, context.Context, P) (any, error)) method {
	return func(s *Server, ctx context.Context, text json.RawMessage) (any, error) {
		var p P
		if text == nil {
			text = json.RawMessage("{}")
		}
		var ref struct {
			Data *int64 `json:"$data"`
		}
		if unmarshal(text, &ref) == nil && ref.Data != nil {
			kept, ok := s.data.take(*ref.Data)
			if !ok {
				return nil, paramsError{fmt.Errorf("there is no data %d", *ref.Data)}
			}
			text = kept
		}
		if err := unmarshal(text, &p); err != nil {
			return nil, paramsError{fmt.Errorf("parameters: %w", err)}
		}
		return fn(s, ctx, p)
	}
}

func (s *Server) handle(ctx context.Context, name string, params json.RawMessage) (any, *Error) {
	m, ok := methods[name]
	if !ok {
		return nil, &Error{Code: CodeMethod, Message: fmt.Sprintf("there is no method %q", name)}
	}
	s.mu.Lock()
	greeted := s.hello
	s.mu.Unlock()
	if !greeted && name != "hello" {
		return nil, &Error{Code: CodeRequest, Message: "the first request is hello"}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	v, err := m(s, ctx, params)
	if err != nil {
		return nil, s.explain(err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, &Error{Code: CodeInternal, Message: "the result cannot be sent: " + err.Error()}
	}
	if len(text) <= inline {
		return json.RawMessage(text), nil
	}
	id, err := s.data.put(0, text)
	if err != nil {
		return nil, s.explain(err)
	}
	return map[string]any{tagData: dataRef{id, len(text)}}, nil
}

type dataRef struct {
	ID   int64 `json:"id"`
	Size int   `json:"size"`
}

type helloParams struct {
	Protocol int    `json:"protocol"`
	Client   string `json:"client"`
	Events   bool   `json:"events"`
}

func (s *Server) doHello(_ context.Context, p helloParams) (any, error) {
	if p.Protocol != Version {
		return nil, paramsError{fmt.Errorf("%s speaks version %d of the protocol, and this attest version %d", cmp.Or(p.Client, s.options.Peer), p.Protocol, Version)}
	}
	s.mu.Lock()
	again := s.hello
	s.hello = true
	s.mu.Unlock()
	if again {
		return nil, paramsError{errors.New("a second hello")}
	}
	s.late.Stop()
	if p.Events {
		s.sendEvents()
	}
	return map[string]any{
		"protocol": Version, "version": s.options.Version, "machines": append([]string{}, s.options.Machines...), "out_dir": s.options.OutDir,
		"kinds": kinds(), "limits": map[string]int{"message": MaxMessage, "piece": maxPiece, "data": maxData, "requests": maxRequests},
	}, nil
}

// position is a place in the peer's script.
type position struct {
	File     string `json:"file"`
	Line     int    `json:"line"`
	Column   int    `json:"column"`
	Function string `json:"function"`
}

func (p *position) event() event.Position {
	if p == nil {
		return event.Position{}
	}
	return event.Position{File: p.File, Line: p.Line, Column: p.Column, Func: p.Function}
}

type invokeParams struct {
	On struct {
		Machine *string `json:"machine"`
		Object  int     `json:"object"`
		Kind    string  `json:"kind"`
	} `json:"on"`
	Operation string         `json:"operation"`
	Args      []any          `json:"args"`
	Named     map[string]any `json:"named"`
	At        *position      `json:"at"`
	Scope     int64          `json:"scope"`
}

func (s *Server) doInvoke(ctx context.Context, p invokeParams) (any, error) {
	ctx, leave, err := s.scopes.enter(ctx, p.Scope)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx = s.at(ctx, p.At)
	on, err := p.subject()
	if err != nil {
		return nil, err
	}
	d := decoder{function: func(id int64) operation.Func { return s.function(id) }}
	args, err := d.list(p.Args)
	if err != nil {
		return nil, paramsError{err}
	}
	values, err := d.dict(p.Named)
	if err != nil {
		return nil, paramsError{err}
	}
	var named []operation.Named
	for name, v := range values {
		named = append(named, operation.Named{Name: name, Value: v})
	}
	v, err := s.session(ctx).Invoke(ctx, on, p.Operation, args, named)
	if err != nil {
		return nil, err
	}
	return encode(v), nil
}

func (p *invokeParams) subject() (any, error) {
	switch {
	case p.On.Machine != nil:
		return operation.MachineName(*p.On.Machine), nil
	case p.On.Object != 0:
		return session.Object{ID: p.On.Object}, nil
	}
	for _, kind := range operation.Kinds() {
		if kind.String() == p.On.Kind && (kind == operation.Lab || kind.Global() != "") {
			return kind, nil
		}
	}
	return nil, paramsError{fmt.Errorf("on: want a machine, an object or the kind lab or network, not the kind %q", p.On.Kind)}
}

// at notes where the script is, and gives it to the events of an operation.
func (s *Server) at(ctx context.Context, p *position) context.Context {
	if p == nil {
		return ctx
	}
	s.mu.Lock()
	s.lastAt = p.event()
	s.mu.Unlock()
	return event.WithPosition(ctx, p.event())
}

// function is a function of the peer's as an operation calls it.
func (s *Server) function(id int64) operation.Func {
	return func(ctx context.Context, args ...any) (any, error) {
		values := make([]any, len(args))
		for i, a := range args {
			values[i] = encode(a)
		}
		scope := s.scopes.open(ctx, nil)
		defer s.scopes.close(scope)
		text, err := s.conn.call(ctx, "call", map[string]any{"function": id, "args": values, "scope": scope})
		var answer *Error
		if errors.As(err, &answer) && answer.Data != nil && answer.Data.Thrown != nil {
			err = s.Explain(answer.Data.Thrown)
		}
		if err != nil {
			return nil, err
		}
		var v any
		if err := unmarshal(text, &v); err != nil {
			return nil, &PeerError{s.options.Peer, "the result of its function cannot be understood", err}
		}
		return decoder{}.decode(v)
	}
}

type releaseParams struct {
	Object int   `json:"object"`
	Data   int64 `json:"data"`
}

func (s *Server) doRelease(_ context.Context, p releaseParams) (any, error) {
	s.options.Session.Release(session.Object{ID: p.Object}) // one of a fork ends with that
	s.data.take(p.Data)
	return nil, nil
}

type logParams struct {
	Level   string    `json:"level"`
	Text    string    `json:"text"`
	Machine string    `json:"machine"`
	Scope   int64     `json:"scope"`
	At      *position `json:"at"`
}

func (s *Server) doLog(ctx context.Context, p logParams) (any, error) {
	ctx, leave, err := s.scopes.enter(ctx, p.Scope)
	if err != nil {
		return nil, err
	}
	defer leave()
	switch p.Level {
	case "debug", "info", "warning", "error":
	default:
		return nil, paramsError{fmt.Errorf("level: want debug, info, warning or error, not %q", p.Level)}
	}
	event.Publish(s.at(ctx, p.At), event.Log{Machine: p.Machine, Level: p.Level, Text: p.Text})
	return nil, nil
}

type readParams struct {
	Data   int64 `json:"data"`
	Offset int   `json:"offset"`
	Length int   `json:"length"`
}

func (s *Server) doRead(_ context.Context, p readParams) (any, error) {
	piece, err := s.data.get(p.Data, p.Offset, p.Length)
	if err != nil {
		return nil, paramsError{err}
	}
	return map[string]any{tagBytes: piece}, nil
}

type writeParams struct {
	Data  int64  `json:"data"`
	Bytes []byte `json:"bytes"` // base64
}

func (s *Server) doWrite(_ context.Context, p writeParams) (any, error) {
	if len(p.Bytes) > maxPiece {
		return nil, paramsError{fmt.Errorf("a piece has at most %d bytes, not %d", maxPiece, len(p.Bytes))}
	}
	id, err := s.data.put(p.Data, p.Bytes)
	if err != nil {
		return nil, paramsError{err}
	}
	return map[string]int64{"data": id}, nil
}

func (s *Server) doEnd(_ context.Context, p End) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == nil {
		s.end = &p
	}
	return nil, nil
}

// param and described are the table of operations as the reply to hello has it.
type param struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Default  any    `json:"default,omitempty"`
	Required bool   `json:"required,omitempty"`
	Variadic bool   `json:"variadic,omitempty"`
	Named    bool   `json:"named,omitempty"`
	Doc      string `json:"doc,omitempty"`
}

type described struct {
	Name     string   `json:"name"`
	Aliases  []string `json:"aliases,omitempty"`
	Params   []param  `json:"params"`
	Result   string   `json:"result"`
	Property bool     `json:"property,omitempty"`
	Doc      string   `json:"doc"`
}

type kind struct {
	Global     string      `json:"global,omitempty"`
	Operations []described `json:"operations"`
}

func kinds() map[string]kind {
	out := map[string]kind{}
	for _, on := range operation.Kinds() {
		k := kind{Global: on.Global()}
		for _, o := range operation.All(on) {
			d := described{Name: o.Name, Aliases: o.Aliases, Params: []param{}, Result: string(o.Result), Property: o.Property, Doc: o.Doc}
			for _, p := range o.Params {
				q := param{Name: p.Name, Type: string(p.Type), Default: p.Default, Required: p.Default == nil && !p.Variadic, Variadic: p.Variadic, Named: p.Named, Doc: p.Doc}
				switch v := p.Default.(type) {
				case time.Duration:
					q.Default = v.Seconds()
				case nil, string, bool, int, float64:
				default:
					q.Default = nil // Absent
				}
				d.Params = append(d.Params, q)
			}
			k.Operations = append(k.Operations, d)
		}
		out[on.String()] = k
	}
	return out
}

// ErrorData says how an operation failed.
type ErrorData struct {
	Status  event.Status   `json:"status,omitempty"`
	Kind    string         `json:"kind,omitempty"`    // "command", "wait", …: see docs/protocol.md
	Error   int64          `json:"error,omitempty"`   // a number, to say later that this error ended the script
	Failure *event.Failure `json:"failure,omitempty"` // what is known about it, bounded
	Thrown  *Thrown        `json:"thrown,omitempty"`  // of the peer's own functions
}

// explain is an error as the peer is told.
func (s *Server) explain(err error) *Error {
	var params paramsError
	if errors.As(err, &params) {
		return &Error{Code: CodeParams, Message: params.Error()}
	}
	f := access.Failure(err)
	f.Console, f.Details = nil, nil // the reports have them
	f.Stdout, f.Stderr = shorten(f.Stdout), shorten(f.Stderr)
	message := shorten(f.Message)
	f.Message, f.Command = "", shorten(f.Command)
	return &Error{Code: CodeOperation, Message: message, Data: &ErrorData{Status: f.Status, Kind: kindOf(err), Error: s.errors.add(err), Failure: f}}
}

// shorten bounds a text in an error.
func shorten(s string) string {
	const limit = 64 << 10
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}

// kindOf tells errors of one status apart.
func kindOf(err error) string {
	for _, k := range []struct {
		name string
		is   func(error) bool
	}{
		{"condition", is[*attest.ConditionError]}, {"argument", is[*operation.ArgumentError]}, {"unknown_object", is[*session.UnknownObjectError]},
		{"command", is[*attest.CommandError]}, {"wait", is[*attest.WaitError]}, {"unit", is[*attest.UnitError]}, {"refused", is[*attest.RefusedError]},
		{"boot", is[*attest.BootError]}, {"down", is[*attest.DownError]}, {"paused", is[*attest.PausedError]}, {"suspended", is[*attest.SuspendedError]}, {"agent", is[*attest.AgentError]},
		{"unsupported", is[*attest.UnsupportedError]}, {"configuration", is[*attest.ConfigError]}, {"missing", is[*attest.MissingError]}, {"infrastructure", is[*attest.InfraError]},
	} {
		if k.is(err) {
			return k.name
		}
	}
	return "other"
}

func is[T error](err error) bool {
	var t T
	return errors.As(err, &t)
}

// failures are the last errors that a peer was told about.
type failures struct {
	mu   sync.Mutex
	last int64
	all  [256]error
}

func (f *failures) add(err error) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	f.all[f.last%int64(len(f.all))] = err
	return f.last
}

func (f *failures) get(id int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id < 1 || id > f.last || id <= f.last-int64(len(f.all)) {
		return nil
	}
	return f.all[id%int64(len(f.all))]
}
