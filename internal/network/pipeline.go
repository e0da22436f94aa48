package network

import (
	"sync/atomic"
	"time"
)

// A handler takes a frame further. Frames are lent (see frame), and come from
// the goroutines of all ports at once.
type handler func(*burst, frame)

// A stage is something that happens to frames on their way: it makes a handler
// that calls next for each frame that goes on. A stage that keeps a frame for
// later holds it, and calls next with a burst of its own, which it flushes.
type stage func(next handler) handler

// A path is the way of frames in one direction of a port. Stages are put on it
// as a whole; a frame that is under way goes on along the path it began.
type path struct {
	end  handler
	head atomic.Pointer[handler] // nil: straight to the end
}

func (p *path) pass(b *burst, f frame) {
	if h := p.head.Load(); h != nil {
		(*h)(b, f)
		return
	}
	p.end(b, f)
}

// set puts stages on the path, the first one first.
func (p *path) set(stages []stage) {
	if len(stages) == 0 {
		p.head.Store(nil)
		return
	}
	h := p.end
	for i := len(stages) - 1; i >= 0; i-- {
		h = stages[i](h)
	}
	p.head.Store(&h)
}

// drop is the stage that nothing passes.
func drop(count *atomic.Uint64) stage {
	return func(handler) handler {
		return func(*burst, frame) { count.Add(1) }
	}
}

// Direction is the direction of a frame, seen from the machine's port.
type Direction int

const (
	FromMachine Direction = iota
	ToMachine
)

// String is "from" or "to".
func (d Direction) String() string {
	if d == FromMachine {
		return "from"
	}
	return "to"
}

// An Observation is a frame as the machine's end of the link has it: before
// anything happened to it on its way from the machine, and after everything
// that happened on its way to the machine.
type Observation struct {
	Time      time.Time
	Port      *Port
	Direction Direction
	Frame     []byte // valid during the call; must not be changed
}

// observe is the stage that shows every frame to fn.
func observe(p *Port, d Direction, fn func(Observation)) stage {
	return func(next handler) handler {
		return func(b *burst, f frame) {
			fn(Observation{p.sw.now(), p, d, f.bytes()})
			next(b, f)
		}
	}
}
