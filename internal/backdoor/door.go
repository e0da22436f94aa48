package backdoor

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/wire"
)

// Upgrade is whether a guest gets attest's agent.
type Upgrade string

const (
	Auto   Upgrade = ""       // it does, and where the agent cannot run the shell stands in for it
	Never  Upgrade = "never"  // the shell does everything
	Always Upgrade = "always" // a guest in which the agent cannot run has not booted
)

// Options are what a Door is made of.
type Options struct {
	Machine string
	Shell   net.Conn                                // the shell's console
	Place   string                                  // where the guest has that, for people; empty: /dev/hvc0
	Upload  net.Conn                                // a stream into the guest, and what its shell says: wire.UploadPort; nil: there is none
	Agent   func(context.Context) (net.Conn, error) // the stream to the agent, vmm.VM.Dial
	Binary  string                                  // path of the executable that becomes the agent
	Upgrade Upgrade
	// LookAfter is how long the shell may say nothing of a command before it is asked; 0 is lookPause.
	LookAfter time.Duration
	// Saved is the instance that answered when the machine was saved (wire.Info); empty if it boots.
	Saved string
	// Answers reports whether an agent answers, when none could be put into the guest: its
	// shell was started again beside it.
	Answers func() bool
	// Installed is called after each attempt to put the agent into the guest. An error is an
	// *InstallError; if Upgrade is Auto, the shell stands in for the agent from here on.
	Installed func(err error)
	// Ports and Devices are the guest's directories of virtio serial ports and of devices; empty: as
	// Linux has them.
	Ports, Devices string
	// Garbage is called when what the shell says makes no sense, and all that is under way
	// through it ends for that.
	Garbage func(err error)
	// Login has the Door make the guest's root shell, by a login on the serial console;
	// without a User the guest offers one itself.
	Login Login
	// Patience is how long a guest that boots may say nothing when no more than an answer is
	// missing: of a shell that has announced itself, or after a login prompt that nobody uses.
	// Silent is called then, with a *SilentError. 0: it may say nothing for ever.
	Patience time.Duration
	Silent   func(err error)
}

// A SilentError is a guest that has come far enough for a root shell, and offers none that
// answers.
type SilentError struct {
	Machine string
	Reason  string
}

func (e *SilentError) Error() string { return e.Machine + ": " + e.Reason }

// Status says that it is the guest which did not come up.
func (*SilentError) Status() event.Status { return event.BootFailed }

// A Door is a guest's root shell, over all boots of a machine's run.
type Door struct {
	opt    Options
	ctx    context.Context
	cancel context.CancelFunc
	served sync.WaitGroup
	out    outbox
	login  *login

	mu        sync.Mutex
	said      dialog
	step      string    // what it waits for
	announced bool      // a shell has, in this boot or an earlier one
	heard     time.Time // when it last said something, on the shell's console or beside it
	spoken    time.Time // when the shell that answers was heard last
	changed   chan struct{}
	shell     *shell        // who answers; nil: the agent, or nobody yet
	server    *agent.Server // of the shell
	ready     chan struct{} // closed when that can be used
	waiting   bool          // for the shell's hello, and nobody answers
	hangUp    func()        // ends the connection that was given out

	garbage chan complaint // from commands
}

// New returns a Door that listens when Start is called. Its Dial can be used before.
func New(opt Options) *Door {
	d := &Door{opt: opt, changed: make(chan struct{}), hangUp: func() {}, garbage: make(chan complaint)}
	// Whatever Upgrade says, the agent is there if it was saved with the machine.
	d.waiting = isShell(opt.Saved) || opt.Saved == "" && opt.Upgrade == Never
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.login = newLogin(opt.Login, d)
	return d
}

// Console takes what the guest writes to its serial console.
func (b *Door) Console() io.Writer { return b.login }

// Rebooted says that the guest boots anew.
func (b *Door) Rebooted() { b.login.rebooted() }

// Start listens to the guest's shell until Close.
func (b *Door) Start() {
	b.out.start(b.opt.Shell)
	b.served.Go(b.serve)
	switch {
	case b.opt.Login.User != "":
		b.served.Go(func() { b.login.run(b.ctx, b.opt.Saved != "") })
	case b.opt.Saved == "" && b.opt.Patience > 0:
		b.served.Go(b.awaitMarker)
	}
}

