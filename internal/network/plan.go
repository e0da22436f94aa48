package network

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
)

// Machine is what the plan needs to know of a machine.
type Machine struct {
	Name     string
	Networks []int // 1 to 255, in the order of the machine's interfaces
	MicroVM  bool  // Firecracker, cloud-hypervisor: another MAC prefix
	// MACs are those that the cards shall have, in their order; nil, or the end of the
	// list: the planned ones.
	MACs []net.HardwareAddr
}

// Addresses is who has which address. Machines are in the order of names, the
// first has number 1.
type Addresses []MachineAddresses

// MachineAddresses is one machine in the plan.
type MachineAddresses struct {
	Name       string
	Number     int // 1 to 252
	Interfaces []Interface
}

// Interface is one network card in the plan.
type Interface struct {
	Name    string // in the guest: "eth1", …; eth0 is left for a way to the outside
	Network int
	MAC     net.HardwareAddr
	IPv4    netip.Prefix // the address, with the network's length; not valid for a further card on a network
	IPv6    netip.Prefix
}

// Prefixes are the card's addresses: none, or one of each version.
func (i Interface) Prefixes() []netip.Prefix {
	if !i.IPv4.IsValid() {
		return nil
	}
	return []netip.Prefix{i.IPv4, i.IPv6}
}

// Addrs are Prefixes without their lengths.
func (i Interface) Addrs() []netip.Addr {
	if !i.IPv4.IsValid() {
		return nil
	}
	return []netip.Addr{i.IPv4.Addr(), i.IPv6.Addr()}
}

// Host is one line of /etc/hosts.
type Host struct {
	Addr netip.Addr
	Name string
}

// A name goes into /etc/hosts, where a space or a newline would begin another.
var hostName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)

// maxMachines leaves two addresses for what a network has beside its machines.
const maxMachines = 252

// Services is the network card of the host that serves addresses and names on a
// network. No machine has its IPv6 address, as theirs have decimal digits only.
func Services(n int) Interface {
	return Interface{
		Name: "services", Network: n, MAC: mac(n, 254, false),
		IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n), 254}), 24),
		IPv6: netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::fe/64", n)),
	}
}

// Plan gives every machine its number, and an address in each of its networks,
// as NixOS tests have them (nixos/lib/testing/network.nix). It depends on
// nothing but the names, networks and kinds of the machines, whatever their
// order.
func Plan(machines []Machine) (Addresses, error) {
	if len(machines) > maxMachines {
		return nil, fmt.Errorf("%d machines: addresses 192.168.N.1 to 192.168.N.%[2]d are enough for %[2]d; the two above are the network's own", len(machines), maxMachines)
	}
	sorted := slices.SortedFunc(slices.Values(machines), func(a, b Machine) int { return cmp.Compare(a.Name, b.Name) })
	var plan Addresses
	for i, m := range sorted {
		if i > 0 && sorted[i-1].Name == m.Name {
			return nil, fmt.Errorf("machine %s: another machine has the same name", m.Name)
		}
		a, err := m.addresses(i + 1)
		if err != nil {
			return nil, err
		}
		plan = append(plan, a)
	}
	return plan, nil
}

// Add is the plan with one machine more, which gets the lowest free number: those
// that are there keep their addresses.
func (a Addresses) Add(m Machine) (Addresses, error) {
	if _, ok := a.Machine(m.Name); ok {
		return nil, fmt.Errorf("machine %s: another machine has the same name", m.Name)
	}
	number := 1
	for slices.ContainsFunc(a, func(x MachineAddresses) bool { return x.Number == number }) {
		number++
	}
	if number > maxMachines {
		return nil, fmt.Errorf("machine %s: no free address: %d machines use all", m.Name, maxMachines)
	}
	added, err := m.addresses(number)
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(slices.Values(append(slices.Clone(a), added)), func(x, y MachineAddresses) int { return cmp.Compare(x.Name, y.Name) }), nil
}

