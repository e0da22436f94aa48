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

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/vmm"
)

func newBench() *cobra.Command {
	b := &bench{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "bench [flags] [FILE]",
		Short: "Measure how fast machines are on this host, by backend",
		Long: "bench measures machines of attest's Debian image, or the one machine of a test file,\n" +
			"on each backend that this host can use, one after the other, and prints the medians:\n" +
			"how long a machine takes from power on to its first command (boot), a command (exec),\n" +
			"from a checkpoint to the first command (restore), from a snapshot to the first command\n" +
			"of a further machine (fork), and a whole lab with one machine, from nothing to nothing\n" +
			"(total). Nothing is asserted, and other work of the host is in the numbers.",
		Example: "  attest bench\n" +
			"  attest bench --backend qemu,firecracker --samples 10 --json > bench.json\n" +
			"  attest bench --backend mock,cloud-hypervisor web_test.star",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b.progress, b.sized = cmd.ErrOrStderr(), cmd.Flags().Changed("memory")
			if len(args) > 0 {
				b.file = args[0]
			}
			if err := b.check(cmd.Context()); err != nil {
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
	flags.IntVar(&b.memory, "memory", 512, "memory of a machine in `MiB`; that of a FILE unless given")
	flags.BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// A bench is what attest bench was asked for.
type bench struct {
	backends []string // empty: all that are usable
	file     string   // with the machine; empty: one of attest's Debian image
	samples  int
	memory   int
	sized    bool // memory was asked for
	progress io.Writer
}

// commandsPerSample is how many commands are run for each boot.
const commandsPerSample = 20

func (b *bench) check(ctx context.Context) error {
	if b.samples < 1 {
		return fmt.Errorf("--samples=%d: want at least 1", b.samples)
	}
	for _, name := range b.backends {
		if _, ok := vmm.Lookup(name); !ok {
			return fmt.Errorf("--backend: unknown backend %q; want some of %s", name, strings.Join(vmm.Names(), ", "))
		}
	}
	m, err := b.machine(ctx, "")
	if err != nil {
		return err
	}
	if !b.sized {
		b.memory = cmp.Or(m.Memory, vmm.DefaultMemory)
	}
	return access.Check(attest.LabConfig{Machines: []attest.MachineConfig{m}}) // the memory
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
	machine, err := b.machine(ctx, row.Name)
	if err != nil {
		return err
	}
	config := attest.LabConfig{Name: "bench", Machines: []attest.MachineConfig{machine}}
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
func (b *bench) machine(ctx context.Context, backend string) (attest.MachineConfig, error) {
	if found, _ := vmm.Lookup(backend); vmm.Pretends(found) {
		return attest.MachineConfig{Name: "bench", Backend: backend, MockScript: json.RawMessage(`{"answers": [{"command": "true"}]}`)}, nil
	}
	if b.file != "" {
		return b.ofFile(ctx, backend)
	}
	return attest.MachineConfig{Name: "bench", Backend: backend, Image: attest.Debian{}, Memory: b.memory}, nil
}

// ofFile is the machine of the file, on a backend.
func (b *bench) ofFile(ctx context.Context, backend string) (attest.MachineConfig, error) {
	file, err := script.Load(ctx, b.file, script.Options{Backend: backend})
	if err != nil {
		return attest.MachineConfig{}, err
	}
	machines := file.Machines()
	if len(machines) != 1 {
		return attest.MachineConfig{}, fmt.Errorf("%s declares %s; bench measures one", b.file, english.Plural(len(machines), "machine", ""))
	}
	m := machines[0]
	switch {
	case backend != "" && m.Backend != backend:
		return m, &attest.UnsupportedError{Machine: m.Name, Operation: "bench", Backend: backend, Reason: b.file + " gives this machine the backend " + m.Backend}
	case b.sized:
		m.Memory = b.memory
	}
	return m, nil
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
