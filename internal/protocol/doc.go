// Package protocol lets a program in another process use a session: a front end in
// another language, an editor, an agent.
//
// docs/protocol.md describes it so that one can implement it from there: JSON-RPC 2.0,
// one message a line, in both directions over one stream. The operations are those of the table
// (internal/operation), which the reply to hello carries; nothing here knows a single
// one of them.
//
// The peer is not trusted to be right. What it sends wrongly is an error to it, or the end
// of the connection with a *PeerError that says what it sent. What it had asked
// for ends with the connection.
package protocol
