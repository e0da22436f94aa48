package attest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"

	"github.com/attest-vm/attest/internal/event"
)

// ForwardPort listens on a port of this host's loopback address and carries
// every connection to a TCP port in the guest. It returns the host's port: 0 has
// one chosen. A machine that is off is started; connections wait until its guest
// has booted. The port is closed when the machine is powered off, crashes or ends with the
// lab.
//
// Connections go over the channel to the guest's agent, so no network is needed,
// and no fault of one is in the way. The service sees them come from the guest
// itself: they are made to localhost or, if nothing listens there, to the
// machine's own addresses.
func (m *Machine) ForwardPort(ctx context.Context, hostPort, guestPort int) (port int, err error) {
	args := fmt.Sprintf("host_port=%d, guest_port=%d", hostPort, guestPort)
	if hostPort < 0 || hostPort > 65535 || guestPort < 1 || guestPort > 65535 {
		return 0, &ConfigError{m.Name(), fmt.Sprintf("forward_port(%s): a port is 1 to 65535, and host_port=0 has one chosen", args)}
	}
	err = step(ctx, m.Name(), "forward_port", args, func(ctx context.Context) error {
		r, err := m.powered(ctx, "forward_port")
		if err == nil {
			port, err = r.forwards.listen(r, hostPort, guestPort)
		}
		return err
	})
	return port, err
}

// forwards are the forwarded ports of one run of a machine.
type forwards struct {
	mu        sync.Mutex
	listeners []net.Listener
	closed    bool
	running   sync.WaitGroup
}

func (f *forwards) listen(r *run, hostPort, guestPort int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := r.machine
	if f.closed {
		return 0, m.downError("forward_port", r.down)
	}
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(hostPort)))
	if err != nil {
		action := fmt.Sprintf("forward port %d of this host", hostPort)
		if errors.Is(err, syscall.EADDRINUSE) {
			action += ", which something else uses (host_port=0 has a free one chosen)"
		}
		return 0, &InfraError{m.Name(), action, err}
	}
	f.listeners = append(f.listeners, l)
	f.running.Go(func() { f.serve(r, l, guestPort) })
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (f *forwards) serve(r *run, l net.Listener, guestPort int) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		f.running.Go(func() {
			tcp := conn.(*net.TCPConn)
			abort := func() { tcp.SetLinger(0) } // the client sees a reset, not an end
			if err := r.guest.Connect(r.machine.lab.ctx, guestPort, tcp, abort); err != nil {
				event.Publish(r.machine.lab.ctx, event.Log{Machine: r.machine.Name(), Level: "warning",
					Text: fmt.Sprintf("forwarded connection to port %d: %v", guestPort, err)})
			}
		})
	}
}

// close ends the listeners and waits for the connections, which end with the
// guest's client.
func (f *forwards) close() {
	f.mu.Lock()
	f.closed = true
	for _, l := range f.listeners {
		l.Close()
	}
	f.mu.Unlock()
	f.running.Wait()
}
