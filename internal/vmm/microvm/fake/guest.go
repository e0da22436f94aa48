package fake

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/wire"
)

// Who is a guest, as its memory has it.
type Who struct {
	Instance, BootID string // of its agent and its kernel
	Hostname         string
}

// Somebody is a guest that has just booted.
func Somebody() Who { return Who{Instance: rand.Text(), BootID: rand.Text()} }

// A Guest is attest's agent on a stage: what would change the host does not happen.
type Guest struct {
	console  io.Writer
	end      func(wire.PowerRequest)
	agent    agent.Server
	restored bool

	mu    sync.Mutex
	who   Who
	still chan struct{} // closed when it goes on; nil: it runs
	conns map[net.Conn]bool
}

var _ agent.Stage = (*Guest)(nil)

// NewGuest is a guest that runs, or one that was restored and stands still. end does with its
// VMM what the guest's end does.
func NewGuest(w Who, restored bool, console io.Writer, end func(wire.PowerRequest)) *Guest {
	g := &Guest{console: console, end: end, who: w, restored: restored, conns: map[net.Conn]bool{}}
	g.agent.Stage = g
	if restored {
		g.Stop(true)
	}
	return g
}

// Say writes on the console.
func (g *Guest) Say(text string) { io.WriteString(g.console, "[    1.000000] "+text+"\r\n") }

// Listen echoes what is typed.
func (g *Guest) Listen(typed io.Reader) {
	for in := bufio.NewScanner(typed); in.Scan(); {
		g.Say("typed: " + in.Text())
	}
}

// Who is who it is now.
func (g *Guest) Who() Who {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.who
}

// Stop has the guest stand still, or go on.
func (g *Guest) Stop(still bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case still && g.still == nil:
		g.still = make(chan struct{})
	case !still && g.still != nil:
		close(g.still)
		g.still = nil
	}
}

func (g *Guest) pass() {
	g.mu.Lock()
	still := g.still
	g.mu.Unlock()
	if still != nil {
		<-still
	}
}

// Cut ends all its connections.
func (g *Guest) Cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		c.Close()
	}
	clear(g.conns)
}

// Info is who answers.
func (g *Guest) Info(i *wire.Info) {
	w := g.Who()
	i.Instance, i.BootID, i.Kernel, i.Hostname = w.Instance, w.BootID, "fake", w.Hostname
}

// Operate keeps from the host what is the guest's.
func (g *Guest) Operate(_ *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error) {
	switch r.Op {
	case wire.OpIdentity:
		var id wire.Identity
		if err := json.Unmarshal(r.Args, &id); err != nil {
			return nil, err
		}
		g.mu.Lock()
		if id.Hostname != "" {
			g.who.Hostname = id.Hostname
		}
		g.mu.Unlock()
		return nil, nil
	case wire.OpClock, wire.OpSettle:
		return nil, nil
	case wire.OpPower:
		var q wire.PowerRequest
		if err := json.Unmarshal(r.Args, &q); err != nil {
			return nil, err
		}
		switch {
		case q.Reboot:
			g.Say("reboot: Restarting system")
		case q.Panic:
			g.Say("Kernel panic - not syncing: sysrq triggered crash")
		default:
			g.Say("reboot: System halted")
		}
		g.end(q)
		return nil, nil
	}
	return next(r)
}

// gated is a connection of a guest that may stand still.
type gated struct {
	net.Conn
	guest *Guest
	in    *bufio.Reader
}

func (c *gated) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.guest.pass()
	return n, err
}

func (c *gated) Write(p []byte) (int, error) {
	c.guest.pass()
	return c.Conn.Write(p)
}

// serve is the agent's side of a connection.
func (g *Guest) serve(c net.Conn) {
	g.mu.Lock()
	g.conns[c] = true
	g.mu.Unlock()
	g.agent.ServeConn(context.Background(), &gated{c, g, bufio.NewReader(c)})
	c.Close()
}

// Flee reboots the guest, if that is its manner, before its VMM answers what let it run.
func (g *Guest) Flee(m Manners) {
	if m.Fleeting {
		g.Say("reboot: Restarting system")
		g.end(wire.PowerRequest{Reboot: true})
		select {}
	}
}

// Manners are how a guest and its vsock differ from a guest that runs and listens.
type Manners struct {
	// The first connections to the vsock are silent, as before the guest's driver is up,
	// the next end at once, as before its agent listens. Negative: all of them.
	Silent, Unheard int
	Ghosts          bool // silent connections reach the agent later
	Deaf            bool // the guest is not heard again when it was restored
	Shell           bool // the guest has a root shell, and the agent when that is told StartAgent
	Bash            bool // the shell is a real one, in which no agent can be reached
	Fleeting        bool // the guest reboots at once
}

// A Vsock is a guest's.
type Vsock struct {
	Manners
	Early bool // who connects before there is a guest ends the process

	mu      sync.Mutex
	guest   *Guest // nil: it has not started
	dials   int    // so far
	started bool   // the agent was, by the guest's shell
}

// Connect gives the vsock its guest.
func (v *Vsock) Connect(g *Guest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.guest = g
}

// Listen waits for hosts on the vsock's socket.
func (v *Vsock) Listen(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go v.accept(c)
		}
	}()
	return nil
}

// accept is a connection of a host.
func (v *Vsock) accept(c net.Conn) {
	v.mu.Lock()
	v.dials++
	n, g := v.dials, v.guest
	if v.Early && g == nil {
		fmt.Fprintln(os.Stderr, "somebody connects to the vsock before its driver is up")
		os.Exit(1)
	}
	agent := !v.Shell || v.started || g != nil && g.restored
	v.mu.Unlock()
	// The command has to be there in one piece.
	buf := make([]byte, 32)
	got, err := c.Read(buf)
	port := 0
	if _, scanErr := fmt.Sscanf(string(buf[:got]), "CONNECT %d\n", &port); err != nil || scanErr != nil || buf[got-1] != '\n' {
		c.Close()
		return
	}
	silent := v.Silent < 0 || n <= v.Silent || g == nil || v.Deaf && g.restored
	unheard := v.Unheard < 0 || n <= v.Silent+v.Unheard || (port != wire.VsockPort || !agent) && (port != ShellPort || !v.Shell)
	switch {
	case silent && v.Ghosts:
		go func() { // the guest gets to it when the host is gone
			for probe := make([]byte, 1); ; {
				if _, err := c.Read(probe); err != nil {
					break
				}
			}
			g.serve(c)
		}()
		return
	case silent:
		return // and never ends
	case unheard:
		c.Close()
		return
	}
	g.pass()
	fmt.Fprintf(c, "OK %d\n", 1073741824+n)
	if port == ShellPort {
		v.shell(c)
		return
	}
	g.serve(c)
}
