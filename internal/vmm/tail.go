package vmm

import (
	"io"
	"strings"
	"sync"
	"time"
)

// MaxOutput is how much is kept of what a VMM says of itself, in bytes.
const MaxOutput = 16 << 10

// A Tail reads a pipe to its end and keeps the last of it.
type Tail struct {
	pipe io.Closer
	done chan struct{}
	mu   sync.Mutex
	buf  []byte
}

// NewTail reads a pipe, which belongs to it.
func NewTail(r io.ReadCloser) *Tail {
	t := &Tail{pipe: r, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		defer r.Close()
		p := make([]byte, 4096)
		for {
			n, err := r.Read(p)
			t.mu.Lock()
			t.buf = append(t.buf, p[:n]...)
			if extra := len(t.buf) - MaxOutput; extra > 0 {
				t.buf = append(t.buf[:0], t.buf[extra:]...)
			}
			t.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return t
}

// outputGrace is how long the output may go on when the process has ended: what a
// start command has left in the background may hold it.
const outputGrace = 2 * time.Second

// Finish returns when there is nothing more to come.
func (t *Tail) Finish() {
	if t == nil {
		return
	}
	select {
	case <-t.done:
	case <-time.After(outputGrace):
		t.pipe.Close()
		<-t.done
	}
}

// Text is what is kept, without white space around it. Of a nil Tail it is empty.
func (t *Tail) Text() string {
	if t == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(t.buf), "\uFFFD"))
}
