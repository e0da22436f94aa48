package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/vmm"
)

func newBench() *cobra.Command {
	b := &bench{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "bench [flags]",
		Short: "Measure how fast machines are on this host, by backend",
		Long: "bench measures machines of attest's Debian image on each backend that this host can\n" +
			"use, one after the other, and prints the medians: how long a machine takes from power\n" +
			"on to its first command (boot), a command (exec), from a checkpoint to the first\n" +
			"command (restore), from a snapshot to the first command of a further machine (fork),\n" +
			"and a whole lab with one machine, from nothing to nothing (total). Nothing is\n" +
			"asserted, and other work of the host is in the numbers.",
		Example: "  attest bench\n" +
			"  attest bench --backend qemu,firecracker --samples 10 --json > bench.json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.progress = cmd.ErrOrStderr()
			if err := b.check(); err != nil {
				return err
			}
			result, err := b.run(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(result)
			} else {
				err = result.write(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			return result.verdict()
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringSliceVar(&b.backends, "backend", nil, "`names` of backends, such as qemu,firecracker; otherwise all that this host can use")
	flags.IntVar(&b.samples, "samples", 3, "`count` of boots, restores and forks; of commands it is 20 times as many")
	flags.IntVar(&b.memory, "memory", 512, "memory of a machine in `MiB`")
	flags.BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// A bench is what attest bench was asked for.
type bench struct {
	backends []string // empty: all that are usable
	samples  int
	memory   int
	progress io.Writer
}

// commandsPerSample is how many commands are run for each boot.
const commandsPerSample = 20

func (b *bench) check() error {
	if b.samples < 1 {
		return fmt.Errorf("--samples=%d: want at least 1", b.samples)
	}
	for _, name := range b.backends {
		if _, ok := vmm.Lookup(name); !ok {
			return fmt.Errorf("--backend: unknown backend %q; want some of %s", name, strings.Join(vmm.Names(), ", "))
		}
	}
	return access.Check(attest.LabConfig{Machines: []attest.MachineConfig{b.machine("")}}) // the memory
}

// A benchResult is what attest bench has measured; its JSON is described in
// docs/benchmarks.md.
type benchResult struct {
	Attest      string     `json:"attest"`
	CPUs        int        `json:"cpus"`
	Accelerator string     `json:"accelerator"` // "KVM" or "TCG"
	MemoryMiB   int        `json:"memory_mib"`
	Backends    []benchRow `json:"backends"`
}

type benchRow struct {
	Name    string     `json:"name"`
	Version string     `json:"version,omitempty"`
	Boot    *benchTime `json:"boot,omitempty"`
	Exec    *benchTime `json:"exec,omitempty"`
	Restore *benchTime `json:"restore,omitempty"`
	Fork    *benchTime `json:"fork,omitempty"`
	Total   *benchTime `json:"total,omitempty"`
	// Error is why not everything was measured, and Status its kind as in reports.
	Error  string       `json:"error,omitempty"`
	Status event.Status `json:"status,omitempty"`

	asked bool // by name
}

// A benchTime is one quantity, in milliseconds.
type benchTime struct {
	Median  float64   `json:"median_ms"`
	Samples []float64 `json:"samples_ms"` // in the order in which they were taken
}

func (t *benchTime) String() string {
	if t == nil {
		return "–"
	}
	d := time.Duration(t.Median * float64(time.Millisecond))
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// add takes one more sample.
func (t *benchTime) add(d time.Duration) *benchTime {
	if t == nil {
		t = &benchTime{}
	}
	t.Samples = append(t.Samples, float64(d)/float64(time.Millisecond))
	sorted := slices.Sorted(slices.Values(t.Samples))
	n := len(sorted)
	t.Median = (sorted[(n-1)/2] + sorted[n/2]) / 2
	return t
}

// run measures one backend after the other. Only the end of ctx is an error.
func (b *bench) run(ctx context.Context) (*benchResult, error) {
	probe, err := accel.Detect(ctx)
	if err != nil {
		return nil, err
	}
	r := &benchResult{Attest: version(), CPUs: runtime.NumCPU(), Accelerator: strings.ToUpper(probe.Accel()), MemoryMiB: b.memory}
	names := b.backends
	if len(names) == 0 {
		names = slices.DeleteFunc(vmm.Names(), func(name string) bool {
			backend, _ := vmm.Lookup(name)
			return vmm.Pretends(backend)
		})
	}
	for _, name := range names {
		row := benchRow{Name: name, asked: len(b.backends) > 0}
		backend, _ := vmm.Lookup(name)
		usable := true
		if d, ok := backend.(vmm.Doctor); ok {
			found := d.Examine(ctx)
			row.Version = found.Version
			if usable = found.Usable; !usable {
				row.Status, row.Error = event.Infra, lacking(found)
			}
		}
		if usable {
			err := b.measure(ctx, &row)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				row.Status, row.Error = event.Status(attest.StatusOf(err)), err.Error()
			}
		}
		r.Backends = append(r.Backends, row)
	}
	return r, nil
}

// lacking is the first thing that a backend does not find here.
func lacking(d doctor.Diagnosis) string {
	for _, f := range d.Findings {
		if !f.OK {
			return f.Detail
		}
	}
	return "attest doctor says what this host lacks"
}

// measure measures one backend. On an error the row has what there was before.
func (b *bench) measure(ctx context.Context, row *benchRow) (err error) {
	host, err := attest.OpenHost(ctx, attest.HostConfig{Backend: row.Name, Boot: attest.BootCold})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	config := attest.LabConfig{Name: "bench", Machines: []attest.MachineConfig{b.machine(row.Name)}}
	b.say(row.Name, "preparing the image")
	lab, err := host.NewLab(ctx, config)
	if err == nil {
		err = errors.Join(lab.Prepare(ctx), lab.Close())
	}
	for i := 0; i < b.samples && err == nil; i++ {
		b.say(row.Name, fmt.Sprintf("boot %d of %d", i+1, b.samples))
		err = b.life(ctx, host, config, row, i == b.samples-1)
	}
	return err
}

func (b *bench) say(backend, what string) {
	fmt.Fprintf(b.progress, "%s: %s\n", printable.Text(backend), what)
}

// machine is what is measured. A mock shows what attest itself takes.
func (b *bench) machine(backend string) attest.MachineConfig {
	m := attest.MachineConfig{Name: "bench", Backend: backend, Image: attest.Debian{}, Memory: b.memory}
	if found, _ := vmm.Lookup(backend); vmm.Pretends(found) {
		m.Image, m.Memory, m.MockScript = nil, 0, json.RawMessage(`{"answers": [{"command": "true"}]}`)
	}
	return m
}

// life is one lab from its beginning to its end. In the last one, everything else is
// measured in between.
func (b *bench) life(ctx context.Context, host *attest.Host, config attest.LabConfig, row *benchRow, last bool) (err error) {
	began := time.Now()
	lab, err := host.NewLab(ctx, config)
	if err != nil {
		return err
	}
	total, powered := time.Duration(0), time.Now()
	m := lab.Machines()[0]
	if err = m.Start(ctx); err == nil {
		err = works(ctx, m)
	}
	if err == nil {
		row.Boot = row.Boot.add(time.Since(powered))
		total = time.Since(began)
		if last {
			err = b.further(ctx, lab, row)
		}
	}
	ending := time.Now()
	if err = errors.Join(err, lab.Close()); err == nil {
		row.Total = row.Total.add(total + time.Since(ending))
	}
	return err
}

// works runs a command in a machine.
func works(ctx context.Context, m *attest.Machine) error {
	_, err := m.Succeed(ctx, "true")
	return err
}

// further measures what a running machine can do.
func (b *bench) further(ctx context.Context, lab *attest.Lab, row *benchRow) (err error) {
	m := lab.Machines()[0]
	timed := func(t **benchTime, do func() error) {
		if err == nil {
			began := time.Now()
			if err = do(); err == nil {
				*t = (*t).add(time.Since(began))
			}
		}
	}
	b.say(row.Name, "commands")
	for range commandsPerSample * b.samples {
		timed(&row.Exec, func() error { return works(ctx, m) })
	}
	if err != nil {
		return err
	}
	const checkpoint = "bench"
	if err := m.SnapshotCreate(ctx, checkpoint); err != nil {
		return err
	}
	b.say(row.Name, "restores")
	for range b.samples {
		timed(&row.Restore, func() error {
			if err := m.SnapshotRestore(ctx, checkpoint); err != nil {
				return err
			}
			return works(ctx, m)
		})
	}
	if err != nil {
		return err
	}
	s, err := lab.Snapshot(ctx)
	if err != nil {
		return err
	}
	b.say(row.Name, "forks")
	for range b.samples {
		var fork *attest.Lab
		timed(&row.Fork, func() (err error) {
			if fork, err = s.Fork(ctx); err != nil {
				return err
			}
			return works(ctx, fork.Machines()[0])
		})
		if fork != nil {
			err = errors.Join(err, fork.Close())
		}
	}
	return errors.Join(err, s.Close())
}

// write writes the table.
func (r *benchResult) write(out io.Writer) error {
	fmt.Fprintf(out, "attest %s, %s, %d CPUs, machines of %d MiB\n\n", r.Attest, r.Accelerator, r.CPUs, r.MemoryMiB)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "backend\tversion\tboot\texec\trestore\tfork\ttotal")
	for _, b := range r.Backends {
		fmt.Fprintf(t, "%s\t%s\t%v\t%v\t%v\t%v\t%v\n", b.Name, cmp.Or(printable.Text(b.Version), "–"), b.Boot, b.Exec, b.Restore, b.Fork, b.Total)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, b := range r.Backends {
		if b.Error != "" {
			fmt.Fprintf(out, "\n%s: %s\n", b.Name, printable.Text(b.Error))
		}
	}
	return nil
}

// verdict is how the command ends: with the worst status of a backend that was asked for by
// name, or if nothing at all was measured.
func (r *benchResult) verdict() error {
	var all []event.Status
	measured := false
	for _, b := range r.Backends {
		measured = measured || b.Boot != nil
		if b.Error != "" && b.asked {
			all = append(all, b.Status)
		}
	}
	if !measured && len(all) == 0 {
		all = append(all, event.Infra)
	}
	if worst := event.Worst(all...); worst != event.Passed {
		return exitCode(worst.ExitCode())
	}
	return nil
}
