package network

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"time"
)

// An Effect is what a fault does to the frames that it selects: one of the
// types below.
type Effect interface {
	// Check says what is wrong with the effect's numbers.
	Check() error
	// apply lets a frame go on, or not. It is called with im's lock held.
	apply(im *impairment, s *frameStream, b *burst, f frame)
}

// Drop loses a share of the frames.
type Drop struct {
	Rate float64 // 0 to 1
	// Correlation makes losses come together: it is how much likelier the loss
	// of a frame is after another one. The share of lost frames stays Rate. 0
	// (each frame for itself) to less than 1.
	Correlation float64
}

// Down loses all frames.
type Down struct{}

// Delay keeps frames for a while. They stay in their order, jitter or not.
type Delay struct {
	Mean   time.Duration
	Jitter time.Duration
	// Distribution is how delays spread around Mean: "uniform" (the default;
	// Mean-Jitter to Mean+Jitter), "normal" (Jitter is the standard deviation), or
	// "exponential" (Mean-Jitter and above, most near it; Jitter is the
	// standard deviation).
	Distribution string
}

// Duplicate sends a share of the frames twice.
type Duplicate struct{ Rate float64 }

// Corrupt flips one bit of a share of the frames, behind their Ethernet header.
type Corrupt struct{ Rate float64 }

// Reorder holds a share of the frames back until others have overtaken them.
type Reorder struct {
	Rate float64
	// Gap is how many frames go first; 0 means 1. If they do not come within
	// reorderPatience, the frame goes on without them.
	Gap int
}

// Rate is a line of a limited speed: frames follow one another at it, and those
// that do not fit in its queue are lost.
type Rate struct {
	Bits  int64 // per second, of Ethernet frames
	Queue int   // bytes; 0 means DefaultRateQueue. One frame always fits
	Burst int   // bytes that go at once after a pause
}

const (
	reorderPatience  = 100 * time.Millisecond
	DefaultRateQueue = 128 << 10 // bytes; as small routers have: 86 full frames
	maxDelay         = time.Hour
)

func checkShare(rate float64) error {
	if !(rate >= 0 && rate <= 1) {
		return fmt.Errorf("rate must be between 0 and 1 (half of all frames is 0.5), not %v", rate)
	}
	return nil
}

func (e Drop) Check() error {
	if !(e.Correlation >= 0 && e.Correlation < 1) {
		return fmt.Errorf("correlation must be at least 0 and less than 1, not %v", e.Correlation)
	}
	return checkShare(e.Rate)
}

func (e Drop) apply(im *impairment, s *frameStream, b *burst, f frame) {
	p := e.Rate * (1 - e.Correlation)
	if s.lost {
		p += e.Correlation
	}
	if s.lost = chance(s.dice(), p); s.lost {
		im.drop(b, f)
		return
	}
	im.pass(b, f)
}

func (Down) Check() error { return nil }

func (Down) apply(im *impairment, _ *frameStream, b *burst, f frame) { im.drop(b, f) }

func (e Delay) Check() error {
	switch {
	case e.Mean < 0 || e.Jitter < 0:
		return fmt.Errorf("the delay is negative")
	case e.Mean > maxDelay || e.Jitter > maxDelay:
		return fmt.Errorf("the delay exceeds %v; use down to stop all frames", maxDelay)
	}
	switch e.Distribution {
	case "", "uniform", "normal", "exponential":
		return nil
	}
	return fmt.Errorf("unknown distribution %q; want uniform, normal or exponential", e.Distribution)
}

func (e Delay) apply(im *impairment, s *frameStream, b *burst, f frame) {
	im.fault.affected.Add(1)
	im.hold(b, f, im.clock.now().Add(e.draw(s)), maxHeldBytes)
}

func (e Delay) draw(s *frameStream) time.Duration {
	if e.Jitter == 0 {
		return e.Mean
	}
	dice := s.dice()
	var x float64 // with mean 0; as multiples of Jitter
	switch e.Distribution {
	case "normal":
		x = dice.NormFloat64()
	case "exponential":
		x = dice.ExpFloat64() - 1
	default:
		x = 2*dice.Float64() - 1
	}
	return max(0, e.Mean+time.Duration(x*float64(e.Jitter)))
}

func (e Duplicate) Check() error { return checkShare(e.Rate) }

func (e Duplicate) apply(im *impairment, s *frameStream, b *burst, f frame) {
	im.pass(b, f)
	if chance(s.dice(), e.Rate) {
		im.fault.affected.Add(1)
		im.pass(b, f)
	}
}

func (e Corrupt) Check() error { return checkShare(e.Rate) }

func (e Corrupt) apply(im *impairment, s *frameStream, b *burst, f frame) {
	dice := s.dice()
	if f.len() <= minFrame || !chance(dice, e.Rate) {
		im.pass(b, f)
		return
	}
	im.fault.affected.Add(1)
	bad := corrupted(f, dice)
	im.pass(b, bad)
	bad.c.release()
}

// corrupted is a copy of a frame with one bit flipped.
func corrupted(f frame, dice *rand.Rand) frame {
	c := &chunk{data: bytes.Clone(f.c.data[f.off:f.end])}
	c.refs.Store(1)
	bit := dice.IntN(8 * (f.len() - minFrame))
	c.data[prefixLen+minFrame+bit/8] ^= 1 << (bit % 8)
	return frame{c, 0, len(c.data)}
}

func (e Reorder) Check() error {
	if e.Gap < 0 {
		return fmt.Errorf("gap must be a number of frames, not %d", e.Gap)
	}
	return checkShare(e.Rate)
}

func (e Reorder) apply(im *impairment, s *frameStream, b *burst, f frame) {
	if chance(s.dice(), e.Rate) && im.bytes+f.len() <= maxHeldBytes {
		im.fault.affected.Add(1)
		im.keep(heldFrame{frame: f.hold(), from: b.from, due: im.clock.now().Add(reorderPatience), gap: max(1, e.Gap)})
		return
	}
	im.pass(b, f)
	for i := range im.held {
		im.held[i].gap--
	}
	im.letGo(func(h heldFrame) bool { return h.gap <= 0 })
}

func (e Rate) Check() error {
	switch {
	case e.Bits < 1:
		return fmt.Errorf("bits must be a number of bits per second, at least 1, not %d; use down to stop all frames", e.Bits)
	case e.Queue < 0:
		return fmt.Errorf("queue must be a number of bytes, not %d", e.Queue)
	case e.Burst < 0:
		return fmt.Errorf("burst must be a number of bytes, not %d", e.Burst)
	}
	return nil
}

// apply is a token bucket, seen from the line (the generic cell rate
// algorithm): a frame leaves when the line would have carried all before it and
// itself, or as much earlier as a burst may be.
func (e Rate) apply(im *impairment, _ *frameStream, b *burst, f frame) {
	queue := e.Queue
	if queue == 0 {
		queue = DefaultRateQueue
	}
	if len(im.held) > 0 && im.bytes+f.len() > queue {
		im.drop(b, f) // before it takes its time on the line
		return
	}
	if now := im.clock.now(); im.free.Before(now) {
		im.free = now
	}
	im.free = im.free.Add(e.transmission(f.len()))
	im.hold(b, f, im.free.Add(-e.transmission(e.Burst)), queue)
}

// transmission is how long the line takes for so many bytes.
func (e Rate) transmission(bytes int) time.Duration {
	return time.Duration(float64(bytes) * 8 / float64(e.Bits) * float64(time.Second))
}
