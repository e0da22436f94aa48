package network

import (
	"sync"
	"sync/atomic"
	"time"
)

// An impairment is one fault at one place: a direction of a port. It is a stage
// whose state outlives the path that it is on, so faults can come and go around
// it.
//
// Frames that the fault does not select go on at once and without a lock. Those
// that it selects go through one at a time: what comes out of the impairment
// leaves it in the order in which it was let go, whichever goroutine does that.
type impairment struct {
	fault *Fault
	port  *Port
	dir   Direction
	clock *clock
	next  atomic.Pointer[handler]

	mu      sync.Mutex
	streams map[*Port]*frameStream // by the port that frames come from
	healed  bool                   // everything passes
	held    []heldFrame            // in the order in which they leave
	bytes   int                    // of held
	free    time.Time              // rate: when the line is free again
	out     burst                  // of frames that leave later
	wake    time.Time              // guarded by the clock
	index   int                    // in the clock's heap; guarded by it
}

// A heldFrame waits to go on.
type heldFrame struct {
	frame
	from *Port
	due  time.Time
	gap  int // reorder: so many frames go first; 0: due alone counts
}

// A frameStream numbers the frames of one sender that a fault selects.
type frameStream struct {
	selected bool
	key      uint64
	count    uint64
	lost     bool // drop: the frame before was
}

// maxHeldBytes is how much one impairment holds back before it drops: 10 s of
// 25 Mbit/s. A guest cannot fill the host's memory by way of a long delay.
const maxHeldBytes = 32 << 20

func newImpairment(f *Fault, p *Port, d Direction) *impairment {
	return &impairment{fault: f, port: p, dir: d, clock: p.sw.clock, streams: map[*Port]*frameStream{}, out: burst{held: true}, index: -1}
}

// stage puts the impairment on a path.
func (im *impairment) stage(next handler) handler {
	im.next.Store(&next)
	return im.handle
}

func (im *impairment) pass(b *burst, f frame) { (*im.next.Load())(b, f) }

func (im *impairment) handle(b *burst, f frame) {
	if !im.fault.Match.selects(f.bytes()) {
		im.pass(b, f)
		return
	}
	im.mu.Lock()
	s := im.stream(b.from)
	if im.healed || !s.selected {
		im.mu.Unlock()
		im.pass(b, f)
		return
	}
	defer im.mu.Unlock()
	s.count++
	im.fault.frames.Add(1)
	im.fault.Effect.apply(im, s, b, f)
}

// stream is where frames from a port are counted.
func (im *impairment) stream(from *Port) *frameStream {
	s := im.streams[from]
	if s == nil {
		s = im.fault.stream(im.port, im.dir, from)
		im.streams[from] = s
	}
	return s
}

// drop ends a frame's way.
func (im *impairment) drop(b *burst, f frame) {
	im.fault.affected.Add(1)
	im.counters().fault.Add(1)
	im.port.lost(b, im, f)
}

func (im *impairment) counters() *counters {
	if im.dir == FromMachine {
		return &im.port.fromCnt
	}
	return &im.port.toCnt
}

// hold keeps a frame until it is due; a frame never leaves before one that was
// held earlier. limit is how many bytes may wait, one frame always may.
func (im *impairment) hold(b *burst, f frame, due time.Time, limit int) {
	now := im.clock.now()
	if n := len(im.held); n > 0 && im.held[n-1].due.After(due) {
		due = im.held[n-1].due
	}
	if len(im.held) == 0 && !due.After(now) {
		im.pass(b, f)
		return
	}
	if len(im.held) > 0 && im.bytes+f.len() > limit {
		im.drop(b, f)
		return
	}
	im.keep(heldFrame{frame: f.hold(), from: b.from, due: due})
}

// keep appends to what is held.
func (im *impairment) keep(h heldFrame) {
	im.held = append(im.held, h)
	im.bytes += h.len()
	if len(im.held) == 1 {
		im.clock.schedule(im, h.due)
	}
}

// release lets go of all frames that are due; the clock calls it.
func (im *impairment) release(now time.Time) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.letGo(func(h heldFrame) bool { return !h.due.After(now) })
	if len(im.held) > 0 {
		im.clock.schedule(im, im.held[0].due)
	}
}

// letGo passes on the first frames that are held, as long as ready says so.
func (im *impairment) letGo(ready func(heldFrame) bool) {
	n := 0
	for ; n < len(im.held) && ready(im.held[n]); n++ {
		im.send(im.held[n])
		im.held[n] = heldFrame{}
	}
	im.held = im.held[n:]
	if len(im.held) == 0 {
		im.held = nil
	}
	im.out.flush()
}

// send passes on a frame that was held.
func (im *impairment) send(h heldFrame) {
	im.bytes -= h.len()
	im.out.from = h.from
	im.pass(&im.out, h.frame)
	h.c.release()
}

// heal passes on all that is held, in its order, and everything that comes
// later.
func (im *impairment) heal() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.healed = true
	im.letGo(func(heldFrame) bool { return true })
	im.clock.forget(im)
}

// close drops what is held: the port is gone.
func (im *impairment) close() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.healed = true
	for _, h := range im.held {
		h.c.release()
	}
	im.held, im.bytes = nil, 0
	im.clock.forget(im)
}
