package microvm

// A RateLimiter is how fast a device may be, as both VMMs are told it. A part that is nil has
// no limit.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"` // bytes
	Ops       *TokenBucket `json:"ops,omitempty"`
}

// A TokenBucket is so much in so much time.
type TokenBucket struct {
	Size   int `json:"size"`
	Refill int `json:"refill_time"` // milliseconds until an empty one is full
}

func perSecond(n int) *TokenBucket {
	if n == 0 {
		return nil
	}
	return &TokenBucket{Size: n, Refill: 1000}
}

// DiskLimiter is that of each disk; nil: none is limited.
func (o GuestOptions) DiskLimiter() *RateLimiter {
	if o.DiskBytes == 0 && o.DiskOps == 0 {
		return nil
	}
	return &RateLimiter{perSecond(o.DiskBytes), perSecond(o.DiskOps)}
}
