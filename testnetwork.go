package attest

import (
	"context"
	"time"
)

// A TestNetwork is a Network whose operations end the test when they fail.
// Faults that are still in force when the test ends are healed, with a warning.
type TestNetwork struct {
	*Network
	t   TB
	ctx context.Context
}

// A TestFault is a Fault whose operations end the test when they fail.
type TestFault struct {
	*Fault
	t   TB
	ctx context.Context
}

// Network is what connects the machines.
func (l *TestLab) Network() *TestNetwork { return &TestNetwork{l.Lab.Network(), l.t, l.ctx} }

func (n *TestNetwork) fault(f *Fault, err error) *TestFault {
	n.t.Helper()
	check(n.t, err)
	return &TestFault{f, n.t, n.ctx}
}

// Heal ends the fault.
func (f *TestFault) Heal() {
	f.t.Helper()
	check(f.t, f.Fault.Heal(f.ctx))
}

// Heal ends all faults.
func (n *TestNetwork) Heal() {
	n.t.Helper()
	check(n.t, n.Network.Heal(n.ctx))
}

// Drop loses a share of the frames, from 0 to 1.
func (n *TestNetwork) Drop(on Machines, rate float64, opts ...DropOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Drop(n.ctx, on, rate, opts...))
}

// Delay delivers frames later, in their order.
func (n *TestNetwork) Delay(on Machines, mean time.Duration, opts ...DelayOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Delay(n.ctx, on, mean, opts...))
}

// Duplicate delivers a share of the frames twice.
func (n *TestNetwork) Duplicate(on Machines, rate float64, opts ...SideOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Duplicate(n.ctx, on, rate, opts...))
}

// Reorder has a share of the frames overtaken by those that follow.
func (n *TestNetwork) Reorder(on Machines, rate float64, opts ...ReorderOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Reorder(n.ctx, on, rate, opts...))
}

// Corrupt flips one bit in a share of the frames.
func (n *TestNetwork) Corrupt(on Machines, rate float64, opts ...SideOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Corrupt(n.ctx, on, rate, opts...))
}

// Rate limits each direction to so many bits per second.
func (n *TestNetwork) Rate(on Machines, bits int64, opts ...RateOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Rate(n.ctx, on, bits, opts...))
}

// Down loses every frame.
func (n *TestNetwork) Down(on Machines, opts ...SideOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Down(n.ctx, on, opts...))
}

// Flaky is a bad link.
func (n *TestNetwork) Flaky(on Machines, opts ...SideOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Flaky(n.ctx, on, opts...))
}

// Partition lets no frame through between a and b.
func (n *TestNetwork) Partition(a, b Machines, opts ...PartitionOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Partition(n.ctx, a, b, opts...))
}

// Isolate cuts machines off from all others.
func (n *TestNetwork) Isolate(on Machines, opts ...FaultOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Isolate(n.ctx, on, opts...))
}

// MajoritiesRing lets every machine hear a majority, and no two the same one.
func (n *TestNetwork) MajoritiesRing(on Machines, opts ...FaultOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.MajoritiesRing(n.ctx, on, opts...))
}

// Bridge cuts machines into halves that only the one in the middle reaches.
func (n *TestNetwork) Bridge(on Machines, opts ...FaultOption) *TestFault {
	n.t.Helper()
	return n.fault(n.Network.Bridge(n.ctx, on, opts...))
}

// Capture writes all frames of all machines to a pcapng file.
func (n *TestNetwork) Capture(path string) *Capture {
	n.t.Helper()
	c, err := n.Network.Capture(n.ctx, path)
	check(n.t, err)
	return c
}

// Block pulls the cables of the machine.
func (m *TestMachine) Block(networks ...int) {
	m.t.Helper()
	check(m.t, m.Machine.Block(m.ctx, networks...))
}

// Unblock plugs the cables in again.
func (m *TestMachine) Unblock(networks ...int) {
	m.t.Helper()
	check(m.t, m.Machine.Unblock(m.ctx, networks...))
}
