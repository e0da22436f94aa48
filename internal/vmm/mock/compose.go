package mock

import (
	"strings"

	"github.com/attest-vm/attest/internal/vmm"
)

// A Group is some of the optional interfaces of a VM, which a mock has or lacks
// together.
type Group string

const (
	Saving   Group = "saving"   // vmm.Snapshotter but for vmm.Pauser
	Pausing  Group = "pausing"  // vmm.Pauser, and so vmm.Snapshotter
	Reset    Group = "reset"    // vmm.Rebooter
	Buttons  Group = "buttons"  // vmm.PowerButton, vmm.Interrupter
	Crashing Group = "crashing" // vmm.Crasher
	Links    Group = "links"    // vmm.LinkSetter
	Devices  Group = "devices"  // vmm.Keyboarder, vmm.Screener, vmm.Pointer, vmm.ConsoleWriter
	Control  Group = "control"  // vmm.Monitor, vmm.EventSource
)

type (
	buttons interface {
		vmm.PowerButton
		vmm.Interrupter
	}
	devices interface {
		vmm.Keyboarder
		vmm.Screener
		vmm.Pointer
		vmm.ConsoleWriter
	}
	control interface {
		vmm.Monitor
		vmm.EventSource
	}
)

// compose gives callers a machine without some of its interfaces: they look for
// them by type assertion, so each set needs a type. There are those that lack
// one group, those that lack all, and what processes and canned answers have.
func compose(m *Machine, without []Group) (vmm.VM, bool) {
	switch key := groupsOf(without); key {
	case groupsOf(nil):
		return m, true
	case groupsOf([]Group{Saving}):
		return struct {
			vmm.VM
			vmm.Pauser
			vmm.Rebooter
			buttons
			vmm.Crasher
			vmm.LinkSetter
			devices
			control
		}{m, m, m, m, m, m, m, m}, true
	case groupsOf([]Group{Pausing}):
		return struct {
			vmm.VM
			vmm.Rebooter
			buttons
			vmm.Crasher
			vmm.LinkSetter
			devices
			control
		}{m, m, m, m, m, m, m}, true
	case groupsOf([]Group{Reset}):
		return struct {
			vmm.VM
			vmm.Snapshotter
			buttons
			vmm.Crasher
			vmm.LinkSetter
			devices
			control
		}{m, m, m, m, m, m, m}, true
	case groupsOf([]Group{Buttons}):
		return struct {
			vmm.VM
			vmm.Snapshotter
			vmm.Rebooter
			vmm.Crasher
			vmm.LinkSetter
			devices
			control
		}{m, m, m, m, m, m, m}, true
	case groupsOf([]Group{Crashing}):
		return struct {
			vmm.VM
			vmm.Snapshotter
			vmm.Rebooter
			buttons
			vmm.LinkSetter
			devices
			control
		}{m, m, m, m, m, m, m}, true
	case groupsOf([]Group{Links}):
		return struct {
			vmm.VM
			vmm.Snapshotter
			vmm.Rebooter
			buttons
			vmm.Crasher
			devices
			control
		}{m, m, m, m, m, m, m}, true
	case groupsOf([]Group{Devices}):
		return struct {
			vmm.VM
			vmm.Snapshotter
			vmm.Rebooter
			buttons
			vmm.Crasher
			vmm.LinkSetter
			control
		}{m, m, m, m, m, m, m}, true
	case groupsOf([]Group{Control}):
		return struct {
			vmm.VM
			vmm.Snapshotter
			vmm.Rebooter
			buttons
			vmm.Crasher
			vmm.LinkSetter
			devices
		}{m, m, m, m, m, m, m}, true
	case groupsOf(unlikeProcesses):
		return struct {
			vmm.VM
			vmm.Rebooter
			vmm.PowerButton
			vmm.Crasher
			vmm.LinkSetter
		}{m, m, m, m, m}, true
	case groupsOf(everyGroup):
		return struct{ vmm.VM }{m}, true
	}
	return nil, false
}

var everyGroup = []Group{Saving, Pausing, Reset, Buttons, Crashing, Links, Devices, Control}

// groupNames lists them for people.
func groupNames() string {
	var names []string
	for _, g := range everyGroup {
		names = append(names, string(g))
	}
	return strings.Join(names, ", ")
}

// unlikeProcesses is what processes of the host cannot do; they have a power
// button, but no interrupt that cannot be masked.
var unlikeProcesses = []Group{Saving, Pausing, Buttons, Devices, Control}

type groupSet uint

func groupsOf(list []Group) (set groupSet) {
	for i, g := range everyGroup {
		for _, x := range list {
			if x == g {
				set |= 1 << i
			}
		}
	}
	return set
}
