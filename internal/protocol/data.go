package protocol

import (
	"fmt"
	"sync"
)

// What does not fit into a message is kept as data, and read or written in pieces.
const (
	maxPiece = 1 << 20   // of one read or write
	maxData  = 512 << 20 // that a connection may keep in all
	inline   = 1 << 20   // a larger result is kept as data
)

// store is the data of one connection, by number.
type store struct {
	mu   sync.Mutex
	last int64
	size int
	data map[int64][]byte
}

// put appends to data; id 0 begins a new one.
func (s *store) put(id int64, piece []byte) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size+len(piece) > maxData {
		return 0, fmt.Errorf("%d bytes of data are kept, which is the limit; release some", maxData)
	}
	if id == 0 {
		if s.data == nil {
			s.data = map[int64][]byte{}
		}
		s.last++
		id = s.last
	} else if _, ok := s.data[id]; !ok {
		return 0, fmt.Errorf("there is no data %d", id)
	}
	s.data[id] = append(s.data[id], piece...)
	s.size += len(piece)
	return id, nil
}

// get is at most length bytes from an offset on; fewer at the end.
func (s *store) get(id int64, offset, length int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.data[id]
	switch {
	case !ok:
		return nil, fmt.Errorf("there is no data %d", id)
	case offset < 0 || offset > len(d) || length < 1 || length > maxPiece:
		return nil, fmt.Errorf("data %d has %d bytes, and a piece has 1 to %d: there is no piece of %d bytes from %d on", id, len(d), maxPiece, length, offset)
	}
	return d[offset:min(len(d), offset+length)], nil
}

// take removes data and returns it.
func (s *store) take(id int64) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.data[id]
	s.size -= len(d)
	delete(s.data, id)
	return d, ok
}
