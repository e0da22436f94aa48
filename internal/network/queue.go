package network

import (
	"slices"
	"sync"
)

// defaultQueueBytes is how much waits for a machine before frames are dropped.
// 4 MiB is the most that a Linux guest's TCP connection has in flight by default
// (net.ipv4.tcp_wmem, third value), so one bulk transfer never overruns a queue.
// Several into one port can; then they lose frames and slow down, as on any
// switch.
const defaultQueueBytes = 4 << 20

// shortBytes is how much is written at once by who brings it, instead of waking
// the port's writer: a few frames, so that a conversation costs no change of
// goroutines. Of more, writing beside reading is faster.
const shortBytes = 4 << 10

// A queue is the frames that wait for one machine.
type queue struct {
	limit int // bytes

	mu      sync.Mutex
	ready   sync.Cond // pending is not empty and not taken, or closed
	pending []run
	bytes   int  // pending, and taken but not written yet
	taken   bool // somebody writes: nobody else may
	closed  bool
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit}
	q.ready.L = &q.mu
	return q
}

// push appends f. It is not ok if there is no room. If f is the first that waits,
// somebody has to be told.
func (q *queue) push(f frame) (ok, first bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	size := f.end - f.off
	if q.closed {
		return true, false // the port is gone: there is nobody who could miss the frame
	}
	if q.bytes+size > q.limit {
		return false, false
	}
	q.bytes += size
	last := len(q.pending) - 1
	if last >= 0 && q.pending[last].extend(f) {
		return true, false
	}
	q.pending = append(q.pending, run{f.hold(), 1})
	return true, last < 0
}

// take waits for frames and returns all that wait, in exchange for the memory
// of spare. It returns nothing when the queue is closed. The caller hands the
// runs to done.
func (q *queue) take(spare []run) []run {
	q.mu.Lock()
	defer q.mu.Unlock()
	for (len(q.pending) == 0 || q.taken) && !q.closed {
		q.ready.Wait()
	}
	if q.closed {
		return nil
	}
	runs := q.pending
	q.pending, q.taken = spare[:0], true
	return runs
}

// done releases runs that take returned.
func (q *queue) done(runs []run) {
	n := 0
	for i := range runs {
		n += runs[i].end - runs[i].off
		runs[i].c.release()
		runs[i].c = nil
	}
	q.mu.Lock()
	q.bytes -= n
	q.taken = false
	q.mu.Unlock()
}

// takeShort returns what waits if it is little and in one piece, and nobody else
// writes. The caller hands it to wrote.
func (q *queue) takeShort() (r run, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.taken || len(q.pending) != 1 || q.pending[0].end-q.pending[0].off > shortBytes {
		return r, false
	}
	r = q.pending[0]
	q.pending, q.taken = q.pending[:0], true
	return r, true
}

// wrote takes back what is left of what takeShort returned, after n bytes, and
// wakes the writer if something waits.
func (q *queue) wrote(r run, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= n
	q.taken = false
	switch r.off += n; {
	case r.off == r.end || q.closed:
		r.c.release()
	default:
		if n > 0 {
			r.frames = 0 // they are counted
		}
		q.pending = slices.Insert(q.pending, 0, r)
	}
	if len(q.pending) > 0 {
		q.ready.Signal()
	}
}

// close drops what waits and ends take.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, r := range q.pending {
		r.c.release()
	}
	q.pending = nil
	q.ready.Signal()
}

// A burst is the frames of one read on their way through the switch. Ports are
// told at its end, so that they find all of it and write it at once.
type burst struct {
	from *Port  // where the frame under way comes from
	lost *Fault // that dropped the frame under way, as it left its machine
	held bool   // frames come from a fault that held them back: they left their machine before
	wake []*Port
}

func (b *burst) flush() {
	for i, p := range b.wake {
		p.kick()
		b.wake[i] = nil
	}
	b.wake = b.wake[:0]
}
