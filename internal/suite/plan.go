package suite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/machineconfig"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// A plan is what there is to run.
type plan struct {
	files []*file
	said  []event.Record // while the files were loaded
}

// A file is one test file.
type file struct {
	path     string
	label    string      // event.Labels
	script   script.File // of the first variant, or of the pass
	variants []variant
	err      error         // why it cannot be run
	tests    []script.Test // those that are selected
}

// alone says that one lab is enough for the file: there is nothing to keep apart.
func (f *file) alone() bool { return len(f.tests) == 1 }

// begins is what the file takes of the host before its tests: without setup,
// machines start in the tests only.
func (f *file) begins() need {
	if f.script.Setup() != nil || f.alone() {
		return f.need()
	}
	return need{}
}

// vmmMemory is what a VMM takes beside the memory of its guest, in MiB: its own,
// and translated code when guests are emulated.
const vmmMemory = 128

// mockBackend has no VMM, and mockMemory is what the processes of such a machine
// take, in MiB.
const (
	mockBackend = "mock"
	mockMemory  = 64
)

// need is what a lab of the file takes of the host.
func (f *file) need() need {
	var n need
	for _, m := range f.script.Machines() {
		if m.Backend == mockBackend {
			n = n.plus(need{mockMemory, 0})
			continue
		}
		n = n.plus(need{cmp.Or(m.Memory, vmm.DefaultMemory) + vmmMemory, cmp.Or(m.CPUs, 1)})
	}
	return n
}

func (f *file) names() []string {
	names := make([]string, len(f.tests))
	for i, t := range f.tests {
		names[i] = t.Name
	}
	return names
}

// plan finds and loads all files. An error is one of usage, or that somebody
// stopped it; what is wrong with a file is in the plan.
func (r *run) plan(ctx context.Context, machines []attest.MachineConfig) (*plan, error) {
	if b := r.opts.Boot; b != "" && boots[b] == nil {
		return nil, refusef(event.Invalid, "--boot=%s: want cold, warm or both", b)
	}
	paths, err := discover(r.opts.Files)
	if err != nil {
		return nil, err
	}
	if err := r.opts.checkState(paths); err != nil {
		return nil, err
	}
	backends, err := r.opts.backends()
	if err != nil {
		return nil, err
	}
	p := &plan{}
	options := script.Options{
		Stdout: r.opts.stdout(), Machines: slices.Concat(machines, r.opts.Machines), Backend: r.opts.Host.Backend,
		Language: r.opts.Language, Driver: r.opts.Driver, Vars: r.opts.Vars,
	}
	if r.early != nil && len(paths) == 1 {
		options.Early = r.early.start
	}
	if r.opts.Standing != nil {
		options.Opened = r.opts.Standing.follow
	}
	if r.opts.OutDir != "" {
		if err := os.MkdirAll(r.opts.OutDir, 0o755); err != nil {
			return nil, refusef(event.Invalid, "output directory: %v", err)
		}
	}
	var bus event.Bus
	bus.Subscribe(func(rec event.Record) { p.said = append(p.said, rec) })
	labels := event.Labels(paths)
	for i, path := range paths {
		f := &file{path: path, label: labels[i]}
		p.files = append(p.files, f)
		r.opts.Standing.follow(path)
		if f.err = context.Cause(ctx); f.err == nil {
			ctx := event.WithScope(event.WithBus(ctx, &bus), event.Scope{File: path})
			if f.variants, f.err = r.load(ctx, path, options, backends); f.err == nil {
				f.script = f.variants[0].script
			}
		}
		if err := context.Cause(ctx); err != nil && !timedOut(err) {
			return nil, err
		}
		if f.err == nil && !r.needsBuild(f) {
			f.err = f.checkFiles()
		}
		switch {
		case f.err != nil:
		case r.opts.SaveTo+r.opts.From+r.opts.StateDir != "" && len(f.variants) > 1:
			f.err = refusef(event.Invalid, "%s: a state is of machines on one backend, and these are on %d; choose one by --backend", path, len(f.variants))
		case r.opts.StateDir != "" && len(f.script.Tests()) > 1:
			f.err = refusef(event.Invalid, "%s: it has several tests, each with machines of its own; the state of machines can be kept for a file with one", path)
		case r.opts.SaveTo == "":
			f.tests = f.script.Tests()
		case f.script.Setup() == nil:
			f.err = refusef(event.Invalid, "%s: it has no setup() to make the state", path)
		}
	}
	return p, nil
}

