// Package wire is the protocol between attest and the agent in a guest, used by
// both sides.
//
// The transport is one stream of bytes without connection semantics, such as a
// virtio serial port: neither side sees the other come or go, and what one of
// them sent before it died may still arrive. So a session begins with a
// preamble, sixteen bytes that occur nowhere else in the stream (Writer splits
// data that happens to contain them), and whoever sees it anywhere, in the
// middle of a frame included, starts to read afresh behind it:
//
//	host   preamble Hello{session, version}
//	agent  preamble Welcome{the same session, who it is}
//	agent  preamble Announce          when it starts; the host answers with Hello
//
// A Hello with a new session drops all that the agent did for the old one.
// Hello can be sent at any time, and again for the same session.
//
// After that both send frames: a header of 12 bytes, big-endian,
//
//	0     magic 0xA7
//	1     type
//	2     channel
//	3     check: the other eleven bytes and it sum to 0 modulo 256
//	4-7   stream
//	8-11  length of the payload, at most 65536
//
// and the payload. The host opens a stream for every operation (Open); the
// agent ends it (Result). In between the channels of the stream carry bytes
// both ways, each with its own window: a sender has Window bytes of credit, and
// gets more (Credit) as the receiver consumes them, so that a slow consumer
// stops its own producer and nobody else. Mux does that part.
package wire
