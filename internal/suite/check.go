package suite

import (
	"context"
	"slices"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
)

// A CheckedFile is a test file that was loaded, and not run.
type CheckedFile struct {
	Path     string
	Machines []attest.MachineConfig
	Tests    []string
	Err      error // why it cannot be run; nil if nothing speaks against it
}

// Check loads test files and looks at their machines, as Run does before anything boots. An
// error is one of usage, or that ctx has ended.
func Check(ctx context.Context, opts Options) ([]CheckedFile, error) {
	machines, _, err := configured(opts.MachineConfig)
	if err != nil {
		return nil, err
	}
	r := &run{opts: opts}
	p, err := r.plan(ctx, machines)
	if err != nil {
		return nil, err
	}
	var out []CheckedFile
	for _, f := range p.files {
		c := CheckedFile{Path: f.path, Err: f.err}
		if f.err == nil {
			c.Machines, c.Tests = f.script.Machines(), f.names()
			for _, v := range f.variants {
				if c.Err == nil {
					c.Err = access.Check(attest.LabConfig{Machines: slices.Clone(v.script.Machines()), Networks: v.script.Networks()})
				}
			}
		}
		out = append(out, c)
	}
	return out, nil
}
