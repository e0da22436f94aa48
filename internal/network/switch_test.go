package network

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/attest-vm/attest/internal/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = time.Minute

// A peer is a machine's end of a port.
type peer struct {
	*Port
	t    testing.TB
	conn net.Conn // frames with their prefixes
	in   *bufio.Reader
}

func newSwitch(t testing.TB, o Options) *Switch {
	s := New("lan", o)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// attach makes n peers, whose addresses are macOf(0), macOf(1), ….
func attach(t testing.TB, s *Switch, n int) (peers []*peer) {
	for i := range n {
		p, conn, err := s.Attach(t.Context(), NIC{Machine: fmt.Sprintf("m%d", i), ID: "net1", MAC: macOf(i)})
		peers = append(peers, newPeer(t, p, conn, err))
	}
	return peers
}

func newPeer(t testing.TB, p *Port, conn net.Conn, err error) *peer {
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &peer{p, t, conn, bufio.NewReaderSize(conn, 1<<20)}
}

func macOf(i int) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0x12, 1, byte(i + 1)} }

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// frameOf is an Ethernet frame with a text in it.
func frameOf(dst, src net.HardwareAddr, text string) []byte {
	return append(append(append(bytes.Clone(dst), src...), 0x08, 0x00), text...)
}

func (p *peer) send(frames ...[]byte) {
	p.t.Helper()
	if _, err := p.conn.Write(wire(frames...)); err != nil {
		p.t.Fatalf("%v: send: %v", p.Port, err)
	}
}

func (p *peer) receive() []byte {
	p.t.Helper()
	f, err := readFrame(p.in)
	if err != nil {
		p.t.Fatalf("%v: receive: %v", p.Port, err)
	}
	return f
}

func readFrame(r io.Reader) ([]byte, error) {
	var prefix [prefixLen]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	f := make([]byte, binary.BigEndian.Uint32(prefix[:]))
	_, err := io.ReadFull(r, f)
	return f, err
}

// expect receives frames and compares them. Frames from one port arrive in
// order, so receiving a later one shows that an earlier one was not sent here.
func (p *peer) expect(frames ...[]byte) {
	p.t.Helper()
	for _, want := range frames {
		if got := p.receive(); !bytes.Equal(got, want) {
			p.t.Fatalf("%v: received %.40q, want %.40q", p.Port, got, want)
		}
	}
}

// introduce lets the switch learn where everybody is, so that nothing is
// flooded.
func introduce(m []*peer) {
	for i := range m {
		hello := frameOf(broadcast, macOf(i), "hello")
		m[i].send(hello)
		for j := range m {
			if i != j {
				m[j].expect(hello)
			}
		}
	}
}

func TestSwitchLearns(t *testing.T) {
	m := attach(t, newSwitch(t, Options{}), 3)
	end := frameOf(broadcast, macOf(0), "end")

	unknown := frameOf(macOf(1), macOf(0), "where are you?")
	m[0].send(unknown)
	m[1].expect(unknown)
	m[2].expect(unknown) // flooded

	answer := frameOf(macOf(0), macOf(1), "here")
	m[1].send(answer)
	m[0].expect(answer)

	known := frameOf(macOf(1), macOf(0), "hello")
	m[0].send(known, end)
	m[1].expect(known, end)
	m[2].expect(end) // neither the answer nor the hello
}

func TestSwitchFollowsMoves(t *testing.T) {
	m := attach(t, newSwitch(t, Options{}), 3)
	wanderer := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	end := frameOf(broadcast, macOf(2), "end")
	for _, here := range []int{0, 1, 0} {
		there := 1 - here
		hello := frameOf(broadcast, wanderer, "I am here")
		m[here].send(hello)
		m[there].expect(hello)
		m[2].expect(hello)

		call := frameOf(wanderer, macOf(2), "call")
		m[2].send(call, end)
		m[here].expect(call, end)
		m[there].expect(end)
	}
}

