package mock

import (
	"reflect"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/vmm"
)

// A Group is one or some of the optional interfaces of a VM, which a mock can lack.
type Group string

const (
	Saving   Group = "saving"   // vmm.Snapshotter but for vmm.Pauser
	Pausing  Group = "pausing"  // vmm.Pauser, and so vmm.Snapshotter
	Reset    Group = "reset"    // vmm.Rebooter
	Power    Group = "power"    // vmm.PowerButton
	NMI      Group = "nmi"      // vmm.Interrupter
	Sleep    Group = "sleep"    // vmm.Waker
	Crashing Group = "crashing" // vmm.Crasher
	Links    Group = "links"    // vmm.LinkSetter
	Keyboard Group = "keyboard" // vmm.Keyboarder
	Pointer  Group = "pointer"  // vmm.Pointer
	Screen   Group = "screen"   // vmm.Screener
	Input    Group = "input"    // vmm.ConsoleWriter
	Monitor  Group = "monitor"  // vmm.Monitor
	Events   Group = "events"   // vmm.EventSource

	// Some together:
	Buttons Group = "buttons" // Power, NMI
	Devices Group = "devices" // Keyboard, Pointer, Screen, Input
	Control Group = "control" // Monitor, Events
	All     Group = "all"
)

// everyGroup is each Group that is not several others.
var everyGroup = []Group{Saving, Pausing, Reset, Power, NMI, Sleep, Crashing, Links, Keyboard, Pointer, Screen, Input, Monitor, Events}

// together are the others.
var together = map[Group][]Group{
	Buttons: {Power, NMI},
	Devices: {Keyboard, Pointer, Screen, Input},
	Control: {Monitor, Events},
	All:     everyGroup,
}

var interfaces = map[Group][]reflect.Type{
	Saving:   {reflect.TypeFor[vmm.Snapshotter]()},
	Pausing:  {reflect.TypeFor[vmm.Pauser](), reflect.TypeFor[vmm.Snapshotter]()},
	Reset:    {reflect.TypeFor[vmm.Rebooter]()},
	Power:    {reflect.TypeFor[vmm.PowerButton]()},
	NMI:      {reflect.TypeFor[vmm.Interrupter]()},
	Sleep:    {reflect.TypeFor[vmm.Waker]()},
	Crashing: {reflect.TypeFor[vmm.Crasher]()},
	Links:    {reflect.TypeFor[vmm.LinkSetter]()},
	Keyboard: {reflect.TypeFor[vmm.Keyboarder]()},
	Pointer:  {reflect.TypeFor[vmm.Pointer]()},
	Screen:   {reflect.TypeFor[vmm.Screener]()},
	Input:    {reflect.TypeFor[vmm.ConsoleWriter]()},
	Monitor:  {reflect.TypeFor[vmm.Monitor]()},
	Events:   {reflect.TypeFor[vmm.EventSource]()},
}

// groupNames lists all of them for people.
func groupNames() string {
	names := make([]string, 0, len(everyGroup)+len(together))
	for _, g := range slices.Concat(everyGroup, []Group{Buttons, Devices, Control, All}) {
		names = append(names, string(g))
	}
	return strings.Join(names, ", ")
}

func isGroup(g Group) bool { return interfaces[g] != nil || together[g] != nil }

// unlikeProcesses is what processes of the host cannot do; they have a power
// button, but no interrupt that cannot be masked.
var unlikeProcesses = []Group{Saving, Pausing, NMI, Sleep, Devices, Control}

// limited is a machine that lacks some groups (vmm.As).
type limited struct {
	*Machine
	hidden map[reflect.Type]bool
}

var _ vmm.Limited = (*limited)(nil)

// limit gives callers a machine without some of its interfaces.
func limit(m *Machine, without []Group) *limited {
	l := &limited{m, map[reflect.Type]bool{}}
	for _, g := range without {
		for _, single := range append(slices.Clone(together[g]), g) {
			for _, optional := range interfaces[single] {
				l.hidden[optional] = true
			}
		}
	}
	return l
}

func (l *limited) Whole() vmm.VM                { return l.Machine }
func (l *limited) Hides(what reflect.Type) bool { return l.hidden[what] }
