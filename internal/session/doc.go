// Package session is one conversation with a lab: what attest repl, attest debug
// and protocols such as that of the Python module share.
//
// A Session owns a lab, which it makes when the first operation needs one, or
// opens from a directory. What is asked of it comes in two ways: statements of a
// language, and operations of the table by name, with machines by name and
// everything else that has operations (jobs, faults, captures) by a number. What
// happens is published on the session's bus.
//
// A Session does not know who types, or what is at the other end of a socket.
package session
