// Package tap starts programs in a network namespace of their own, with TAP
// interfaces whose other ends belong to this process: for a VMM that takes
// nothing but a TAP, and for plain programs that shall be on a lab's network.
//
// Nothing of it is on the host: the namespace is made for one process, goes with
// it, and needs no root where users may make user namespaces. What needs
// the namespace's capabilities, the making of interfaces, is done by attest's own binary
// in it, which sends the TAPs' descriptors back and then becomes the
// program.
//
// A TAP has one end that somebody reads and writes, and one that is an interface
// of the kernel's. For a plain program this process has the first end and the
// program's system calls use the second. A VMM has the first end of a TAP of
// its own; a bridge without any wit joins it to this process's TAP. The kernel
// then does on the way what a VMM's TAP may leave to it: checksums, and frames
// of 64 KiB to be cut into the size of the network's.
package tap
