package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// The network between a guest and its gateway.
var (
	GuestMAC     = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	GuestIPv4    = netip.MustParsePrefix("10.0.2.15/24")
	GuestIPv6    = netip.MustParsePrefix("fec0::15/64")
	GatewayIPv4  = netip.MustParsePrefix("10.0.2.2/24")
	GatewayIPv6  = netip.MustParsePrefix("fec0::2/64")
	NameIPv4     = netip.MustParsePrefix("10.0.2.3/24")
	NameIPv6     = netip.MustParsePrefix("fec0::3/64")
	NameMAC      = net.HardwareAddr{0x52, 0x55, 10, 0, 2, 3}
	gatewayMAC   = net.HardwareAddr{0x52, 0x55, 10, 0, 2, 2}
	nameServer   = map[bool]netip.AddrPort{true: netip.AddrPortFrom(NameIPv4.Addr(), 53), false: netip.AddrPortFrom(NameIPv6.Addr(), 53)} // by Is4
	hostLoopback = map[bool]netip.Addr{true: netip.MustParseAddr("127.0.0.1"), false: netip.IPv6Loopback()}                               // by Is4
)

const (
	nic = 1
	mtu = 1500

	// maxConnections is how many connections and flows a guest has at a time. Each
	// takes maxBuffer bytes at most in each direction.
	maxConnections = 1024
	maxBuffer      = 256 << 10
	// maxFrames is how many frames wait for the guest before they are lost, as on
	// any network.
	maxFrames = 1024
	// dialTimeout is how long the host tries to reach a destination.
	dialTimeout = 30 * time.Second
	// idleTimeout ends a UDP flow in which nothing happens (RFC 4787 wants more
	// than two minutes).
	idleTimeout = 150 * time.Second
)

// Config says what a gateway is for. The zero value lets nobody out.
type Config struct {
	Rules Rules
	// Guest are the addresses of the machine, on this network and on others: packets from
	// any other are dropped. Nil: the one of each family that it has on this network.
	Guest []netip.Addr
	// Report is told of every connection: of one that was allowed when it is over,
	// of one that was refused at once, and only once for each destination. It is
	// called from many goroutines. Of what a guest can have without end, it is told of
	// the first ones. Optional.
	Report func(Connection)
	// Warn is told, by Close, how much was dropped and not reported. Optional.
	Warn func(text string)
	// Nameservers are asked for names, "127.0.0.1:53". Nil: the host's
	// (resolv.conf(5)).
	Nameservers []string
}

// A Connection is something that a guest wanted of the world outside.
type Connection struct {
	Protocol    string // "tcp", "udp", "dns"
	Destination string // "192.0.2.1:443", "[2001:db8::1]:53", or the name that was asked for
	Name        string // by which the guest knows the destination, if it asked for one
	Allowed     bool
	Error       string // why an allowed connection was not made, or broke; why one is refused that a rule has
	Sent        uint64 // by the guest, in bytes
	Received    uint64
	Duration    time.Duration
}

// A Gateway is the other end of a port of a switch: what is written to it are
// frames to it, what is read from it are its own. Each Read and each Write is
// one frame.
type Gateway struct {
	config Config
	stack  *stack.Stack
	link   *channel.Endpoint
	ctx    context.Context // ends with Close
	end    context.CancelFunc
	dial   func(ctx context.Context, network, address string) (net.Conn, error)

	isLocal func(netip.Addr) (bool, error)
	now     func() time.Time

	places  chan struct{}  // one for each connection
	askers  chan struct{}  // one for each connection to the name server
	running sync.WaitGroup // connections
	dropped counts

	mu        sync.Mutex
	closed    bool
	pins      *pins
	refused   map[string]bool                 // what was reported as refused
	failures  int                             // that were reported
	neighbors map[netip.Addr]net.HardwareAddr // of the guest's addresses that frames have come from
}

// New returns a gateway that works from now on.
func New(c Config) (*Gateway, error) {
	if c.Report == nil {
		c.Report = func(Connection) {}
	}
	if c.Warn == nil {
		c.Warn = func(string) {}
	}
	if c.Guest == nil {
		c.Guest = []netip.Addr{GuestIPv4.Addr(), GuestIPv6.Addr()}
	}
	g := &Gateway{
		config: c,
		link:   channel.New(maxFrames, mtu, tcpip.LinkAddress(gatewayMAC)),
		dial:   (&net.Dialer{Timeout: dialTimeout, Control: noBroadcast}).DialContext, isLocal: isLocal, now: time.Now,
		places: make(chan struct{}, maxConnections), askers: make(chan struct{}, maxNamesConnections),
		pins: newPins(), refused: map[string]bool{}, neighbors: map[netip.Addr]net.HardwareAddr{},
	}
	g.ctx, g.end = context.WithCancel(context.Background())
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := g.configure(); err != nil {
		g.Close()
		return nil, fmt.Errorf("gateway: %v", err)
	}
	return g, nil
}