// Visitor gives addresses to what is on the networks beside the machines, and
// not in the plan: the n-th, counted from 0, has the n-th highest number.
func (a Addresses) Visitor(m Machine, n int) (MachineAddresses, error) {
	number := maxMachines - n
	if number < 1 || slices.ContainsFunc(a, func(x MachineAddresses) bool { return x.Number == number }) {
		return MachineAddresses{}, fmt.Errorf("%s: no free address: %d machines and %d VDE clients use all", m.Name, len(a), n)
	}
	return m.addresses(number)
}

// addresses are those of the machine with a number.
func (m Machine) addresses(number int) (MachineAddresses, error) {
	a := MachineAddresses{Name: m.Name, Number: number}
	if !hostName.MatchString(m.Name) {
		return a, fmt.Errorf("machine %q: the name must be letters, digits, - and _, and begin with a letter or digit", m.Name)
	}
	for j, n := range m.Networks {
		if n < 1 || n > 255 {
			return a, fmt.Errorf("machine %s: network %d: networks are numbered from 1 to 255", m.Name, n)
		}
		i := Interface{Name: fmt.Sprintf("eth%d", j+1), Network: n, MAC: mac(n, number, m.MicroVM)}
		if before := count(m.Networks[:j], n); before > 0 {
			// Its address is the guest's affair: one subnet on two cards is none of the kinds
			// of networks that a test can mean.
			i.MAC[3] += byte(before)
		} else {
			i.IPv4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n), byte(number)}), 24)
			// The decimal digits are taken for hexadecimal ones: network 12 is 2001:db8:12::.
			i.IPv6 = netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::%d/64", n, number))
		}
		if j < len(m.MACs) && m.MACs[j] != nil {
			i.MAC = m.MACs[j]
		}
		a.Interfaces = append(a.Interfaces, i)
	}
	return a, nil
}

func count(list []int, n int) (c int) {
	for _, x := range list {
		if x == n {
			c++
		}
	}
	return c
}

func mac(network, number int, microVM bool) net.HardwareAddr {
	if microVM {
		return net.HardwareAddr{0xaa, 0xfc, 0x00, byte(network), byte(number), 0x01}
	}
	return net.HardwareAddr{0x52, 0x54, 0x00, 0x12, byte(network), byte(number)}
}

// Machine finds a machine by name.
func (a Addresses) Machine(name string) (MachineAddresses, bool) {
	i, ok := slices.BinarySearchFunc(a, name, func(m MachineAddresses, name string) int { return cmp.Compare(m.Name, name) })
	if !ok {
		return MachineAddresses{}, false
	}
	return a[i], true
}

// Hosts is every name that the machine name must know: its own, for its first
// interface only (as on NixOS, so that it is one address to itself and to
// others), and those of all other machines. Of another machine the addresses in
// a shared network come first, in the order of this machine's interfaces: these
// answer. The others follow, because a test may make some machine a router;
// without one they are unreachable at once and cost no time.
func (a Addresses) Hosts(name string) []Host {
	self, ok := a.Machine(name)
	if !ok {
		return nil
	}
	var hosts []Host
	for _, m := range a {
		interfaces := m.Interfaces
		if m.Name == name {
			interfaces = interfaces[:min(1, len(interfaces))]
		} else {
			interfaces = slices.SortedStableFunc(slices.Values(interfaces), func(x, y Interface) int {
				return cmp.Compare(self.rank(x.Network), self.rank(y.Network))
			})
		}
		for _, i := range interfaces {
			for _, addr := range i.Addrs() {
				hosts = append(hosts, Host{addr, m.Name})
			}
		}
	}
	return hosts
}

// rank is the place of a network among the machine's own; after all of them if
// it is not on it.
func (m MachineAddresses) rank(network int) int {
	for i, x := range m.Interfaces {
		if x.Network == network {
			return i
		}
	}
	return len(m.Interfaces)
}
