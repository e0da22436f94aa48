package guest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// Options tune a Client. The zero value works.
type Options struct {
	// PingAfter is how long an operation waits without hearing from the agent
	// before it is asked whether it is there. Default 10 s.
	PingAfter time.Duration
	// PingTimeout is how long the answer may take. Default 60 s: an emulated
	// guest under load is slow.
	PingTimeout time.Duration
	// LastWords is how long an operation whose time is over waits for what the
	// guest saw last. Default LastWords; an emulated guest needs more.
	LastWords time.Duration
	// Grace is how long an operation whose limit the guest keeps may take beyond
	// that limit. Default 15 s: the guest may be slow, and ends a command gently.
	Grace time.Duration
	// Echo is how long an agent may take to say that it is there, when the limit of an
	// operation is over that the guest keeps: one that does not is not given Grace.
	// Default 3 s.
	Echo time.Duration
	// Standing reports whether the guest cannot answer, as is known without it. Nil: it is
	// asked.
	Standing func(context.Context) bool
	// StandIn reports when the guest was heard last, if its root shell stands in for the agent: a
	// server on this side speaks for it then, whose frames are no sign of the guest. Nil: never.
	StandIn func() (heard time.Time, ok bool)
	// AgentTimeout is how long an operation waits for an agent that answers, such
	// as that of a guest that reboots. Default 5 min.
	AgentTimeout time.Duration
	// GreetTimeout is how long an agent that has made itself heard may take until
	// it has answered and Greet has returned. Default 2 min.
	GreetTimeout time.Duration
	// Reconnect is how long a session outlives its connection: what is under way goes
	// on when there is another one by then. Default 60 s.
	Reconnect time.Duration
	// Redial is how long the agent may be silent on a connection that expects an answer
	// before another one is made, and up to eight times that while none answers. 0: it is
	// not given up, as for a channel that has no connections.
	Redial time.Duration
	// Stall is how long a copy may stand still, without a byte of it that moves.
	// It limits as well what an agent may take for an operation that waits for
	// nothing, such as to set the clock. Default 5 min.
	Stall time.Duration
	// Greet is called when an agent has answered, first of all: nobody else gets
	// through to it before Greet has returned nil. Calls with its context go to
	// that agent. An error is what Ready returns, until another agent answers.
	Greet func(ctx context.Context, info wire.Info) error
}

// setDefaults gives every limit that is not set its default.
func (o *Options) setDefaults() {
	for _, d := range []struct {
		limit *time.Duration
		value time.Duration
	}{
		{&o.PingAfter, 10 * time.Second},
		{&o.PingTimeout, 60 * time.Second},
		{&o.LastWords, LastWords},
		{&o.Grace, 15 * time.Second},
		{&o.Echo, 3 * time.Second},
		{&o.AgentTimeout, 5 * time.Minute},
		{&o.GreetTimeout, 2 * time.Minute},
		{&o.Reconnect, 60 * time.Second},
		{&o.Stall, 5 * time.Minute},
	} {
		if *d.limit <= 0 {
			*d.limit = d.value
		}
	}
}

// A Client talks to the agent of one machine. Its methods can be called from any goroutine.
type Client struct {
	name string
	dial func(context.Context) (net.Conn, error)
	opt  Options

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the owner goroutine has ended

	owned sync.WaitGroup // goroutines of sessions

	mu      sync.Mutex
	live    *session      // between its Welcome and whatever ends it; nil: none
	session *session      // live, when Greet has agreed; what operations use
	changed chan struct{} // closed and replaced when session or trouble changes
	trouble error         // why there is no session, if that is known
	lasting bool          // trouble stays until an agent answers; otherwise it is told once
	signs   signs
	held    bool // by Hold
	heldAt  time.Time
	heldFor time.Duration // in total, before heldAt
}

// signs are what has come from agents since there was a session that could be used.
type signs struct {
	announced, welcomed int
	stop                func() // ends the limit of GreetTimeout; nil: there was no sign
}

