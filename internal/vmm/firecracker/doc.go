// Package firecracker runs machines on Firecracker, with KVM.
//
// A machine is one process at a time in a directory of its own (package microvm). A
// guest that resets ends the process: where it may reboot, another one begins on the same
// disks. A guest that powers off does not end it: its kernel says on the console that it
// has halted, and the process is killed then.
//
// The API is described in Firecracker's src/firecracker/swagger/firecracker.yaml. The
// server refuses a whole request for one field that it does not know, so a field is sent
// only to a version that has it (api.go).
package firecracker
