// Package network is the network between the machines of a lab: one Ethernet
// switch in this process for each virtual network, and the plan of addresses
// and names.
//
// A [Switch] knows ports, and a [Port] knows one NIC of one machine. Attach
// makes a port and hands out the VMM's end of it, a connected unix socket, so
// nothing on the host is named, bound or configured and no privilege is needed.
//
// The way of a frame, all of it in the goroutine that reads the sender's port:
//
//	transport → path from the machine → learn, look up → path to the machine → queue
//
// A goroutine per port empties the queue into the transport, unless what waits is
// so little that the goroutine that brings it writes it at once. Reading never
// waits for writing: a machine that stops reading overruns its own queue, loses
// frames (counted) and hurts nobody else. The two paths of a port are where
// things happen to frames: a path that nothing is on costs one load.
//
// Frames are not copied between the system call that reads them and the one
// that writes them. They lie in the order of the wire, length prefixes included,
// in large reference-counted chunks, and neighbours that go to one port stay one
// piece of memory: a burst between two machines is one read and one write.
//
// A [Fabric] is the switches of one lab with the faults on them: a [Rule] becomes
// stages on the paths of the ports that it concerns (see impairment), and a
// [Capture] one on the paths of all.
package network
