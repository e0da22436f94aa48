package supervise

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// connected returns two ends of a control socket.
func connected(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		if ends[i], err = unixConn(os.NewFile(uintptr(fd), "control")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

// A peer that is killed before it has read everything resets the connection.
// That ends the receiver like any other end, and the supervisor cleans up.
func TestReceiveFromResetConnection(t *testing.T) {
	ours, theirs := connected(t)
	if err := newSender(ours).send(reply{ID: 1}, nil); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	var r request
	if err := newReceiver(ours).receive(&r); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want %v", err, unix.ECONNRESET)
	}
}
