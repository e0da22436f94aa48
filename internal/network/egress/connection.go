package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A target is where a guest's connection goes.
type target struct {
	protocol string
	dst      netip.AddrPort // as the guest has it
	dial     string         // as the host has it
	name     string         // by which the guest knows it
	allowed  bool
	why      string // it is not, though a rule has it
}

// connection is the target as it is reported.
func (t target) connection() Connection {
	return Connection{Protocol: t.protocol, Destination: t.dst.String(), Name: t.name, Allowed: t.allowed, Error: t.why}
}

// target holds a destination against the rules.
func (g *Gateway) target(protocol string, id stack.TransportEndpointID) target {
	addr, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	t := target{protocol: protocol, dst: netip.AddrPortFrom(addr, id.LocalPort)}
	t.dial = t.dst.String()
	k := kindOf(addr)
	switch {
	case isGateway(addr):
		k, t.name = loopback, HostName
		t.dial = netip.AddrPortFrom(hostLoopback[addr.Is4()], t.dst.Port()).String()
	case GatewayIPv4.Contains(addr) || GatewayIPv6.Contains(addr):
		return t // nobody lives there
	}
	now := g.now()
	has := func(name string) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.pins.has(name, addr, now)
	}
	if k != loopback {
		g.mu.Lock()
		t.name = strings.Join(g.pins.names(addr, now), ", ")
		g.mu.Unlock()
	}
	t.allowed, t.why = g.config.Rules.decide(t.dst, k, has)
	if k > private {
		return t
	}
	asOwn, why := g.config.Rules.decide(t.dst, ofHost, has)
	if asOwn == t.allowed {
		return t // it does not matter whose address it is
	}
	for _, a := range append(embedded(addr), addr) {
		local, err := g.isLocal(a)
		if err != nil {
			t.allowed, t.why = false, "cannot tell whether it is an address of this host: "+err.Error()
			return t
		}
		if local {
			t.allowed, t.why = asOwn, why
			return t
		}
	}
	return t
}

// tcp is called with every new connection of the guest.
func (g *Gateway) tcp(r *tcp.ForwarderRequest) {
	t := g.target("tcp", r.ID())
	if t.dst == nameServer[t.dst.Addr().Is4()] {
		if !g.start(g.askers, func() { g.serveNames(r) }) {
			r.Complete(true)
		}
		return
	}
	if !t.allowed {
		r.Complete(true)
		g.refuse(t.connection())
		return
	}
	if !g.start(g.places, func() { g.connectTCP(t, r) }) {
		r.Complete(true)
	}
}

// connectTCP makes the connection on the host first: that it cannot be made is
// something that the guest shall see as if it were there itself.
func (g *Gateway) connectTCP(t target, r *tcp.ForwarderRequest) {
	start := time.Now()
	done := t.connection()
	defer func() {
		done.Duration = time.Since(start)
		g.done(done)
	}()
	outside, err := g.dial(g.ctx, "tcp", t.dial)
	if err != nil {
		done.Error = err.Error()
		r.Complete(true)
		return
	}
	defer outside.Close()
	var queue waiter.Queue
	ep, tcpErr := r.CreateEndpoint(&queue)
	r.Complete(false)
	if tcpErr != nil {
		done.Error = tcpErr.String()
		return
	}
	inside := gonet.NewTCPConn(&queue, ep)
	defer inside.Close()
	done.Sent, done.Received, err = g.relay(inside, outside.(*net.TCPConn), ep)
	if err != nil {
		done.Error = err.Error()
	}
}

var errPoweredOff = errors.New("the machine was powered off")

// relay carries bytes both ways until both directions have ended, or one broke.
func (g *Gateway) relay(inside *gonet.TCPConn, outside *net.TCPConn, ep tcpip.Endpoint) (sent, received uint64, err error) {
	var once sync.Once
	abort := func(cause error) {
		once.Do(func() {
			err = cause // the other direction's error only follows from this one
			outside.SetLinger(0)
			outside.Close()
			ep.Abort()
		})
	}
	stop := context.AfterFunc(g.ctx, func() { abort(errPoweredOff) })
	var both sync.WaitGroup
	carry := func(to, from interface {
		net.Conn
		CloseWrite() error
	}, count *uint64) {
		n, err := io.Copy(to, from)
		*count = uint64(n)
		if err == nil {
			err = to.CloseWrite()
		}
		if err != nil {
			abort(err)
		}
	}
	both.Go(func() { carry(outside, inside, &sent) })
	both.Go(func() { carry(inside, outside, &received) })
	both.Wait()
	stop()
	once.Do(func() {}) // waits for an abort under way
	return sent, received, err
}

// udp is called with every packet that belongs to no flow.
func (g *Gateway) udp(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	t := g.target("udp", id)
	if !t.allowed {
		g.refuse(t.connection())
		g.prohibit(pkt)
		return true
	}
	var queue waiter.Queue
	ep, err := udp.NewForwarderRequest(g.stack, id, pkt).CreateEndpoint(&queue)
	if err != nil {
		return false
	}
	inside := gonet.NewUDPConn(&queue, ep)
	if !g.start(g.places, func() { g.flow(t, inside) }) {
		inside.Close()
	}
	return true
}

// prohibit tells the guest, as a firewall does, that the rules do not allow the flow that
// a packet would begin (RFC 1812 5.2.7.1, RFC 4443 3.1).
func (g *Gateway) prohibit(pkt *stack.PacketBuffer) {
	switch p := g.stack.NetworkProtocolInstance(pkt.NetworkProtocolNumber).(type) {
	case stack.RejectIPv4WithHandler:
		p.SendRejectionError(pkt, stack.RejectIPv4WithICMPAdminProhibited, true)
	case stack.RejectIPv6WithHandler:
		p.SendRejectionError(pkt, stack.RejectIPv6WithICMPAdminProhibited, true)
	}
}

// flow carries packets both ways until none has come for a while.
func (g *Gateway) flow(t target, inside *gonet.UDPConn) {
	start := time.Now()
	done := t.connection()
	defer func() {
		done.Duration = time.Since(start)
		g.done(done)
	}()
	defer inside.Close()
	outside, err := g.dial(g.ctx, "udp", t.dial)
	if err != nil {
		done.Error = err.Error()
		return
	}
	defer outside.Close()
	quiet := time.AfterFunc(idleTimeout, func() { inside.Close(); outside.Close() })
	defer quiet.Stop()
	defer context.AfterFunc(g.ctx, func() { inside.Close(); outside.Close() })()
	var sent, received atomic.Uint64
	var both sync.WaitGroup
	both.Go(func() { pass(outside, inside, &sent, quiet); outside.Close() })
	both.Go(func() { pass(inside, outside, &received, quiet); inside.Close() })
	both.Wait()
	done.Sent, done.Received = sent.Load(), received.Load()
}

// pass carries packets one way.
func pass(to, from net.Conn, count *atomic.Uint64, quiet *time.Timer) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return // a destination that refuses included
		}
		quiet.Reset(idleTimeout)
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
		count.Add(uint64(n))
	}
}