func (g *Gateway) configure() tcpip.Error {
	if err := g.stack.CreateNIC(nic, ethernet.New(g.link)); err != nil {
		return err
	}
	for _, own := range []netip.Prefix{GatewayIPv4, GatewayIPv6} {
		protocol := ipv4.ProtocolNumber
		if own.Addr().Is6() {
			protocol = ipv6.ProtocolNumber
		}
		address := tcpip.ProtocolAddress{Protocol: protocol, AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFromSlice(own.Addr().AsSlice()), PrefixLen: own.Bits(),
		}}
		if err := g.stack.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
			return err
		}
	}
	// It takes what is for everybody else, and answers in their name.
	if err := g.stack.SetPromiscuousMode(nic, true); err != nil {
		return err
	}
	if err := g.stack.SetSpoofing(nic, true); err != nil {
		return err
	}
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	sack := tcpip.TCPSACKEnabled(true)
	if err := g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return err
	}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: maxBuffer, Max: maxBuffer}
	if err := g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &receive); err != nil {
		return err
	}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: maxBuffer, Max: maxBuffer}
	if err := g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &send); err != nil {
		return err
	}
	const inFlight = 256 // connections that are being made
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(g.stack, maxBuffer, inFlight, g.tcp).HandlePacket)
	g.stack.SetTransportProtocolHandler(udp.ProtocolNumber, g.udp)
	return nil
}

// Write takes a frame from the guest.
func (g *Gateway) Write(f []byte) (int, error) {
	if g.ctx.Err() != nil {
		return 0, io.ErrClosedPipe
	}
	if g.mine(f) {
		g.meet(f)
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
		g.link.InjectInbound(0, pkt)
		pkt.DecRef()
	}
	return len(f), nil
}

// NameServer takes a frame to the name server's address that is TCP: who serves
// names there, and whatever else goes over UDP, has none.
func (g *Gateway) NameServer(f []byte) {
	if len(f) >= ethernetHeader {
		f = bytes.Clone(f)
		copy(f, gatewayMAC)
		g.Write(f)
	}
}

// meet notes where a packet comes from, if that is one of the guest's own addresses. The
// answers go there without a question, which would tell the guest that the name server
// is here, and which it does not answer for addresses of its other cards.
func (g *Gateway) meet(f []byte) {
	src := sourceOf(f)
	mac := net.HardwareAddr(f[6:12])
	if !slices.Contains(g.config.Guest, src) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if bytes.Equal(g.neighbors[src], mac) {
		return
	}
	g.neighbors[src] = bytes.Clone(mac)
	protocol := ipv6.ProtocolNumber
	if src.Is4() {
		protocol = ipv4.ProtocolNumber
	}
	g.stack.AddStaticNeighbor(nic, protocol, tcpip.AddrFromSlice(src.AsSlice()), tcpip.LinkAddress(mac))
}

// Read waits for a frame to the guest.
func (g *Gateway) Read(b []byte) (int, error) {
	pkt := g.link.ReadContext(g.ctx)
	if pkt == nil {
		return 0, io.EOF
	}
	defer pkt.DecRef()
	view := pkt.ToView()
	defer view.Release()
	return copy(b, view.AsSlice()), nil
}

// Close ends all connections and waits until nothing is left of them.
func (g *Gateway) Close() error {
	g.mu.Lock()
	again := g.closed
	g.closed = true
	g.mu.Unlock()
	g.end()
	g.running.Wait()
	g.link.Close()
	g.stack.Destroy()
	if text := g.dropped.String(); text != "" && !again {
		g.config.Warn(text)
	}
	return nil
}

// start runs fn in a goroutine that Close waits for, if there is a place.
func (g *Gateway) start(places chan struct{}, fn func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	select {
	case places <- struct{}{}:
	default:
		g.dropped.connections.Add(1)
		return false
	}
	g.running.Go(func() {
		defer func() { <-places }()
		fn()
	})
	return true
}

// noBroadcast has the kernel refuse what Go's sockets may do otherwise: to send to everybody
// on a link.
func noBroadcast(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 0)
	}), err)
}
