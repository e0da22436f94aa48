package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/attest-vm/attest"
)

// measure takes all samples, what disturbs others last.
func (b *bench) measure(ctx context.Context) (rows []Row, guest Guest, err error) {
	b.say("starting the binary %d times", b.starts)
	starts, err := b.binaryStarts(ctx)
	if err != nil {
		return nil, guest, err
	}
	warm, err := b.snapshots(ctx)
	if err != nil {
		return nil, guest, err
	}
	roots, err := b.rootRows(ctx)
	if err != nil {
		return nil, guest, err
	}
	network, err := b.networkRows(ctx)
	if err != nil {
		return nil, guest, err
	}
	var cold, reference boots
	var runs []time.Duration
	for i := range b.warm + 1 {
		b.say("attest run, %d", i)
		d, err := b.attestRun(ctx)
		if err != nil {
			return nil, guest, err
		}
		if i > 0 { // the first may have made the template
			runs = append(runs, d)
		}
	}
	edits, err := b.edits(ctx)
	if err != nil {
		return nil, guest, err
	}
	b.say("first run of a lab of %d", four)
	first, err := b.firstRun(ctx)
	if err != nil {
		return nil, guest, err
	}
	var m *attest.Machine // of the last boot
	for i := range b.boots {
		if i < b.referenceBoots {
			b.say("boot %d of the reference", i+1)
			if err := b.bootReference(ctx, &reference); err != nil {
				return nil, guest, err
			}
		}
		b.say("boot %d of attest", i+1)
		lab, booted, err := b.boot(ctx, &cold)
		if err != nil {
			return nil, guest, err
		}
		if m = booted; i < b.boots-1 {
			err = lab.Close()
		} else {
			defer func() { err = errors.Join(err, lab.Close()) }()
		}
		if err != nil {
			return nil, guest, err
		}
	}
	if guest, err = settle(ctx, m); err != nil {
		return nil, guest, err
	}
	rows, err = b.running(ctx, m)
	if err != nil {
		return nil, guest, err
	}
	scripts, err := b.pythonRows(ctx, reference)
	if err != nil {
		return nil, guest, err
	}
	rows = append(rows, scripts...)
	seen, err := b.screenRows(ctx)
	if err != nil {
		return nil, guest, err
	}
	rows = append(rows, seen...)
	rows = append(rows, warm.rows(reference.command)...)
	rows = append(rows,
		newRow("one-machine test, image cached: `attest run` to first result", reference.command, runs, Target{Max: 0.6, Ratio: 30}),
		newRow("edit of a mounted file → result of a test in a standing lab, `attest run --watch`", nil, edits, Target{Max: 1}),
		newRow(fmt.Sprintf("first run of a lab of %d machines that have never booted, image cached", four), nil, []time.Duration{first}, Target{}),
		newRow("cold boot to first command", reference.command, cold.command, Target{Max: 6}),
		newRow("cold boot to `multi-user.target`", reference.multiUser, cold.multiUser, Target{Max: 14}),
		newRow("start of the `attest` binary", nil, starts, Target{Max: 0.015}),
	)
	return append(append(rows, roots...), network...), guest, err
}

// running measures on a machine that has booted.
func (b *bench) running(ctx context.Context, m *attest.Machine) (rows []Row, err error) {
	d, shell := connect(ctx, m)
	defer func() { err = errors.Join(err, shell.close()) }()
	w, err := startWitness(ctx, m)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for _, part := range []func(context.Context, *attest.Machine, *driver, *clock) ([]Row, error){b.commandRows, b.waitRows, b.copyRows} {
		more, err := part(ctx, m, d, w)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// binaryStarts times attest --version.
func (b *bench) binaryStarts(ctx context.Context) ([]time.Duration, error) {
	return repeat(b.starts, func() error {
		if out, err := exec.CommandContext(ctx, b.attest, "--version").CombinedOutput(); err != nil {
			return fmt.Errorf("attest --version: %w: %s", err, out)
		}
		return nil
	})
}

// repeat times do n times.
func repeat(n int, do func() error) ([]time.Duration, error) {
	samples := make([]time.Duration, 0, n)
	for range n {
		start := time.Now()
		if err := do(); err != nil {
			return nil, err
		}
		samples = append(samples, time.Since(start))
	}
	return samples, nil
}

// attestRun times attest run, from the start of the process until the test
// prints that its first command has succeeded.
func (b *bench) attestRun(ctx context.Context) (time.Duration, error) {
	return b.attestFile(ctx, "first_test.star", testFile())
}

// attestFile is attestRun of any file that prints firstResult.
func (b *bench) attestFile(ctx context.Context, name, text string, flags ...string) (time.Duration, error) {
	start := time.Now()
	p, err := b.startAttest(ctx, name, text, flags...)
	if err != nil {
		return 0, err
	}
	if err := p.await(firstResult); err != nil {
		return 0, err
	}
	elapsed := time.Since(start)
	return elapsed, p.end(0)
}

// commandRows measures succeed("true"), a few of one kind after a few of the other.
func (b *bench) commandRows(ctx context.Context, m *attest.Machine, d *driver, _ *clock) ([]Row, error) {
	const pause = 50 * time.Millisecond
	attestTrue := func() error { _, err := m.Succeed(ctx, "true"); return err }
	driverTrue := func() error { _, err := d.succeed("true"); return err }
	var at, ref, atPaused, refPaused []time.Duration
	for round := range b.rounds {
		b.say("commands, round %d of %d", round+1, b.rounds)
		for _, batch := range []struct {
			into  *[]time.Duration
			n     int
			pause time.Duration
			do    func() error
		}{
			{&ref, b.references, 0, driverTrue},
			{&at, b.commands, 0, attestTrue},
			{&refPaused, b.referencePauses, pause, driverTrue},
			{&atPaused, b.pauses, pause, attestTrue},
		} {
			for range batch.n {
				time.Sleep(batch.pause)
				took, err := repeat(1, batch.do)
				if err != nil {
					return nil, err
				}
				*batch.into = append(*batch.into, took...)
			}
		}
	}
	return []Row{
		newRow("`succeed(\"true\")`, back to back", ref, at, Target{Max: 0.006, Ratio: 25}),
		newRow("`succeed(\"true\")` after a pause of 50 ms", refPaused, atPaused, Target{Max: 0.0025}),
	}, nil
}
