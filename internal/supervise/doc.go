// Package supervise keeps attest's promise that nothing is left behind.
//
// A supervisor is a second process of the same binary, in a session of its own
// and a child subreaper. It is the parent of every VMM and every helper that a
// run starts, and it owns the run's state directory. It hears from its client
// over one socket; when that socket ends, in whatever way the client ended
// (kill -9 and a panic included), it kills all its descendants, removes
// the state directory and exits. When the supervisor itself is killed, its
// children die by PR_SET_PDEATHSIG and the client notices at once.
package supervise
