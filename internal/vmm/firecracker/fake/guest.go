package fake

import (
	"fmt"
	"os"

	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
	"github.com/attest-vm/attest/internal/wire"
)

// boot starts the guest. The machine's mu is held.
func (m *machine) boot() {
	m.guest = fake.NewGuest(fake.Somebody(), false, os.Stdout, end)
	m.line.Connect(m.guest)
	m.guest.Say("Linux version fake: " + m.Boot.Args)
	for _, d := range m.Drives {
		m.guest.Limited(d.ID, d.Limiter)
	}
	for _, p := range m.Pmem {
		m.guest.Say(fmt.Sprintf("persistent memory %s, read-only: %v", p.ID, p.ReadOnly))
	}
	go m.guest.Listen(os.Stdin)
	m.guest.Flee(m.Manners)
}

// end is the end of a guest, as the VMM shows it: it runs on behind a power-off.
func end(q wire.PowerRequest) {
	if q.Reboot || q.Panic {
		os.Exit(0)
	}
}

// resume lets the guest go on. Its connections are those from before a snapshot no more.
func (m *machine) resume() {
	if m.fresh {
		m.fresh = false
		m.guest.Cut()
	}
	m.guest.Stop(false)
}

func (m *machine) putVsock(body []byte) error {
	var v vsock
	if err := m.decode(body, &v); err != nil {
		return err
	}
	m.Vsock = &v
	if err := m.listen(); err != nil {
		return faultf("Vsock config error: Cannot create backend for vsock device: %v", err)
	}
	return nil
}

func (m *machine) listen() error {
	if m.Vsock == nil {
		return nil
	}
	if m.line.Listen(m.Vsock.Path) != nil {
		return faultf("Error binding to the host-side Unix socket: Address in use (os error 98)")
	}
	return nil
}

func (m *machine) putNIC(id string, body []byte) error {
	var n nic
	if err := m.decode(body, &n); err != nil {
		return err
	}
	if n.ID != id {
		return faultf("The id from the path [%s] does not match the id from the body [%s]!", id, n.ID)
	}
	if err := m.plug(n); err != nil {
		return faultf("Network config error: Cannot create the network device: %v", err)
	}
	return nil
}

func (m *machine) plug(n nic) error {
	if err := fake.Plug(n.TAP); err != nil {
		return faultf("Open tap device failed: Error while creating ifreq structure: %v. Invalid TUN/TAP Backend provided by %s", err, n.TAP)
	}
	m.NICs = append(m.NICs, n)
	return nil
}
