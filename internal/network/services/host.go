package services

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what a host serves. The zero value of what is optional works.
type Config struct {
	MAC  net.HardwareAddr
	IPv4 netip.Prefix // the host's own address, with the network's length
	IPv6 netip.Prefix

	Leases []Lease
	// Names are the machines' addresses, on this network only if they have some
	// there. They are names with and without Domain.
	Names  map[string][]netip.Addr
	Domain string // "lab.test"; empty: none

	// Router is the way out of the network, for DHCP. Optional.
	Router netip.Addr
	// Forward answers DNS queries for other names, as messages. Without it there
	// are no others (NXDOMAIN). It is called in a goroutine of its own.
	Forward func(ctx context.Context, query []byte) ([]byte, error)
	// What is not served: DHCP of both versions, DNS, router advertisements.
	NoDHCP, NoDNS, NoRA bool

	// Warn is told of another server that the host gives way to, and, by Close, how many
	// answers were lost. It must not call the host. Optional.
	Warn func(text string)
	// TCP takes frames to the host that are TCP, of which it knows nothing itself; they
	// are valid during the call. Optional.
	TCP func(frame []byte)
}

// A Lease is what a network card gets when its guest asks.
type Lease struct {
	MAC  net.HardwareAddr
	Name string // of the machine
	IPv4 netip.Prefix
	IPv6 netip.Prefix
}

// Services that somebody else can have.
const (
	serviceDHCP  = "DHCP"
	serviceDHCP6 = "DHCPv6"
)

const (
	// leaseTime is longer than any test: a guest's clock may jump when it is
	// restored from a snapshot, and then it need not ask again.
	leaseTime = 30 * 24 * time.Hour

	// maxReplies is how many frames wait to be read before answers are lost, as on
	// any network.
	maxReplies = 256

	// maxForwards is how many queries are forwarded at a time.
	maxForwards = 64

	// maxDatagram is the longest payload of UDP in an answer: what fits into a packet of
	// Ethernet's usual length, with either IP.
	maxDatagram = 1500 - header6 - headerUDP
)

// A Host is a machine's end of a port of a switch: what is written to it are
// frames to it, what is read from it are its answers. Each Read and each Write is
// one frame.
type Host struct {
	config    Config
	linkLocal netip.Addr

	mu      sync.Mutex       // guards what Update changes
	leases  map[string]Lease // by MAC
	names   map[string][]netip.Addr
	reverse map[netip.Addr]string
	others  map[string]bool // services that somebody else has, and is left

	replies  chan []byte
	lost     atomic.Uint64 // replies, and queries that were not forwarded
	forwards sync.WaitGroup
	slots    chan struct{} // of forwards
	ctx      context.Context
	cancel   context.CancelFunc
}