func TestSwitchForgetsClosedPorts(t *testing.T) {
	s := newSwitch(t, Options{})
	m := attach(t, s, 3)
	hello := frameOf(broadcast, macOf(0), "hello")
	m[0].send(hello)
	m[1].expect(hello)
	m[2].expect(hello)
	if err := m[0].Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Ports()); n != 2 {
		t.Errorf("%d ports left", n)
	}
	call := frameOf(macOf(0), macOf(1), "are you there?")
	m[1].send(call)
	m[2].expect(call) // flooded again
}

func TestSwitchDoesNotChangeFrames(t *testing.T) {
	m := attach(t, newSwitch(t, Options{}), 3)
	payload := bytes.Repeat([]byte("0123456789abcdef"), maxFrame/16)
	for name, f := range map[string][]byte{
		"header only":  frameOf(broadcast, macOf(0), ""),
		"ARP":          append(frameOf(broadcast, macOf(0), "")[:12], append([]byte{0x08, 0x06}, make([]byte, 28)...)...),
		"802.1Q":       append(frameOf(broadcast, macOf(0), "")[:12], "\x81\x00\x00\x2a\x08\x00tagged"...),
		"802.1ad":      append(frameOf(broadcast, macOf(0), "")[:12], "\x88\xa8\x00\x2a\x81\x00\x00\x2b\x08\x00twice"...),
		"IPv6 ND":      append(frameOf(net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 2}, macOf(0), "")[:12], "\x86\xdd`..."...),
		"LLDP":         frameOf(net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0x0e}, macOf(0), "lldp"),
		"802.3 length": append(frameOf(broadcast, macOf(0), "")[:12], 0, 3, 'a', 'b', 'c'),
		"jumbo":        frameOf(broadcast, macOf(0), string(payload[:9000])),
		"64 KiB":       frameOf(broadcast, macOf(0), string(payload[:65536])),
		"largest":      frameOf(broadcast, macOf(0), string(payload[:maxFrame-minFrame])),
	} {
		t.Run(name, func(t *testing.T) {
			m[0].send(f)
			m[1].expect(f)
			m[2].expect(f)
		})
	}
}

func TestSwitchNeverReflects(t *testing.T) {
	m := attach(t, newSwitch(t, Options{}), 2)
	inside := net.HardwareAddr{2, 0, 0, 0, 0, 9} // a container bridged to m0
	end := frameOf(broadcast, macOf(0), "end")
	hello := frameOf(broadcast, inside, "hello")
	m[0].send(hello, frameOf(inside, macOf(0), "local"), frameOf(macOf(0), macOf(0), "to myself"), end)
	m[1].expect(hello, end)
	back := frameOf(macOf(0), macOf(1), "back")
	m[1].send(back)
	m[0].expect(back) // and nothing of its own before it
	if got := m[0].Stats().FromMachine.Lost.Local; got != 2 {
		t.Errorf("%d local frames, want 2", got)
	}
}

// A sender that claims a group address must not be learned: the next
// broadcast would go to it alone.
func TestSwitchDoesNotLearnGroupAddresses(t *testing.T) {
	m := attach(t, newSwitch(t, Options{}), 3)
	bad := frameOf(broadcast, broadcast, "from everybody")
	m[0].send(bad)
	m[1].expect(bad)
	m[2].expect(bad)
	hello := frameOf(broadcast, macOf(1), "hello")
	m[1].send(hello)
	m[0].expect(hello)
	m[2].expect(hello)
}

