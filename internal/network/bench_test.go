package network

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Benchmarks send as many frames as b.N says from each sender and wait until
// they have arrived. What is under way is kept below the size of a queue, as
// TCP's window does, so nothing is dropped. An operation is one frame sent. The
// sending and receiving of the benchmark itself is in the time, in the same
// process: it is about half of it.

const (
	benchBatch  = 64 << 10 // bytes, or one frame
	benchWindow = 16       // batches under way from one sender
)

// A flow goes from one machine to others.
type flow struct {
	from  *peer
	to    []*peer
	dst   net.HardwareAddr
	alone bool // each frame is written alone, as QEMU does; otherwise a batch at a time
}

// run starts to send b.N frames of the given size to all receivers.
func (f flow) run(b *testing.B, size int) (wait func()) {
	one := wire(frameOf(f.dst, macOf(f.from.index()), fmt.Sprintf("%*d", size-minFrame, 0)))
	per := max(1, benchBatch/len(one))
	var batch []byte
	for range per {
		batch = append(batch, one...)
	}
	total := int64(b.N) * int64(len(one))
	done := make(chan struct{})
	var windows []chan struct{}
	for _, to := range f.to {
		window := make(chan struct{}, benchWindow)
		windows = append(windows, window)
		go func() {
			defer func() { done <- struct{}{} }()
			buf := make([]byte, chunkSize)
			batched := int64(0)
			for got := int64(0); got < total; {
				n, err := to.conn.Read(buf)
				if err != nil {
					b.Error(err)
					return
				}
				got += int64(n)
				for ; batched < got/int64(len(batch)); batched++ {
					<-window
				}
			}
		}()
	}
	go func() {
		defer func() { done <- struct{}{} }()
		for sent := int64(0); sent < total; {
			n := min(total-sent, int64(len(batch)))
			if n == int64(len(batch)) {
				for _, w := range windows {
					w <- struct{}{}
				}
			}
			step := n
			if f.alone {
				step = int64(len(one))
			}
			for i := int64(0); i < n; i += step {
				if _, err := f.from.conn.Write(batch[i : i+step]); err != nil {
					b.Error(err)
					return
				}
			}
			sent += n
		}
	}()
	return func() {
		for range len(f.to) + 1 {
			<-done
		}
	}
}

func (p *peer) index() int { return int(p.NIC().MAC[5]) - 1 }

func benchmark(b *testing.B, ports, size int, flows func([]*peer) []flow) {
	benchmarkPeers(b, func(s *Switch) []*peer { return attach(b, s, ports) }, size, flows)
}

func benchmarkPeers(b *testing.B, attach func(*Switch) []*peer, size int, flows func([]*peer) []flow) {
	m := attach(newSwitch(b, Options{}))
	introduce(m)
	for _, p := range m {
		p.conn.SetDeadline(time.Now().Add(10 * time.Minute))
	}
	fs := flows(m)
	b.ReportAllocs()
	b.SetBytes(int64(size * len(fs)))
	b.ResetTimer()
	var waits []func()
	for _, f := range fs {
		waits = append(waits, f.run(b, size))
	}
	for _, wait := range waits {
		wait()
	}
	b.StopTimer()
	perSecond := float64(b.N*len(fs)) / b.Elapsed().Seconds()
	b.ReportMetric(perSecond, "frames/s")
	b.ReportMetric(perSecond*float64(size)*8/1e9, "Gbit/s")
	for _, p := range m {
		if n := p.Stats().ToMachine.Lost.Overrun; n > 0 {
			b.Errorf("%v: %d frames dropped", p.Port, n)
		}
	}
}

var benchSizes = []int{64, 1514, 9014, 65550}

func BenchmarkUnicast(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			benchmark(b, 2, size, func(m []*peer) []flow {
				return []flow{{from: m[0], to: m[1:2], dst: macOf(1)}}
			})
		})
	}
}

func BenchmarkUnicastFramePerWrite(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			benchmark(b, 2, size, func(m []*peer) []flow {
				return []flow{{from: m[0], to: m[1:2], dst: macOf(1), alone: true}}
			})
		})
	}
}

func BenchmarkFourPairs(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			benchmark(b, 8, size, func(m []*peer) (fs []flow) {
				for i := 0; i < 8; i += 2 {
					fs = append(fs, flow{from: m[i], to: m[i+1 : i+2], dst: macOf(i + 1)})
				}
				return fs
			})
		})
	}
}

func BenchmarkBroadcastToSeven(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			benchmark(b, 8, size, func(m []*peer) []flow {
				return []flow{{from: m[0], to: m[1:], dst: broadcast}}
			})
		})
	}
}

// BenchmarkRoundTrip is the time of one small frame there and one back.
func BenchmarkRoundTrip(b *testing.B) {
	m := attach(b, newSwitch(b, Options{}), 2)
	introduce(m)
	for _, p := range m {
		p.conn.SetDeadline(time.Now().Add(10 * time.Minute))
	}
	ping, pong := wire(frameOf(macOf(1), macOf(0), "ping")), wire(frameOf(macOf(0), macOf(1), "pong"))
	done := make(chan struct{})
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		defer close(done)
		buf := make([]byte, len(ping))
		for range b.N {
			io.ReadFull(m[1].conn, buf)
			m[1].conn.Write(pong)
		}
	}()
	buf := make([]byte, len(pong))
	for range b.N {
		m[0].conn.Write(ping)
		if _, err := io.ReadFull(m[0].conn, buf); err != nil {
			b.Fatal(err)
		}
	}
	<-done
}

// BenchmarkDirect is what BenchmarkUnicast would be without a switch: the
// sender's socket read by the receiver.
func BenchmarkDirect(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			x, y, err := pair(unix.SOCK_STREAM)
			if err != nil {
				b.Fatal(err)
			}
			defer x.Close()
			defer y.Close()
			port := &Port{nic: NIC{MAC: macOf(0)}}
			b.SetBytes(int64(size))
			b.ResetTimer()
			flow{from: &peer{Port: port, conn: x}, to: []*peer{{conn: y}}, dst: macOf(1)}.run(b, size)()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}
