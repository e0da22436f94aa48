package attest

import (
	"context"
	"image"
	"time"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/vmm"
)

// lookPause is the pause between two looks at a screen. One that takes long has a longer
// one, so that the machine is at most half of the time busy with being looked at.
const lookPause = 100 * time.Millisecond

// A sight is something that a wait looks for on a screen. It is asked for each picture that differs
// from the one before, and returns nil for one that has it. Otherwise it returns what
// it saw instead: the last of these becomes the wait's error, with a screenshot if it attaches nothing itself.
type sight func(ctx context.Context, r *run, shown *image.RGBA) (*WaitError, error)

// watch waits until a machine's screen has what is looked for. The guest need not have booted. The limit
// counts from the moment at which the machine runs.
func (m *Machine) watch(ctx context.Context, operation, args string, what vmm.Capability, o options, look sight) error {
	w := m.newWait(operation, args, o, defaultTimeout)
	return step(ctx, m.Name(), operation, args, func(outer context.Context) error {
		return withVMM(outer, m, operation, what, func(r *run, s vmm.Screener) error {
			w.start = time.Now()
			limit := w.limit
			if limit <= 0 { // one look takes the time that it takes
				limit = m.lab.host.scale(defaultTimeout)
			}
			return w.limited(outer, limit, func(ctx context.Context) (*run, error) {
				// However soon the limit is over: what is there now counts.
				first, cancel := context.WithTimeoutCause(outer, max(limit, m.lab.host.scale(firstSight)), errWaitOver)
				defer cancel()
				return r, r.await(first, ctx, s, operation, o.once(), look)
			})
		})
	})
}

// firstSight is what the first look at a screen may take.
const firstSight = 10 * time.Second

func (r *run) await(first, rest context.Context, s vmm.Screener, operation string, once bool, look sight) error {
	seen := &WaitError{LastSeen: "the screen had not been looked at yet"}
	var last *image.RGBA
	for tries := 1; ; tries++ {
		ctx := rest
		if tries == 1 {
			ctx = first
		}
		began := time.Now()
		shown, err := r.look(ctx, s)
		took := time.Since(began)
		if err == nil && !screen.Changed(last, shown).Empty() {
			last = shown
			var instead *WaitError
			if instead, err = look(ctx, r, shown); err == nil {
				if instead == nil {
					return nil
				}
				seen = instead
			}
		}
		if err == nil && !once {
			err = r.pause(rest, max(lookPause, took))
		}
		if err == nil && !once {
			continue
		}
		if err != nil && context.Cause(rest) != errWaitOver {
			if still := r.afterwards(); still != nil && s != vmm.Screener(still) {
				s = still
				continue
			}
			return err
		}
		seen.Tries = tries
		if seen.attach == nil {
			seen.attach = r.attachScreenshot(rest, operation)
		}
		return seen
	}
}

// pause waits for d, or for the end of ctx or of the machine.
func (r *run) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-r.over:
		return r.down
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
