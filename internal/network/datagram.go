package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// slotSize is the room for one frame, prefix included, when frames come one
	// by one: any Ethernet frame that is not jumbo, with VLAN tags. A longer one
	// is put together in memory of its own.
	slotSize = 2048

	// readSlots is how many frames one read returns at most.
	readSlots = 32

	// writeFrames is how many frames go into one system call.
	writeFrames = 128
)

// slots is the memory that frames are read into which come one by one.
type slots struct {
	c    *chunk
	live atomic.Int32
	next int // c.data[next:] is free
}

// open makes room for n frames.
func (s *slots) open(n int) {
	switch {
	case s.c == nil:
		s.c, s.next = newChunk(&s.live), 0
	case s.c.alone():
		s.next = 0
	case len(s.c.data)-s.next < n*slotSize:
		s.c.release()
		s.c, s.next = newChunk(&s.live), 0
	}
}

// slot is the i-th place for a frame, its prefix not included.
func (s *slots) slot(i int) []byte {
	at := s.next + i*slotSize
	return s.c.data[at+prefixLen : at+slotSize]
}

// take makes a frame of the n bytes that begin in the i-th slot and go on in
// rest. The slots are used up by a later call of advance.
func (s *slots) take(i, n int, rest []byte) frame {
	at := s.next + i*slotSize
	f := frame{s.c, at, at + prefixLen + n}
	if n > slotSize-prefixLen {
		own := &chunk{data: make([]byte, prefixLen+n)}
		own.refs.Store(1)
		copy(own.data[copy(own.data, s.c.data[at:at+slotSize]):], rest)
		f = frame{own, 0, len(own.data)}
	}
	binary.BigEndian.PutUint32(f.c.data[f.off:], uint32(n))
	return f
}

func (s *slots) advance(n int) { s.next += n * slotSize }

func (s *slots) close() {
	if s.c != nil {
		s.c.release()
		s.c = nil
	}
}

// A datagram is the transport on a connected socket that keeps messages apart,
// SOCK_DGRAM or SOCK_SEQPACKET: a message is a frame. Many go through one
// system call. Only SOCK_SEQPACKET tells when the other end is gone; the end of
// a SOCK_DGRAM shows when something is sent to it.
type datagram struct {
	conn net.Conn
	raw  syscall.RawConn

	// The reader's.
	slots   slots
	in      []message
	rest    []byte // len(in) × what a frame has beyond a slot; touched by jumbo frames alone
	n       int
	rerr    error
	receive func(fd uintptr) bool

	// The writer's.
	out  []message
	rows []message // of out, not sent yet
	werr error
	send func(fd uintptr) bool
	once func(fd uintptr) bool // send, however much that is
}

// A message is struct mmsghdr with the vector that it points to (recvmmsg(2)).
type message struct {
	header unix.Msghdr
	length uint32
}

const beyondSlot = maxFrame + 1 - (slotSize - prefixLen) // one more, to know what is oversized

// newDatagram returns a transport on conn, which it owns.
func newDatagram(conn *net.UnixConn) (*datagram, error) {
	raw, err := conn.SyscallConn()
	if err == nil {
		err = conn.SetWriteBuffer(socketBuffer)
	}
	if err != nil {
		return nil, err
	}
	d := &datagram{conn: conn, raw: raw, in: make([]message, readSlots), out: make([]message, 0, writeFrames)}
	d.rest = make([]byte, readSlots*beyondSlot)
	for i := range d.in {
		vec := new([2]unix.Iovec)
		vec[1].Base = &d.rest[i*beyondSlot]
		vec[1].SetLen(beyondSlot)
		d.in[i].header.Iov = &vec[0]
		d.in[i].header.SetIovlen(len(vec))
	}
	for i := range cap(d.out) {
		m := &d.out[:cap(d.out)][i].header
		m.Iov = new(unix.Iovec)
		m.SetIovlen(1)
	}
	d.receive, d.send = d.tryReceive, d.trySend
	d.once = func(fd uintptr) bool { d.trySend(fd); return true }
	return d, nil
}

func (d *datagram) close() error { return d.conn.Close() }

func (d *datagram) read(b *batch) error {
	b.frames, b.oversized = b.frames[:0], 0
	d.slots.open(readSlots)
	for i := range d.in {
		slot := d.slots.slot(i)
		d.in[i].header.Iov.Base = &slot[0]
		d.in[i].header.Iov.SetLen(len(slot))
	}
	if err := d.raw.Read(d.receive); err != nil {
		d.rerr = err
	}
	if d.rerr != nil {
		d.slots.close()
		return d.rerr
	}
	for i, m := range d.in[:d.n] {
		if m.length > maxFrame {
			b.oversized++
			continue
		}
		b.frames = append(b.frames, d.slots.take(i, int(m.length), d.rest[i*beyondSlot:(i+1)*beyondSlot]))
	}
	d.slots.advance(d.n)
	return nil
}

