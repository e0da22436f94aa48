// Package fake is a Firecracker without a machine, for tests on hosts without KVM.
//
// It is a process of its own with Firecracker's command line and API: as strict
// (unknown fields, wrong order), with the texts and process ends that were seen of the
// real one (docs/microvms.md), and with a vsock that is silent, ends connections and
// loses them as that one does (package microvm/fake); memory and state are files that hold
// who the guest was. It does what Options say in addition: refuses, ends, answers half.
//
// A test binary that calls Main first of all can be such a process; Install puts a
// program in front of it that attest takes for a Firecracker.
package fake