// awaitMarker gives up a guest whose login prompt has come, and which has said nothing since,
// on either console.
func (b *Door) awaitMarker() {
	prompt, changed := b.login.state()
	for since := time.Now(); ; {
		b.mu.Lock()
		announced := b.announced
		if b.heard.After(since) {
			since = b.heard
		}
		b.mu.Unlock()
		left := b.opt.Patience - time.Since(since)
		var quiet <-chan time.Time
		switch {
		case announced:
			return
		case prompt && left <= 0:
			b.silent()
			return
		case prompt:
			quiet = time.After(left)
		}
		select {
		case <-b.ctx.Done():
			return
		case <-changed:
			prompt, changed = b.login.state()
			since = time.Now()
		case <-quiet:
		}
	}
}

// silent says that no more comes of the guest.
func (b *Door) silent() {
	step, said := b.State()
	if said != "" {
		step += fmt.Sprintf("; the last on the shell's console: %q", said)
	}
	b.opt.Silent(&SilentError{b.opt.Machine, fmt.Sprintf("%s; it has said nothing for %v", step, b.opt.Patience)})
}

// Close ends the shell's console, and everything that goes through it.
func (b *Door) Close() {
	b.cancel()
	b.opt.Shell.Close()
	if b.opt.Upload != nil { // which is its owner's to close
		b.opt.Upload.SetReadDeadline(longAgo)
	}
	b.out.close()
	b.served.Wait()
}

// shellPrefix is what the instance of a shell begins with, which no agent's does.
const shellPrefix = "shell-"

func isShell(instance string) bool { return strings.HasPrefix(instance, shellPrefix) }

// serve decides who answers, by what the guest says.
func (b *Door) serve() {
	var install *installation
	var hello *greeting
	heard, quiet := make(chan []reply), make(chan struct{})
	b.served.Go(func() {
		defer close(quiet)
		b.read(b.opt.Shell, &b.said, heard)
	})
	if b.opt.Upload != nil {
		b.opt.Upload.SetReadDeadline(time.Time{})
		b.served.Go(func() { b.read(b.opt.Upload, &dialog{}, heard) })
	}
	defer func() {
		install.end()
		hello.end()
		b.use(nil, false)
	}()
	var mute <-chan time.Time // it has announced itself, and has not answered
	if isShell(b.opt.Saved) {
		hello = b.greet(true)
	}
	for {
		select {
		case <-quiet:
			return
		case <-mute:
			b.silent()
			mute = nil
		case replies := <-heard:
			for _, h := range replies {
				mute = nil
				if h.marker {
					if b.opt.Patience > 0 {
						mute = time.After(b.opt.Patience)
					}
					b.mu.Lock()
					b.announced = true
					b.mu.Unlock()
					install.end()
					hello.end()
					install, hello = nil, nil
					b.use(nil, b.opt.Upgrade == Never)
					if b.opt.Upgrade == Never {
						hello = b.greet(false)
					} else {
						install = b.begin(b.ctx)
					}
					continue
				}
				install.hear(h)
				if hello.hear(h) {
					b.use(hello.shell(b.opt.Machine, b.out.add), false, hello.jobs...)
				}
				b.hear(h)
			}
		case c := <-b.garbage:
			b.distrust(c.about, c.err)
		case err := <-install.result():
			install.end()
			install = nil
			if b.refused(err) {
				b.use(nil, true)
				hello = b.greet(false)
			}
		}
	}
}

