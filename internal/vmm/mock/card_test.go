package mock

import (
	"bytes"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm"
)

// testLink is a cable whose other end a test has.
type testLink struct{ ours net.Conn }

func (l *testLink) pair(kind int) (*net.UnixConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	if err := l.TAP(os.NewFile(uintptr(fds[0]), "ours")); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(theirs)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func (l *testLink) Stream() (*net.UnixConn, error)  { return l.pair(unix.SOCK_STREAM) }
func (l *testLink) Packets() (*net.UnixConn, error) { return l.pair(unix.SOCK_SEQPACKET) }

func (l *testLink) TAP(f *os.File) (err error) {
	defer f.Close()
	l.ours, err = net.FileConn(f)
	return err
}

func (l *testLink) close() {
	if l.ours != nil {
		l.ours.Close()
	}
}

func TestCards(t *testing.T) {
	frame := append([]byte("\x01\x02\x03\x04\x05\x06\x11\x12\x13\x14\x15\x16\x88\xb5"), bytes.Repeat([]byte{7}, 1500)...)
	swapped := append([]byte("\x11\x12\x13\x14\x15\x16\x01\x02\x03\x04\x05\x06\x88\xb5"), frame[14:]...)
	for name, o := range map[string]struct {
		tap, packets bool
	}{
		"stream": {}, "packets": {packets: true}, "a TAP handed in": {tap: true},
	} {
		t.Run(name, func(t *testing.T) {
			link := &testLink{}
			t.Cleanup(link.close)
			s := startOn(t, vmm.Host{Packets: o.packets}, Options{InProcess: true, Echo: true, TAP: o.tap}, vmm.Config{NICs: []vmm.NIC{{ID: "net1", Link: link}}})
			conn := newFrameConn(link.ours)
			buf := make([]byte, maxFrame)
			if err := conn.writeFrame(frame); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.readFrame(buf); err != nil || !bytes.Equal(buf[:n], swapped) {
				t.Errorf("the echo is % x, %v", buf[:n], err)
			}
			if got := <-s.Received("net1"); !bytes.Equal(got, frame) {
				t.Errorf("the machine got % x", got)
			}
			// Without a cable nothing comes, and nothing goes out.
			if err := s.SetLink(t.Context(), "net1", false); err != nil {
				t.Fatal(err)
			}
			s.Send("net1", frame)
			if err := s.SetLink(t.Context(), "net1", true); err != nil {
				t.Fatal(err)
			}
			s.Send("net1", frame[:100])
			if n, err := conn.readFrame(buf); err != nil || !bytes.Equal(buf[:n], frame[:100]) {
				t.Errorf("the network got % x, %v", buf[:n], err)
			}
			if err := s.SetLink(t.Context(), "net2", false); err == nil {
				t.Error("a card that is not there has a cable")
			}
		})
	}
}
