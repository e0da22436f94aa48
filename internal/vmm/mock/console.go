package mock

import (
	"io"
	"sync"
)

// A console holds what the guest has said until it is read. A guest never waits
// for its reader.
type console struct {
	mu     sync.Mutex
	more   sync.Cond // on mu
	text   []byte
	ended  bool
	closed bool // by its reader
}

func newConsole() *console {
	c := &console{}
	c.more.L = &c.mu
	return c
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended && !c.closed {
		c.text = append(c.text, p...)
		c.more.Broadcast()
	}
	return len(p), nil
}

// end ends the console behind what was said.
func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.more.Broadcast()
}

func (c *console) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.text) == 0 && !c.ended && !c.closed {
		c.more.Wait()
	}
	if c.closed || len(c.text) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.text)
	c.text = c.text[n:]
	return n, nil
}

func (c *console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed, c.text = true, nil
	c.more.Broadcast()
	return nil
}
