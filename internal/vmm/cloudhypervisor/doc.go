// Package cloudhypervisor runs machines on cloud-hypervisor, with KVM.
//
// A machine is one process at a time in a directory of its own (package microvm). A
// guest that powers off ends it. A reset would have cloud-hypervisor boot the guest again
// in the same process, and a panic that resets with it: the process is ended when it
// says so, and where the machine may reboot another one begins on the same disks.
//
// The memory is a file with a name (microvm.RAM): then cloud-hypervisor leaves it out of
// what it saves, and attest copies it. A clone maps the copy privately.
//
// The API is described in cloud-hypervisor's vmm/src/api/openapi/cloud-hypervisor.yaml.
// Fields that a version does not know are ignored by it.
package cloudhypervisor
