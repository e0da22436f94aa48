package tap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/socketpair"
	"github.com/attest-vm/attest/internal/supervise"
)

// helperName is argv[0] of this binary between the making of the namespace and
// the program.
const helperName = "attest-netns"

// order is what the helper is told, over a socket of packets.
type order struct {
	Links []Link
	Path  string // of the program; empty: none, it was only a try
	Args  []string
	View  *supervise.View // of the program; nil: it sees what this process does
}

// answer is the helper's reply: the descriptors of the TAPs come with the first, or a
// failure. A second one follows if the program does not start.
type answer struct {
	Step   string        `json:",omitempty"` // that failed
	Err    string        `json:",omitempty"` // where Errno says nothing
	Errno  syscall.Errno `json:",omitempty"`
	Remedy string        `json:",omitempty"`
}

// Start starts a program in a network namespace of its own, as
// supervise.Supervisor.Start does, and returns the TAPs that come out of it, in
// the order of links. The caller closes the TAPs, and with them the namespace's last
// traces, when the process has ended: a TAP itself does not report that.
//
// In the namespace the program is root, with no more rights outside than before.
// On a host that forbids it, the error is an *UnavailableError.
func Start(ctx context.Context, s *supervise.Supervisor, c supervise.Command, links []Link) (_ *supervise.Process, taps []*os.File, err error) {
	o := order{Links: links, Path: c.Path, Args: c.Args, View: c.View}
	c.View = nil // the helper makes interfaces first, which are not in it
	if !strings.Contains(o.Path, "/") && o.Path != "" {
		if o.Path, err = exec.LookPath(o.Path); err != nil {
			return nil, nil, err
		}
	}
	if len(o.Args) == 0 {
		o.Args = []string{c.Path}
	}
	ours, theirs, err := socketpair.New(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	c.Path, c.Args = "/proc/self/exe", []string{helperName, strconv.Itoa(3 + len(c.ExtraFiles))}
	c.ExtraFiles = append(c.ExtraFiles[:len(c.ExtraFiles):len(c.ExtraFiles)], theirs)
	c.Network = true
	p, err := s.Start(ctx, c)
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		return nil, nil, failed(namespaceStep, path.Err)
	}
	if err != nil {
		return nil, nil, err
	}
	theirs.Close()
	defer context.AfterFunc(ctx, func() { ours.Close() })()
	taps, err = command(ours, o)
	if err == nil {
		return p, taps, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	p.Kill()
	<-p.Done()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("it ended before it reported anything: %v", p.Status())
	}
	if unavailable := (*UnavailableError)(nil); errors.As(err, &unavailable) {
		return nil, nil, err
	}
	return nil, nil, fmt.Errorf("start %s in a network namespace: %w", o.Path, err)
}

// command gives the helper its order and waits until the program has started.
func command(conn *net.UnixConn, o order) (taps []*os.File, err error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(b); err != nil {
		return nil, err
	}
	taps, err = receive(conn)
	if err == nil && len(taps) != len(o.Links) {
		err = fmt.Errorf("got %d TAPs, want %d", len(taps), len(o.Links))
	}
	if err == nil {
		// The end means that the program has taken the helper's place.
		if _, err = receive(conn); errors.Is(err, io.EOF) {
			return taps, nil
		}
	}
	for _, f := range taps {
		f.Close()
	}
	return nil, err
}

// receive reads one answer.
func receive(conn *net.UnixConn) (taps []*os.File, err error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxLinks))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if messages, _ := unix.ParseSocketControlMessage(oob[:oobn]); len(messages) > 0 {
		fds, _ := unix.ParseUnixRights(&messages[0])
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			taps = append(taps, os.NewFile(uintptr(fd), "tap"))
		}
	}
	var a answer
	if err := json.Unmarshal(buf[:n], &a); err != nil {
		return taps, err
	}
	return taps, a.err()
}

func (a answer) err() error {
	var err error = a.Errno
	if a.Errno == 0 {
		err = errors.New(a.Err)
	}
	switch {
	case a == (answer{}):
		return nil
	case a.Step == "" || err.Error() == "":
		return fmt.Errorf("it reported an incomplete failure: %+v", a)
	case a.Step == execStep:
		return err
	}
	return &UnavailableError{a.Step, err, a.Remedy}
}

// maxLinks is SCM_MAX_FD, what one message can carry.
const maxLinks = 253
