package suite

import (
	"context"
	"strings"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/script"
)

// A variant is a file with machines on one backend: that of those which name none.
type variant struct {
	backend string // empty or "auto": attest's default
	script  script.File
}

// backends are those of the options, where there are several: each test runs on each.
func (o *Options) backends() ([]string, error) {
	if !strings.Contains(o.Host.Backend, ",") {
		return nil, nil
	}
	names := strings.Split(o.Host.Backend, ",")
	if err := script.CheckBackends("--backend", names); err != nil {
		return nil, err
	}
	return names, nil
}

// load loads a file for each of its backends: those that the options name, or else those
// that it names itself. What it says while it is loaded, it says once.
func (r *run) load(ctx context.Context, path string, options script.Options, named []string) (variants []variant, err error) {
	if named == nil && (options.Backend == "" || options.Backend == "auto") {
		if named, err = script.Backends(path, options.Language); err != nil {
			return nil, err
		}
	}
	if named == nil {
		if f, err := r.loadAuto(ctx, path, &options); f != nil || err != nil {
			return []variant{{options.Backend, f}}, err
		}
		named = []string{options.Backend}
	}
	for i, name := range named {
		options.Backend = name
		if i > 0 {
			options.Stdout, ctx = nil, event.WithBus(ctx, nil)
		}
		f, err := script.Load(ctx, path, options)
		if err != nil {
			return nil, err
		}
		variants = append(variants, variant{name, f})
	}
	return variants, nil
}

// loadAuto loads a file that leaves its backend to attest. It returns nil where options say
// which one it is by now.
func (r *run) loadAuto(ctx context.Context, path string, options *script.Options) (script.File, error) {
	if options.Backend != "" && options.Backend != "auto" {
		return nil, nil
	}
	opened, own := []string{path}, *options
	own.Opened = func(path string) {
		opened = append(opened, path)
		if options.Opened != nil {
			options.Opened(path)
		}
	}
	f, err := script.Load(ctx, path, own)
	if err != nil {
		return nil, err
	}
	name := r.resolve(ctx, f.Machines(), opened)
	if name == "" {
		return f, nil
	}
	options.Backend, options.Stdout = name, nil // it has said what it says
	if f, err := script.Load(event.WithBus(ctx, nil), path, *options); err == nil {
		return f, nil
	}
	options.Backend = "" // what it cannot do, nobody has seen before
	return f, nil
}

// passes are the ways in which the tests of a file run.
func (r *run) passes(f *file) (passes []*pass) {
	for _, v := range f.variants {
		on := *f
		on.script = v.script
		for _, p := range boots[r.opts.Boot] {
			p.suite, p.file = r, &on
			if len(f.variants) > 1 {
				p.label = strings.TrimSuffix(v.backend+"-"+p.label, "-")
			}
			passes = append(passes, &p)
		}
	}
	return passes
}