// New returns a host. Close ends it.
func New(c Config) *Host {
	h := &Host{
		config: c, linkLocal: linkLocal(c.MAC),
		others: map[string]bool{}, replies: make(chan []byte, maxReplies), slots: make(chan struct{}, maxForwards),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.Update(c.Leases, c.Names)
	return h
}

// Update replaces the leases and the names: there is another machine.
func (h *Host) Update(leases []Lease, names map[string][]netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leases, h.names, h.reverse = map[string]Lease{}, map[string][]netip.Addr{}, map[netip.Addr]string{}
	for _, l := range leases {
		h.leases[l.MAC.String()] = l
	}
	for name, addrs := range names {
		h.names[strings.ToLower(name)] = addrs
		for _, a := range addrs {
			h.reverse[a] = name
		}
	}
}

// Close ends the host; its Read returns io.EOF.
func (h *Host) Close() error {
	h.cancel()
	h.forwards.Wait()
	if n := h.lost.Swap(0); n > 0 {
		h.warn(fmt.Sprintf("%v: %d answers were lost because too many requests came at once", h, n))
	}
	return nil
}

func (h *Host) warn(text string) {
	if h.config.Warn != nil {
		h.config.Warn(text)
	}
}

// giveWay leaves a service to somebody else who has it: new guests are not answered any more.
func (h *Host) giveWay(service string, f packet) {
	if !h.others[service] {
		h.others[service] = true
		h.warn(fmt.Sprintf("%v: %s is somebody else's here, as %v (%v) has shown; new guests are left to them", h, service, f.src, f.srcMAC))
	}
}

// Read waits for the next frame from the host.
func (h *Host) Read(b []byte) (int, error) {
	select {
	case f := <-h.replies:
		return copy(b, f), nil
	case <-h.ctx.Done():
		return 0, io.EOF
	}
}

// Write gives a frame to the host. What makes no sense to it is ignored.
func (h *Host) Write(frame []byte) (int, error) {
	if h.ctx.Err() != nil {
		return 0, io.ErrClosedPipe
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.receive(frame)
	return len(frame), nil
}

func (h *Host) send(frame []byte) {
	select {
	case h.replies <- frame:
	default:
		h.lost.Add(1)
	}
}

// receive answers a frame.
func (h *Host) receive(frame []byte) {
	f, ok := parse(frame)
	if !ok || !h.isMine(f.dstMAC) || f.srcMAC[0]&1 == 1 { // answers would go to a group
		return
	}
	switch {
	case f.etherType == etherARP:
		h.arp(f)
	case !h.isFor(f.dst) || f.src == h.config.IPv4.Addr() || f.src == h.config.IPv6.Addr():
	case f.protocol == protoICMP && len(f.payload) >= 8 && f.payload[0] == 8:
		h.echo(f, 0)
	case f.protocol == protoICMP6:
		h.icmp6(f)
	case f.protocol == protoUDP:
		h.udp(f)
	case f.protocol == protoTCP && h.config.TCP != nil && !f.dst.IsMulticast():
		h.config.TCP(frame)
	}
}

// isMine reports whether a frame is to the host, or to many.
func (h *Host) isMine(mac net.HardwareAddr) bool {
	return mac[0]&1 == 1 || string(mac) == string(h.config.MAC)
}

var (
	broadcast4    = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	allNodes      = netip.MustParseAddr("ff02::1")
	allRouters    = netip.MustParseAddr("ff02::2")
	dhcpServers   = netip.MustParseAddr("ff02::1:2")
	solicitedNode = netip.MustParsePrefix("ff02::1:ff00:0/104")
)

// isFor reports whether the host listens to an address.
func (h *Host) isFor(a netip.Addr) bool {
	switch a {
	case h.config.IPv4.Addr(), h.config.IPv6.Addr(), h.linkLocal, broadcast4, allNodes, allRouters, dhcpServers:
		return true
	}
	return solicitedNode.Contains(a)
}

func (h *Host) udp(f packet) {
	switch f.dstPort {
	case portDHCP:
		if !h.config.NoDHCP {
			h.dhcp4(f)
		}
	case portDHCPClient: // a server's, to everybody
		if f.srcPort == portDHCP && f.src.Is4() && !h.config.NoDHCP {
			h.giveWay(serviceDHCP, f)
		}
	case portDHCP6:
		if !h.config.NoDHCP {
			h.dhcp6(f)
		}
	case portDNS:
		if !h.config.NoDNS {
			h.dns(f)
		}
	}
}

// answer sends a datagram back to where one came from, if it has the length of one.
func (h *Host) answer(f packet, payload []byte) {
	if len(payload) > maxDatagram {
		return
	}
	from := f.dst
	if from.IsMulticast() || from == broadcast4 {
		from = h.addressLike(f.src)
	}
	h.send(udp(h.config.MAC, f.srcMAC, from, f.src, f.dstPort, f.srcPort, payload))
}

// addressLike is the host's own address that belongs beside another one.
func (h *Host) addressLike(a netip.Addr) netip.Addr {
	switch {
	case a.Is4():
		return h.config.IPv4.Addr()
	case a.IsLinkLocalUnicast():
		return h.linkLocal
	}
	return h.config.IPv6.Addr()
}

// arp answers who has the host's address.
func (h *Host) arp(f packet) {
	p := f.payload // RFC 826, Ethernet and IPv4
	if len(p) < 28 || string(p[:8]) != "\x00\x01\x08\x00\x06\x04\x00\x01" || string(p[24:28]) != string(h.config.IPv4.Addr().AsSlice()) {
		return
	}
	reply := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, h.config.MAC...)
	reply = append(reply, p[24:28]...)
	reply = append(reply, p[8:18]...)
	h.send(ethernet(h.config.MAC, f.srcMAC, etherARP, reply))
}

// echo answers a ping.
func (h *Host) echo(f packet, kind byte) {
	if f.dst.IsMulticast() || f.dst == broadcast4 || f.src.IsUnspecified() {
		return
	}
	reply := append([]byte{kind, 0, 0, 0}, f.payload[4:]...)
	h.send(icmp(h.config.MAC, f.srcMAC, f.dst, f.src, reply))
}

// String names the host in messages.
func (h *Host) String() string { return fmt.Sprintf("services of %v", h.config.IPv4.Masked()) }
