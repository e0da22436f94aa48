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
		return 0, &ConfigError{m.Name(), fmt.Sprintf("forward_port(%s): want ports from 1 to 65535; host_port=0 chooses a free one", args)}
	}
	err = step(ctx, m.Name(), "forward_port", args, func(ctx context.Context) error {
		r, err := m.powered(ctx, "forward_port")
		if err == nil {
			port, err = r.forward(hostPort, guestPort)
		}
		return err
	})
	return port, err
}

// forward listens on a port of this host for as long as the run lasts.
func (r *run) forward(hostPort, guestPort int) (int, error) {
	m := r.machine
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(hostPort)))
	if err != nil {
		action := fmt.Sprintf("forward port %d of this host", hostPort)
		if errors.Is(err, syscall.EADDRINUSE) {
			action += ", which something else uses (host_port=0 has a free one chosen)"
		}
		return 0, &InfraError{m.Name(), action, err}
	}
	var serving sync.WaitGroup
	serving.Go(func() { r.serveForward(l, guestPort, &serving) })
	if !r.closers.add(func() {
		l.Close()
		serving.Wait() // connections end with the guest's client
	}) {
		return 0, m.downError("forward_port", r.down)
	}
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (r *run) serveForward(l net.Listener, guestPort int, serving *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		serving.Go(func() {
			tcp := conn.(*net.TCPConn)
			abort := func() { tcp.SetLinger(0) } // the client sees a reset, not an end
			if err := r.guest.Connect(r.machine.lab.ctx, guestPort, tcp, abort); err != nil {
				event.Publish(r.machine.lab.ctx, event.Log{Machine: r.machine.Name(), Level: "warning",
					Text: fmt.Sprintf("forwarded connection to port %d: %v", guestPort, err)})
			}
		})
	}
}