func (s signs) String() string {
	switch {
	case s.welcomed > 0:
		return fmt.Sprintf("an agent has answered %d times, and has not become ready", s.welcomed)
	case s.announced > 0:
		return fmt.Sprintf("an agent has announced itself %d times, and does not answer", s.announced)
	}
	return "the agent has not answered yet"
}

// A session is the time between one Welcome and whatever ends it. It outlives the
// connection that carries it.
type session struct {
	id      string
	info    wire.Info
	mux     *wire.Mux
	ctx     context.Context // ends with the session, and its cause is why
	cancel  context.CancelCauseFunc
	forsake func() // ends the limit of Reconnect; only the owner of the channel uses it

	mu       sync.Mutex
	w        *wire.Writer // of the connection; nil: there is none
	hangUp   func()       // ends the connection, if another one can be made
	heard    time.Time    // when the last frame came
	last     wire.Type    // what it was
	pinged   time.Time    // when the ping left that has no answer; zero: none
	pings    uint32
	busy     int           // operations under way
	activity chan struct{} // 1 slot: busy is no longer 0
}

var errClosed = errors.New("the lab has been closed")

// New returns a client of the machine called name. Its goroutine dials the
// channel, again if it breaks, until Close. dial may block until its context ends.
func New(name string, dial func(context.Context) (net.Conn, error), opt Options) *Client {
	opt.setDefaults()
	c := &Client{name: name, dial: dial, opt: opt, done: make(chan struct{}), changed: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	go c.run()
	return c
}

// Close ends the client and waits for its goroutines. Everything under way, and
// everything later, fails at once with an error that wraps cause; nil stands
// for a machine that was closed as planned. Only the first Close counts.
func (c *Client) Close(cause error) {
	if cause == nil {
		cause = errClosed
	}
	c.cancel(cause)
	<-c.done
}

// closedError is what calls return after Close.
func (c *Client) closedError() error {
	return fmt.Errorf("%s: %w", c.name, context.Cause(c.ctx))
}

// Ready waits until the agent answers. Garbage on the channel fails it, too,
// but not for good: a later call may succeed.
func (c *Client) Ready(ctx context.Context) (wire.Info, error) {
	s, err := c.ready(ctx, 0)
	if err != nil {
		return wire.Info{}, err
	}
	return s.info, nil
}

// ready waits until there is a session, at most for limit unless that is 0.
func (c *Client) ready(ctx context.Context, limit time.Duration) (*session, error) {
	if s, ok := ctx.Value(greeting{}).(*session); ok {
		return s, context.Cause(s.ctx)
	}
	c.mu.Lock()
	s, known := c.session, c.trouble
	if c.lasting {
		known = nil
	}
	c.mu.Unlock()
	if s != nil && c.ctx.Err() == nil {
		return s, nil
	}
	start := time.Now()
	var over chan struct{}
	if limit > 0 {
		over = make(chan struct{})
		begun := c.clock()
		defer c.after(limit, func() time.Duration { return begun }, func() { close(over) })()
	}
	for {
		c.mu.Lock()
		s, trouble, changed, seen := c.session, c.trouble, c.changed, c.signs.String()
		c.mu.Unlock()
		if trouble != nil {
			seen = trouble.Error()
		}
		switch {
		case c.ctx.Err() != nil:
			return nil, c.closedError()
		case s != nil:
			return s, nil
		case trouble != nil && trouble != known:
			return nil, trouble
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
		case <-over:
			return nil, &OverdueError{Machine: c.name, Operation: awaitAgent, After: time.Since(start), LastSeen: seen}
		case <-ctx.Done():
			return nil, &WaitError{Machine: c.name, Operation: awaitAgent, After: time.Since(start), LastSeen: seen, Err: context.Cause(ctx)}
		}
	}
}

const awaitAgent = "wait for the agent"

// Heard is when the agent has said something last, or was given time anew; zero if there
// is none.
func (c *Client) Heard() time.Time {
	c.mu.Lock()
	s := c.live
	c.mu.Unlock()
	if s == nil {
		return time.Time{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard
}

// standIn reports whether the guest's root shell stands in for the agent, and when the guest was
// heard last then.
func (c *Client) standIn() (heard time.Time, ok bool) {
	if c.opt.StandIn == nil {
		return heard, false
	}
	return c.opt.StandIn()
}

// ReadyAgain waits until another agent answers than the one that was before:
// the guest has restarted.
func (c *Client) ReadyAgain(ctx context.Context, before wire.Info) (wire.Info, error) {
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		info, err := c.Ready(ctx)
		if err != nil || info.Instance != before.Instance {
			return info, err
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
		case <-ctx.Done():
			return info, &WaitError{Machine: c.name, Operation: "wait for the guest to restart", LastSeen: "it has not gone down yet", Err: context.Cause(ctx)}
		}
	}
}

// Fail makes Ready fail with err until an agent answers.
func (c *Client) Fail(err error) { c.fail(err, true) }

// fail notes why there is no session.
func (c *Client) fail(err error, lasting bool) {
	c.mu.Lock()
	c.session, c.trouble, c.lasting = nil, err, lasting
	c.notify()
	c.mu.Unlock()
}

// notify wakes all who wait for a session. Called with mu held.
func (c *Client) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// greeting is the context key of the session that Greet is for.
type greeting struct{}

// greet lets others use a session when Greet agrees.
func (c *Client) greet(s *session) {
	var err error
	if c.opt.Greet != nil {
		err = c.opt.Greet(context.WithValue(s.ctx, greeting{}, s), s.info)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live != s {
		return // it has ended meanwhile
	}
	if c.signs.stop != nil {
		c.signs.stop()
	}
	c.signs = signs{}
	c.trouble, c.lasting = err, err != nil
	if err == nil {
		c.session = s
	}
	c.notify()
}

// begin makes s the session that is live.
func (c *Client) begin(s *session) {
	c.mu.Lock()
	c.live = s
	c.mu.Unlock()
	c.owned.Go(func() { c.watchdog(s) })
	c.owned.Go(func() { c.greet(s) })
}

// end ends a session with err for everything under way. It waits for nobody.
func (c *Client) end(s *session, err error) {
	c.mu.Lock()
	if c.live == s {
		c.live, c.session = nil, nil
		c.trouble, c.lasting = nil, false
		c.notify()
	}
	c.mu.Unlock()
	s.cancel(err)
	s.mux.Close(err)
}

// sign notes that an agent has made itself heard that cannot be used yet. From the
// first sign on it has GreetTimeout.
func (c *Client) sign(note func(*signs)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != nil {
		return
	}
	note(&c.signs)
	if c.signs.stop != nil {
		return
	}
	start := time.Now()
	begun := c.clockLocked()
	c.signs.stop = c.after(c.opt.GreetTimeout, func() time.Duration { return begun }, func() {
		c.mu.Lock()
		late := &OverdueError{Machine: c.name, Operation: awaitAgent, After: time.Since(start), LastSeen: c.signs.String()}
		s, used := c.live, c.session != nil
		c.signs = signs{}
		c.mu.Unlock()
		if used {
			return // it became ready at the same moment
		}
		if s != nil {
			c.end(s, late)
		}
		c.fail(late, true)
	})
}

// clock is the client's own time: it stands still while the guest is held.
func (c *Client) clock() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clockLocked()
}

var epoch = time.Now()

func (c *Client) clockLocked() time.Duration {
	if c.held {
		return c.heldAt.Sub(epoch) - c.heldFor
	}
	return time.Since(epoch) - c.heldFor
}

// after calls fn when the clock is d past what since returns then, unless stop is
// called before.
func (c *Client) after(d time.Duration, since func() time.Duration, fn func()) (stop func()) {
	const patience = 50 * time.Millisecond // between two looks at a clock that stands still
	var timer *time.Timer
	made := make(chan struct{})
	timer = time.AfterFunc(d, func() {
		<-made
		if left := since() + d - c.clock(); left > 0 {
			timer.Reset(max(left, patience))
			return
		}
		fn()
	})
	close(made)
	return func() { timer.Stop() }
}

const (
	minRedial = 10 * time.Millisecond
	maxRedial = time.Second
)

// run owns the channel.
func (c *Client) run() {
	defer close(c.done)
	defer c.owned.Wait()
	l := &link{c: c}
	for pause := minRedial; c.ctx.Err() == nil; {
		conn, err := c.dial(c.ctx)
		if err == nil && l.serve(conn) {
			pause = minRedial
		}
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
		}
		pause = min(2*pause, maxRedial)
	}
	l.end(c.closedError())
}

// A link is the channel, through all its connections. All its methods run in the
// owner's goroutine.
type link struct {
	c     *Client
	w     *wire.Writer
	dec   *wire.Decoder
	id    string   // of the session that the last Hello asked for
	try   uint32   // of that Hello
	s     *session // nil: none
	heard bool     // there was a Welcome on this connection

	patience time.Duration // with the next connection's silence
	welcomed func()        // ends the limit of that
	silent   atomic.Bool   // this connection was given up for it
	hangUp   func()        // gives it up; nil: there would be no other
}

// maxPatience is how many times Redial it becomes: a guest that is slow would get to
// each connection that was given up before it gets to the last.
const maxPatience = 8

// watchSilence gives up a connection on which no Welcome comes.
func (l *link) watchSilence(conn net.Conn) {
	l.welcomed, l.hangUp = func() {}, nil
	l.silent.Store(false)
	if l.c.opt.Redial <= 0 {
		return
	}
	l.hangUp = func() {
		l.silent.Store(true)
		conn.Close()
	}
	l.patience = min(max(2*l.patience, l.c.opt.Redial), maxPatience*l.c.opt.Redial)
	begun := l.c.clock()
	l.welcomed = l.c.after(l.patience, func() time.Duration { return begun }, l.hangUp)
}

// serve speaks with the agent until the connection breaks, and says whether there
// was a Welcome. What is under way waits for the next connection then.
func (l *link) serve(conn net.Conn) bool {
	stop := context.AfterFunc(l.c.ctx, func() { conn.Close() })
	defer stop()
	l.w, l.dec, l.heard = wire.NewWriter(conn), wire.NewDecoder(conn), false
	defer l.w.Close()
	defer conn.Close()
	l.watchSilence(conn)
	defer func() { l.welcomed() }()
	l.hello()
	for {
		f, err := l.dec.Next()
		if err == nil {
			err = l.handle(f)
		}
		var bad *wire.FormatError
		switch {
		case errors.As(err, &bad):
			l.broken(bad.Reason)
		case err != nil:
			if l.silent.Load() {
				err = errNoWelcome
			}
			if l.s != nil {
				l.suspend(err)
			}
			return l.heard
		}
	}
}

// broken ends the session of an agent that breaks the rules, and begins another.
func (l *link) broken(reason string) {
	trouble := &ProtocolError{Machine: l.c.name, Detail: reason}
	l.end(trouble)
	l.c.fail(trouble, false)
	l.hello()
}

// hello asks to go on with the session, if there is one, and otherwise for a new one.
func (l *link) hello() {
	if l.s != nil && l.s.ctx.Err() != nil {
		l.s = nil // it was given up
	}
	if l.s != nil {
		l.suspend(errNoWelcome)
	} else {
		l.id = rand.Text()
	}
	l.try++
	l.w.Restart(message(wire.Hello, wire.HelloMessage{Session: l.id, Version: wire.Version, Try: l.try}))
}

func message(t wire.Type, v any) wire.Frame {
	p, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs
	}
	return wire.Frame{Type: t, Payload: p}
}

