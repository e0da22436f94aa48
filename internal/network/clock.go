package network

import (
	"container/heap"
	"sync"
	"time"
)

// A clock wakes impairments when the first of the frames that they hold is due:
// one goroutine and one timer for all of them, and a heap that holds
// impairments, not frames.
type clock struct {
	mu      sync.Mutex
	waiting impairments
	started bool
	closed  bool
	changed chan struct{} // there is an earlier time to wake at, or the end
	done    chan struct{}
}

func newClock() *clock {
	return &clock{changed: make(chan struct{}, 1), done: make(chan struct{})}
}

func (c *clock) now() time.Time { return time.Now() }

// schedule calls im.release at a time, instead of the time that was set before.
func (c *clock) schedule(im *impairment, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	im.wake = at
	if im.index < 0 {
		heap.Push(&c.waiting, im)
	} else {
		heap.Fix(&c.waiting, im.index)
	}
	if !c.started {
		c.started = true
		go c.run()
	}
	if im.index == 0 {
		c.kick()
	}
}

// forget takes back what schedule asked for.
func (c *clock) forget(im *impairment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if im.index >= 0 {
		heap.Remove(&c.waiting, im.index)
	}
}

func (c *clock) kick() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *clock) run() {
	defer close(c.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due []*impairment
	for {
		now := c.now()
		c.mu.Lock()
		for len(c.waiting) > 0 && !c.waiting[0].wake.After(now) {
			due = append(due, heap.Pop(&c.waiting).(*impairment))
		}
		pause := time.Hour
		if len(c.waiting) > 0 {
			pause = c.waiting[0].wake.Sub(now)
		}
		closed := c.closed
		c.mu.Unlock()
		if closed {
			return
		}
		if len(due) > 0 {
			for i, im := range due {
				im.release(now) // without the lock: it schedules
				due[i] = nil
			}
			due = due[:0]
			continue
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-c.changed:
		}
	}
}

// close ends the goroutine; nothing is released any more.
func (c *clock) close() {
	c.mu.Lock()
	c.closed = true
	started := c.started
	c.mu.Unlock()
	if started {
		c.kick()
		<-c.done
	}
}

// impairments are a heap by the time to wake at.
type impairments []*impairment

func (h impairments) Len() int           { return len(h) }
func (h impairments) Less(i, j int) bool { return h[i].wake.Before(h[j].wake) }
func (h impairments) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *impairments) Push(x any) {
	im := x.(*impairment)
	im.index = len(*h)
	*h = append(*h, im)
}

func (h *impairments) Pop() any {
	last := len(*h) - 1
	im := (*h)[last]
	im.index = -1
	(*h)[last] = nil
	*h = (*h)[:last]
	return im
}
