package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/event"
)

// packets is a connected packet socket as a connection with prefixes: a message
// for each frame.
type packets struct {
	*net.UnixConn
	buf  []byte
	rest []byte // of the last message
}

func newPackets(c *net.UnixConn) *packets {
	return &packets{UnixConn: c, buf: make([]byte, prefixLen+maxFrame+1)}
}

func (p *packets) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		length := int(frameLen(b[n:]))
		_, err = p.UnixConn.Write(b[n+prefixLen:][:length])
		n += prefixLen + length
	}
	return n, err
}

func (p *packets) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		n, err := p.UnixConn.Read(p.buf[prefixLen:])
		if err != nil {
			return 0, err
		}
		binary.BigEndian.PutUint32(p.buf, uint32(n))
		p.rest = p.buf[:prefixLen+n]
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// attachMixed is attach with the first of the machines on packet sockets.
func attachMixed(t testing.TB, s *Switch, n, first int) (peers []*peer) {
	for i := range first {
		p, conn, err := s.AttachPackets(t.Context(), NIC{Machine: fmt.Sprintf("m%d", i), ID: "net1", MAC: macOf(i)})
		peers = append(peers, newPeer(t, p, newPackets(conn), err))
	}
	for i := first; i < n; i++ {
		p, conn, err := s.Attach(t.Context(), NIC{Machine: fmt.Sprintf("m%d", i), ID: "net1", MAC: macOf(i)})
		peers = append(peers, newPeer(t, p, conn, err))
	}
	return peers
}

func TestPacketsDoNotChangeFrames(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), maxFrame/16)
	m := attachMixed(t, newSwitch(t, Options{QueueBytes: 16 << 20}), 3, 2) // more than all that is sent
	introduce(m)
	// Around the room that a frame has beside others, and many in one batch.
	sizes := []int{0, 28, 1500, 2029, 2030, 2031, 9000, 65536, maxFrame - minFrame}
	for _, to := range []int{1, 2} { // to packets, and to a stream
		var frames [][]byte
		for i := range 300 {
			frames = append(frames, frameOf(macOf(to), macOf(0), string(payload[i:][:sizes[i%len(sizes)]-min(i, sizes[i%len(sizes)])])))
		}
		go m[0].conn.Write(wire(frames...))
		m[to].expect(frames...)
		go m[to].conn.Write(wire(swapped(frames)...))
		m[0].expect(swapped(frames)...)
	}
}

// swapped is the frames on their way back.
func swapped(frames [][]byte) (back [][]byte) {
	for _, f := range frames {
		back = append(back, append(append(bytes.Clone(f[6:12]), f[:6]...), f[12:]...))
	}
	return back
}

func TestPacketsThatAreNoFrames(t *testing.T) {
	m := attachMixed(t, newSwitch(t, Options{}), 2, 1)
	good := frameOf(macOf(1), macOf(0), "good")
	m[0].send(nil, good[:13], good, make([]byte, maxFrame+1), make([]byte, 100_000), nil, good)
	m[1].expect(good, good)
	want := event.Counters{Frames: 2, Bytes: 2 * uint64(len(good)), Lost: event.Lost{Runt: 3, Oversized: 2}}
	if got := m[0].Stats().FromMachine; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// What a machine sent before it went away arrives, and its port ends.
func TestPacketPortEndsWithTheMachine(t *testing.T) {
	m := attachMixed(t, newSwitch(t, Options{}), 2, 1)
	last := frameOf(broadcast, macOf(0), "last words")
	m[0].send(last)
	m[0].conn.Close()
	m[1].expect(last)
	<-m[0].Done()
	if err := m[0].Err(); err != nil {
		t.Error(err)
	}
}

// A SOCK_DGRAM does not tell; the first frame that cannot be delivered does.
func TestDatagramPortEndsWhenNobodyReceives(t *testing.T) {
	s := newSwitch(t, Options{})
	m := attach(t, s, 1)
	ours, theirs, err := pair(unix.SOCK_DGRAM)
	if err != nil {
		t.Fatal(err)
	}
	port, err := s.AttachDatagram(t.Context(), NIC{Machine: "gone", ID: "net1"}, ours)
	if err != nil {
		t.Fatal(err)
	}
	hello := frameOf(broadcast, macOf(0), "hello")
	m[0].send(hello)
	buf := make([]byte, 100)
	if n, err := theirs.Read(buf); err != nil || !bytes.Equal(buf[:n], hello) {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	theirs.Close()
	m[0].send(hello)
	<-port.Done()
	if err := port.Err(); err != nil {
		t.Error(err)
	}
}

// A machine that does not read loses its own frames, and gets what waited when
// it reads again.
func TestPacketsToAMachineThatDoesNotRead(t *testing.T) {
	const limit = 64 << 10
	m := attachMixed(t, newSwitch(t, Options{QueueBytes: limit}), 3, 1)
	introduce(m)
	big := frameOf(macOf(0), macOf(1), string(make([]byte, 1500)))
	for m[0].Stats().ToMachine.Lost.Overrun == 0 {
		m[1].send(big)
		ok := frameOf(macOf(2), macOf(1), "others get theirs")
		m[1].send(ok)
		m[2].expect(ok)
	}
	m[0].expect(big)
	m[0].conn.Close()
	<-m[0].Done()
}

func TestDatagramErrors(t *testing.T) {
	ours, theirs, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	d, err := newDatagram(ours)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	var b batch
	if err := d.read(&b); err != io.EOF {
		t.Errorf("read after the end: %v", err)
	}
	c := &chunk{data: wire(frameOf(broadcast, macOf(0), ""))}
	c.refs.Store(1)
	if err := d.write([]run{{frame{c, 0, len(c.data)}, 1}}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after the end: %v", err)
	}
	d.close()
	if err := d.read(&b); err != io.EOF && !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if n := d.slots.live.Load(); n != 0 {
		t.Errorf("%d chunks were not released", n)
	}
}

// BenchmarkPackets is BenchmarkUnicastFramePerWrite on packet sockets: what a
// VMM with -netdev dgram costs beside one with -netdev stream.
func BenchmarkPackets(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			benchmarkPeers(b, func(s *Switch) []*peer { return attachMixed(b, s, 2, 2) }, size, func(m []*peer) []flow {
				return []flow{{from: m[0], to: m[1:2], dst: macOf(1), alone: true}}
			})
		})
	}
}
