package wire

import (
	"bytes"
	"io"
	"sync"
)

// A Writer sends frames from many goroutines over one stream, in the order of
// the calls, as few writes as possible. No method blocks on the stream; what
// is queued is bounded by the credit of the channels (Mux).
type Writer struct {
	w    io.Writer
	wake chan struct{} // 1 slot: there is something to do
	done chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	queue  []byte
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
	w.queue = append(w.queue[:0], preamble...)
	w.append(f)
	w.mu.Unlock()
	w.signal()
}

// append encodes f; data that contains the preamble becomes several frames.
func (w *Writer) append(f Frame) {
	if w.closed || w.err != nil {
		return
	}
	for {
		at := len(w.queue)
		w.queue = AppendFrame(w.queue, f)
		i := bytes.Index(w.queue[at:], preamble)
		if i < 0 {
			return
		}
		// Cut so that the first frame ends within the preamble. It may begin in
		// the last bytes of the header, the length.
		rest := f
		cut := max(i+len(preamble)-1-headerSize, 1)
		rest.Payload = f.Payload[cut:]
		f.Payload = f.Payload[:cut]
		w.queue = w.queue[:at]
		w.append(f)
		f = rest
	}
}

// CanInline says whether p may be part of a message, which is never split.
func CanInline(p []byte) bool { return !bytes.Contains(p, preamble) }

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Writer) run() {
	defer close(w.done)
	var spare []byte
	for range w.wake {
		for {
			w.mu.Lock()
			buf := w.queue
			if len(buf) == 0 {
				closed := w.closed
				w.mu.Unlock()
				if closed {
					return
				}
				break
			}
			w.queue = spare[:0]
			w.mu.Unlock()
			if _, err := w.w.Write(buf); err != nil {
				w.mu.Lock()
				w.err = err
				w.queue = nil
				w.mu.Unlock()
			}
			if spare = buf; cap(spare) > 1<<20 { // a burst: do not keep it for ever
				spare = nil
			}
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
