// Package jail starts Firecracker by its jailer, as root, so that the jailer finds what
// it needs and leaves nothing.
//
// The jailer (docs/jailer.md of Firecracker) copies Firecracker into a directory, makes that
// the root directory of a mount namespace, makes device nodes in there, becomes another user
// and executes Firecracker. It leaves all of that to its caller when Firecracker ends, closes
// what it has inherited, and wants what the machine needs to be in the directory already.
//
// So attest's own binary is the first process of the PID, mount and network namespaces
// in which the jailer runs (helper.go). It shows the files of the machine in the root directory
// by bind mounts, and what the jailed user may not read through an overlay that gives it
// another owner: the files themselves stay as they are. Below the root directory is the
// machine's own directory of the host, where its sockets are; the device nodes are in memory.
// When the helper ends, or is killed, the kernel ends the rest and undoes the mounts.
package jail
