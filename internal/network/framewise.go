package network

import (
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"
	"syscall"
)

// A framewise is the transport of everything that takes and gives one whole frame
// per call.
type framewise struct {
	conn io.ReadWriteCloser

	c    *chunk
	live atomic.Int32
	end  int // of what is used of c
}

func newFramewise(conn io.ReadWriteCloser) *framewise { return &framewise{conn: conn} }

func (t *framewise) close() error { return t.conn.Close() }

// read leaves room for the length in front of the frame: most other ports send
// it so.
func (t *framewise) read(b *batch) error {
	b.frames, b.oversized = b.frames[:0], 0
	t.makeRoom()
	start := t.end + prefixLen
	n, err := t.conn.Read(t.c.data[start : start+maxFrame+1])
	if err != nil {
		t.c.release()
		t.c = nil
		return err
	}
	if n > maxFrame {
		b.oversized++
		return nil
	}
	binary.BigEndian.PutUint32(t.c.data[t.end:], uint32(n))
	b.frames = append(b.frames, frame{t.c, t.end, start + n})
	t.end = start + n
	return nil
}

func (t *framewise) makeRoom() {
	switch {
	case t.c == nil:
	case t.c.alone():
		t.end = 0
		return
	case len(t.c.data)-t.end > prefixLen+maxFrame:
		return
	default:
		t.c.release()
	}
	t.c, t.end = newChunk(&t.live), 0
}

func (t *framewise) write(runs []run) error {
	for _, r := range runs {
		for rest := r.wire(); len(rest) > 0; {
			n := prefixLen + int(frameLen(rest))
			if _, err := t.conn.Write(rest[prefixLen:n]); err != nil && !transient(err) {
				return err
			}
			rest = rest[n:]
		}
	}
	return nil
}

// transient reports whether an error is about one frame and not about the
// connection: it is too long for it, or the other side has no room.
func transient(err error) bool {
	for _, e := range []error{syscall.EMSGSIZE, syscall.ENOBUFS, syscall.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
