// Package microvm is what backends of small VMMs share.
//
// Firecracker and cloud-hypervisor are asked over HTTP on a unix socket (API), reach
// their guests by a vsock that is a unix socket on the host (Vsock), take TAPs by name
// (Start), write the serial console to their standard output (Console), and give the
// guest's disks no serials that attest could count on (Arguments).
//
// A VMM runs in a directory of its own, with relative names only, since a snapshot has
// the names of sockets and disks in it: a clone finds its own files under the same
// names.
package microvm
