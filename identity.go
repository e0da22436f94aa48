package attest

import (
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// identity is who the machine is: given to the guest whenever its agent starts.
// macs are the addresses that its network cards have, if they are another's.
func (m *Machine) identity(macs []string) wire.Identity {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	id := wire.Identity{
		Hostname:  m.Name(),
		MachineID: m.id,
		Time:      time.Now(),
		Entropy:   entropy,
	}
	for n, i := range m.address.Interfaces {
		id.Interfaces = append(id.Interfaces, wire.Interface{MAC: i.MAC.String(), Name: i.Name, Addresses: i.Prefixes()})
		if n < len(macs) {
			id.Interfaces[n].Was = macs[n]
		}
		if i.Network == outside {
			egressIdentity(&id, &id.Interfaces[n])
		}
	}
	id.Hosts = m.hosts()
	return id
}

// hosts are the machines that this one knows by name.
func (m *Machine) hosts() []wire.Host {
	var hosts []wire.Host
	for _, h := range m.lab.hosts(m.Name()) {
		if n := len(hosts); n > 0 && hosts[n-1].Name == h.Name {
			hosts[n-1].Addresses = append(hosts[n-1].Addresses, h.Addr)
			continue
		}
		hosts = append(hosts, wire.Host{Name: h.Name, Addresses: []netip.Addr{h.Addr}})
	}
	return hosts
}

// machineID is a fresh /etc/machine-id: the same over reboots, different for
// each machine of each lab.
func machineID() string {
	var id [16]byte
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // machine-id(5): as a random UUID
	return hex.EncodeToString(id[:])
}

// renewal is what a guest needs that stood still, and is not the only one that
// goes on from there.
func renewal() wire.Identity {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	return wire.Identity{Time: time.Now(), Entropy: entropy}
}
