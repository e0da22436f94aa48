package starlark

import (
	"cmp"
	"fmt"
	"sort"

	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/vmm"
)

// A machine is what machine(…) returns: a name for a guest. The guest itself
// belongs to the lab in which the code runs.
type machine struct {
	config   attest.MachineConfig
	declared event.Position
	maker    *thread // asks for properties; nil: nobody does
}

var (
	_ sl.HasAttrs   = (*machine)(nil)
	_ sl.Comparable = (*machine)(nil)
)

func (m *machine) name() string {
	if m.config.Name == "" {
		return "machine" // its variable has not been seen yet
	}
	return m.config.Name
}

func (m *machine) String() string        { return fmt.Sprintf("<machine %s>", m.name()) }
func (m *machine) Type() string          { return operation.Machine.String() }
func (m *machine) Freeze()               {} // nothing that a script could change
func (m *machine) Truth() sl.Bool        { return true }
func (m *machine) Hash() (uint32, error) { return sl.String(m.name()).Hash() }

// CompareSameType makes two values for one guest equal, as when an operation
// returns a machine that the file has declared.
func (m *machine) CompareSameType(op syntax.Token, y sl.Value, _ int) (bool, error) {
	same := m == y || m.config.Name != "" && m.config.Name == y.(*machine).config.Name
	switch op {
	case syntax.EQL:
		return same, nil
	case syntax.NEQ:
		return !same, nil
	}
	return false, usagef("machines have no order")
}

func (m *machine) AttrNames() []string {
	names := append(operation.Names(operation.Machine), "name")
	sort.Strings(names)
	return names
}

func (m *machine) Attr(name string) (sl.Value, error) {
	if name == "name" {
		return sl.String(m.name()), nil
	}
	o := operation.Find(operation.Machine, name)
	if o == nil {
		return nil, noOperation(operation.Machine, name)
	}
	on := operation.MachineName(m.config.Name)
	switch {
	case !o.Property:
		return operate(m.name(), on, o), nil
	case m.maker == nil || m.maker.lab == nil:
		return nil, noLab(m.name() + "." + name)
	}
	return m.maker.property(on, o)
}

// declare is machine(…).
func (l *loader) declare(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	th := threadOf(t)
	if th.lab != nil && th.session == nil {
		return nil, usagef("machine: machines are declared at the top level of the file, before a test runs; in a running lab it is create_machine(name=…, image=…)")
	}
	if len(args) > 0 {
		return nil, usagef(`machine: arguments are given by name, as in machine(image = debian())`)
	}
	bound, err := th.bind(t, operation.DeclareMachine, nil, kwargs)
	if err != nil {
		return nil, err
	}
	m := &machine{declared: th.position(t), config: operation.MachineConfigOf(bound)}
	c := &m.config
	c.Backend = cmp.Or(c.Backend, l.backend)
	if c.Name == "" {
		c.Name = (&vmm.Command{Line: c.StartCommand}).MachineName() // otherwise its variable's
	}
	l.machines = append(l.machines, m)
	return m, nil
}

// machineList is the variable machines: all that are declared, in their order. A
// script cannot change it.
type machineList struct{ *loader }

var _ sl.Sliceable = machineList{}

func (l machineList) list() *sl.List {
	values := make([]sl.Value, len(l.machines))
	for i, m := range l.machines {
		values[i] = m
	}
	return sl.NewList(values)
}

func (l machineList) String() string        { return l.list().String() }
func (l machineList) Type() string          { return "list" }
func (l machineList) Freeze()               {}
func (l machineList) Truth() sl.Bool        { return len(l.machines) > 0 }
func (l machineList) Hash() (uint32, error) { return 0, usagef("machines cannot be the key of a dict") }
func (l machineList) Len() int              { return len(l.machines) }
func (l machineList) Index(i int) sl.Value  { return l.machines[i] }
func (l machineList) Iterate() sl.Iterator  { return l.list().Iterate() }

func (l machineList) Slice(start, end, step int) sl.Value { return l.list().Slice(start, end, step) }
