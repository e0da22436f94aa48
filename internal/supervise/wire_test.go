package supervise

import (
	"bytes"
	"encoding/gob"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// connected returns two ends of a control socket.
func connected(t testing.TB) (a, b *net.UnixConn) {
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

// FuzzReceive: what ends, or is damaged, is an error of the control socket and not a crash; what
// comes through needs the descriptors that came along.
func FuzzReceive(f *testing.F) {
	var b bytes.Buffer
	for _, r := range []request{{ID: 1, Start: &startRequest{Path: "/bin/true", Args: []string{"true"}, View: &View{Read: []string{"/usr"}}}}, {ID: 2, Signal: 9}, {Own: "/x"}, {Locks: 2}, {ID: 3, Copy: &copyRequest{Process: 1}}} {
		b.Reset()
		if err := gob.NewEncoder(&b).Encode(r); err != nil {
			f.Fatal(err)
		}
		f.Add(slices.Clone(b.Bytes()))
	}
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := connected(t)
		var writing sync.WaitGroup
		writing.Go(func() {
			theirs.Write(data)
			theirs.CloseWrite()
		})
		in := newReceiver(ours)
		for {
			var r request
			if err := in.receive(&r); err != nil {
				break
			}
			if fds, err := in.take(r.files()); err == nil && len(fds) > 0 {
				t.Errorf("%+v has %d descriptors that nobody sent", r, len(fds))
			}
		}
		ours.Close()
		writing.Wait()
	})
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
