package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// MaxPayload is the most bytes that one frame carries.
	MaxPayload = 64 << 10
	// MaxSkip is how many bytes without a preamble a Decoder skips before it
	// reports them.
	MaxSkip = 1 << 20

	headerSize = 12
	orderSize  = 8 // of what follows the header of a frame that is numbered
	magic      = 0xA7
)

// preamble has neither the magic nor a byte that JSON may contain unescaped, so
// that it cannot overlap the start of a header or hide in a message.
var preamble = []byte("\xA9\x1Battest wire 1\x02")

// Type is what a frame means.
type Type uint8

const (
	Preamble Type = iota // not a frame: Decoder's word for a preamble in the stream

	// The first five have been the same in every version of the protocol, so that
	// each side can tell the other's.
	Hello    // host: begin a session, or go on with it; payload HelloMessage
	Welcome  // agent: the answer; payload WelcomeMessage
	Announce // agent: the host shall say Hello; payload AnnounceMessage
	Ping     // host: the agent answers Pong with the same stream number
	Pong
	Start // host: this connection carries the session now; payload StartMessage
	Ack   // the stream number is that of the last numbered frame that was received

	// All that follow are numbered.
	Open    // host: begin an operation; payload: see Mux.Open
	Data    // bytes of a channel
	EOF     // the end of a channel
	Restart // what came on this channel so far belongs to an earlier attempt
	Credit  // the receiver of a channel has consumed bytes; payload their number, 4 bytes
	Cancel  // host: give the operation up; its Result still follows
	Signal  // host: send the signal whose number stands for the channel to the command
	Result  // agent: the operation's outcome, and the end of the stream; payload JSON

	typeEnd
)

func (t Type) String() string {
	names := [...]string{"preamble", "hello", "welcome", "announce", "ping", "pong",
		"start", "ack", "open", "data", "eof", "restart", "credit", "cancel", "signal", "result"}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// numbered reports whether frames of this type belong to a session and are sent again
// until they have arrived.
func (t Type) numbered() bool { return t >= Open }

// A Frame is one unit of the stream.
type Frame struct {
	Type    Type
	Channel uint8
	Stream  uint32
	Seq     uint32 // of a numbered frame: its place among those of its sender, from 1
	Ack     uint32 // of a numbered frame: the last one that its sender has received
	Payload []byte
}

// AppendFrame encodes f. The payload must not be longer than MaxPayload.
func AppendFrame(b []byte, f Frame) []byte {
	if len(f.Payload) > MaxPayload {
		panic(fmt.Sprintf("wire: %s frame of %d bytes", f.Type, len(f.Payload)))
	}
	at := len(b)
	b = append(b, magic, byte(f.Type), f.Channel, 0)
	b = binary.BigEndian.AppendUint32(b, f.Stream)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Payload)))
	b[at+3] = -sum(b[at:])
	if f.Type.numbered() {
		b = binary.BigEndian.AppendUint32(b, f.Seq)
		b = binary.BigEndian.AppendUint32(b, f.Ack)
	}
	return append(b, f.Payload...)
}

func sum(header []byte) (s byte) {
	for _, c := range header {
		s += c
	}
	return s
}

// A FormatError is bytes that are not this protocol. The Decoder that returned
// it goes on at the next preamble.
type FormatError struct{ Reason string }

func (e *FormatError) Error() string { return e.Reason }

func formatErrorf(format string, args ...any) error {
	return &FormatError{fmt.Sprintf(format, args...)}
}

// parseHeader reads the header at the start of b, which has at least headerSize bytes.
func parseHeader(b []byte) (f Frame, length int, err error) {
	b = b[:headerSize]
	n := binary.BigEndian.Uint32(b[8:])
	switch {
	case b[0] != magic || sum(b) != 0:
		return f, 0, formatErrorf("not a frame: % x", b)
	case b[1] == 0 || b[1] >= byte(typeEnd):
		return f, 0, formatErrorf("frame of unknown type %d", b[1])
	case n > MaxPayload:
		return f, 0, formatErrorf("%s frame of %d bytes, the limit is %d", Type(b[1]), n, MaxPayload)
	}
	return Frame{Type: Type(b[1]), Channel: b[2], Stream: binary.BigEndian.Uint32(b[4:])}, int(n), nil
}