// end ends the session, if there is one, with err for everything under way.
func (l *link) end(err error) {
	if l.s != nil {
		l.s.found()
		l.c.end(l.s, err)
		l.s = nil
	}
}

var errNoWelcome = errors.New("the agent does not answer")

// suspend leaves the session without a connection that carries it, for a while.
func (l *link) suspend(err error) {
	s, c := l.s, l.c
	s.carry(nil, nil)
	if s.forsake == nil {
		begun := c.clock()
		s.forsake = c.after(c.opt.Reconnect, func() time.Duration { return begun }, func() {
			c.end(s, &DisconnectedError{Machine: c.name, Err: err})
		})
	}
}

// found ends the limit that suspend has begun.
func (s *session) found() {
	if s.forsake != nil {
		s.forsake()
		s.forsake = nil
	}
}

// carry notes which connection carries the session; nil: none.
func (s *session) carry(w *wire.Writer, hangUp func()) {
	if w == nil {
		s.mux.Detach()
	}
	s.mu.Lock()
	s.w, s.hangUp, s.heard, s.pinged = w, hangUp, time.Now(), time.Time{}
	s.mu.Unlock()
}

func (l *link) handle(f wire.Frame) error {
	switch f.Type {
	case wire.Preamble:
		return nil
	case wire.Announce:
		return l.announced(f)
	case wire.Welcome:
		return l.welcome(f)
	}
	switch {
	case l.s == nil:
		return nil // the rest of an earlier session
	case l.s.ctx.Err() != nil: // it was given up
		l.hello()
		return nil
	case !l.s.carried():
		return nil // it will come again
	}
	heard, ok := l.c.standIn()
	if !ok {
		heard = time.Now()
	}
	if err := l.s.heardFrom(f, heard); err != nil {
		return err
	}
	if f.Type == wire.Pong {
		return nil
	}
	return l.s.mux.Handle(f)
}

