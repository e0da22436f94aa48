package egress

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

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

	// maxConnections is how many connections and flows a guest has at a time.
	maxConnections = 2048
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
	// Report is told of every connection: of one that was allowed when it is over,
	// of one that was refused at once, and only once for each destination. It is
	// called from many goroutines. Optional.
	Report func(Connection)
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
	Error       string // why an allowed connection was not made, or broke
	Sent        uint64 // by the guest, in bytes
	Received    uint64
	Duration    time.Duration
}

// A Gateway is the other end of a port of a switch: what is written to it are
// frames to it, what is read from it are its own. Each Read and each Write is
// one frame.
type Gateway struct {
	config config
	stack  *stack.Stack
	link   *channel.Endpoint
	ctx    context.Context // ends with Close
	end    context.CancelFunc
	dial   func(ctx context.Context, network, address string) (net.Conn, error)

	places  chan struct{}  // one for each connection
	running sync.WaitGroup // connections

	mu      sync.Mutex
	closed  bool
	names   map[netip.Addr][]string // that were asked for and are in the rules
	refused map[string]bool         // what was reported as refused
}

type config struct {
	Config
	IPv4, IPv6 netip.Prefix // the gateway's own
}

// New returns a gateway that works from now on.
func New(c Config) (*Gateway, error) {
	if c.Report == nil {
		c.Report = func(Connection) {}
	}
	g := &Gateway{
		config: config{c, GatewayIPv4, GatewayIPv6},
		link:   channel.New(maxFrames, mtu, tcpip.LinkAddress(gatewayMAC)),
		places: make(chan struct{}, maxConnections),
		names:  map[netip.Addr][]string{}, refused: map[string]bool{},
	}
	g.dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
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
	for _, own := range []netip.Prefix{g.config.IPv4, g.config.IPv6} {
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
	const inFlight = 256 // connections that are being made
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(g.stack, 0, inFlight, g.tcp).HandlePacket)
	flows := udp.NewForwarder(g.stack, g.udp)
	g.stack.SetTransportProtocolHandler(udp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return g.prohibit(id, pkt) || flows.HandlePacket(id, pkt)
	})
	return nil
}

// Write takes a frame from the guest.
func (g *Gateway) Write(f []byte) (int, error) {
	if g.ctx.Err() != nil {
		return 0, io.ErrClosedPipe
	}
	if g.mine(f) {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
		g.link.InjectInbound(0, pkt)
		pkt.DecRef()
	}
	return len(f), nil
}

// NameServer takes a frame to the name server's address that is TCP: who serves
// names there, and whatever else goes over UDP, has none.
func (g *Gateway) NameServer(f []byte) {
	const header, addresses4, addresses6 = 14, 12, 8
	if len(f) < header+40 || g.ctx.Err() != nil {
		return
	}
	f = bytes.Clone(f)
	copy(f, gatewayMAC)
	// Answers are to go back without a question by whom it may be learned that the name
	// server is here.
	from := tcpip.LinkAddress(f[6:12])
	if f[12] == 0x08 {
		g.stack.AddStaticNeighbor(nic, ipv4.ProtocolNumber, tcpip.AddrFrom4Slice(f[header+addresses4:][:4]), from)
	} else {
		g.stack.AddStaticNeighbor(nic, ipv6.ProtocolNumber, tcpip.AddrFrom16Slice(f[header+addresses6:][:16]), from)
	}
	g.Write(f)
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
	g.closed = true
	g.mu.Unlock()
	g.end()
	g.running.Wait()
	g.link.Close()
	g.stack.Destroy()
	return nil
}

// start runs fn in a goroutine that Close waits for, if there is a place.
func (g *Gateway) start(fn func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	select {
	case g.places <- struct{}{}:
	default:
		return false
	}
	g.running.Go(func() {
		defer func() { <-g.places }()
		fn()
	})
	return true
}

// refuse reports a destination that the rules do not allow.
func (g *Gateway) refuse(protocol, destination, name string) {
	const most = 1000 // a guest can try what it likes
	key := protocol + " " + destination
	g.mu.Lock()
	known := g.refused[key] || len(g.refused) >= most
	g.refused[key] = true
	g.mu.Unlock()
	if !known {
		g.config.Report(Connection{Protocol: protocol, Destination: destination, Name: name})
	}
}
