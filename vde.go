package attest

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/network/vde"
)

// vdeSockets are the directories through which programs that speak VDE join
// the lab's networks.
type vdeSockets struct {
	mu     sync.Mutex
	hubs   map[int]*vde.Hub
	closed bool
}

// VDESocket is the directory of a network's VDE socket: what QEMU's
// -netdev vde,sock=DIR, vde_plug and vde_plug2tap take. Whoever connects is one
// more machine on the network. It is made when it is first asked for, is for
// this user alone, and goes with the lab.
func (l *Lab) VDESocket(number int) (dir string, err error) {
	if !l.hasNetwork(number) {
		return "", &ConfigError{"lab", fmt.Sprintf("no machine is on network %d", number)}
	}
	l.vde.mu.Lock()
	defer l.vde.mu.Unlock()
	if l.vde.closed {
		return "", errLabClosed
	}
	if h := l.vde.hubs[number]; h != nil {
		return h.Dir(), nil
	}
	h, err := vde.Listen(l.ctx, filepath.Join(l.dir, fmt.Sprint("vde", number)), func(ctx context.Context, p vde.Plug) (vde.Port, error) {
		return l.fabric.Switch(number).AttachDatagram(ctx, network.NIC{Machine: "vde", ID: fmt.Sprint(p.Number)}, p.Conn)
	})
	if err != nil {
		return "", &InfraError{Action: fmt.Sprintf("make the VDE socket of network %d", number), Err: err}
	}
	if l.vde.hubs == nil {
		l.vde.hubs = map[int]*vde.Hub{}
	}
	l.vde.hubs[number] = h
	return h.Dir(), nil
}

// close unplugs everybody.
func (v *vdeSockets) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for _, h := range v.hubs {
		h.Close()
	}
}
