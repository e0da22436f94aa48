package mock

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm"
)

// maxFrame is the largest Ethernet frame that is taken: 64 KiB of payload, with
// its header and a VLAN's.
const maxFrame = 64<<10 + 18

// A frameConn carries Ethernet frames.
type frameConn interface {
	// readFrame reads one frame into a buffer of maxFrame bytes.
	readFrame([]byte) (int, error)
	writeFrame([]byte) error
	io.Closer
}

// newFrameConn is the network's side of a card (vmm.Link): frames after their
// lengths on a stream, or each a message of its own.
func newFrameConn(conn net.Conn) frameConn {
	if conn.LocalAddr().Network() == "unix" {
		return &streamConn{Conn: conn, r: bufio.NewReader(conn)}
	}
	return packetConn{conn}
}

type streamConn struct {
	net.Conn
	r  *bufio.Reader
	mu sync.Mutex // one frame at a time
}

func (c *streamConn) readFrame(p []byte) (int, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > uint32(len(p)) {
		return 0, fmt.Errorf("a frame of %d bytes", n)
	}
	return io.ReadFull(c.r, p[:n])
}

func (c *streamConn) writeFrame(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(p)), uint32(len(p))), p...))
	return err
}

type packetConn struct{ io.ReadWriteCloser }

func (c packetConn) readFrame(p []byte) (int, error) { return c.Read(p) }

func (c packetConn) writeFrame(p []byte) error {
	_, err := c.Write(p)
	return err
}

// A card is one network card. What it gets goes to take.
type card struct {
	conn frameConn
	take func(frame []byte)
	down atomic.Bool // its cable is pulled
	over chan struct{}

	tap atomic.Pointer[os.File] // of a guest that is processes

	// For tests, where no guest has the card:
	echo     bool
	received chan []byte
}

// maxReceived is how many frames wait for a test; more are lost.
const maxReceived = 256

// newCard is a card without a guest behind it.
func newCard(nic vmm.NIC, packets bool, o Options) (*card, error) {
	c := &card{echo: o.Echo, received: make(chan []byte, maxReceived)}
	c.take = c.keep
	if nic.Link == nil {
		return c, nil
	}
	plugIn := func() (net.Conn, error) { return connect(nic.Link, packets) }
	if o.TAP {
		plugIn = func() (net.Conn, error) { return handIn(nic) }
	}
	conn, err := plugIn()
	if err != nil {
		return nil, err
	}
	c.start(newFrameConn(conn))
	return c, nil
}

// connect asks for a connection.
func connect(l vmm.Link, packets bool) (net.Conn, error) {
	if packets {
		return l.Packets()
	}
	return l.Stream()
}

// handIn makes a socket for messages and hands in one end of it.
func handIn(nic vmm.NIC) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: socketpair: %w", nic.ID, err)
	}
	ours := os.NewFile(uintptr(fds[0]), nic.ID)
	defer ours.Close()
	if err := nic.Link.TAP(os.NewFile(uintptr(fds[1]), nic.ID)); err != nil {
		return nil, err
	}
	return net.FileConn(ours)
}

// start begins to read frames.
func (c *card) start(conn frameConn) {
	c.conn, c.over = conn, make(chan struct{})
	go func() {
		defer close(c.over)
		buf := make([]byte, maxFrame)
		for {
			n, err := c.conn.readFrame(buf)
			if err != nil || n == 0 {
				return // the network is gone
			}
			if !c.down.Load() {
				c.take(buf[:n])
			}
		}
	}()
}

// send puts a frame on the network.
func (c *card) send(frame []byte) error {
	if c.down.Load() || c.conn == nil {
		return nil
	}
	return c.conn.writeFrame(frame)
}

// keep is what a card without a guest does with a frame.
func (c *card) keep(frame []byte) {
	if c.echo && len(frame) >= 12 {
		answer := slices.Concat(frame[6:12], frame[:6], frame[12:])
		c.send(answer)
	}
	select {
	case c.received <- slices.Clone(frame):
	default:
	}
}

// toTAP gives the guest a frame.
func (c *card) toTAP(frame []byte) { c.tap.Load().Write(frame) }

func (c *card) close() {
	if c.conn != nil {
		c.conn.Close()
		<-c.over
	}
}

// Send has a network card send an Ethernet frame.
func (m *Machine) Send(nic string, frame []byte) error { return m.cards[nic].send(frame) }

// Received are the frames that a network card got, as long as they are taken: of
// those that wait there the first 256 are kept.
func (m *Machine) Received(nic string) <-chan []byte { return m.cards[nic].received }