// read passes on what the guest says until the stream ends.
func (b *Door) read(from net.Conn, said *dialog, heard chan<- []reply) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		b.mu.Lock()
		if n > 0 {
			b.heard = time.Now()
		}
		replies := said.feed(buf[:n])
		b.mu.Unlock()
		if len(replies) > 0 {
			select {
			case heard <- replies:
			case <-b.ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// hear passes a frame on to the shell that answers.
func (b *Door) hear(r reply) {
	b.mu.Lock()
	s := b.shell
	its := s != nil && r.nonce == s.name
	if its {
		b.spoken = time.Now()
	}
	b.mu.Unlock()
	if !its {
		return
	}
	if err := s.hear(r.word, r.text); err != nil {
		b.distrust(s, err)
	}
}

// distrust ends everything under way in a shell, if it is still the one that answers.
func (b *Door) distrust(s *shell, err error) {
	b.mu.Lock()
	gone := b.shell != s
	b.mu.Unlock()
	if gone {
		return
	}
	b.opt.Garbage(err)
	another := s.info // to the client: the session of this one is over
	another.Instance = shellPrefix + s.name + "-" + rand.Text()[:8]
	b.use(newShell(s.machine, s.name, another, s.send), false)
}

// use has this shell answer from here on, as soon as jobs that run in it are jobs of its
// server; nil: the agent, or nobody while waiting.
func (b *Door) use(s *shell, waiting bool, jobs ...string) {
	b.mu.Lock()
	was, server, hangUp := b.shell, b.server, b.hangUp
	if was == nil && s == nil && b.waiting == waiting {
		b.mu.Unlock()
		return
	}
	b.shell, b.server, b.waiting, b.hangUp = s, nil, waiting, func() {}
	if s != nil {
		b.server, b.ready = &agent.Server{Stage: s}, make(chan struct{})
		s.garbage = b.garbage
		s.pause = cmp.Or(b.opt.LookAfter, lookPause)
		b.spoken = time.Now()
		b.step = "its root shell answers"
		b.inherit(s, b.server, b.ready, jobs)
	}
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
	hangUp() // before what was cut off can look as if it was all
	if was != nil {
		was.close()
	}
	if server != nil {
		b.served.Go(server.Close)
	}
}

// inheritLimit is how long a job of a shell that was saved may take to be found.
const inheritLimit = 30 * time.Second

// inherit makes the jobs of a shell that was saved jobs of its server here, and closes ready.
func (b *Door) inherit(s *shell, server *agent.Server, ready chan struct{}, jobs []string) {
	var found sync.WaitGroup
	for _, job := range jobs {
		found.Go(func() {
			ctx, cancel := context.WithTimeout(b.ctx, inheritLimit)
			defer cancel()
			if c, err := s.adopt(ctx, job); err == nil { // otherwise it has ended
				server.Adopt(job, c)
			}
		})
	}
	b.served.Go(func() {
		found.Wait()
		close(ready)
	})
}

// Dial returns a stream to who answers: the agent, or an agent.Server on this side that
// has the shell do it. It blocks until one does. The stream ends when it is another's turn.
func (b *Door) Dial(ctx context.Context) (net.Conn, error) {
	for {
		b.mu.Lock()
		s, server, ready, waiting, changed := b.shell, b.server, b.ready, b.waiting, b.changed
		b.mu.Unlock()
		if s == nil && waiting {
			ready = nil
		}
		if s != nil || waiting {
			select {
			case <-ready:
			case <-changed:
				continue
			case <-b.ctx.Done():
				return nil, net.ErrClosed
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		if s != nil {
			ours, theirs := net.Pipe()
			if !b.lend(changed, func() { ours.Close(); theirs.Close() }) {
				ours.Close()
				theirs.Close()
				continue
			}
			b.served.Go(func() { server.ServeConn(b.ctx, theirs) })
			return ours, nil
		}
		conn, err := b.dialAgent(ctx, changed)
		if err == nil && !b.lend(changed, func() { conn.Close() }) {
			conn.Close()
			continue
		}
		select {
		case <-changed:
			continue
		default:
			return conn, err
		}
	}
}

// dialAgent gives up when it is another's turn.
func (b *Door) dialAgent(ctx context.Context, changed <-chan struct{}) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-changed:
			cancel()
		case <-over:
		}
	}()
	return b.opt.Agent(ctx)
}

// lend notes how to end a connection, unless it is another's turn already.
func (b *Door) lend(changed <-chan struct{}, hangUp func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-changed:
		return false
	case <-b.ctx.Done():
		return false
	default:
		b.hangUp = hangUp
		return true
	}
}

// StandIn reports whether the shell stands in for the agent, and when it, or what runs in it, was heard
// last then.
func (b *Door) StandIn() (heard time.Time, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.spoken, b.shell != nil
}

// State is how far it has come, for people, and the last that the guest said on
// the shell's console.
func (b *Door) State() (step, said string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if step = b.step; step == "" {
		step = fmt.Sprintf("its root shell did not announce itself (%q on %s); in the guest backdoor.service does that, see its journal", Marker, cmp.Or(b.opt.Place, "/dev/hvc0"))
		if prompt, _ := b.login.state(); prompt {
			step += "; there is a login prompt on its serial console (ttyS0): give the machine user= and password= to have attest log in there"
		}
	}
	if b.login.asksPassphrase() {
		step += "; the last on its serial console asks for a passphrase, which send_console answers"
	}
	return step, b.said.tail()
}