func (s *session) carried() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w != nil
}

// announced answers an agent that asks for a Hello. It may have read the last one, or
// it may not.
func (l *link) announced(f wire.Frame) error {
	var m wire.AnnounceMessage
	if err := json.Unmarshal(f.Payload, &m); err != nil {
		return &wire.FormatError{Reason: "announce: " + err.Error()}
	}
	if l.s != nil && m.Instance != l.s.info.Instance {
		l.end(l.replaced(m.BootID))
	}
	l.c.sign(func(s *signs) { s.announced++ })
	l.hello()
	return nil
}

// replaced is what became of the agent of this session when another one is there.
func (l *link) replaced(boot string) error {
	if boot != "" && boot == l.s.info.BootID {
		return &AgentError{Machine: l.c.name}
	}
	return &RestartedError{Machine: l.c.name}
}

func (l *link) welcome(f wire.Frame) error {
	var m wire.WelcomeMessage
	if err := json.Unmarshal(f.Payload, &m); err != nil {
		return &wire.FormatError{Reason: "welcome: " + err.Error()}
	}
	if m.Session != l.id {
		return nil // an answer to an earlier Hello
	}
	if m.Version != wire.Version {
		err := &VersionError{Machine: l.c.name, Guest: m.Version}
		l.end(err)
		l.c.fail(err, true)
		return nil
	}
	if m.Try != l.try {
		return nil
	}
	if err := m.Check(); err != nil {
		return &wire.FormatError{Reason: "welcome: " + err.Error()}
	}
	l.heard, l.patience = true, 0
	l.welcomed()
	if l.s != nil && l.s.ctx.Err() != nil {
		l.hello() // it was given up at this moment
		return nil
	}
	if l.s != nil {
		return l.resume(m)
	}
	if m.Over || m.Received != 0 {
		return &wire.FormatError{Reason: "welcome: the agent knows a session that is new"}
	}
	l.c.sign(func(s *signs) { s.welcomed++ })
	ctx, cancel := context.WithCancelCause(l.c.ctx)
	l.s = &session{id: m.Session, info: m.Info, mux: wire.NewMux(nil), ctx: ctx, cancel: cancel,
		heard: time.Now(), activity: make(chan struct{}, 1)}
	if err := l.start(m.Received); err != nil {
		return err
	}
	l.c.begin(l.s)
	return nil
}