func (p *plan) invalid() bool {
	return slices.ContainsFunc(p.files, func(f *file) bool { return f.err != nil })
}

// refuseSetups refuses files that have no tests, but a setup: what it leaves can only be
// saved.
func (p *plan) refuseSetups() {
	for _, f := range p.files {
		if f.err == nil && len(f.tests) == 0 {
			f.err = refusef(event.Invalid, "%s: the file has setup() and nothing to run: no function test_* and no main(); attest snapshot build writes the state that setup leaves", f.path)
		}
	}
}

// setAside takes out the files that cannot be run and of which no test is selected:
// who runs one test does not have to mend all files first.
func (p *plan) setAside(re *regexp.Regexp) {
	if re == nil || !slices.ContainsFunc(p.files, func(f *file) bool { return f.err == nil }) {
		return
	}
	p.files = slices.DeleteFunc(p.files, func(f *file) bool {
		if f.err == nil || timedOut(f.err) {
			return false
		}
		names, known := script.Names(f.path)
		if !known || slices.ContainsFunc(names, func(name string) bool { return selects(re, f.path, name) }) {
			return false
		}
		text, _, _ := strings.Cut(f.err.Error(), "\n")
		p.said = append(p.said, event.Record{Event: event.Log{Level: "warning",
			Text: fmt.Sprintf("%s cannot be run; --run %q selects none of its tests: %s", f.path, re, text)}})
		return true
	})
}

// selects reports whether --run selects a test.
func selects(re *regexp.Regexp, path, name string) bool {
	return re.MatchString(name) || re.MatchString(path+":"+name)
}

// checkState refuses what makes no sense of the options about saved states.
func (o *Options) checkState(paths []string) error {
	switch {
	case o.SaveTo != "" && len(paths) != 1:
		return refusef(event.Invalid, "only the state of one file can be saved, not of %d", len(paths))
	case o.SaveTo != "" && o.Boot == "both":
		return refusef(event.Invalid, "--boot=both: want one way to start for a state to save")
	case o.SaveTo != "" && notEmpty(o.SaveTo):
		return refusef(event.Invalid, "directory %s is not empty; name another, or empty it", o.SaveTo)
	case o.From != "" && len(paths) != 1:
		return refusef(event.Invalid, "--from %s: only one file can begin from a saved state, not %d", o.From, len(paths))
	case o.From != "" && o.Boot != "" && o.Boot != "warm":
		return refusef(event.Invalid, "--from %s: machines that begin from a saved state do not boot (--boot=%s)", o.From, o.Boot)
	}
	return nil
}

func notEmpty(dir string) bool {
	names, err := os.ReadDir(dir)
	return len(names) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// selectTests keeps the tests that match.
func (p *plan) selectTests(re *regexp.Regexp) error {
	if re == nil {
		return nil
	}
	total, left := 0, 0
	for _, f := range p.files {
		total += len(f.tests)
		f.tests = slices.DeleteFunc(slices.Clone(f.tests), func(t script.Test) bool {
			return !selects(re, f.path, t.Name)
		})
		left += len(f.tests)
	}
	if left == 0 {
		return refusef(event.Invalid, "--run %q selects none of the %d tests", re, total)
	}
	return nil
}

// checkVars refuses a variable that no file asks for: it is misspelt.
func (p *plan) checkVars(vars map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		asked := slices.ContainsFunc(p.files, func(f *file) bool {
			c, ok := f.script.(script.Comparer)
			return !ok || c.Asks(name)
		})
		if !asked {
			return refusef(event.Invalid, "--var %s: no test file asks for it by var(%q)", name, name)
		}
	}
	return nil
}

// discover makes files and directories into a list of files, each once.
func discover(names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, refusef(event.Invalid, "there is no test file to run")
	}
	var out []string
	seen := map[string]bool{}
	add := func(path string) {
		if clean := filepath.Clean(path); !seen[clean] {
			seen[clean] = true
			out = append(out, path)
		}
	}
	for _, name := range names {
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, refusef(event.Invalid, "%s: no such file", name)
		case err != nil:
			return nil, refusef(event.Invalid, "%v", err)
		case !info.IsDir():
			add(name)
			continue
		}
		found, err := inDirectory(name)
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			add(path)
		}
	}
	return out, nil
}

