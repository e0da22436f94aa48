package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

const (
	// MaxUnacked is how many bytes one side keeps, to send them again, before its
	// writers wait for an acknowledgement. Frames that carry no data of a channel do
	// not wait; what there can be of those is bounded by the streams that are open.
	MaxUnacked = 1 << 20
	// ackAfter is how many bytes one side receives before it acknowledges them by a
	// frame of its own. What it sends anyway, credit for instance, acknowledges, too.
	ackAfter = Window
	// chunkSize has room for as many full frames as a channel has credit for: those
	// that wait for the stream leave in one write. A virtio serial port takes each
	// write in pieces of 32 KiB, and the remainder as one of its own.
	chunkSize = Window / MaxPayload * (headerSize + orderSize + MaxPayload)
	// maxSpare is how many chunks wait for frames.
	maxSpare = 2
)

// A chunk is memory for frames. When they have been acknowledged it is used again,
// unless a Writer still has some of it: what is in its queue must not change.
type chunk struct {
	b      []byte
	frames int     // that are kept
	w      *Writer // which has the frames; nil: none
	mark   uint64  // of its last one
	resent bool    // other Writers have had some
}

func (c *chunk) give(w *Writer, frame []byte) {
	c.w, c.mark = w, w.sendEncoded(frame)
}

// A kept frame is one that has not been acknowledged.
type kept struct {
	frame []byte
	chunk *chunk
}

// An order numbers the frames of a session in both directions, and keeps those that
// the other side has not acknowledged. It outlives connections.
type order struct {
	mu       sync.Mutex
	w        *Writer // of the connection that carries the session; nil: none does
	first    uint32  // number of kept[head], or of the next frame
	kept     []kept
	head     int    // of kept: what is before it has been acknowledged
	size     int    // of kept, in bytes
	chunk    *chunk // where the next frame is encoded, if it fits
	spare    []*chunk
	received uint32 // number of the last frame that came
	owed     int    // bytes received and not acknowledged
	room     chan struct{}
}

// sent is the number of the last frame that was sent. Called with mu held.
func (o *order) sent() uint32 { return o.first + uint32(len(o.kept)-o.head) - 1 }

// send numbers a frame and sends it, if there is a connection.
func (o *order) send(f Frame) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sendLocked(f)
}

// sendLocked is send with mu held. Data that contains the preamble becomes several frames.
func (o *order) sendLocked(f Frame) {
	const header = headerSize + orderSize
	for {
		b := o.encode(f)
		i := -1
		if f.Type == Data {
			i = bytes.Index(b, preamble)
		}
		if i < 0 {
			o.chunk.b = o.chunk.b[:len(o.chunk.b)+len(b)]
			o.chunk.frames++
			o.kept = append(o.kept, kept{b, o.chunk})
			o.size += len(b)
			o.owed = 0
			if o.w != nil {
				o.chunk.give(o.w, b)
			}
			return
		}
		// Cut so that the first frame ends within the preamble. It may begin in
		// the last bytes of what precedes the payload.
		rest := f
		cut := max(i+len(preamble)-1-header, 1)
		rest.Payload = f.Payload[cut:]
		f.Payload = f.Payload[:cut]
		o.sendLocked(f)
		f = rest
	}
}

// encode encodes f as the next frame, behind what is in the chunk.
func (o *order) encode(f Frame) []byte {
	f.Seq, f.Ack = o.sent()+1, o.received
	if n := headerSize + orderSize + len(f.Payload); o.chunk == nil || cap(o.chunk.b)-len(o.chunk.b) < n {
		o.nextChunk()
	}
	at := len(o.chunk.b)
	return AppendFrame(o.chunk.b, f)[at:]
}

// nextChunk makes room for a frame.
func (o *order) nextChunk() {
	full := o.chunk
	if n := len(o.spare); n > 0 {
		o.chunk, o.spare = o.spare[n-1], o.spare[:n-1]
	} else {
		o.chunk = &chunk{b: make([]byte, 0, chunkSize)}
	}
	if full != nil {
		o.release(full)
	}
}

// release keeps a chunk without frames for later.
func (o *order) release(c *chunk) {
	if c != o.chunk && c.frames == 0 && !c.resent && len(o.spare) < maxSpare && (c.w == nil || c.w.leftTo(c.mark)) {
		c.b, c.w = c.b[:0], nil
		o.spare = append(o.spare, c)
	}
}

// sendData is send for a frame that has to wait when too much is kept. It returns
// nil when the frame was sent, or else what is closed when there may be room.
func (o *order) sendData(f Frame) (room <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.size < MaxUnacked {
		o.sendLocked(f)
		return nil
	}
	if o.room == nil {
		o.room = make(chan struct{})
	}
	return o.room
}

// acked drops what the other side has. Called with mu held.
func (o *order) acked(n uint32) error {
	ahead := int32(n - (o.first - 1))
	if ahead > int32(len(o.kept)-o.head) {
		return formatErrorf("frame %d is acknowledged, %d were sent", n, o.sent())
	}
	if ahead <= 0 {
		return nil // it is older than one that came before
	}
	for i := range o.kept[o.head:][:ahead] {
		k := &o.kept[o.head+i]
		o.size -= len(k.frame)
		k.chunk.frames--
		o.release(k.chunk)
		*k = kept{}
	}
	o.first += uint32(ahead)
	switch o.head += int(ahead); {
	case o.head == len(o.kept):
		o.kept, o.head = o.kept[:0], 0
	case o.head > len(o.kept)/2:
		o.kept, o.head = slices.Delete(o.kept, 0, o.head), 0
	}
	if o.room != nil && o.size < MaxUnacked {
		close(o.room)
		o.room = nil
	}
	return nil
}

// ack is acked for the frame of that name.
func (o *order) ack(f Frame) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.acked(f.Stream)
}

// arrived notes a numbered frame and says whether it is a new one.
func (o *order) arrived(f Frame) (fresh bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.acked(f.Ack); err != nil {
		return false, err
	}
	switch ahead := int32(f.Seq - o.received); {
	case ahead <= 0:
		return false, nil // it was sent again
	case ahead > 1:
		return false, formatErrorf("frame %d follows frame %d", f.Seq, o.received)
	}
	o.received++
	if o.owed += headerSize + orderSize + len(f.Payload); o.owed >= ackAfter && o.w != nil {
		o.owed = 0
		o.w.Send(Frame{Type: Ack, Stream: o.received})
	}
	return true, nil
}

// attach goes on over w with a side that has received that many frames.
func (o *order) attach(w *Writer, received uint32) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ahead := int32(received - (o.first - 1)); ahead < 0 || ahead > int32(len(o.kept)-o.head) {
		return fmt.Errorf("it has %d frames, of %d to %d", received, o.first-1, o.sent())
	}
	o.acked(received) // within the range
	o.w = w
	for _, k := range o.kept[o.head:] {
		k.chunk.resent = true
		k.chunk.give(w, k.frame)
	}
	return nil
}

func (o *order) detach() {
	o.mu.Lock()
	o.w = nil
	o.mu.Unlock()
}

// unacked is the data of a channel that may not have arrived.
func (o *order) unacked(stream uint32, channel uint8) (data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, k := range o.kept[o.head:] {
		b := k.frame
		if Type(b[1]) == Data && b[2] == channel && binary.BigEndian.Uint32(b[4:]) == stream {
			data = append(data, b[headerSize+orderSize:]...)
		}
	}
	return data
}