func TestRuntAndOversizedFramesAreDropped(t *testing.T) {
	m := attach(t, newSwitch(t, Options{}), 2)
	good := frameOf(macOf(1), macOf(0), "good")
	m[0].send(nil, good[:13], good, make([]byte, maxFrame+1), make([]byte, maxSkip), good)
	m[1].expect(good, good)
	want := event.Counters{Frames: 2, Bytes: 2 * uint64(len(good)), Lost: event.Lost{Runt: 2, Oversized: 2}}
	if got := m[0].Stats().FromMachine; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestGarbageClosesOnlyItsPort(t *testing.T) {
	var bus event.Bus
	var logs []event.Log
	bus.Subscribe(func(r event.Record) {
		if l, ok := r.Event.(event.Log); ok {
			logs = append(logs, l)
		}
	})

	s := New("lan", Options{})
	m := attach(t, s, 2)
	port, conn, err := s.Attach(event.WithBus(t.Context(), &bus), NIC{Machine: "web", ID: "net1"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	last := frameOf(broadcast, macOf(9), "last words")
	if _, err := conn.Write(append(wire(last), "GET / HTTP/1.1"...)); err != nil {
		t.Fatal(err)
	}
	m[0].expect(last) // what came before the garbage is good
	m[1].expect(last)
	select {
	case <-port.Done():
	case <-time.After(patience):
		t.Fatal("the port does not end")
	}
	var prefix *PrefixError
	if err := port.Err(); !errors.As(err, &prefix) || !strings.HasPrefix(err.Error(), "network lan: web/net1: bad length prefix 0x47455420") {
		t.Errorf("error %v", err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the VMM's end: %v, want end of file", err)
	}
	if len(logs) != 1 || logs[0].Machine != "web" || logs[0].Text != port.Err().Error() {
		t.Errorf("published %+v", logs)
	}

	hello := frameOf(macOf(1), macOf(0), "we go on")
	m[0].send(hello)
	m[1].expect(hello)
	if err := s.Close(); err != nil {
		t.Errorf("close after an error that was reported: %v", err)
	}
}

func TestVMMGoesAway(t *testing.T) {
	s := newSwitch(t, Options{})
	m := attach(t, s, 2)
	f := frameOf(macOf(1), macOf(0), "unread")
	m[0].send(f, f)
	m[1].expect(f)
	m[1].send(wire(f)[:7]) // the VMM is killed in the middle of a frame
	m[1].conn.Close()      // with another frame unread
	select {
	case <-m[1].Done():
	case <-time.After(patience):
		t.Fatal("the port does not end")
	}
	if err := m[1].Err(); err != nil {
		t.Errorf("an end that is not an error: %v", err)
	}
	if n := len(s.Ports()); n != 1 {
		t.Errorf("%d ports left", n)
	}
}

func TestClose(t *testing.T) {
	s := New("lan", Options{})
	m := attach(t, s, 3)
	// m2 does not read: its writer waits in the kernel, and must end too.
	big := frameOf(broadcast, macOf(0), strings.Repeat("x", 60000))
	for range 200 {
		m[0].send(big)
		m[1].expect(big)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	wg.Wait()
	if _, _, err := s.Attach(t.Context(), NIC{Machine: "late", ID: "net1"}); !errors.Is(err, ErrClosed) {
		t.Errorf("attach after close: %v", err)
	}
	if err := m[0].Close(); err != nil {
		t.Errorf("close of a port that is closed: %v", err)
	}
	if _, err := m[1].in.ReadByte(); err != io.EOF {
		t.Errorf("the VMM's end: %v, want end of file", err)
	}
}

// A machine that does not read loses frames; the sender and everybody else do
// not notice. When it reads again, it gets what waited, whole and in order.
func TestMachineThatDoesNotRead(t *testing.T) {
	m := attach(t, newSwitch(t, Options{QueueBytes: 1 << 20}), 3)
	introduce(m)

	const sent = 10000
	numbered := func(i int) []byte {
		return frameOf(macOf(1), macOf(0), fmt.Sprintf("%08d%1492s", i, ""))
	}
	aside := frameOf(macOf(2), macOf(0), "meanwhile")
	for i := range sent {
		m[0].send(numbered(i), aside)
		if i%100 == 0 { // m2 need not read each alone
			for range min(i, 99) + 1 {
				m[2].expect(aside)
			}
		}
	}
	for range (sent - 1) % 100 {
		m[2].expect(aside)
	}
	end := frameOf(macOf(1), macOf(2), "end")
	dropped := m[1].Stats().ToMachine.Lost.Overrun
	if dropped == 0 {
		t.Fatal("nothing was dropped")
	}
	last := -1
	for range sent - int(dropped) {
		f := m[1].receive()
		i, err := strconv.Atoi(string(f[14:22]))
		if err != nil || i <= last || !bytes.Equal(f, numbered(i)) {
			t.Fatalf("received %.40q after number %d", f, last)
		}
		last = i
	}
	m[2].send(end)
	m[1].expect(end)
}

// What went through a port is told when it ends, and what was lost without a fault.
func TestTraffic(t *testing.T) {
	var bus event.Bus
	var got []event.Event
	bus.Subscribe(func(r event.Record) { got = append(got, r.Event) })
	s := newSwitch(t, Options{QueueBytes: 1 << 20})
	var m []*peer
	for i, name := range []string{"", "client", "server"} {
		p, conn, err := s.Attach(event.WithBus(t.Context(), &bus), NIC{Machine: name, ID: "eth1", MAC: macOf(i)})
		m = append(m, newPeer(t, p, conn, err))
	}
	introduce(m)
	hello := frameOf(macOf(0), macOf(1), "hello")
	m[1].send(hello[:10], hello)
	m[0].expect(hello)
	large := frameOf(macOf(2), macOf(0), strings.Repeat("x", 60000))
	end := frameOf(macOf(1), macOf(0), "end")
	for range 100 {
		m[0].send(large, end)
		m[1].expect(end) // the switch has seen both
	}
	for _, p := range m {
		p.Close()
	}
	client, server := m[1].Stats(), m[2].Stats()
	lost := server.ToMachine.Lost.Overrun
	if lost == 0 || client.FromMachine.Lost != (event.Lost{Runt: 1}) {
		t.Errorf("client: %+v\nserver: %+v", client, server)
	}
	want := []event.Event{
		event.Traffic{Machine: "client", Network: "lan", NIC: "eth1", Sent: client.FromMachine, Received: client.ToMachine},
		event.Log{Machine: "client", Level: "warning", Text: "lan, eth1: frames that it sent were lost: 1 too short and 0 too long for Ethernet"},
		event.Traffic{Machine: "server", Network: "lan", NIC: "eth1", Sent: server.FromMachine, Received: server.ToMachine},
		event.Log{Machine: "server", Level: "warning", Text: fmt.Sprintf("lan, eth1: %d of %d frames to it were lost because it did not read them fast enough", lost, lost+server.ToMachine.Frames)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A machine that sends little to one that does not read, and much to one that
// does, must not pin all its memory in the queue of the first.
func TestMemoryIsBounded(t *testing.T) {
	s := New("lan", Options{})
	defer s.Close()
	m := attach(t, s, 3)
	introduce(m)
	large := frameOf(macOf(2), macOf(0), strings.Repeat("x", 60000))
	stuck := func(i int) []byte { return frameOf(macOf(1), macOf(0), fmt.Sprintf("%060000d", i)) }
	const fill = 3*socketBuffer/60000 + 1 // more than the kernel takes: what follows stays in the queue
	for i := range fill {
		m[0].send(stuck(i))
	}
	const rounds = 3 * maxChunks
	for i := range rounds {
		small := frameOf(macOf(1), macOf(0), fmt.Sprint(i))
		m[0].send(small, large, large, large, large, large)
		m[2].expect(large, large, large, large, large)
	}
	if n := m[0].Port.t.(*stream).live.Load(); n > maxChunks+1 {
		t.Errorf("%d chunks of %d bytes are held, want at most %d", n, chunkSize, maxChunks+1)
	}
	for i := range fill {
		m[1].expect(stuck(i))
	}
	for i := range rounds {
		m[1].expect(frameOf(macOf(1), macOf(0), fmt.Sprint(i)))
	}
	s.Close()
	if n := m[0].Port.t.(*stream).live.Load(); n != 0 {
		t.Errorf("%d chunks are held after the end", n)
	}
}

// loadTime is how long TestNothingIsLostUnderLoad goes on; make stress gives it
// a minute.
var loadTime = flag.Duration("load", time.Second, "how long to load the switch")

// Eight machines that all send to all others at once lose nothing as long as
// what is under way fits in the queues. Some speak QEMU's stream, some send
// packets.
func TestNothingIsLostUnderLoad(t *testing.T) {
	const machines, frames = 8, 300 // 7 × 300 × 1518 bytes: less than a queue
	m := attachMixed(t, NewFabric(1).Switch(1), machines, 3)
	defer m[0].sw.Close()
	introduce(m)
	rounds := 0
	for until := time.Now().Add(*loadTime); rounds == 0 || time.Now().Before(until); rounds++ {
		for _, p := range m {
			p.conn.SetDeadline(time.Now().Add(patience))
		}
		if !exchange(t, m, frames) {
			break
		}
	}
	for _, p := range m {
		s := p.Stats()
		if s.FromMachine.Lost != (event.Lost{}) || s.ToMachine.Lost != (event.Lost{}) {
			t.Errorf("%v lost frames: %+v", p.Port, s)
		}
	}
	t.Logf("%d rounds of %d frames", rounds, machines*(machines-1)*frames)
}

// exchange sends frames from every machine to every other, all at once, and says
// whether all arrived whole and in order.
func exchange(t *testing.T, m []*peer, frames int) bool {
	var wg sync.WaitGroup
	var failed atomic.Bool
	for i, p := range m {
		wg.Go(func() { // the guest's sending side
			for n := range frames {
				var b [][]byte
				for j := range m {
					if i != j {
						b = append(b, frameOf(macOf(j), macOf(i), fmt.Sprintf("%08d%1492s", n, "")))
					}
				}
				p.conn.Write(wire(b...)) // an error shows in what is not received
			}
		})
		wg.Go(func() {
			next := make([]int, len(m))
			for got := 0; got < (len(m)-1)*frames; {
				f, err := readFrame(p.in)
				if err != nil {
					t.Errorf("%v: %v after %d frames", p.Port, err, got)
					failed.Store(true)
					return
				}
				src := int(f[11]) - 1
				if want := frameOf(macOf(i), macOf(src), fmt.Sprintf("%08d%1492s", next[src], "")); !bytes.Equal(f, want) {
					t.Errorf("%v: %q from m%d, want number %d", p.Port, f[14:22], src, next[src])
					failed.Store(true)
					return
				}
				next[src]++
				got++
			}
		})
	}
	wg.Wait()
	return !failed.Load()
}

// A machine that floods with whatever it can make up, under a fault that has to
// parse it, takes nothing from others but their share of its broadcasts.
func TestFloodOfMalformedFrames(t *testing.T) {
	fabric := NewFabric(1)
	defer fabric.Close()
	m := attach(t, fabric.Switch(1), 4)
	introduce(m)
	match, err := ParseMatch("tcp:5432,icmp")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fabric.Begin(Rule{Name: "delay", Effect: Delay{Mean: time.Millisecond}, Match: match, Flows: []Flow{{From: These("m0")}, {To: These("m1")}}}); err != nil {
		t.Fatal(err)
	}
	stop, flooded := make(chan struct{}), make(chan struct{})
	go func() { // m0 sends; nobody reads for it, nor for m3
		defer close(flooded)
		r := rand.New(rand.NewPCG(1, 2))
		for n := 0; ; n++ {
			var batch []byte
			for range 50 {
				f := make([]byte, r.IntN(200))
				for i := range f {
					f[i] = byte(r.Uint32())
				}
				if len(f) > 40 { // as far as the parsers look
					copy(f[12:], [][]byte{{0x08, 0, 0x4f}, {0x86, 0xdd, 0x60}, {0x81, 0}, {0x08, 0x06}}[r.IntN(4)])
				}
				if n%3 > 0 && len(f) > 6 {
					copy(f, macOf(3)) // to the one that does not read
				}
				batch = append(batch, wire(f)...)
			}
			batch = append(batch, wire(make([]byte, maxFrame+1))...)
			if _, err := m[0].conn.Write(batch); err != nil {
				t.Errorf("the flooding machine: %v", err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for n := range 2000 {
		ask, answer := frameOf(macOf(2), macOf(1), fmt.Sprint("ask ", n)), frameOf(macOf(1), macOf(2), fmt.Sprint("answer ", n))
		m[1].send(ask)
		m[2].expectAmong(ask)
		m[2].send(answer)
		m[1].expectAmong(answer)
	}
	close(stop)
	<-flooded
	got := m[0].Stats().FromMachine
	if got.Lost.Runt == 0 || got.Lost.Oversized == 0 || got.Frames == 0 || m[0].Err() != nil {
		t.Errorf("the flood: %+v, %v", got, m[0].Err())
	}
	m[0].sw.mu.Lock()
	defer m[0].sw.mu.Unlock()
	if macs := m[0].macs; macs > maxMACs {
		t.Errorf("%d addresses were learned", macs)
	}
}

// expectAmong receives frames until it is this one.
func (p *peer) expectAmong(want []byte) {
	p.t.Helper()
	for !bytes.Equal(p.receive(), want) {
	}
}

func TestSetDown(t *testing.T) {
	m := attach(t, newSwitch(t, Options{}), 3)
	say := func(i int, text string) []byte { return frameOf(broadcast, macOf(i), text) }

	m[0].SetDown(true)
	m[0].SetDown(true) // twice is once
	m[0].send(say(0, "lost"), say(0, "lost"))
	m[1].send(say(1, "not for m0"))
	m[2].expect(say(1, "not for m0"))
	waitFor(t, func() bool { return m[0].Stats().FromMachine.Lost.Down == 2 })

	m[0].SetDown(false)
	m[0].send(say(0, "back"))
	m[1].expect(say(0, "back"))
	m[2].expect(say(0, "back"))
	m[1].send(say(1, "welcome"))
	m[0].expect(say(1, "welcome"))
	if got := m[0].Stats(); got.FromMachine.Lost.Down != 2 || got.ToMachine.Lost.Down != 1 {
		t.Errorf("dropped while down: %d and %d, want 2 and 1", got.FromMachine.Lost.Down, got.ToMachine.Lost.Down)
	}
}

func TestObserve(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	m := attach(t, newSwitch(t, Options{Now: func() time.Time { return noon }}), 2)
	var mu sync.Mutex
	var seen []string
	stop := m[0].Observe(func(o Observation) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprintf("%v %v %v %s", o.Time.Hour(), o.Port, o.Direction, o.Frame[14:]))
	})
	ping, pong := frameOf(macOf(1), macOf(0), "ping"), frameOf(macOf(0), macOf(1), "pong")
	exchange := func() {
		m[0].send(ping)
		m[1].expect(ping)
		m[1].send(pong)
		m[0].expect(pong)
	}
	exchange()
	// An observer sits at the machine: it sees what a broken link loses on the
	// way from it, and not what is lost on the way to it.
	m[0].SetDown(true)
	m[0].send(ping)
	m[1].send(pong)
	waitFor(t, func() bool {
		return m[0].Stats().FromMachine.Lost.Down == 1 && m[0].Stats().ToMachine.Lost.Down == 1
	})
	m[0].SetDown(false)
	stop()
	stop()
	exchange()

	mu.Lock()
	defer mu.Unlock()
	want := "12 lan: m0/net1 from ping, 12 lan: m0/net1 to pong, 12 lan: m0/net1 from ping"
	if got := strings.Join(seen, ", "); got != want {
		t.Errorf("seen\n%s, want\n%s", got, want)
	}
	if m[0].from.head.Load() != nil || m[0].to.head.Load() != nil {
		t.Error("an observer that stopped is still on the path")
	}
}

// waitFor polls for what no event announces.
func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("timed out")
		}
	}
}
