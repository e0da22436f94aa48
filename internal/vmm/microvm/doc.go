// Package microvm is what backends of small VMMs share.
//
// A machine is one process of the VMM after the other (Machine, which asks a VMM for what
// is particular to it). Firecracker and cloud-hypervisor are asked over HTTP on a unix
// socket (API), reach their guests by a vsock that is a unix socket on the host (Vsock),
// take TAPs by name (Start), and tell the end of a guest by what its kernel says on the
// serial console (Console).
//
// A VMM runs in a directory of its own, with relative names only, since a snapshot has
// the names of sockets and disks in it: a clone finds its own files under the same
// names.
package microvm
