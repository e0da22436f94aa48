package attest

import (
	"context"
	"runtime"
	"sync/atomic"

	"github.com/attest-vm/attest/internal/event"
)

// Prepare builds the images of all machines and checks that their backends can
// run them, so that what cannot work is refused before anything boots.
func (l *Lab) Prepare(ctx context.Context) error {
	for _, m := range l.Machines() {
		err := m.config.checkOverlays()
		var p plan
		if err == nil {
			p, err = m.plan(ctx)
		}
		if err == nil {
			err = m.checkSnapshot(p)
		}
		if err != nil {
			return outward(err)
		}
	}
	return nil
}

// WarmUp makes what the machines of the lab can start from instead of booting,
// where the cache lacks it: as many at once as the host has processors. A lab whose
// machines are started one after the other would otherwise also have them boot one
// after the other, the first time. A machine that cannot be warmed up boots when it
// starts, or says then why it cannot; only the end of ctx is an error.
func (l *Lab) WarmUp(ctx context.Context) error {
	var cold []*Machine
	var plans []plan
	for _, m := range l.Machines() {
		p, err := m.plan(ctx)
		if err != nil {
			return outward(err)
		}
		if fits := m.templateFits(p); fits != nil && !l.host.snapshots.Has(fits) {
			cold, plans = append(cold, m), append(plans, p)
		}
	}
	if len(cold) < 2 {
		return nil // its first start does it
	}
	progress := event.NewWork(ctx, "first boots")
	const text = "%d of %d machines booted once"
	progress.Say(text, 0, len(cold))
	warming := context.WithValue(ctx, warmingUp{}, true)
	turns := make(chan struct{}, max(2, runtime.NumCPU()))
	var booted atomic.Int32
	err := each(cold, func(i int, m *Machine) error {
		turns <- struct{}{}
		defer func() { <-turns }()
		t, err := m.warm(warming, plans[i])
		switch {
		case hopeless(err):
			return nil // its start says so
		case t != nil:
			progress.Say(text, booted.Add(1), len(cold))
		}
		return err
	})
	progress.Done(err)
	return outward(err)
}
