package fake

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/wire"
)

// who is a guest, as its memory has it.
type who struct {
	Instance, BootID string // of its agent and its kernel
	Hostname         string
}

// A guest is attest's agent on a stage: what would change the host does not happen.
type guest struct {
	machine  *machine
	agent    agent.Server
	restored bool

	mu    sync.Mutex
	who   who
	still chan struct{} // closed when it goes on; nil: it runs
	conns map[net.Conn]bool
}

var _ agent.Stage = (*guest)(nil)

func newGuest(m *machine, w who, restored bool) *guest {
	g := &guest{machine: m, who: w, restored: restored, conns: map[net.Conn]bool{}}
	g.agent.Stage = g
	if restored {
		g.stop(true)
	}
	return g
}

// say writes on the console.
func (g *guest) say(text string) { fmt.Print("[    1.000000] " + text + "\r\n") }

// boot starts the guest. The machine's mu is held.
func (m *machine) boot() {
	m.guest = newGuest(m, who{Instance: rand.Text(), BootID: rand.Text()}, false)
	m.guest.say("Linux version fake: " + m.Boot.Args)
	go m.guest.listenToConsole()
}

// listenToConsole echoes what is typed.
func (g *guest) listenToConsole() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		g.say("typed: " + in.Text())
	}
}

// resume lets the guest go on. Its connections are those from before a snapshot no more.
func (m *machine) resume() {
	if m.fresh {
		m.fresh = false
		m.guest.cut()
	}
	m.guest.stop(false)
}

// stop has the guest stand still, or go on.
func (g *guest) stop(still bool) {
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

func (g *guest) pass() {
	g.mu.Lock()
	still := g.still
	g.mu.Unlock()
	if still != nil {
		<-still
	}
}

// cut ends all connections.
func (g *guest) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		c.Close()
	}
	clear(g.conns)
}

// Info is who answers.
func (g *guest) Info(i *wire.Info) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i.Instance, i.BootID, i.Kernel, i.Hostname = g.who.Instance, g.who.BootID, "fake", g.who.Hostname
}

// Operate keeps from the host what is the guest's.
func (g *guest) Operate(_ *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error) {
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
	case wire.OpClock, wire.OpSync:
		return nil, nil
	case wire.OpPower:
		var q wire.PowerRequest
		if err := json.Unmarshal(r.Args, &q); err != nil {
			return nil, err
		}
		g.end(q)
		return nil, nil
	}
	return next(r)
}

// end is the end of a guest, as its kernel tells and the VMM shows it.
func (g *guest) end(q wire.PowerRequest) {
	switch {
	case q.Reboot:
		g.say("reboot: Restarting system")
		os.Exit(0)
	case q.Panic:
		g.say("Kernel panic - not syncing: sysrq triggered crash")
		os.Exit(0)
	default:
		g.say("reboot: System halted") // and the VMM runs on
	}
}

// gated is a connection of a guest that may stand still.
type gated struct {
	net.Conn
	guest *guest
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

func (m *machine) putVsock(body []byte) error {
	var v vsock
	if err := m.decode(body, &v); err != nil {
		return err
	}
	m.Vsock = &v
	if err := m.listen(); err != nil {
		return faultf("Vsock config error: Cannot create backend for vsock device: %v", err)
	}
	return nil
}

// listen waits for hosts on the vsock's socket.
func (m *machine) listen() (err error) {
	if m.Vsock == nil {
		return nil
	}
	if m.listener, err = net.Listen("unix", m.Vsock.Path); err != nil {
		return faultf("Error binding to the host-side Unix socket: Address in use (os error 98)")
	}
	go func() {
		for {
			c, err := m.listener.Accept()
			if err != nil {
				return
			}
			go m.accept(c)
		}
	}()
	return nil
}

// accept is a connection of a host.
func (m *machine) accept(c net.Conn) {
	m.mu.Lock()
	m.dials++
	n, g := m.dials, m.guest
	m.mu.Unlock()
	// The command has to be there in one piece.
	buf := make([]byte, 32)
	got, err := c.Read(buf)
	port := 0
	if _, scanErr := fmt.Sscanf(string(buf[:got]), "CONNECT %d\n", &port); err != nil || scanErr != nil || buf[got-1] != '\n' {
		c.Close()
		return
	}
	silent := m.Silent < 0 || n <= m.Silent || g == nil || m.Deaf && g.restored
	unheard := m.Unheard < 0 || n <= m.Silent+m.Unheard || port != wire.VsockPort
	switch {
	case silent && m.Ghosts:
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
	g.serve(c)
}

// serve is the agent's side of a connection.
func (g *guest) serve(c net.Conn) {
	g.mu.Lock()
	g.conns[c] = true
	g.mu.Unlock()
	g.agent.ServeConn(context.Background(), &gated{c, g, bufio.NewReader(c)})
	c.Close()
}

func (m *machine) putNIC(id string, body []byte) error {
	var n nic
	if err := m.decode(body, &n); err != nil {
		return err
	}
	if n.ID != id {
		return faultf("The id from the path [%s] does not match the id from the body [%s]!", id, n.ID)
	}
	if err := m.plug(n); err != nil {
		return faultf("Network config error: Cannot create the network device: %v", err)
	}
	return nil
}

// plug opens the TAP, and answers every frame that comes with another that has the
// addresses exchanged.
func (m *machine) plug(n nic) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return faultf("Open tap device failed: %v", err)
	}
	req, err := unix.NewIfreq(n.TAP)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return faultf("Open tap device failed: Error while creating ifreq structure: %v. Invalid TUN/TAP Backend provided by %s", err, n.TAP)
	}
	m.NICs = append(m.NICs, n)
	f := os.NewFile(uintptr(fd), n.TAP) // which is a TAP by now, as the runtime's poller wants it
	go func() {
		const header = 10 // of virtio-net
		for buf := make([]byte, 64<<10); ; {
			got, err := f.Read(buf)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			frame := buf[header:got]
			if len(frame) >= 14 {
				for i := range 6 {
					frame[i], frame[6+i] = frame[6+i], frame[i]
				}
				f.Write(buf[:got])
			}
		}
	}()
	return nil
}
