package supervise

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The client and the supervisor speak gob over a stream socket. Both are one
// binary, so the format has no versions. Descriptors travel as SCM_RIGHTS with
// the first byte of the message that they belong to.

// maxFiles is SCM_MAX_FD, what one message can carry.
const maxFiles = 253

// request asks the supervisor for one thing: to start a process, to signal one,
// to copy of one's memory, to remove a path at the end, or no longer, or to hold the
// locks on the directories. ID is the
// client's number for the process, or for the copying.
type request struct {
	ID     uint64
	Start  *startRequest
	Copy   *copyRequest
	Signal syscall.Signal
	Own    string
	Disown string
	Locks  int // how many descriptors come along, open until the end
}

// files is how many descriptors come with the request.
func (r *request) files() int {
	switch {
	case r.Start != nil:
		return r.Start.files()
	case r.Copy != nil:
		return 2
	}
	return r.Locks
}

type startRequest struct {
	Path    string
	Args    []string
	Env     []string
	Dir     string
	Null    [3]bool // which of stdin, stdout and stderr are /dev/null
	Extra   int     // descriptors from 3 on
	Isolate bool
	Network bool
	Whole   bool

	Contained bool
	View      *View
}

func (r *startRequest) files() int {
	n := r.Extra
	for _, null := range r.Null {
		if !null {
			n++
		}
	}
	return n
}

// reply says what became of process ID: that it was started (Pid), that it was
// not (Err, and Failure where that says more), or how it ended (Exit); or that a
// copying ended, and what went wrong.
type reply struct {
	ID      uint64
	Pid     int
	Err     syscall.Errno
	Exit    *Status
	Copied  bool
	Failure string
}

// sender writes messages; not for concurrent use.
type sender struct {
	conn *net.UnixConn
	buf  bytes.Buffer
	enc  *gob.Encoder
}

func newSender(c *net.UnixConn) *sender {
	s := &sender{conn: c}
	s.enc = gob.NewEncoder(&s.buf)
	return s
}

func (s *sender) send(message any, files []*os.File) error {
	s.buf.Reset()
	if err := s.enc.Encode(message); err != nil {
		return err
	}
	b := s.buf.Bytes()
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			// Fd also makes the file blocking, which is what programs expect of
			// a descriptor that they inherit.
			fds[i] = int(f.Fd())
		}
		n, _, err := s.conn.WriteMsgUnix(b[:1], unix.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	_, err := s.conn.Write(b)
	return err
}

// receiver reads messages and collects the descriptors that come with them;
// not for concurrent use.
type receiver struct {
	conn *net.UnixConn
	fds  []int
	dec  *gob.Decoder
}

func newReceiver(c *net.UnixConn) *receiver {
	r := &receiver{conn: c}
	r.dec = gob.NewDecoder(r)
	return r
}

// Read implements io.Reader for the decoder.
func (r *receiver) Read(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, _, _, err := r.conn.ReadMsgUnix(b, oob)
	n = max(n, 0) // recvmsg's -1 comes with an error, and is not a count
	if oobn == 0 {
		return n, err
	}
	messages, perr := unix.ParseSocketControlMessage(oob[:oobn])
	if perr != nil {
		return n, perr
	}
	for _, m := range messages {
		fds, perr := unix.ParseUnixRights(&m)
		if perr != nil {
			return n, perr
		}
		r.fds = append(r.fds, fds...)
	}
	return n, err
}

func (r *receiver) receive(message any) error { return r.dec.Decode(message) }

// take removes the oldest n descriptors that have arrived.
func (r *receiver) take(n int) ([]int, error) {
	if len(r.fds) < n {
		return nil, fmt.Errorf("%d descriptors expected, %d arrived", n, len(r.fds))
	}
	fds := r.fds[:n:n]
	r.fds = r.fds[n:]
	return fds, nil
}

// unixConn makes a connection of a file, which it closes.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%s is not a unix socket", f.Name())
	}
	return u, nil
}
