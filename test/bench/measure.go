package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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
	var cold, reference boots
	var runs []time.Duration
	var m *attest.Machine // of the last boot
	for i := range b.boots {
		if i < b.referenceBoots {
			b.say("boot %d of the reference", i+1)
			if err := b.bootReference(ctx, &reference); err != nil {
				return nil, guest, err
			}
		}
		b.say("attest run, %d", i+1)
		d, err := b.attestRun(ctx)
		if err != nil {
			return nil, guest, err
		}
		runs = append(runs, d)
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
	rows = append(rows,
		newRow("one-machine test, image cached: `attest run` to first result", reference.command, runs, Target{Max: 0.6, Ratio: 30}),
		newRow("cold boot to first command", reference.command, cold.command, Target{Max: 6}),
		newRow("cold boot to `multi-user.target`", reference.multiUser, cold.multiUser, Target{Max: 14}),
		newRow("start of the `attest` binary", nil, starts, Target{Max: 0.015}),
	)
	return rows, guest, err
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

// A waitCase is one kind of wait, with names that differ for each sample i.
type waitCase struct {
	what   string
	target Target
	// arm makes it happen after delay; when says the guest's time at which it
	// did, and cleans up.
	arm       func(delay time.Duration, i int) error
	when      func(i int) (time.Duration, error)
	attest    func(i int) error
	reference func(i int) error
}

// waitRows measures how long after an event a wait for it returns.
func (b *bench) waitRows(ctx context.Context, m *attest.Machine, d *driver, w *clock) ([]Row, error) {
	var rows []Row
	for _, c := range waitCases(ctx, m, d, w) {
		b.say("%s", c.what)
		var at, ref []time.Duration
		n := max(b.waits, b.referenceWaits)
		for i := range n {
			// Events fall evenly over the second between two polls.
			if i < b.referenceWaits {
				phase := (float64(i) + 0.5) / float64(b.referenceWaits)
				r, err := reaction(c, c.reference, w, time.Duration((0.5+phase)*float64(time.Second)), i)
				if err != nil {
					return nil, fmt.Errorf("%s, reference: %w", c.what, err)
				}
				ref = append(ref, r)
			}
			if i < b.waits {
				r, err := reaction(c, c.attest, w, time.Duration(400+7*i)*time.Millisecond, n+i)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", c.what, err)
				}
				at = append(at, r)
			}
		}
		rows = append(rows, newRow(c.what, ref, at, c.target))
	}
	b.say("the clocks of guest and host were compared to within %v", w.worst)
	return rows, nil
}

// waitCases are the three waits that have events of their own.
func waitCases(ctx context.Context, m *attest.Machine, d *driver, w *clock) []waitCase {
	unit := func(i int) string { return fmt.Sprintf("bench-%d.service", i) }
	path := func(i int) string { return fmt.Sprintf("/run/bench-%d", i) }
	port := func(i int) int { return 4000 + i }
	heard := func(int) (time.Duration, error) {
		answer, err := w.hear()
		if err != nil {
			return 0, err
		}
		return instant(answer)
	}
	limit := attest.Timeout(time.Minute)
	return []waitCase{
		{
			what: "unit active → `wait_for_unit` returns", target: Target{Max: 0.02},
			arm: func(delay time.Duration, i int) error {
				_, err := m.Succeed(ctx, fmt.Sprintf("systemd-run --quiet --no-block --unit=%s -p Type=oneshot -p RemainAfterExit=yes sleep %.3f", unit(i), delay.Seconds()))
				return err
			},
			when: func(i int) (time.Duration, error) {
				at, err := m.Succeed(ctx, fmt.Sprintf("systemctl show -P ActiveEnterTimestampMonotonic %[1]s; systemctl stop %[1]s", unit(i)))
				if err != nil {
					return 0, err
				}
				us, err := instant(strings.TrimSpace(at))
				return us * 1000, err
			},
			attest:    func(i int) error { return m.WaitForUnit(ctx, unit(i), limit) },
			reference: func(i int) error { return d.waitForUnit(ctx, unit(i)) },
		},
		{
			what:      "file made → `wait_for_file` returns",
			arm:       func(delay time.Duration, i int) error { return w.tell("file %v %s", int64(delay), path(i)) },
			when:      heard,
			attest:    func(i int) error { return m.WaitForFile(ctx, path(i), limit) },
			reference: func(i int) error { return d.waitForFile(ctx, path(i)) },
		},
		{
			what: "port open → `wait_for_open_port` returns", target: Target{Max: 0.02},
			arm:       func(delay time.Duration, i int) error { return w.tell("port %v %d", int64(delay), port(i)) },
			when:      heard,
			attest:    func(i int) error { return m.WaitForOpenPort(ctx, port(i), limit) },
			reference: func(i int) error { return d.waitForOpenPort(ctx, port(i)) },
		},
	}
}

// reaction is the time from the event in the guest to the return of the wait on
// the host. The guest says when the event was, by its own clock, which is
// compared with the host's right after.
func reaction(c waitCase, wait func(int) error, w *clock, delay time.Duration, i int) (time.Duration, error) {
	if err := c.arm(delay, i); err != nil {
		return 0, err
	}
	began := time.Since(w.epoch)
	if err := wait(i); err != nil {
		return 0, err
	}
	returned := time.Since(w.epoch)
	at, err := c.when(i)
	if err != nil {
		return 0, err
	}
	offset, err := w.offset()
	if err != nil {
		return 0, err
	}
	at -= offset
	if at < began {
		return 0, fmt.Errorf("it happened %v before the wait for it began: the host is too busy to measure", began-at)
	}
	return returned - at, nil
}

