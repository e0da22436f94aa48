// Package guest is the host's side of a guest: a client of the agent in it.
//
// A Client owns the stream to one machine for as long as the machine exists. It
// survives what happens to the guest. When the connection is cut, what is under way
// goes on over the next one. After a reboot, or garbage on the stream, it begins a new
// session, and what was under way in the old one fails with an error that says why.
// Every error names the machine, and no operation waits for the guest for ever.
//
// What comes from the guest is not trusted: it is bounded, streamed, or refused.
package guest
