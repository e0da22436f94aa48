// Package fake is a cloud-hypervisor without a machine, for tests on hosts without KVM.
//
// It is a process of its own with cloud-hypervisor's command line, API, event monitor and
// serial socket: with the order of requests, the texts and the process ends that were seen
// of the real one (docs/microvms.md). It leaves out of a snapshot the memory that is a file
// with a name and shared, and a reset of its guest boots another in the same process. It
// does what Options say in addition: refuses, ends, answers half.
//
// A test binary that calls Main first of all can be such a process; Install puts a
// program in front of it that attest takes for a cloud-hypervisor.
package fake