// resume goes on with the session, if the agent can.
func (l *link) resume(m wire.WelcomeMessage) error {
	switch {
	case m.Instance != l.s.info.Instance:
		l.end(l.replaced(m.BootID))
		l.hello()
		return nil
	case m.Over:
		l.broken("the agent has ended the session")
		return nil
	}
	return l.start(m.Received)
}

// start has this connection carry the session, to an agent that has received that
// many frames of it.
func (l *link) start(received uint32) error {
	l.w.Restart(message(wire.Start, wire.StartMessage{Received: l.s.mux.Received()}))
	if err := l.s.mux.Attach(l.w, received); err != nil {
		return &wire.FormatError{Reason: "welcome: " + err.Error()}
	}
	l.s.found()
	l.s.carry(l.w, l.hangUp)
	return nil
}

// heardFrom notes a frame, before which the guest was heard at that time.
func (s *session) heardFrom(f wire.Frame, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = f.Type
	s.hear(at)
	if f.Type == wire.Pong {
		if f.Stream == 0 || f.Stream > s.pings {
			return &wire.FormatError{Reason: fmt.Sprintf("pong %d to ping %d", f.Stream, s.pings)}
		}
		s.pinged = time.Time{}
	}
	return nil
}

// hear notes that the guest was heard at that time. Called with mu held.
func (s *session) hear(at time.Time) {
	if at.After(s.heard) {
		s.heard = at
	}
}

