package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// scriptCommands is how many commands the script runs beside its waits.
const scriptCommands = 20

// lateFile appears while the script waits for it.
const lateFile = "/tmp/late"

// appears makes lateFile half a second later.
const appears = "(sleep 0.5; touch " + lateFile + ") >/dev/null 2>&1 &"

// pythonScript is a test in the manner of NixOS tests, as a test file in Python. What the
// reference does is script.
func pythonScript() string {
	return fmt.Sprintf(`guest = machine(image=debian(files={%q: %q}, run=[%q]), memory=%d)


def main():
    guest.wait_for_unit("multi-user.target")
    for n in range(%d):
        with subtest(f"part {n}"):
            guest.succeed("true")
    guest.succeed(%q)
    guest.wait_for_file(%q)
    guest.succeed("rm %s")
    print(%q)
`, backdoorPath, backdoorUnit, backdoorLink, memory, scriptCommands, appears, lateFile, lateFile, firstResult)
}

// script is the same over the reference's protocol, on a guest that has booted.
func (d *driver) script(ctx context.Context) error {
	if err := d.waitForUnit(ctx, "multi-user.target"); err != nil {
		return err
	}
	for range scriptCommands {
		if _, err := d.succeed("true"); err != nil {
			return err
		}
	}
	if _, err := d.succeed(appears); err != nil {
		return err
	}
	if err := d.waitForFile(ctx, lateFile); err != nil {
		return err
	}
	_, err := d.succeed("rm " + lateFile)
	return err
}

// scriptRows compare the script on machines that boot, and on machines that start from a
// snapshot, with the reference, which boots.
func (b *bench) scriptRows(ctx context.Context, reference []time.Duration) ([]Row, error) {
	var rows []Row
	for _, way := range []struct {
		boot, what string
		n          int
		target     Target
	}{
		{"cold", "a script in Python, from power on", b.referenceBoots, Target{Ratio: 2}},
		{"warm", "a script in Python, machines that have booted before", b.warm, Target{Ratio: 10}},
	} {
		var took []time.Duration
		for i := range way.n + 1 {
			b.say("a script in Python, %s, %d", way.boot, i)
			d, err := b.attestFile(ctx, "script.py", pythonScript(), "--boot="+way.boot)
			if err != nil {
				return nil, err
			}
			if i > 0 || way.boot == "cold" { // the first may have made the template
				took = append(took, d)
			}
		}
		rows = append(rows, newRow(way.what, reference, took, way.target))
	}
	return rows, nil
}

// calls is how many calls are timed together, and batches how often.
const (
	calls   = 200
	batches = 9
)

// callRows measure what a call costs from Python beyond one from Starlark. The machine is a mock, which answers at once.
func (b *bench) callRows(ctx context.Context) ([]Row, error) {
	b.say("calls from Python")
	const python = `import time
m = machine(backend="mock")
def main():
    m.succeed("true")
    for _ in range(%d):
        begin = time.perf_counter()
        for _ in range(%d):
            m.is_up()
        print("took", (time.perf_counter() - begin) / %d)
`
	const starlark = `m = machine(backend = "mock")
def main():
    m.succeed("true")
    for _ in range(%d):
        begin = time.now()
        for _ in range(%d):
            m.is_up()
        print("took", (time.now() - begin).seconds / %d)
`
	fromPython, err := b.timedCalls(ctx, "calls.py", fmt.Sprintf(python, batches, calls, calls))
	if err != nil {
		return nil, err
	}
	fromStarlark, err := b.timedCalls(ctx, "calls.star", fmt.Sprintf(starlark, batches, calls, calls))
	if err != nil {
		return nil, err
	}
	for i := range fromPython {
		fromPython[i] = max(0, fromPython[i]-time.Duration(summarize(fromStarlark).Median*float64(time.Second)))
	}
	return []Row{newRow("a call from Python, beyond one from Starlark", nil, fromPython, Target{Max: 0.0003})}, nil
}

// timedCalls runs a file that prints how long a call took, several times.
func (b *bench) timedCalls(ctx context.Context, name, text string) ([]time.Duration, error) {
	out, err := b.output(ctx, name, text)
	var took []time.Duration
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "took "); ok {
			seconds, parseErr := strconv.ParseFloat(value, 64)
			if parseErr != nil {
				return nil, parseErr
			}
			took = append(took, time.Duration(seconds*float64(time.Second)))
		}
	}
	if err == nil && len(took) != batches {
		err = fmt.Errorf("%s: %d times, want %d:\n%s", name, len(took), batches, out)
	}
	return took, err
}

// output is what attest run of a file prints.
func (b *bench) output(ctx context.Context, name, text string) (string, error) {
	p, err := b.startAttest(ctx, name, text)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for p.lines.Scan() {
		out.WriteString(p.lines.Text() + "\n")
	}
	return out.String(), p.end(0)
}
