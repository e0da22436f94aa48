package backdoor

import (
	"os"
	"sync"
)

// maxSpool is how much of a command's output waits for its reader before the console is not
// read on, which holds up all commands.
const maxSpool = 16 << 20

// A spool is one stream of a command: what the console has brought, on its way to a pipe.
type spool struct {
	w *os.File

	mu    sync.Mutex
	news  *sync.Cond
	parts []part
	size  int
	ended bool
	gone  bool // nobody reads it
}

// A part is what has come at once, or what is to be done when all before it is in the pipe.
type part struct {
	data []byte
	then func()
}

// newSpool returns a spool and the file from which its content comes.
func newSpool() (*spool, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	s := &spool{w: w}
	s.news = sync.NewCond(&s.mu)
	go s.copy() // until end, or until nobody reads it
	return s, r, nil
}

// add takes p, which is not changed afterwards.
func (s *spool) add(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.size > maxSpool && !s.gone && !s.ended {
		s.news.Wait()
	}
	if s.gone || s.ended {
		return
	}
	s.parts = append(s.parts, part{data: p})
	s.size += len(p)
	s.news.Broadcast()
}

// then calls fn, from another goroutine, when all that was added is in the pipe.
func (s *spool) then(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		go fn() // what is before it is on its way, and its end comes
		return
	}
	s.parts = append(s.parts, part{then: fn})
	s.news.Broadcast()
}

// end says that nothing follows.
func (s *spool) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.news.Broadcast()
}

// next returns what has come, or nothing at the end.
func (s *spool) next() (parts []part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.parts) == 0 && !s.ended {
		s.news.Wait()
	}
	parts, s.parts, s.size = s.parts, nil, 0
	s.news.Broadcast()
	return parts
}

func (s *spool) copy() {
	defer s.w.Close()
	for {
		parts := s.next()
		if parts == nil {
			return
		}
		for _, p := range parts {
			if p.then != nil {
				p.then()
			} else if !s.isGone() {
				if _, err := s.w.Write(p.data); err != nil {
					s.leave()
				}
			}
		}
	}
}

func (s *spool) isGone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

// leave notes that nobody reads.
func (s *spool) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	s.news.Broadcast()
}
