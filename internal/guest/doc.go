// Package guest is the host's side of a guest: a client of the agent in it.
//
// A Client owns the stream to one machine for as long as the machine exists. It
// survives what happens to the guest: after a reboot, a restore from a snapshot
// or garbage on the stream it begins a new session, and what was under way in
// the old one fails with an error that says why. Every error names the machine.
//
// What comes from the guest is not trusted: it is bounded, streamed, or refused.
package guest