// begin and finish count the operations under way.
func (s *session) begin() {
	s.mu.Lock()
	if s.busy++; s.busy == 1 {
		select {
		case s.activity <- struct{}{}:
		default:
		}
	}
	s.mu.Unlock()
}

func (s *session) finish() {
	s.mu.Lock()
	s.busy--
	s.mu.Unlock()
}

// watchdog pings an agent that is silent while something is under way, and ends
// what is under way when there is no answer. It does not end the session: an
// agent that wakes up goes on, and a later operation finds out by itself. Where there can
// be another connection, it gives up the silent one instead.
func (c *Client) watchdog(s *session) {
	for {
		s.mu.Lock()
		wait, idle := s.due(time.Now(), c.opt), s.busy == 0
		s.mu.Unlock()
		if idle {
			select {
			case <-s.activity:
				s.mu.Lock() // silence counts from now: nothing was expected before
				s.heard, s.pinged = time.Now(), time.Time{}
				s.mu.Unlock()
				continue
			case <-s.ctx.Done():
				return
			}
		}
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return
		}
		c.check(s)
	}
}

// Hold says that the guest stands still, by no fault of its own: its silence
// means nothing until Hold(false).
func (c *Client) Hold(held bool) {
	c.mu.Lock()
	switch {
	case held && !c.held:
		c.heldAt = time.Now()
	case !held && c.held:
		c.heldFor += time.Since(c.heldAt)
	}
	c.held = held
	s := c.live
	c.mu.Unlock()
	if s != nil {
		s.mu.Lock()
		s.heard, s.pinged = time.Now(), time.Time{}
		s.mu.Unlock()
	}
}

// due is when the next thing is to be done about silence. Called with mu held.
func (s *session) due(now time.Time, opt Options) time.Duration {
	if s.pinged.IsZero() {
		return s.heard.Add(opt.PingAfter).Sub(now)
	}
	last := s.pinged
	if s.heard.After(last) { // it talks, and gets to the ping in time
		last = s.heard
	}
	limit := opt.PingTimeout
	if s.hangUp != nil {
		limit = min(limit, opt.Redial)
	}
	return last.Add(limit).Sub(now)
}

func (c *Client) check(s *session) {
	now := time.Now()
	c.mu.Lock()
	held := c.held
	c.mu.Unlock()
	heard, standIn := c.standIn()
	s.mu.Lock()
	s.hear(heard)
	if held {
		s.heard, s.pinged = now, time.Time{}
	}
	if s.busy == 0 || s.due(now, c.opt) > 0 {
		s.mu.Unlock()
		return
	}
	if s.w == nil { // Reconnect limits that
		s.heard, s.pinged = now, time.Time{}
		s.mu.Unlock()
		return
	}
	if s.pinged.IsZero() {
		s.pings++
		s.pinged = now
		s.w.Send(wire.Frame{Type: wire.Ping, Stream: s.pings})
		s.mu.Unlock()
		return
	}
	late := &UnresponsiveError{Machine: c.name, Silent: now.Sub(s.heard), StandIn: standIn}
	hangUp := s.hangUp
	s.pinged, s.heard, s.hangUp = time.Time{}, now, nil
	s.mu.Unlock()
	if hangUp != nil { // what is under way goes on with the next one
		hangUp()
		return
	}
	s.mux.Abort(late)
}
