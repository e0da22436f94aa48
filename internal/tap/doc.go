// Package tap starts programs in a network namespace of their own, with TAP
// interfaces whose other ends belong to this process: for a VMM that takes
// nothing but a TAP, and for plain programs on a lab's network.
//
// Nothing of it is on the host: the namespace is made for one process, goes with
// it, and needs no root where users may make user namespaces. What needs
// the namespace's capabilities, the making of interfaces, is done by attest's own binary
// in it, which sends the TAPs' descriptors back and then becomes the
// program.
//
// A TAP has one end that a process reads and writes, and one that is an interface
// of the kernel. For a plain program this process has the first end and the
// program's system calls use the second. A VMM has the first end of a TAP of
// its own, and a bridge joins it to this process's TAP. On the way the kernel
// then does what a VMM may leave to its TAP: it computes checksums, and cuts
// frames of 64 KiB to the size of the network's.
package tap
