// Package wire is the protocol between attest and the agent in a guest, used by
// both sides.
//
// # Connections
//
// The transport is a stream of bytes. It may have no connection semantics, such as a
// virtio serial port: neither side sees the other come or go, and what one of
// them sent before it died may still arrive. Or it is a connection, such as one of
// vsock, which may be cut at any byte, by a snapshot for instance, and followed by
// another; one that its host has given up may arrive later still.
//
// So each side begins with a preamble, sixteen bytes that occur nowhere else in the
// stream (data that happens to contain them is split), and whoever sees it anywhere,
// in the middle of a frame included, starts to read afresh behind it:
//
//	host   preamble Hello{session, version, try}
//	agent  preamble Welcome{the same session and try, received, over, who it is}
//	host   preamble Start{received}
//	agent  preamble Announce{instance, boot}      the host answers with Hello
//
// # Sessions
//
// A session is what one host has under way with one agent. Its name is random, and the
// host chooses it. It outlives the connection: after a cut the host says Hello on the
// next one with the same session.
//
// Welcome says how many frames of the session the agent has received: none of one that
// it does not know. It changes nothing yet. Start makes its connection the one that
// carries the session, which is a new one if the agent did not know it; a session
// that was there before ends, with all its operations, and is over from then on. The
// agent ignores Start of a session that is over, and of the same session with an
// older try: try counts the Hellos of a host, so of two connections the later one
// counts. A connection without Start does not matter. Of the frames of a session
// the agent takes only those that come on the connection that carries it, and the
// host none between its Hello and the Welcome with the same try.
//
// Hello can be said at any time. An agent announces itself when it starts to serve a
// stream that has no connections, and when it has read bytes that make no sense; one that
// serves connections waits for Hello. The instance is that of the agent's process, the
// boot that of the guest's kernel. A host that finds another instance knows by the boot
// whether the guest has restarted or only its agent; what was under way is lost then. The
// same is true of a session that is over, and of an agent that has less than it
// has acknowledged: its guest was restored from a snapshot. A host that begins with
// a restored guest uses a new session.
//
// # Frames
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
// and the payload. Hello, Welcome, Announce, Ping and Pong are the same in every
// version of the protocol, so that each side can name the version of the other;
// the rest is understood by sides of the same version only. Ping and Pong belong to
// the connection.
//
// The frames from Open on belong to the session, and are numbered. Behind the header
// they have 8 bytes more, which the length does not count,
//
//	0-3   number: 1 for the first such frame that this side sends in the session
//	4-7   ack: the number of the last one that it has received; 0 for none
//
// Each side keeps what it has sent until that is acknowledged. When a connection begins
// to carry the session, it sends what follows the number in Welcome or Start again. A
// receiver ignores a number that it has had, and a gap breaks the rules. A side that
// has received 256 KiB since it sent an ack, and has nothing to send, sends Ack, whose
// stream is the number; Ack is not numbered. A side that keeps 1 MiB sends no more Data
// or Restart until some of it is acknowledged, so that neither needs much memory for
// a session that nobody goes on with.
//
// # Operations
//
// The host opens a stream for every operation (Open: its name, a NUL, its request as
// JSON, a NUL, and raw bytes that belong to it); the agent ends it (Result, JSON). In
// between the channels of the stream carry bytes both ways, each with its own window:
// a sender has Window bytes of credit, and gets more (Credit) as the receiver consumes
// them, so that a slow consumer stops its own producer and nobody else. EOF ends a
// channel, Restart says that what came on it belongs to an attempt that has failed.
// Cancel gives the operation up, and its Result still follows; Signal is for the command
// that it runs. Frames for a stream whose Result was sent are ignored by the agent. Mux does
// that part. The operations and their messages are in message.go.
//
// A command that is run as a job (ExecRequest.Job) does not end with its session. It goes
// on, and the agent keeps what the host had not acknowledged of its output and what comes
// after that, the last 256 KiB of each stream. The next host lists the jobs and
// adopts them: a stream of that operation is to the job what the first one was. The host says
// how much of the output it has, counted from the start of the job, and gets what follows. A
// job that is not adopted goes on all the same; the last 64 that have ended are kept.
//
// # What breaks the rules
//
// An agent is not trusted. A host that gets what does not follow from the above ends the
// session with an error and begins another. An agent that gets it ends the session,
// too, and announces itself.
package wire