// copyRows measures the copy of a file of random bytes, and compares it outside
// of the timing.
func (b *bench) copyRows(ctx context.Context, m *attest.Machine, d *driver, _ *clock) ([]Row, error) {
	const inGuest = "/var/tmp/bench-copy"
	content := make([]byte, b.size<<20)
	rand.NewChaCha8([32]byte{}).Read(content)
	name := filepath.Join(b.dir, "content")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		return nil, err
	}
	var in, out, refIn, refOut []time.Duration
	for i := range max(b.copies, b.referenceCopies) {
		if i < b.referenceCopies {
			b.say("copy %d MiB in and %d MiB out as the reference does", b.sizeIn, b.sizeOut)
			took, err := b.copyReference(ctx, m, d, content)
			if err != nil {
				return nil, err
			}
			refIn, refOut = append(refIn, took[0]), append(refOut, took[1])
		}
		if i < b.copies {
			b.say("copy %d MiB in and out, %d of %d", b.size, i+1, b.copies)
			took, err := b.copy(ctx, m, name, inGuest, content)
			if err != nil {
				return nil, err
			}
			in, out = append(in, took[0]), append(out, took[1])
		}
	}
	scaled := func(samples []time.Duration, size int) []time.Duration {
		return scale(samples, float64(b.size)/float64(size))
	}
	rowIn := newRow(fmt.Sprintf("copy %d MiB in", b.size), scaled(refIn, b.sizeIn), in, Target{Ratio: 10})
	rowOut := newRow(fmt.Sprintf("copy %d MiB out", b.size), scaled(refOut, b.sizeOut), out, Target{Ratio: 10})
	rowIn.Note = fmt.Sprintf("reference: %d MiB, scaled", b.sizeIn)
	rowOut.Note = fmt.Sprintf("reference: %d MiB, scaled", b.sizeOut)
	return []Row{rowIn, rowOut}, nil
}

// copy times a copy in and the copy of that out again.
func (b *bench) copy(ctx context.Context, m *attest.Machine, name, inGuest string, content []byte) (took [2]time.Duration, err error) {
	start := time.Now()
	if err := m.CopyFromHost(ctx, name, inGuest); err != nil {
		return took, err
	}
	took[0] = time.Since(start)
	if err := sameInGuest(ctx, m, inGuest, content); err != nil {
		return took, err
	}
	dir := filepath.Join(b.dir, "out")
	start = time.Now()
	if err := m.CopyFromMachine(ctx, inGuest, dir); err != nil {
		return took, err
	}
	took[1] = time.Since(start)
	if back, err := os.Open(filepath.Join(dir, filepath.Base(inGuest))); err != nil {
		return took, err
	} else if err := sameContent(back, content); err != nil {
		return took, fmt.Errorf("copy out: %w", err)
	}
	_, err = m.Succeed(ctx, "rm "+inGuest)
	return took, errors.Join(err, os.RemoveAll(dir))
}

// copyReference does the same through the driver's shell, with less.
func (b *bench) copyReference(ctx context.Context, m *attest.Machine, d *driver, content []byte) (took [2]time.Duration, err error) {
	const inGuest = "/var/tmp/bench-reference"
	start := time.Now()
	if err := d.copyIn(content[:b.sizeIn<<20], inGuest); err != nil {
		return took, err
	}
	took[0] = time.Since(start)
	if err := sameInGuest(ctx, m, inGuest, content[:b.sizeIn<<20]); err != nil {
		return took, err
	}
	// Twice the same file and so on is as much to copy as a file of that size.
	if _, err := m.Succeed(ctx, fmt.Sprintf("for i in $(seq %d); do cat %[2]s; done > %[2]s.out", b.sizeOut/b.sizeIn, inGuest)); err != nil {
		return took, err
	}
	start = time.Now()
	out, err := d.copyOut(inGuest + ".out")
	if err != nil {
		return took, err
	}
	took[1] = time.Since(start)
	if !bytes.Equal(out, bytes.Repeat(content[:b.sizeIn<<20], b.sizeOut/b.sizeIn)) {
		return took, fmt.Errorf("copy out of the reference: %w", errMismatch)
	}
	_, err = m.Succeed(ctx, "rm "+inGuest+"*")
	return took, err
}

// sameInGuest compares a file in the guest with what it should hold.
func sameInGuest(ctx context.Context, m *attest.Machine, path string, content []byte) error {
	sum, err := m.Succeed(ctx, "sha256sum "+path)
	if err == nil && !strings.HasPrefix(sum, fmt.Sprintf("%x ", sha256.Sum256(content))) {
		err = fmt.Errorf("copy in: %w", errMismatch)
	}
	return err
}

func sameContent(f *os.File, content []byte) error {
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if want := sha256.Sum256(content); !bytes.Equal(sum.Sum(nil), want[:]) {
		return errMismatch
	}
	return nil
}
