// Package fake is what the fakes of small VMMs share: the process that a test binary becomes
// (Install), a guest (Guest), its vsock (Vsock), its network cards (Plug), and ways to go
// wrong (Faults).
//
// The guest is attest's agent in the same process, which leaves the host's name, clock and
// files alone.
package fake
