package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest"
)

// warmTimes are what snapshots are for.
type warmTimes struct {
	start, save, restore, fork []time.Duration
	clones                     time.Duration // until all have answered
	private                    int           // MiB that a clone has for itself, at most
}

// clones is how many machines of one snapshot run at once.
const clones = 16

// snapshots measures machines that start from snapshots. The first start makes
// the template; it does not count.
func (b *bench) snapshots(ctx context.Context) (t warmTimes, err error) {
	for i := range b.warm + 1 {
		b.say("warm start %d", i)
		took, err := b.warmStart(ctx)
		if err != nil {
			return t, err
		}
		if i > 0 {
			t.start = append(t.start, took)
		}
	}
	lab, err := b.host.NewLab(ctx, attest.LabConfig{Machines: []attest.MachineConfig{
		{Name: "one", Image: image, Memory: memory}, {Name: "two", Image: image, Memory: memory},
	}})
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	for _, m := range lab.Machines() {
		if _, err := m.Succeed(ctx, "true"); err != nil {
			return t, err
		}
	}
	b.say("saving, restoring, forking")
	one := lab.Machine("one")
	for range b.warm {
		if err := t.cycle(ctx, lab, one); err != nil {
			return t, err
		}
	}
	if err := lab.Machine("two").Crash(ctx); err != nil {
		return t, err
	}
	b.say("%d clones", clones)
	return t, t.crowd(ctx, lab)
}

func (b *bench) warmStart(ctx context.Context) (time.Duration, error) {
	lab, err := b.host.NewLab(ctx, attest.LabConfig{Machines: []attest.MachineConfig{{Name: "guest", Image: image, Memory: memory}}})
	if err != nil {
		return 0, err
	}
	if err := lab.Prepare(ctx); err != nil {
		return 0, errors.Join(err, lab.Close())
	}
	start := time.Now()
	_, err = lab.Machine("guest").Succeed(ctx, "true")
	took := time.Since(start)
	return took, errors.Join(err, lab.Close())
}

// cycle saves and restores a machine, and forks its lab, once each.
func (t *warmTimes) cycle(ctx context.Context, lab *attest.Lab, m *attest.Machine) error {
	for _, step := range []struct {
		into *[]time.Duration
		do   func() error
	}{
		{&t.save, func() error { return m.SnapshotCreate(ctx, "here") }},
		{&t.restore, func() error { return m.SnapshotRestore(ctx, "here") }},
	} {
		took, err := repeat(1, step.do)
		if err != nil {
			return err
		}
		*step.into = append(*step.into, took...)
		if _, err := m.Succeed(ctx, "true"); err != nil { // it has settled
			return err
		}
	}
	start := time.Now()
	fork, err := lab.Fork(ctx)
	if err != nil {
		return err
	}
	t.fork = append(t.fork, time.Since(start))
	return fork.Close()
}

// crowd has all clones of a machine run at once.
func (t *warmTimes) crowd(ctx context.Context, lab *attest.Lab) error {
	s, err := lab.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	before := vmms()
	start := time.Now()
	forks, errs := make([]*attest.Lab, clones), make([]error, clones)
	var all sync.WaitGroup
	for i := range forks {
		all.Go(func() {
			if forks[i], errs[i] = s.Fork(ctx); errs[i] == nil {
				_, errs[i] = forks[i].Machine("one").Succeed(ctx, "true")
			}
		})
	}
	all.Wait()
	t.clones = time.Since(start)
	for _, pid := range vmms() {
		if !slices.Contains(before, pid) {
			t.private = max(t.private, privateMiB(pid))
		}
	}
	for _, fork := range forks {
		if fork != nil {
			errs = append(errs, fork.Close())
		}
	}
	return errors.Join(errs...)
}

// vmms are the process ids of the host's VMMs.
func vmms() (pids []string) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		if comm, err := os.ReadFile(name); err == nil && bytes.HasPrefix(comm, []byte("attest-qemu")) {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	return pids
}

// privateMiB is the memory that a process shares with nobody.
func privateMiB(pid string) int {
	text, _ := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
	kib := 0
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Private_") {
			n, _ := strconv.Atoi(f[1])
			kib += n
		}
	}
	return kib >> 10
}

func (t warmTimes) rows(reference []time.Duration) []Row {
	crowd := newRow(fmt.Sprintf("%d clones of one machine, to the first command on all", clones), nil, []time.Duration{t.clones}, Target{Max: 8})
	crowd.Note = fmt.Sprintf("at most %d MiB private memory each", t.private)
	return []Row{
		newRow("warm start to first command", reference, t.start, Target{}),
		newRow("save a machine that runs", nil, t.save, Target{}),
		newRow("restore a machine, to running", nil, t.restore, Target{}),
		newRow("fork of a running two-machine lab, to both running", nil, t.fork, Target{Max: 0.3}),
		crowd,
	}
}
