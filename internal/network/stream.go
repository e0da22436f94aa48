package network

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A transport carries frames between a port and a machine, many at a time.
// One goroutine reads and one writes; close ends both.
type transport interface {
	// read waits for frames and puts them into b. They are lent until the next
	// read.
	read(b *batch) error
	// write sends all runs, in order.
	write(runs []run) error
	close() error
}

// A tryWriter is a transport that can write without waiting. write and tryWrite
// are not called at the same time.
type tryWriter interface {
	// tryWrite writes as much as there is room for at once, and nothing on an
	// error; a later write finds that again.
	tryWrite(b []byte) int
}

// A batch is what one read of a transport returned.
type batch struct {
	frames    []frame
	oversized int // frames longer than maxFrame, skipped
}

const (
	// maxSkip is the longest frame that is skipped as oversized. A longer one is
	// not a length: prefixes are read from the middle of something.
	maxSkip = 1 << 20

	// minRead is the room that a read gets at least.
	minRead = 64 << 10

	// socketBuffer is how much the kernel takes in each direction before a writer
	// waits. For AF_UNIX streams only the sender's SO_SNDBUF counts, never
	// SO_RCVBUF (unix(7)), and the kernel charges overhead too: the default of
	// 208 KiB is less than 100 frames of 1514 bytes when a VMM writes each alone,
	// and a VMM whose write would block stops its guest's NIC. Above
	// net.core.wmem_max the kernel takes that instead, without an error.
	socketBuffer = 1 << 20
)

// PrefixError is a length prefix that cannot be one: the machine's VMM does not
// speak the protocol, or lost its place in it. Nothing after it can be read.
type PrefixError struct {
	Length uint32 // as read
}

func (e *PrefixError) Error() string {
	return fmt.Sprintf("bad length prefix %#08x (%d bytes; the longest frame has %d): not a stream of frames",
		e.Length, e.Length, maxFrame)
}

// A stream is the transport of QEMU's -netdev stream: each frame after its
// length as 4 bytes, big-endian (QEMU net/stream.c).
type stream struct {
	conn net.Conn

	// The reader's: c.data[start:end] is read and not decoded yet.
	c          *chunk
	live       atomic.Int32
	start, end int
	skip       int // bytes of an oversized frame still to come

	// The writer's.
	vec  [][]byte
	bufs net.Buffers
	raw  syscall.RawConn // nil: it cannot try
	try  func(fd uintptr) bool
	tryB []byte
	tryN int
}

// newStream returns a transport on conn, which it owns.
func newStream(conn net.Conn) *stream {
	s := &stream{conn: conn}
	if c, ok := conn.(syscall.Conn); ok {
		s.raw, _ = c.SyscallConn()
	}
	s.try = func(fd uintptr) bool {
		n, err := unix.SendmsgN(int(fd), s.tryB, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != nil {
			n = 0
		}
		s.tryN = n
		return true // however much it was
	}
	return s
}

func (s *stream) close() error { return s.conn.Close() }

func (s *stream) read(b *batch) error {
	b.frames, b.oversized = b.frames[:0], 0
	if s.c == nil {
		s.c = newChunk(&s.live)
	}
	for {
		err := s.decode(b)
		if len(b.frames) > 0 || b.oversized > 0 {
			return nil // what comes before an error is good; the next read finds it again
		}
		if err == nil {
			var n int
			s.makeRoom()
			n, err = s.conn.Read(s.c.data[s.end:])
			s.end += n
		}
		if err != nil {
			s.c.release()
			s.c, s.start, s.end = nil, 0, 0
			return err
		}
	}
}

// makeRoom makes sure that the frame that has begun fits behind start, and that
// a read is worth its while. Frames that somebody holds stay where they are.
func (s *stream) makeRoom() {
	rest := s.c.data[s.start:s.end]
	if len(rest) == 0 && s.c.alone() {
		s.start, s.end = 0, 0 // the same memory again, while it is in the CPU's cache
		return
	}
	if len(s.c.data)-s.end >= minRead && len(s.c.data)-s.start >= prefixLen+maxFrame {
		return
	}
	if s.c.alone() {
		s.start, s.end = 0, copy(s.c.data, rest)
		return
	}
	next := newChunk(&s.live)
	s.start, s.end = 0, copy(next.data, rest)
	s.c.release()
	s.c = next
}

// decode appends the frames that are complete to b.
func (s *stream) decode(b *batch) error {
	for {
		n := min(s.skip, s.end-s.start)
		s.start += n
		s.skip -= n
		if s.end-s.start < prefixLen {
			return nil
		}
		length := frameLen(s.c.data[s.start:])
		if length > maxSkip {
			return &PrefixError{length}
		}
		if length > maxFrame {
			b.oversized++
			s.skip = prefixLen + int(length)
			continue
		}
		end := s.start + prefixLen + int(length)
		if end > s.end {
			return nil
		}
		b.frames = append(b.frames, frame{s.c, s.start, end})
		s.start = end
	}
}

func (s *stream) write(runs []run) error {
	s.vec = s.vec[:0]
	for i := range runs {
		s.vec = append(s.vec, runs[i].wire())
	}
	s.bufs = s.vec // WriteTo eats it
	_, err := s.bufs.WriteTo(s.conn)
	return err
}

func (s *stream) tryWrite(b []byte) int {
	if s.raw == nil {
		return 0
	}
	s.tryB, s.tryN = b, 0
	if s.raw.Write(s.try) != nil {
		return 0
	}
	return s.tryN
}

// pair returns two connected ends of a unix socket.
func pair(typ int) (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	a, err = unixConn(fds[0])
	b, err2 := unixConn(fds[1])
	if err == nil {
		err = err2
	}
	if err != nil {
		if a != nil {
			a.Close()
		}
		if b != nil {
			b.Close()
		}
		return nil, nil, err
	}
	return a, b, nil
}

// unixConn makes a connection of a socket, which it owns.
func unixConn(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "socketpair")
	defer file.Close() // FileConn has a duplicate
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
