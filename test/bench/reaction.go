package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/attest-vm/attest"
)

// A waitCase is one kind of wait, with names that differ for each sample i.
type waitCase struct {
	what   string
	target Target
	// arm makes it happen after delay; when says the guest's time at which it
	// did, and cleans up.
	arm       func(delay time.Duration, i int) error
	when      func(i int) (time.Duration, error)
	attest    func(i int) error
	reference func(i int) error // nil: there is nothing to compare with
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
			if i < b.referenceWaits && c.reference != nil {
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

// waitCases are the waits, each for an event of its own.
func waitCases(ctx context.Context, m *attest.Machine, d *driver, w *clock) []waitCase {
	unit := func(i int) string { return fmt.Sprintf("bench-%d.service", i) }
	path := func(i int) string { return fmt.Sprintf("/run/bench-%d", i) }
	port := func(i int) int { return 4000 + i }
	socket := func(i int) string { return fmt.Sprintf("/run/bench-%d.sock", i) }
	until := func(i int) string { return fmt.Sprintf("/run/bench-until-%d", i) }
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
		{
			what: "unix socket open → `wait_for_open_unix_socket` returns", target: Target{Max: 0.02},
			arm:       func(delay time.Duration, i int) error { return w.tell("socket %v %s", int64(delay), socket(i)) },
			when:      heard,
			attest:    func(i int) error { return m.WaitForOpenUnixSocket(ctx, socket(i), limit) },
			reference: func(i int) error { return d.waitUntil(ctx, "nc -z -U "+socket(i)) },
		},
		{
			what: "console says it → `wait_for_console_text` returns", target: Target{Max: 0.02},
			arm:    func(delay time.Duration, i int) error { return w.tell("console %v bench-%d", int64(delay), i) },
			when:   heard,
			attest: func(i int) error { return m.WaitForConsoleText(ctx, fmt.Sprintf("^bench-%d$", i), limit) },
		},
		{
			what:      "command can succeed → `wait_until_succeeds` returns",
			arm:       func(delay time.Duration, i int) error { return w.tell("file %v %s", int64(delay), until(i)) },
			when:      heard,
			attest:    func(i int) error { _, err := m.WaitUntilSucceeds(ctx, "test -e "+until(i), limit); return err },
			reference: func(i int) error { return d.waitUntil(ctx, "test -e "+until(i)) },
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
