package network

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
)

const (
	prefixLen = 4  // the length in front of each frame
	minFrame  = 14 // the Ethernet header; a VMM does not pad to 60 bytes, so ARP comes as 42

	// maxFrame is the longest frame that can be forwarded: QEMU's NET_BUFSIZE
	// (include/net/net.h, 64 KiB of payload and 4 KiB for headers). QEMU
	// disconnects from whoever sends it more.
	maxFrame = 65536 + 4096

	// chunkSize is how much one read can return. It holds any frame and, of
	// usual ones, more than a system call's cost is worth (170 of 1514 bytes).
	chunkSize = 256 << 10

	// maxChunks is how many chunks of one reader may be waiting in queues:
	// twice what the default queue holds when one sender alone fills it. Beyond
	// it frames are copied on their way into a queue, because otherwise one
	// short frame per chunk, sent to a machine that does not read, would pin
	// chunkSize bytes each.
	maxChunks = 2 * defaultQueueBytes / chunkSize
)

// A chunk is a piece of memory that frames lie in. It goes back to the pool
// with its last reference.
type chunk struct {
	data []byte
	refs atomic.Int32
	live *atomic.Int32 // counts the chunks of one reader; nil: a frame's own copy
	// scratch: this chunk's reader has too many others waiting; whoever keeps a
	// frame copies it. Written only while the reader has the one reference.
	scratch bool
}

var chunks = sync.Pool{New: func() any { return &chunk{data: make([]byte, chunkSize)} }}

// newChunk takes a chunk with one reference from the pool.
func newChunk(live *atomic.Int32) *chunk {
	c := chunks.Get().(*chunk)
	c.refs.Store(1)
	c.live = live
	c.scratch = live.Add(1) > maxChunks
	return c
}

// alone reports whether the caller's reference is the only one, and then
// decides again whether the chunk is scratch.
func (c *chunk) alone() bool {
	if c.refs.Load() != 1 {
		return false
	}
	c.scratch = c.live.Load() > maxChunks
	return true
}

func (c *chunk) release() {
	if c.refs.Add(-1) > 0 || c.live == nil {
		return
	}
	c.live.Add(-1)
	c.live = nil
	chunks.Put(c)
}

// A frame is a length prefix and an Ethernet frame in a chunk: data[off:end].
// It is lent to whoever gets it for the time of the call, and must not be
// changed: other ports have the same bytes. Who wants it longer calls hold.
type frame struct {
	c        *chunk
	off, end int
}

// bytes is the Ethernet frame, without the prefix.
func (f frame) bytes() []byte { return f.c.data[f.off+prefixLen : f.end : f.end] }

// len is the length of the Ethernet frame.
func (f frame) len() int { return f.end - f.off - prefixLen }

// hold returns the frame with a reference of its own, which ends with
// f.c.release.
func (f frame) hold() frame {
	if !f.c.scratch {
		f.c.refs.Add(1)
		return f
	}
	own := &chunk{data: append([]byte(nil), f.c.data[f.off:f.end]...)}
	own.refs.Store(1)
	return frame{own, 0, len(own.data)}
}

// A run is frames that lie one after the other in one chunk, prefixes
// included: data[off:end].
type run struct {
	frame
	frames int
}

// wire is the whole run as the stream transport sends it.
func (r run) wire() []byte { return r.c.data[r.off:r.end] }

// extend takes f into the run if it begins where the run ends.
func (r *run) extend(f frame) bool {
	if r.c != f.c || r.end != f.off {
		return false
	}
	r.end = f.end
	r.frames++
	return true
}

// frameLen reads a length prefix.
func frameLen(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
