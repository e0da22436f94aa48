package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// decode returns all that a decoder says about a stream.
func decode(r io.Reader) (frames []Frame, bad []string) {
	d := NewDecoder(r)
	for {
		f, err := d.Next()
		var format *FormatError
		switch {
		case errors.As(err, &format):
			bad = append(bad, format.Reason)
		case err != nil:
			return frames, bad
		default:
			f.Payload = slices.Clone(f.Payload)
			frames = append(frames, f)
		}
	}
}

func types(frames []Frame) (t []Type) {
	for _, f := range frames {
		t = append(t, f.Type)
	}
	return t
}

func TestDecoderFindsItsPlace(t *testing.T) {
	hello := AppendFrame(nil, Frame{Type: Hello, Payload: []byte(`{"session":"s"}`)})
	data := AppendFrame(nil, Frame{Type: Data, Channel: Stdout, Stream: 7, Payload: []byte("some data")})
	broken := slices.Clone(data)
	broken[5]++
	huge := AppendFrame(nil, Frame{Type: Data})
	huge[8], huge[3] = 1, huge[3]-1
	garbage := bytes.Repeat([]byte("kernel: \xA7\xA9 "), 20)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tt := range []struct {
		name   string
		stream []byte
		want   []Type
		bad    int
	}{
		{"a session", join(preamble, hello, data), []Type{Preamble, Hello, Data}, 0},
		{"garbage before it", join(garbage, preamble, hello), []Type{Preamble, Hello}, 0},
		{"half a preamble before it", join(preamble[:9], preamble, hello), []Type{Preamble, Hello}, 0},
		{"frames before it", join(data, hello, preamble, data), []Type{Preamble, Data}, 0},
		{"twice", join(preamble, preamble, hello), []Type{Preamble, Preamble, Hello}, 0},
		{"a sender that dies in a header", join(preamble, data, data[:5], preamble, hello), []Type{Preamble, Data, Preamble, Hello}, 0},
		{"a sender that dies in a payload", join(preamble, data[:23], preamble, hello), []Type{Preamble, Preamble, Hello}, 0},
		{"garbage in a session", join(preamble, hello, garbage, data, preamble, data), []Type{Preamble, Hello, Preamble, Data}, 1},
		{"a broken header", join(preamble, broken, data, preamble, data), []Type{Preamble, Preamble, Data}, 1},
		{"a frame that is too long", join(preamble, huge, preamble, data), []Type{Preamble, Preamble, Data}, 1},
		{"no end of garbage", join(bytes.Repeat([]byte{0}, MaxSkip+MaxSkip/2), preamble, data), []Type{Preamble, Data}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, r := range []io.Reader{bytes.NewReader(tt.stream), iotest.HalfReader(bytes.NewReader(tt.stream))} {
				frames, bad := decode(r)
				if !slices.Equal(types(frames), tt.want) || len(bad) != tt.bad {
					t.Errorf("got %v and %q, want %v and %d errors", types(frames), bad, tt.want, tt.bad)
				}
			}
		})
	}
}

// Whatever data a program in the guest writes, preambles included, arrives as it
// was, and no preamble shows up that nobody sent.
func TestAnyDataArrives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		piece := rapid.OneOf(
			rapid.SliceOfN(rapid.Byte(), 0, 200),
			rapid.Just(preamble), rapid.Just(preamble[1:]), rapid.Just(preamble[:15]), rapid.Just([]byte{magic}),
			rapid.Map(rapid.IntRange(40000, MaxPayload), func(n int) []byte { return bytes.Repeat(preamble, n)[:n] }),
		)
		payloads := rapid.SliceOfN(piece, 1, 8).Draw(t, "payloads")
		var stream bytes.Buffer
		w := NewWriter(&stream)
		w.Restart(Frame{Type: Hello})
		o := order{first: 1}
		if rapid.Bool().Draw(t, "the number is a preamble's start") {
			// What precedes the payload ends with the preamble's first bytes.
			o.received = binary.BigEndian.Uint32(preamble)
			payloads = append([][]byte{append(slices.Clone(preamble[4:]), "more"...)}, payloads...)
		}
		o.attach(w, 0)
		for _, p := range payloads {
			o.send(Frame{Type: Data, Stream: 1, Payload: p})
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		frames, bad := decode(&stream)
		if len(bad) > 0 || len(frames) < 2 || frames[0].Type != Preamble || frames[1].Type != Hello {
			t.Fatalf("frames %v, errors %q", types(frames), bad)
		}
		var got []byte
		for _, f := range frames[2:] {
			if f.Type != Data {
				t.Fatalf("a %s frame in the data", f.Type)
			}
			got = append(got, f.Payload...)
		}
		if want := bytes.Join(payloads, nil); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes arrived of %d", len(got), len(want))
		}
	})
}

// A decoder of any bytes neither panics nor hangs nor returns more than it was given,
// and finds a session that begins behind them.
func FuzzDecoder(f *testing.F) {
	data := AppendFrame(nil, Frame{Type: Data, Channel: Stdout, Stream: 7, Payload: []byte("some data")})
	f.Add([]byte("garbage"))
	f.Add(append(slices.Clone(preamble), data...))
	f.Add(append(append(slices.Clone(preamble), data[:14]...), preamble[:7]...))
	f.Add(append(append(slices.Clone(preamble), data[:23]...), preamble[:7]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, _ := decode(bytes.NewReader(b))
		total := 0
		for _, fr := range frames {
			total += len(fr.Payload)
		}
		if total > len(b) {
			t.Fatalf("%d bytes of payload from %d bytes", total, len(b))
		}
		last := AppendFrame(slices.Clone(preamble), Frame{Type: Hello, Stream: 42})
		stream := append(append(slices.Clone(b), last...), last...)
		frames, _ = decode(bytes.NewReader(stream))
		// One preamble may be lost to a frame that b began and that it completes.
		if n := len(frames); n == 0 || frames[n-1].Type != Hello || frames[n-1].Stream != 42 {
			t.Fatalf("the session behind %q was not found", b)
		}
	})
}
