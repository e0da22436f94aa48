package agent

import (
	"context"
	"io"
	"sync"
)

// MaxGhosts is how many connections there may be beside the one that carries the
// session. The oldest goes when there is another one.
const MaxGhosts = 16

// A Listener is where hosts connect, such as a vsock port.
type Listener interface {
	// Accept blocks until there is a connection or ctx ends.
	Accept(ctx context.Context) (io.ReadWriteCloser, error)
}

// ServeListener serves the connections of a listener, all at once, until Accept fails.
// The newest whose host is there carries the session.
func (s *Server) ServeListener(ctx context.Context, l Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	var open []*conn // oldest first
	for {
		stream, err := l.Accept(ctx)
		if err != nil {
			return err
		}
		c := s.newConn(stream)
		all.Go(func() {
			defer close(c.over)
			s.serve(ctx, c, false)
		})
		open = s.sweep(append(open, c))
	}
}

// sweep closes the oldest connections where there are too many, and returns those
// that are left.
func (s *Server) sweep(open []*conn) (left []*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range open {
		select {
		case <-c.over:
			continue
		default:
		}
		if c != s.carrier && len(open)-i > MaxGhosts+1 {
			c.stream.Close() // it ends by that
			continue
		}
		left = append(left, c)
	}
	return left
}
