package protocol

import (
	"bytes"
	"encoding/json"
	"sync"

	"github.com/attest-vm/attest/internal/event"
)

// maxQueue is how many bytes of events wait for a peer that does not read as fast as they come.
// What comes beyond that is counted and left out, because a peer must not slow the run down.
const maxQueue = 8 << 20

// A queue holds events back until they are sent.
type queue struct {
	mu      sync.Mutex
	lines   []json.RawMessage
	size    int
	omitted int
	some    chan struct{} // has a value when there is something to send
}

func (q *queue) add(line []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size+len(line) > maxQueue {
		q.omitted++
	} else {
		q.lines = append(q.lines, line)
		q.size += len(line)
	}
	select {
	case q.some <- struct{}{}:
	default:
	}
}

func (q *queue) take() (lines []json.RawMessage, omitted int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lines, omitted = q.lines, q.omitted
	q.lines, q.size, q.omitted = nil, 0, 0
	return lines, omitted
}

// sendEvents sends the events of the peer's test from now on.
func (s *Server) sendEvents() {
	bus := event.BusOf(s.ctx)
	if bus == nil {
		return
	}
	own := event.ScopeOf(s.ctx)
	q := &queue{some: make(chan struct{}, 1)}
	cancel := bus.Subscribe(func(r event.Record) {
		if r.Scope.File != own.File || r.Scope.Test != own.Test || r.Scope.Boot != own.Boot {
			return
		}
		var line bytes.Buffer
		if event.Encode(&line, r); line.Len() <= inline {
			q.add(bytes.TrimSpace(line.Bytes()))
		}
	})
	s.work.Go(func() {
		defer cancel()
		for {
			select {
			case <-q.some:
			case <-s.ctx.Done():
				return
			}
			lines, omitted := q.take()
			for _, line := range lines {
				if s.conn.notify("event", line) != nil {
					return
				}
			}
			if omitted > 0 {
				s.conn.notify("omitted", map[string]int{"events": omitted})
			}
		}
	})
}
