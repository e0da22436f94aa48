package network

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// Every decision about a frame is a function of the run's seed, the fault, the
// place with the sender, and the frame's number there: the same frames meet the
// same fate again, whatever else happens at the same time.

// streamKey makes one number of all but the frame's.
func streamKey(seed int64, fault, stream string) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%s", seed, fault, stream))
	return binary.LittleEndian.Uint64(sum[:])
}

// dice are the random numbers of the stream's current frame.
func (s *frameStream) dice() *rand.Rand { return rand.New(rand.NewPCG(s.key, mix(s.count))) }

// mix spreads a counter over all bits (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// chance is true with a probability.
func chance(r *rand.Rand, p float64) bool { return r.Float64() < p }
