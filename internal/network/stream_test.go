package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

// wire is frames as they are sent.
func wire(frames ...[]byte) []byte {
	var b []byte
	for _, f := range frames {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

// A source is a connection that reads from data, at most step bytes at a time.
type source struct {
	net.Conn
	data []byte
	step int
}

func (s *source) Read(b []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), s.step)], s.data)
	s.data = s.data[n:]
	return n, nil
}

// decoded is what a stream of bytes contains.
type decoded struct {
	frames    [][]byte
	oversized int
	garbage   bool
}

// decodeStream reads data through a stream. Every hold-th frame is held and
// looked at in the end, as if it had waited in a queue.
func decodeStream(t *testing.T, data []byte, step, hold int) decoded {
	s := newStream(&source{data: data, step: step})
	var d decoded
	var b batch
	held := map[int]frame{}
	for {
		err := s.read(&b)
		if prefix := new(PrefixError); errors.As(err, &prefix) {
			d.garbage = true
		} else if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if err != nil {
			break
		}
		for _, f := range b.frames {
			if len(d.frames)%hold == 0 {
				held[len(d.frames)] = f.hold()
			}
			d.frames = append(d.frames, bytes.Clone(f.bytes()))
		}
		d.oversized += b.oversized
	}
	for i, f := range held {
		if !bytes.Equal(f.bytes(), d.frames[i]) {
			t.Errorf("frame %d of %d changed while it was held", i, len(d.frames))
		}
		f.c.release()
	}
	if n := s.live.Load(); n != 0 {
		t.Errorf("%d chunks were not released", n)
	}
	return d
}

// decodeSimply is what decodeStream should return.
func decodeSimply(data []byte) (d decoded) {
	for len(data) >= prefixLen {
		n := int(binary.BigEndian.Uint32(data))
		data = data[prefixLen:]
		if n > maxSkip {
			d.garbage = true
			return d
		}
		if n > maxFrame {
			d.oversized++ // counted when its length is known, like the bytes that never come
		}
		if n > len(data) {
			return d
		}
		if n <= maxFrame {
			d.frames = append(d.frames, data[:n])
		}
		data = data[n:]
	}
	return d
}

func checkDecoded(t *testing.T, data []byte, step, hold int) {
	t.Helper()
	got, want := decodeStream(t, data, step, hold), decodeSimply(data)
	if len(got.frames) != len(want.frames) || got.oversized != want.oversized || got.garbage != want.garbage {
		t.Fatalf("step %d: %d frames, %d oversized, garbage %v; want %d, %d, %v", step,
			len(got.frames), got.oversized, got.garbage, len(want.frames), want.oversized, want.garbage)
	}
	for i := range got.frames {
		if !bytes.Equal(got.frames[i], want.frames[i]) {
			t.Fatalf("step %d: frame %d differs", step, i)
		}
	}
}

func TestStreamDecodes(t *testing.T) {
	of := func(n int) []byte { return bytes.Repeat([]byte{byte(n), byte(n >> 8), 7}, n/3+1)[:n] }
	var many [][]byte
	for i := range 3000 {
		many = append(many, of(60+i%1455))
	}
	for name, data := range map[string][]byte{
		"nothing":             nil,
		"half a prefix":       {0, 0},
		"empty frame":         wire(of(0)),
		"one":                 wire(of(42)),
		"cut off":             wire(of(42), of(42))[:80],
		"largest":             wire(of(maxFrame), of(60), of(maxFrame)),
		"oversized":           wire(of(60), of(maxFrame+1), of(61), of(maxSkip), of(62)),
		"oversized, cut off":  wire(of(maxSkip))[:1000],
		"more than a chunk":   wire(many...),
		"jumbo":               wire(of(9014), of(65550), of(9014), of(65550), of(65550), of(65550), of(65550)),
		"garbage":             []byte("HTTP/1.1 400 Bad Request"),
		"garbage after a few": append(wire(of(60), of(61)), 0, 0x10, 0, 1),
	} {
		t.Run(name, func(t *testing.T) {
			for _, step := range []int{1, 3, 1500, 70000, chunkSize} {
				if step == 1 && len(data) > 1<<20 {
					continue // millions of reads that show nothing new
				}
				checkDecoded(t, data, step, 1)
				checkDecoded(t, data, step, 100)
			}
		})
	}
}

func FuzzStreamDecodes(f *testing.F) {
	f.Add(wire(make([]byte, 60), make([]byte, 1514)), uint32(7), uint8(1), uint8(1))
	f.Add(wire(nil, make([]byte, 9014)), uint32(4096), uint8(3), uint8(40)) // leaves the first chunk
	f.Add([]byte{0, 1, 0x10, 1, 0, 0, 0, 3, 'a', 'b', 'c'}, uint32(5), uint8(3), uint8(2))
	f.Add([]byte("\xff\xff\xff\xff"), uint32(1), uint8(0), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, step uint32, hold, times uint8) {
		data = bytes.Repeat(data, int(times)%64+1)
		reads := 1000 // at most, to be quick
		checkDecoded(t, data, int(step%chunkSize)+1+len(data)/reads, int(hold)+1)
	})
}

func TestPrefixErrorSaysWhatWasRead(t *testing.T) {
	err := &PrefixError{binary.BigEndian.Uint32([]byte("HTTP"))}
	if !strings.Contains(err.Error(), "0x48545450") {
		t.Error(err)
	}
}
