package network

import "sync"

// defaultQueueBytes is how much waits for a machine before frames are dropped.
// 4 MiB is the most that a Linux guest's TCP connection has in flight by default
// (net.ipv4.tcp_wmem, third value), so one bulk transfer never overruns a queue.
// Several into one port can; then they lose frames and slow down, as on any
// switch.
const defaultQueueBytes = 4 << 20

// A queue is the frames that wait for one machine.
type queue struct {
	limit int // bytes

	mu      sync.Mutex
	ready   sync.Cond // pending is not empty, or closed
	pending []run
	bytes   int // pending, and taken but not written yet
	closed  bool
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit}
	q.ready.L = &q.mu
	return q
}

// push appends f. It reports false if there is no room. The writer is woken
// when b is flushed.
func (q *queue) push(b *burst, f frame) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	size := f.end - f.off
	if q.closed {
		return true // the port is gone: there is nobody who could miss the frame
	}
	if q.bytes+size > q.limit {
		return false
	}
	q.bytes += size
	last := len(q.pending) - 1
	if last >= 0 && q.pending[last].extend(f) {
		return true
	}
	if last < 0 {
		b.wake = append(b.wake, q)
	}
	q.pending = append(q.pending, run{f.hold(), 1})
	return true
}

// take waits for frames and returns all that wait, in exchange for the memory
// of spare. It returns nothing when the queue is closed. The caller hands the
// runs to done.
func (q *queue) take(spare []run) []run {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.pending) == 0 && !q.closed {
		q.ready.Wait()
	}
	if q.closed {
		return nil
	}
	runs := q.pending
	q.pending = spare[:0]
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
	q.mu.Unlock()
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

// A burst is the frames of one read on their way through the switch. Writers
// are woken at its end, so that they find all of it and write it at once.
type burst struct {
	from *Port  // where the frame under way comes from
	lost *Fault // that dropped the frame under way, as it left its machine
	wake []*queue
}

func (b *burst) flush() {
	for i, q := range b.wake {
		q.ready.Signal()
		b.wake[i] = nil
	}
	b.wake = b.wake[:0]
}
