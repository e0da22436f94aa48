package suite

import (
	"container/list"
	"context"
	"sync"
)

// A need is what the machines of a lab take of the host.
type need struct {
	memory int // MiB
	cpus   int
}

func (n need) plus(m need) need  { return need{n.memory + m.memory, n.cpus + m.cpus} }
func (n need) minus(m need) need { return need{n.memory - m.memory, n.cpus - m.cpus} }

func (n need) fits(room need) bool { return n.memory <= room.memory && n.cpus <= room.cpus }

// An admission lets labs work, as many at once as the run may and the host has
// room for. One always works, however large it is.
//
// Tests come before the beginnings of files: each file that has begun keeps the
// state that its setup left, which takes memory. Otherwise those that came first
// go first, also when a later one would fit: a large lab is not overtaken for
// ever.
type admission struct {
	jobs int // at most so many work at once
	room need

	mu      sync.Mutex
	working int
	taken   need
	tests   list.List // of *ticket, that wait
	files   list.List
}

// A ticket is a lab's place in the queue, and later its share of the host.
type ticket struct {
	of       *admission
	need     need
	admitted chan struct{} // closed when it may work

	// Guarded by of.mu:
	queue   *list.List // nil when it does not wait
	place   *list.Element
	working bool
	taken   need
}

// enqueue gives a lab the next place among those of its kind.
func (a *admission) enqueue(n need, test bool) *ticket {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := &ticket{of: a, need: n, admitted: make(chan struct{}), queue: &a.files}
	if test {
		t.queue = &a.tests
	}
	t.place = t.queue.PushBack(t)
	a.admit()
	return t
}

// admit admits every ticket that fits, with a.mu held.
func (a *admission) admit() {
	for {
		next := a.tests.Front()
		if next == nil {
			next = a.files.Front()
		}
		if next == nil {
			return
		}
		t := next.Value.(*ticket)
		if a.working > 0 && (a.working >= a.jobs || !a.taken.plus(t.need).fits(a.room)) {
			return
		}
		t.queue.Remove(t.place)
		t.queue = nil
		t.working, t.taken = true, t.need
		a.working++
		a.taken = a.taken.plus(t.need)
		close(t.admitted)
	}
}

// wait waits until the lab may work. If ctx ends first it leaves the queue.
func (t *ticket) wait(ctx context.Context) error {
	select {
	case <-t.admitted:
	case <-ctx.Done():
		t.leave()
	}
	return context.Cause(ctx)
}

// rest marks a lab that no longer works but still takes memory.
func (t *ticket) rest() { t.change(need{memory: t.need.memory}) }

// leave gives all back. It can be called more than once.
func (t *ticket) leave() { t.change(need{}) }

func (t *ticket) change(still need) {
	a := t.of
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.queue != nil {
		t.queue.Remove(t.place)
		t.queue = nil
	}
	if t.working {
		t.working = false
		a.working--
	}
	if still.fits(t.taken) { // who has left does not rest
		a.taken = a.taken.minus(t.taken).plus(still)
		t.taken = still
	}
	a.admit()
}
