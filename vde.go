package attest

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/network/vde"
)

// vdeSockets are the directories through which programs that speak VDE join
// the lab's networks.
type vdeSockets struct {
	mu     sync.Mutex
	hubs   map[string]*vde.Hub // by the name of their directory
	closed bool
}

// VDESocket is the directory of a network's VDE socket: what QEMU's
// -netdev vde,sock=DIR, vde_plug and vde_plug2tap take. Whoever connects is one
// more on the network; who sends from the planned address of a machine's
// network card is that machine, for faults and captures. It is made when it is first asked
// for, is for this user alone, and goes with the lab.
func (l *Lab) VDESocket(number int) (dir string, err error) {
	if !l.hasNetwork(number) {
		return "", &ConfigError{"lab", fmt.Sprintf("no machine is on network %d", number)}
	}
	return l.network.vde.listen(l, fmt.Sprint("vde", number), func(ctx context.Context, p vde.Plug) (vde.Port, error) {
		return l.visit(ctx, number, p)
	})
}

// vdeSocket is the same for one machine's start command: what comes by it is that
// machine.
func (m *Machine) vdeSocket(number int) (dir string, err error) {
	nic := network.NIC{Machine: m.Name(), ID: fmt.Sprint("net", number)} // not in the plan
	for _, i := range m.address.Interfaces {
		if i.Network == number {
			nic.ID, nic.MAC = i.Name, i.MAC
		}
	}
	return m.lab.network.vde.listen(m.lab, fmt.Sprintf("vde%d.%d", number, m.address.Number), func(ctx context.Context, p vde.Plug) (vde.Port, error) {
		return m.lab.network.fabric.Switch(number).AttachDatagram(ctx, nic, p.Conn)
	})
}

// listen makes a directory once.
func (v *vdeSockets) listen(l *Lab, name string, attach vde.Attach) (dir string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return "", errLabClosed
	}
	if h := v.hubs[name]; h != nil {
		return h.Dir(), nil
	}
	h, err := vde.Listen(l.ctx, filepath.Join(l.dir, name), attach)
	if err != nil {
		return "", &InfraError{Action: "make the VDE socket " + name, Err: err}
	}
	if v.hubs == nil {
		v.hubs = map[string]*vde.Hub{}
	}
	v.hubs[name] = h
	return h.Dir(), nil
}

// close unplugs all clients.
func (v *vdeSockets) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for _, h := range v.hubs {
		h.Close()
	}
}

// A visitor is a client of a VDE socket. Its MAC, and so its identity, is unknown until it has sent
// something. Until then it only receives.
type visitor struct {
	lab    *Lab
	number int
	nic    network.NIC
	conn   *net.UnixConn
	done   chan struct{}

	mu   sync.Mutex
	gone bool          // it was unplugged
	port *network.Port // nil: it has sent nothing yet
}

func (l *Lab) visit(ctx context.Context, number int, p vde.Plug) (vde.Port, error) {
	v := &visitor{lab: l, number: number, nic: network.NIC{ID: fmt.Sprint("vde", p.Number)}, conn: p.Conn, done: make(chan struct{})}
	silent, err := l.network.fabric.Switch(number).AttachFrames(ctx, v.nic, &listener{conn: p.Conn, closed: make(chan struct{})})
	if err != nil {
		p.Conn.Close()
		return nil, err
	}
	go v.run(ctx, silent)
	return v, nil
}

func (v *visitor) Done() <-chan struct{} { return v.done }

// Close unplugs it.
func (v *visitor) Close() error {
	v.mu.Lock()
	v.gone = true
	if v.port != nil {
		v.port.Close()
	} else {
		v.conn.SetReadDeadline(time.Unix(1, 0)) // for peekSender
	}
	v.mu.Unlock()
	<-v.done
	return nil
}

// run is the visitor's life: at one port without a name, and then at its own.
func (v *visitor) run(ctx context.Context, silent *network.Port) {
	defer close(v.done)
	defer v.conn.Close()
	sender, err := peekSender(v.conn)
	silent.Close()
	if err != nil {
		return
	}
	if nic, ok := v.lab.nicOf(v.number, sender); ok {
		v.nic = nic
	}
	if port := v.attach(ctx); port != nil {
		<-port.Done()
	}
}

// attach gives it its port, unless it is gone meanwhile.
func (v *visitor) attach(ctx context.Context) *network.Port {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.conn.SetDeadline(time.Time{})
	if !v.gone {
		v.port, _ = v.lab.network.fabric.Switch(v.number).AttachDatagram(ctx, v.nic, v.conn)
	}
	return v.port
}

// nicOf finds the network card that has an address in the plan.
func (l *Lab) nicOf(number int, mac net.HardwareAddr) (network.NIC, bool) {
	for _, m := range l.Machines() {
		for _, i := range m.address.Interfaces {
			if i.Network == number && i.MAC.String() == mac.String() {
				return network.NIC{Machine: m.Name(), ID: i.Name, MAC: i.MAC}, true
			}
		}
	}
	return network.NIC{}, false
}

// peekSender waits for the first frame, and leaves it where it is.
func peekSender(conn *net.UnixConn) (net.HardwareAddr, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	head := make([]byte, 12) // two addresses
	var n int
	err2 := raw.Read(func(fd uintptr) bool {
		for {
			n, _, err = unix.Recvfrom(int(fd), head, unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if err == unix.EINTR {
				continue
			}
			if err == nil && n < len(head) { // no frame: away with it
				unix.Recvfrom(int(fd), head, unix.MSG_DONTWAIT)
				continue
			}
			return err != unix.EAGAIN
		}
	})
	if err == nil {
		err = err2
	}
	return head[6:], err
}

// A listener is a connection on which nothing is read, that lives on when its port
// is closed.
type listener struct {
	conn   *net.UnixConn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Read([]byte) (int, error) {
	<-l.closed
	return 0, net.ErrClosed
}

func (l *listener) Write(p []byte) (int, error) { return l.conn.Write(p) }

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.conn.SetWriteDeadline(time.Unix(1, 0)) // for one who does not read
	})
	return nil
}
