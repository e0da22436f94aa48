package network

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// Whatever the machines send, all at once: no frame is invented or changed,
// none returns to its sender, each arrives once where it must, and the frames
// from one machine to another stay in order.
func TestSwitchProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := New("lan", Options{QueueBytes: 16 << 20}) // more than all that is drawn
		defer s.Close()
		n := rapid.IntRange(2, 5).Draw(r, "machines")
		m := attachMixed(t, s, n, rapid.IntRange(0, n).Draw(r, "machines that send packets"))
		sent := make([][][]byte, n)
		for i := range sent {
			sent[i] = rapid.SliceOfN(frameFrom(i, n), 0, 20).Draw(r, fmt.Sprint("frames of ", i))
		}
		if rapid.Bool().Draw(r, "introduced") { // both flooding and forwarding
			introduce(m)
		}

		var wg sync.WaitGroup
		for i, p := range m {
			defer p.conn.Close()
			end := frameOf(broadcast, macOf(i), "the last frame")
			wg.Go(func() { p.conn.Write(wire(append(sent[i], end)...)) })
			wg.Go(func() {
				received := make([][][]byte, n) // by sender
				for ends := 0; ends < n-1; {
					f, err := readFrame(p.in)
					if err != nil {
						r.Errorf("m%d: %v", i, err)
						return
					}
					src := int(f[11]) - 1
					if src < 0 || src >= n || src == i {
						r.Errorf("m%d received %.40q, which nobody else sent", i, f)
						return
					}
					if bytes.HasSuffix(f, []byte("the last frame")) {
						ends++
						continue
					}
					received[src] = append(received[src], f)
				}
				for src := range received {
					if src != i {
						checkReceived(r, sent[src], received[src], macOf(i))
					}
				}
			})
		}
		wg.Wait()
	})
}

// frameFrom draws a frame that machine i of n may send.
func frameFrom(i, n int) *rapid.Generator[[]byte] {
	return rapid.Custom(func(r *rapid.T) []byte {
		dst := rapid.SampledFrom([]net.HardwareAddr{
			broadcast, {0x33, 0x33, 0, 0, 0, 1}, {0x02, 0xde, 0xad, 0, 0, 1}, // the last is nobody's
			macOf(0), macOf(n - 1), macOf((i + 1) % n), macOf(i),
		}).Draw(r, "to")
		f := append(bytes.Clone(dst), macOf(i)...)
		f = append(f, rapid.SampledFrom([]string{"\x08\x00", "\x86\xdd", "\x08\x06", "\x81\x00\x00\x07\x08\x00"}).Draw(r, "type")...)
		f = append(f, rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(r, "payload")...)
		size := rapid.SampledFrom([]int{0, 0, 1514, 9014, maxFrame}).Draw(r, "padded to")
		return append(f, make([]byte, max(0, size-len(f)))...)
	})
}

// checkReceived checks what the machine self received from one sender: a part
// of what was sent, in order, in which nothing is missing that self must get.
func checkReceived(t rapid.TB, sent, received [][]byte, self net.HardwareAddr) {
	next := 0
	for _, f := range sent {
		if next < len(received) && bytes.Equal(f, received[next]) {
			next++
		} else if dst := net.HardwareAddr(f[:6]); f[0]&1 == 1 || bytes.Equal(dst, self) {
			t.Errorf("%v did not receive %.40q in its place", self, f)
			return
		}
	}
	if next < len(received) {
		t.Errorf("%v received %.40q once more or out of order, or it was never sent", self, received[next])
	}
}
