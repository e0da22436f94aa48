package network

import (
	"hash/maphash"
	"iter"
	"sync/atomic"
)

// maxMACs is how many addresses a switch learns behind one port: a guest can
// hold a bridge full of containers. More are not learned, and frames to them
// are flooded. A limit per port, because one for the switch would let a guest
// that invents addresses take the places of all others.
const maxMACs = 1024

const minMACSlots = 64

// A macKey is a MAC address as a number, never zero.
type macKey uint64

// keyOf reads the address at the beginning of b.
func keyOf(b []byte) macKey {
	_ = b[5]
	return 1<<48 | macKey(b[0])<<40 | macKey(b[1])<<32 | macKey(b[2])<<24 |
		macKey(b[3])<<16 | macKey(b[4])<<8 | macKey(b[5])
}

// multicast is true for broadcast too.
func (k macKey) multicast() bool { return k&(1<<40) != 0 }

// A macTable says behind which port an address is. It is a hash table with open
// addressing: every frame looks up two addresses, from all readers at once, so
// lookups take no lock. Changes are made with the switch's lock held; keys are
// only added, and a table that loses keys or gets full is replaced.
type macTable struct {
	seed  maphash.Seed // guests choose the keys
	slots []macSlot    // a power of two, at most half of them used
	used  int
}

type macSlot struct {
	key  atomic.Uint64 // 0: free
	port atomic.Pointer[Port]
}

func newMACTable(size int) *macTable {
	return &macTable{seed: maphash.MakeSeed(), slots: make([]macSlot, size)}
}

// slot is where k is, or else the free slot where it would be.
func (t *macTable) slot(k macKey) (s *macSlot, found bool) {
	mask := uint64(len(t.slots) - 1)
	for i := maphash.Comparable(t.seed, k); ; i++ {
		s := &t.slots[i&mask]
		switch s.key.Load() {
		case uint64(k):
			return s, true
		case 0:
			return s, false
		}
	}
}

// lookup is the port behind which k is, or nil.
func (t *macTable) lookup(k macKey) *Port {
	if s, ok := t.slot(k); ok {
		return s.port.Load()
	}
	return nil
}

// all are the addresses that are known, and the ports behind which they are.
func (t *macTable) all() iter.Seq2[macKey, *Port] {
	return func(yield func(macKey, *Port) bool) {
		for i := range t.slots {
			s := &t.slots[i]
			if k, p := s.key.Load(), s.port.Load(); k != 0 && p != nil && !yield(macKey(k), p) {
				return
			}
		}
	}
}

// learn notes that k is behind p, and no more where it was before. It returns
// the table to use from now on.
func (t *macTable) learn(k macKey, p *Port) *macTable {
	s, found := t.slot(k)
	if found {
		old := s.port.Load()
		if old == p {
			return t
		}
		if old != nil {
			old.macs--
		}
		if p.macs == maxMACs {
			s.port.Store(nil) // better flooded than sent to where it is no more
			return t
		}
		p.macs++
		s.port.Store(p)
		return t
	}
	if p.macs == maxMACs {
		return t
	}
	p.macs++
	s.port.Store(p) // before the key, which makes it visible
	s.key.Store(uint64(k))
	if t.used++; t.used <= len(t.slots)/2 {
		return t
	}
	return t.without(nil)
}

// without is a copy of the table with nothing behind p, and as large as it
// should be.
func (t *macTable) without(p *Port) *macTable {
	live := 0
	for _, q := range t.all() {
		if q != p {
			live++
		}
	}
	size := minMACSlots
	for size < 4*live {
		size *= 2
	}
	n := newMACTable(size)
	for k, q := range t.all() {
		if q != p {
			s, _ := n.slot(k)
			s.port.Store(q)
			s.key.Store(uint64(k))
			n.used++
		}
	}
	return n
}
