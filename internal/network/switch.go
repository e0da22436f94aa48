package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Options are the settings of a switch; the zero value is good.
type Options struct {
	// QueueBytes is how much may wait for one machine before frames to it are
	// dropped, length prefixes included. Zero means 4 MiB.
	QueueBytes int
	// Now is the clock that observations are timed with. Nil means time.Now.
	Now func() time.Time
}

// A Switch is one virtual network. It learns which address is behind which
// port, does not forget it while the port is there, and floods broadcasts,
// multicasts and frames to addresses that it has not learned. It reads nothing
// of a frame but the two addresses, and changes nothing: VLAN tags, jumbo
// frames, LLDP and spanning tree go through as through a cable. It never sends a
// frame back out of the port that it came from.
type Switch struct {
	name       string
	number     int     // in its fabric
	fabric     *Fabric // nil: it stands alone, and has no faults
	queueBytes int
	now        func() time.Time
	clock      *clock
	running    sync.WaitGroup // ports

	mu     sync.Mutex // for changes of what follows; reading takes no lock
	closed bool
	ports  atomic.Pointer[[]*Port]
	macs   atomic.Pointer[macTable]
}

// New returns a switch without ports. The name is for errors.
func New(name string, o Options) *Switch {
	s := &Switch{name: name, queueBytes: cmp.Or(o.QueueBytes, defaultQueueBytes), now: o.Now, clock: newClock()}
	if s.now == nil {
		s.now = time.Now
	}
	s.ports.Store(new([]*Port))
	s.macs.Store(newMACTable(minMACSlots))
	return s
}

// ErrClosed is the error of Attach on a switch that was closed.
var ErrClosed = errors.New("switch is closed")

// Attach gives a NIC a port. The connection is the VMM's end, for vmm.NIC.Conn,
// and belongs to the caller; the port ends when it is closed. A port that ends
// because the VMM sent garbage publishes that to ctx's bus; the context's end
// means nothing to the port.
func (s *Switch) Attach(ctx context.Context, nic NIC) (*Port, *net.UnixConn, error) {
	ours, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, fmt.Errorf("network %s: attach %s/%s: %w", s.name, nic.Machine, nic.ID, err)
	}
	p, err := s.attach(ctx, nic, newStream(ours))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return p, theirs, nil
}

// AttachFrames gives a NIC a port whose other end is conn: each Read returns
// one Ethernet frame, each Write sends one. A datagram socket is such, and a
// TAP, and a program's own pipe. The port owns conn and ends with it; what it
// closes must let go of its Read. A frame that cannot be written, while conn
// lives, is lost as on any network.
func (s *Switch) AttachFrames(ctx context.Context, nic NIC, conn io.ReadWriteCloser) (*Port, error) {
	return s.attach(ctx, nic, newFramewise(conn))
}

// attach starts a port on t, which it owns.
func (s *Switch) attach(ctx context.Context, nic NIC, t transport) (*Port, error) {
	p := &Port{sw: s, nic: nic, t: t, q: newQueue(s.queueBytes), done: make(chan struct{})}
	p.from.end = p.forward
	p.to.end = p.enqueue

	if s.fabric != nil {
		s.fabric.mu.Lock()
		defer s.fabric.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		t.close()
		return nil, fmt.Errorf("network %v: attach: %w", p, ErrClosed)
	}
	if s.fabric != nil {
		s.fabric.join(p)
	}
	ports := append(slices.Clone(*s.ports.Load()), p)
	s.ports.Store(&ports)
	s.running.Go(func() { p.run(ctx) })
	return p, nil
}

// Ports lists the ports, in the order in which they were attached.
func (s *Switch) Ports() []*Port { return slices.Clone(*s.ports.Load()) }

// Close closes all ports and waits until nothing is left of them.
func (s *Switch) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	var errs []error
	for _, p := range s.Ports() {
		errs = append(errs, p.Close())
	}
	s.running.Wait()
	s.clock.close()
	return errors.Join(errs...)
}

// forget takes a port and the addresses behind it off the switch.
func (s *Switch) forget(p *Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ports := slices.DeleteFunc(s.Ports(), func(x *Port) bool { return x == p })
	s.ports.Store(&ports)
	s.macs.Store(s.macs.Load().without(p))
}

// forward learns where a frame comes from and sends it where it belongs.
func (s *Switch) forward(b *burst, from *Port, f frame) {
	header := f.bytes()[:minFrame]
	dst, src := keyOf(header[0:6]), keyOf(header[6:12])
	macs := s.macs.Load()
	if !src.multicast() && macs.lookup(src) != from {
		s.learn(src, from)
	}
	var to *Port
	if !dst.multicast() {
		to = macs.lookup(dst)
	}
	switch to {
	case nil:
		for _, p := range *s.ports.Load() {
			if p != from {
				p.to.pass(b, f)
			}
		}
	case from:
		from.fromCnt.local.Add(1)
	default:
		to.to.pass(b, f)
	}
}

func (s *Switch) learn(k macKey, p *Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(*s.ports.Load(), p) { // not while it goes: forget was the last word
		s.macs.Store(s.macs.Load().learn(k, p))
	}
}