func (d *datagram) tryReceive(fd uintptr) bool {
	n, errno := mmsg(unix.SYS_RECVMMSG, fd, d.in, unix.MSG_TRUNC) // the length is the message's, however much of it fits
	switch errno {
	case 0:
		d.n = n
		first := slices.IndexFunc(d.in[:n], func(m message) bool { return m.length == 0 })
		if first >= 0 && hungUp(fd) {
			d.n = first
		}
		if d.n == 0 {
			d.rerr = io.EOF
		}
	case unix.EAGAIN:
		return false
	case unix.ECONNRESET: // what the other end had not read when it closed
		d.rerr = io.EOF
	default:
		d.rerr = os.NewSyscallError("recvmmsg", errno)
	}
	return true
}

// hungUp tells the end of a SOCK_SEQPACKET from an empty message. What was sent
// before the end is read before it.
func hungUp(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLRDHUP) != 0
}

func (d *datagram) write(runs []run) error {
	d.out = d.out[:0]
	for _, r := range runs {
		for rest := r.wire(); len(rest) > 0; {
			rest = d.add(rest)
			if len(d.out) < cap(d.out) {
				continue
			}
			if err := d.flush(); err != nil {
				return err
			}
		}
	}
	return d.flush()
}

// add makes a message of the first frame in b, and returns what follows it.
func (d *datagram) add(b []byte) (rest []byte) {
	n := prefixLen + int(frameLen(b))
	d.out = d.out[:len(d.out)+1]
	vec := d.out[len(d.out)-1].header.Iov
	vec.Base = &b[prefixLen:][0]
	vec.SetLen(n - prefixLen)
	return b[n:]
}

func (d *datagram) tryWrite(b []byte) (n int) {
	d.out = d.out[:0]
	for rest := b; len(rest) > 0 && len(d.out) < cap(d.out); {
		rest = d.add(rest)
	}
	d.rows = d.out
	d.raw.Write(d.once)
	d.werr = nil // a later write finds it again
	for _, m := range d.out[:len(d.out)-len(d.rows)] {
		n += prefixLen + int(m.header.Iov.Len)
	}
	return n
}

// flush sends d.out.
func (d *datagram) flush() error {
	d.rows, d.out = d.out, d.out[:0]
	for len(d.rows) > 0 {
		if err := d.raw.Write(d.send); err != nil {
			return err
		}
		if d.werr != nil {
			return d.werr
		}
	}
	return nil
}

func (d *datagram) trySend(fd uintptr) bool {
	n, errno := mmsg(unix.SYS_SENDMMSG, fd, d.rows, unix.MSG_NOSIGNAL)
	switch errno {
	case 0:
		d.rows = d.rows[n:]
	case unix.EAGAIN:
		return false
	case unix.ECONNREFUSED, unix.ENOTCONN: // a SOCK_DGRAM whose other end is closed
		d.werr = io.EOF
	default:
		d.werr = os.NewSyscallError("sendmmsg", errno)
	}
	return true
}

func mmsg(call, fd uintptr, messages []message, flags uintptr) (int, unix.Errno) {
	for {
		n, _, errno := unix.Syscall6(call, fd, uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), unix.MSG_DONTWAIT|flags, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// AttachPackets is Attach for a VMM that sends each frame as a message of its
// own (QEMU's -netdev dgram). The sockets are of type SOCK_SEQPACKET, which is
// SOCK_DGRAM that tells each end when the other is gone.
func (s *Switch) AttachPackets(ctx context.Context, nic NIC) (*Port, *net.UnixConn, error) {
	ours, theirs, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, nil, fmt.Errorf("network %s: attach %s/%s: %w", s.name, nic.Machine, nic.ID, err)
	}
	p, err := s.AttachDatagram(ctx, nic, ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return p, theirs, nil
}

// AttachDatagram gives a NIC a port on a connected socket of type SOCK_DGRAM or
// SOCK_SEQPACKET, each of whose messages is a frame. The socket is the port's
// from here on, also on error.
func (s *Switch) AttachDatagram(ctx context.Context, nic NIC, conn *net.UnixConn) (*Port, error) {
	t, err := newDatagram(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("network %s: attach %s/%s: %w", s.name, nic.Machine, nic.ID, err)
	}
	return s.attach(ctx, nic, t)
}
