package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// How many commands the script runs beside its waits: of a short one most of the time is the
// boot of its machine.
const (
	scriptCommands = 20
	longCommands   = 150
)

// lateFile appears while the script waits for it.
const lateFile = "/tmp/late"

// appears makes lateFile half a second later.
const appears = "(sleep 0.5; touch " + lateFile + ") >/dev/null 2>&1 &"

// pythonScript is a test in the manner of NixOS tests, as a test file in Python. What the
// reference does is script.
func pythonScript(commands int) string {
	return fmt.Sprintf(`import time
guest = machine(image=debian(files={%q: %q}, run=[%q]), memory=%d)


def main():
    guest.wait_for_unit("multi-user.target")
    begin = time.perf_counter()
    for n in range(%d):
        with subtest(f"part {n}"):
            guest.succeed("true")
    guest.succeed(%q)
    guest.wait_for_file(%q)
    guest.succeed("rm %s")
    print("took", time.perf_counter() - begin)
    print(%q)
`, backdoorPath, backdoorUnit, backdoorLink, memory, commands, appears, lateFile, lateFile, firstResult)
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
// snapshot, with the reference, which boots; and what comes after the boot of a machine with
// what comes after the reference's.
func (b *bench) scriptRows(ctx context.Context, reference boots) ([]Row, error) {
	var rows []Row
	var after []time.Duration
	const short, long = "a script in Python", "a long script in Python"
	for _, way := range []struct {
		script    string
		commands  int
		boot      string
		from      string
		reference []time.Duration
		n         int
		target    Target
	}{
		{short, scriptCommands, "cold", "from power on", reference.script, b.referenceBoots, Target{Ratio: 2}},
		{short, scriptCommands, "warm", "machines that have booted before", reference.script, b.warm, Target{Ratio: 10}},
		{long, longCommands, "cold", "from power on", reference.long, b.referenceBoots, Target{Ratio: 2}},
		{long, longCommands, "warm", "machines that have booted before", reference.long, b.warm, Target{Ratio: 10}},
	} {
		var took []time.Duration
		for i := range way.n + 1 {
			b.say("%s, %s, %d", way.script, way.boot, i)
			d, err := b.attestFile(ctx, "script.py", pythonScript(way.commands), "--boot="+way.boot)
			if err != nil {
				return nil, err
			}
			if i > 0 || way.boot == "cold" { // the first may have made the template
				took = append(took, d)
			}
		}
		rows = append(rows, newRow(way.script+", "+way.from, way.reference, took, way.target))
	}
	for range b.warm {
		out, err := b.output(ctx, "script.py", pythonScript(scriptCommands))
		if err != nil {
			return nil, err
		}
		part, err := times(out, 1)
		if err != nil {
			return nil, err
		}
		after = append(after, part...)
	}
	return append(rows, newRow("the commands and the wait of the shorter script alone, after the boot", reference.after, after, Target{Ratio: 2})), nil
}

// pythonAlone are pythonRows with the boots that they are compared with.
func (b *bench) pythonAlone(ctx context.Context) ([]Row, error) {
	var reference boots
	for i := range b.referenceBoots {
		b.say("boot %d of the reference", i+1)
		if err := b.bootReference(ctx, &reference); err != nil {
			return nil, err
		}
	}
	return b.pythonRows(ctx, reference)
}

// pythonRows are all that is measured of scripts in Python.
func (b *bench) pythonRows(ctx context.Context, reference boots) ([]Row, error) {
	// Not the shell script that a version manager has put in the place of python3, nor what
	// it adds to each start, but the distribution's.
	if os.Getenv("ATTEST_PYTHON") == "" {
		path := "/usr/bin/python3"
		if _, err := os.Stat(path); err != nil {
			path = "python3"
		}
		if err := os.Setenv("ATTEST_PYTHON", path); err != nil {
			return nil, err
		}
	}
	rows, err := b.scriptRows(ctx, reference)
	if err != nil {
		return nil, err
	}
	for _, part := range []func(context.Context) ([]Row, error){b.callRows, b.connectRows} {
		more, err := part(ctx)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// connectRows measure how long a script takes from the start of its Python to its first line, beyond
// what python3 -c takes to the same. It is not the first script of the file, whose Python waits.
func (b *bench) connectRows(ctx context.Context) ([]Row, error) {
	b.say("a script's way to its first line")
	const age = `import os, time
with open("/proc/self/stat") as f:
    begun = int(f.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
print("took", time.clock_gettime(time.CLOCK_BOOTTIME) - begun)
`
	var took, plain []time.Duration
	for range b.starts {
		out, err := exec.CommandContext(ctx, os.Getenv("ATTEST_PYTHON"), "-c", age).Output()
		if err != nil {
			return nil, fmt.Errorf("python3: %w", err)
		}
		one, err := times(string(out), 1)
		if err != nil {
			return nil, err
		}
		plain = append(plain, one...)
		text, err := b.output(ctx, "connect.py", "m = machine(backend=\"mock\")\ndef setup():\n    pass\n\ndef main():\n    "+strings.ReplaceAll(strings.TrimSpace(age), "\n", "\n    ")+"\n")
		if err != nil {
			return nil, err
		}
		if one, err = times(text, 1); err != nil {
			return nil, err
		}
		took = append(took, one...)
	}
	least := time.Duration(summarize(plain).Median * float64(time.Second))
	for i := range took {
		took[i] = max(0, took[i]-least)
	}
	return []Row{newRow("from the start of Python to a script's first line, beyond `python3 -c`", nil, took, Target{Max: 0.1})}, nil
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
	if err != nil {
		return nil, err
	}
	return times(out, batches)
}

// times are those that a script has printed, each on a line of its own.
func times(out string, n int) ([]time.Duration, error) {
	var took []time.Duration
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "took "); ok {
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return nil, err
			}
			took = append(took, time.Duration(seconds*float64(time.Second)))
		}
	}
	if len(took) != n {
		return nil, fmt.Errorf("%d times, want %d:\n%s", len(took), n, out)
	}
	return took, nil
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
