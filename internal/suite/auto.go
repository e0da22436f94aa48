package suite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/vmm"
)

// cheap are the backends whose machines start faster than those of attest's default, the
// fastest first. They can do less.
var cheap = []string{"firecracker", "cloud-hypervisor"}

var word = regexp.MustCompile(`\w+`)

// cheapest is the backend for the machines of a file that name none: the first of cheap
// that this host has and that can do what the file asks for, or else attest's default. It is
// asked of the file's text and of those of the files that it loads: an operation that is named
// anywhere may be called. why is for a person; empty: this host leaves no choice.
func cheapest(ctx context.Context, machines []attest.MachineConfig, opened []string) (name, why string) {
	free := slices.DeleteFunc(slices.Clone(machines), func(m attest.MachineConfig) bool {
		return m.Backend != "" && m.Backend != "auto"
	})
	if len(free) == 0 {
		return "", ""
	}
	var reasons []string
	choice := false
	needs := named(opened)
	for _, name := range cheap {
		err := usable(name)
		choice = choice || err == nil
		for _, m := range free {
			m.Backend = name
			if err == nil {
				err = access.Fits(ctx, m)
			}
			for _, o := range needs {
				switch {
				case err != nil:
				case o.Needs != "":
					err = access.Supports(ctx, m, o.Name, o.Needs)
				case slices.Contains(carrier, o.Name):
					err = errors.New(o.Name + ": a guest there does not see that its link is down")
				}
			}
		}
		if err == nil {
			return name, strings.Join(append([]string{"it can do what the file asks for"}, reasons...), "; ")
		}
		reasons = append(reasons, fmt.Sprintf("not %s: %v", name, err))
	}
	if !choice {
		return "", "" // attest doctor says why
	}
	return "", strings.Join(reasons, "; ")
}

// carrier are the operations after which a guest on a small VMM sees something else than
// one on QEMU.
var carrier = []string{"block", "unblock"}

// usable is why this host has no machines of a backend.
func usable(name string) error {
	b, ok := vmm.Lookup(name)
	if !ok {
		return errors.New("this attest does not have it")
	}
	err := b.Check(vmm.Config{Boot: &vmm.Hardware{}})
	var missing *doctor.MissingError
	if errors.As(err, &missing) {
		return fmt.Errorf("%s: %s", missing.What, missing.Reason)
	}
	var unsupported *vmm.UnsupportedError
	if errors.As(err, &unsupported) && unsupported.Reason != "" {
		return errors.New(unsupported.Reason)
	}
	return err
}

// named are the operations of machines that files may call, and which not all machines have.
func named(files []string) (found []*operation.Operation) {
	words := map[string]bool{}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // then it was not loaded either
		}
		for _, w := range word.FindAllString(string(text), -1) {
			words[w] = true
		}
	}
	for _, o := range operation.All(operation.Machine) {
		special := o.Needs != "" || slices.Contains(carrier, o.Name)
		if special && (words[o.Name] || slices.ContainsFunc(o.Aliases, func(a string) bool { return words[a] })) {
			found = append(found, o)
		}
	}
	return found
}

// resolve finds the backend for a file that leaves it to attest, and says which and why.
func (r *run) resolve(ctx context.Context, machines []attest.MachineConfig, opened []string) string {
	name, why := cheapest(ctx, machines, opened)
	switch {
	case name != "":
		event.Logf(ctx, "backend auto: %s, since %s", name, why)
	case why != "":
		event.Publish(ctx, event.Log{Level: "debug", Text: "backend auto: " + "qemu, since " + why})
	}
	return name
}