// inDirectory finds the test files below a directory, in alphabetical order.
func inDirectory(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case !d.IsDir() && script.IsTest(d.Name()):
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		return nil, refusef(event.Invalid, "%v", err)
	}
	if len(out) == 0 {
		var names []string
		for _, l := range script.Languages() {
			if !l.OnlyNamed {
				names = append(names, "*_test"+l.Ending)
			}
		}
		return nil, refusef(event.Invalid, "%s: no %s in this directory", dir, strings.Join(names, " or "))
	}
	return out, nil
}

// ConfiguredMachines are the machines of a machine configuration; none if path is empty.
func ConfiguredMachines(path string) ([]attest.MachineConfig, error) {
	machines, _, err := configured(path)
	return machines, err
}

func configured(path string) ([]attest.MachineConfig, time.Duration, error) {
	if path == "" {
		return nil, 0, nil
	}
	config, err := machineconfig.Read(path)
	if err != nil {
		return nil, 0, asInvalid(err)
	}
	machines, err := machinesOf(config)
	if err != nil {
		return nil, 0, asInvalid(err)
	}
	return machines, config.GlobalTimeout, nil
}

// machinesOf are the machines of a configuration, for those backends that this
// version has.
func machinesOf(f *machineconfig.File) ([]attest.MachineConfig, error) {
	var out []attest.MachineConfig
	for i, m := range f.Machines {
		if len(m.TAPs) > 0 {
			return nil, refusef(event.Unsupported, "machine configuration %s: machine %q: /machines/%d/tap_interfaces is not supported: attest makes TAPs of its own; name the machine's networks by vlans", f.Path, m.Name, i)
		}
		if key := m.ForOtherImages(); m.Image != nil && key != "" {
			return nil, refusef(event.Invalid, "machine configuration %s: machine %q: /machines/%d/%s: it is for a machine without an image; take one of the two out", f.Path, m.Name, i, key)
		}
		if len(m.MockScript) > 0 {
			if _, err := mock.ParseScript(m.MockScript); err != nil {
				return nil, refusef(event.Invalid, "machine configuration %s: machine %q: /machines/%d/script%v", f.Path, m.Name, i, err)
			}
		}
		settings := m.Settings()
		if m.KernelImage != "" {
			settings["image"] = attest.Disk{Path: m.Rootfs, Format: "raw", Boot: image.KernelBoot, Kernel: m.KernelImage, Initrd: m.Initrd, Cmdline: m.KernelArgs}
		}
		if m.Image != nil {
			img, err := operation.ImageOfJSON(m.Image)
			if err != nil {
				return nil, refusef(event.Invalid, "machine configuration %s: machine %q: /machines/%d/image: %v", f.Path, m.Name, i, err)
			}
			settings["image"] = img
		}
		c, err := operation.MachineConfigOfFile(settings)
		if err == nil {
			err = absoluteFiles(&c)
		}
		if err != nil {
			return nil, refusef(event.Invalid, "machine configuration %s: machine %q: /machines/%d/%v", f.Path, m.Name, i, err)
		}
		if err := access.Check(attest.LabConfig{Machines: []attest.MachineConfig{c}}); err != nil {
			return nil, refusef(event.Invalid, "machine configuration %s: %v", f.Path, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// absoluteFiles makes the host's paths of Files and Mount absolute, as those of images
// are: they begin at the current directory.
func absoluteFiles(c *attest.MachineConfig) (err error) {
	for target, f := range c.Files {
		if f.Path != "" {
			if f.Path, err = filepath.Abs(f.Path); err != nil {
				return err
			}
			c.Files[target] = f
		}
	}
	for target, path := range c.Mount {
		if path != "" {
			if c.Mount[target], err = filepath.Abs(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// asInvalid makes an error that has no kind of its own one of usage.
func asInvalid(err error) error {
	if attest.StatusOf(err) == attest.Failed {
		return refusef(event.Invalid, "%v", err)
	}
	return err
}
