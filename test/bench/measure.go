package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	rows = append(rows, warm.rows(reference.command)...)
	rows = append(rows,
		newRow("one-machine test, image cached: `attest run` to first result", reference.command, runs, Target{Max: 0.6, Ratio: 30}),
		newRow("cold boot to first command", reference.command, cold.command, Target{Max: 6}),
		newRow("cold boot to `multi-user.target`", reference.multiUser, cold.multiUser, Target{Max: 14}),
		newRow("start of the `attest` binary", nil, starts, Target{Max: 0.015}),
	)
	return append(rows, network...), guest, err
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
	file := filepath.Join(b.dir, "first_test.star")
	if err := os.WriteFile(file, []byte(testFile()), 0o644); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, b.attest, "run", file)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Dir = b.dir
	var log bytes.Buffer
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var elapsed time.Duration
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if elapsed == 0 && strings.Contains(lines.Text(), firstResult) {
			elapsed = time.Since(start)
		}
	}
	if err := cmd.Wait(); err != nil || elapsed == 0 {
		return 0, fmt.Errorf("attest run: no first result (%v):\n%s", err, log.Bytes())
	}
	return elapsed, nil
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