// A Decoder reads frames. It starts out of step: it skips what comes before
// the first preamble.
type Decoder struct {
	r       io.Reader
	buf     []byte
	start   int // of what is not consumed yet
	end     int // of what was read
	scanned int // no preamble starts before this one, unless at mark
	mark    int // where a preamble is in buf, or -1
	synced  bool
	skipped int
	readErr error
}

// NewDecoder returns a Decoder on r.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: r, buf: make([]byte, 2*(headerSize+orderSize+MaxPayload)), mark: -1}
}

// Next returns the next frame, or one of type Preamble where the stream has a
// preamble. The payload is valid until the next call. After a *FormatError the
// next call skips to a preamble; any other error is the reader's, and final.
func (d *Decoder) Next() (Frame, error) {
	for {
		d.scan()
		f, ok, err := d.take()
		if ok || err != nil {
			return f, err
		}
		if d.readErr != nil {
			return Frame{}, d.readErr
		}
		d.fill()
	}
}

// scan looks for a preamble in what was read last.
func (d *Decoder) scan() {
	if d.mark >= 0 {
		return
	}
	from := max(d.start, d.scanned)
	if i := bytes.Index(d.buf[from:d.end], preamble); i >= 0 {
		d.mark = from + i
		return
	}
	d.scanned = max(from, d.end-len(preamble)+1)
}

// take returns what is complete in the buffer.
func (d *Decoder) take() (f Frame, ok bool, err error) {
	if !d.synced {
		if d.mark >= 0 {
			return d.sync(), true, nil
		}
		keep := max(d.start, d.end-len(preamble)+1)
		d.skipped += keep - d.start
		d.start = keep
		if d.skipped > MaxSkip {
			d.skipped = 0
			return f, false, formatErrorf("more than %d bytes without a preamble", MaxSkip)
		}
		return f, false, nil
	}
	limit := d.end
	if d.mark >= 0 {
		limit = d.mark
	}
	have := d.buf[d.start:limit]
	if len(have) >= headerSize {
		f, n, err := parseHeader(have)
		if err != nil {
			d.synced = false
			return f, false, err
		}
		at := headerSize
		if f.Type.numbered() {
			at += orderSize
		}
		if len(have) >= at+n {
			if f.Type.numbered() {
				f.Seq = binary.BigEndian.Uint32(have[headerSize:])
				f.Ack = binary.BigEndian.Uint32(have[headerSize+4:])
			}
			f.Payload = have[at : at+n : at+n]
			d.start += at + n
			return f, true, nil
		}
	}
	if d.mark >= 0 { // whoever sent an incomplete frame is gone
		return d.sync(), true, nil
	}
	if len(have) > 0 && have[0] != magic && !bytes.HasPrefix(preamble, have[:min(len(have), len(preamble))]) {
		d.synced = false
		return f, false, formatErrorf("not a frame: % x", have[:min(len(have), headerSize)])
	}
	return f, false, nil
}

// sync consumes everything up to and including the preamble at mark.
func (d *Decoder) sync() Frame {
	d.start = d.mark + len(preamble)
	d.scanned, d.mark = d.start, -1
	d.synced, d.skipped = true, 0
	return Frame{Type: Preamble}
}

func (d *Decoder) fill() {
	switch {
	case d.start == d.end:
		d.start, d.end, d.scanned = 0, 0, 0
	case d.start > len(d.buf)/2:
		copy(d.buf, d.buf[d.start:d.end])
		d.end -= d.start
		d.scanned = max(0, d.scanned-d.start)
		d.start = 0
	}
	n, err := d.r.Read(d.buf[d.end:])
	d.end += n
	d.readErr = err
}