func (b *Door) setStep(step string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.step = step
}

// refused reports whether the shell shall stand in for an agent that could not be put into
// the guest.
func (b *Door) refused(err error) bool {
	if err != nil && b.opt.Answers() {
		err = nil
	}
	b.opt.Installed(err)
	var reason *InstallError
	return errors.As(err, &reason) && b.opt.Upgrade == Auto
}

// A greeting is an attempt to have the shell answer.
type greeting struct {
	nonce string
	jobs  []string // that run in it
	found []string // what its hello says
	stop  context.CancelFunc
	done  chan struct{}
}

// again is how often a shell that was saved is asked, which may have been in the middle of
// anything.
const again = 2 * time.Second

// greet sends the shell its functions and a hello; one that was saved has the functions.
func (b *Door) greet(saved bool) *greeting {
	ctx, cancel := context.WithCancel(b.ctx)
	g := &greeting{nonce: rand.Text(), stop: cancel, done: make(chan struct{})}
	hello := append([]byte("\n"), request("hello", g.nonce)...)
	if !saved {
		b.setStep("its root shell has announced itself, and does not answer")
		script := append([]byte("\n"+renewScript+shellScript), request("port", cmp.Or(b.opt.Ports, "/sys/class/virtio-ports"), cmp.Or(b.opt.Devices, "/dev"), wire.UploadPort)...)
		b.out.add(script)
		go g.ask(ctx, b.out.add, hello, cmp.Or(b.opt.LookAfter, lookPause), nil) // its answer may be lost
		return g
	}
	b.setStep("its root shell, which was saved with it, does not answer")
	// It may wait for the rest of something that was on its way.
	go g.ask(ctx, b.out.add, hello, again, []byte(strings.Repeat("\n", maxInput*2)))
	return g
}

// ask says hello until there is an answer, or until it is given up.
func (g *greeting) ask(ctx context.Context, send func([]byte), hello []byte, pause time.Duration, before []byte) {
	defer close(g.done)
	for {
		send(hello)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		send(before)
	}
}

func (g *greeting) end() {
	if g != nil {
		g.stop()
		<-g.done
	}
}

// hear reports whether a reply is the hello.
func (g *greeting) hear(r reply) bool {
	if g == nil || r.nonce != g.nonce || g.found != nil {
		return false
	}
	if r.word == "job" && len(g.jobs) < maxJobs {
		g.jobs = append(g.jobs, r.text)
	}
	if r.word != "hello" {
		return false
	}
	if g.found = strings.SplitN(r.text, ":", 5); len(g.found) != 5 || g.found[0] == "" {
		g.found = nil
		return false
	}
	g.stop()
	return true
}

// maxJobs is how many jobs a guest can have had when it was saved.
const maxJobs = 1000

// shell is the one that has said hello.
func (g *greeting) shell(machine string, send func([]byte)) *shell {
	f := g.found
	up, _ := strconv.ParseFloat(f[2], 64)
	if !(up >= 0 && up < 1e9) {
		up = 0
	}
	return newShell(machine, f[0], wire.Info{Instance: shellPrefix + f[0], BootID: f[1], Uptime: time.Duration(up * float64(time.Second)), Kernel: f[3], Hostname: f[4]}, send)
}

// An outbox writes to the console in its own time: a guest that does not read holds nobody up.
type outbox struct {
	mu      sync.Mutex
	news    *sync.Cond
	waiting []byte
	closed  bool
	done    chan struct{}
}

func (o *outbox) start(conn net.Conn) {
	o.news, o.done = sync.NewCond(&o.mu), make(chan struct{})
	go func() {
		defer close(o.done)
		for {
			o.mu.Lock()
			for len(o.waiting) == 0 && !o.closed {
				o.news.Wait()
			}
			p, closed := o.waiting, o.closed
			o.waiting = nil
			o.mu.Unlock()
			if closed {
				return
			}
			conn.SetWriteDeadline(time.Time{}) // an installation that was interrupted has left one
			if _, err := conn.Write(p); err != nil {
				o.mu.Lock()
				o.closed = true
				o.mu.Unlock()
				return
			}
		}
	}()
}

func (o *outbox) add(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.waiting = append(o.waiting, p...)
		o.news.Broadcast()
	}
}

// close ends it; the console is closed.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.news.Broadcast()
	o.mu.Unlock()
	<-o.done
}
