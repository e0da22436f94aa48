package wire

import (
	"bytes"
	"io"
	"net"
	"sync"
)

// A Writer sends frames from many goroutines over one stream, in the order of
// the calls, as few writes as possible. No method blocks on the stream; what
// is queued is bounded by what a Mux keeps until it has arrived.
type Writer struct {
	w    io.Writer
	wake chan struct{} // 1 slot: there is something to do
	done chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	queue  [][]byte // what is in it does not change any more
	queued uint64   // bytes that were ever queued by sendEncoded
	left   uint64   // of queued, how many are not in the queue any more, nor being written
	closed bool
	err    error
}

// NewWriter returns a Writer on w and starts its goroutine, which Close ends.
func NewWriter(w io.Writer) *Writer {
	x := &Writer{w: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go x.run()
	return x
}

// Send queues frames so that they leave together.
func (w *Writer) Send(frames ...Frame) {
	w.mu.Lock()
	for _, f := range frames {
		w.append(f)
	}
	w.mu.Unlock()
	w.signal()
}

// Restart drops what is queued and not being written yet, and sends a preamble
// and f.
func (w *Writer) Restart(f Frame) {
	w.mu.Lock()
	w.queue = append(w.queue[:0], preamble)
	w.append(f)
	w.mu.Unlock()
	w.signal()
}

func (w *Writer) append(f Frame) {
	if !w.closed && w.err == nil {
		w.queue = append(w.queue, AppendFrame(nil, f))
	}
}

// sendEncoded queues a frame as AppendFrame has made it. Frames that are in one piece
// of memory leave as one. It returns what leftTo takes.
func (w *Writer) sendEncoded(f []byte) (mark uint64) {
	w.mu.Lock()
	w.queued += uint64(len(f))
	mark = w.queued
	if !w.closed && w.err == nil {
		if n := len(w.queue); n > 0 && adjacent(w.queue[n-1], f) {
			w.queue[n-1] = w.queue[n-1][:len(w.queue[n-1])+len(f)]
		} else {
			w.queue = append(w.queue, f)
		}
	}
	w.mu.Unlock()
	w.signal()
	return mark
}

// leftTo reports whether nothing is needed any more of what was queued up to mark.
func (w *Writer) leftTo(mark uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left >= mark
}

// adjacent reports whether b begins where a ends.
func adjacent(a, b []byte) bool {
	return cap(a) > len(a) && len(b) > 0 && &a[:len(a)+1][len(a)] == &b[0]
}

// CanInline reports whether p may be part of a message, which is never split.
func CanInline(p []byte) bool { return !bytes.Contains(p, preamble) }

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Writer) run() {
	defer close(w.done)
	var spare [][]byte
	for range w.wake {
		for {
			w.mu.Lock()
			queue := w.queue
			if len(queue) == 0 {
				closed := w.closed
				w.mu.Unlock()
				if closed {
					return
				}
				break
			}
			w.queue = spare[:0]
			queued := w.queued
			w.mu.Unlock()
			spare = queue
			buffers := net.Buffers(queue)
			_, err := buffers.WriteTo(w.w)
			w.mu.Lock()
			if w.left = queued; err != nil {
				w.err = err
				w.queue = nil
			}
			w.mu.Unlock()
			clear(spare)
		}
	}
}

// Close ends the goroutine after it has written what is queued, and waits for
// it. Close the stream first if it may be stuck.
func (w *Writer) Close() error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.signal()
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
