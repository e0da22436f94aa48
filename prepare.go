package attest

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

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
	all := &firstBoots{work: event.NewWork(ctx, "first boots"), of: len(cold), waits: map[string]string{}}
	all.say()
	booting := context.WithValue(ctx, firstBootsKey{}, all)
	turns := make(chan struct{}, max(2, runtime.NumCPU()))
	err := each(cold, func(i int, m *Machine) error {
		turns <- struct{}{}
		defer func() { <-turns }()
		t, err := m.warm(booting, plans[i])
		all.ended(m.Name(), t != nil)
		if hopeless(err) {
			return nil // its start says so
		}
		return err
	})
	all.work.Done(err)
	return outward(err)
}

// firstBoots tell in one line how far the machines are that boot at once.
type firstBoots struct {
	work *event.Work
	of   int

	mu     sync.Mutex
	booted int
	waits  map[string]string // what keeps the boots of machines that take long
}

// firstBootsKey is the context key of the firstBoots that tell of a machine.
type firstBootsKey struct{}

// note notes what keeps a machine's boot.
func (b *firstBoots) note(machine, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waits[machine] = text
	b.say()
}

// ended notes that a machine has booted, or will not.
func (b *firstBoots) ended(machine string, booted bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waits, machine)
	if booted {
		b.booted++
	}
	b.say()
}

// say is called with mu held, or before there is anybody else.
func (b *firstBoots) say() {
	line := fmt.Sprintf("%d of %d machines booted once", b.booted, b.of)
	for _, machine := range slices.Sorted(maps.Keys(b.waits)) {
		line += "; " + machine + ": " + b.waits[machine]
	}
	b.work.Say("%s", line)
}
