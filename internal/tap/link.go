package tap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Link is one interface of the namespace, and the TAP that comes out of it.
type Link struct {
	Name string // at most 15 bytes
	// ForVMM: the program opens the TAP of this name itself, as VMMs do.
	// Otherwise the interface is the namespace's own.
	ForVMM bool
	MTU    int // 0: 1500

	// Of the namespace's own interface, not for VMMs.
	MAC       net.HardwareAddr // nil: the kernel chooses
	Addresses []netip.Prefix
}

const defaultMTU = 1500

// make makes the interface in the namespace of this process and returns the TAP.
func (l Link) make(index int) (*os.File, error) {
	if l.ForVMM {
		return l.makeForVMM(index)
	}
	f, err := openTAP(l.Name, 0)
	if err != nil {
		return nil, err
	}
	if err := l.configure(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// configure makes the interface the namespace's own.
func (l Link) configure() error {
	link, err := setLink(l.Name, l.MTU)
	if err != nil {
		return err
	}
	if l.MAC != nil {
		if err := netlink.LinkSetHardwareAddr(link, l.MAC); err != nil {
			return failed("set the address of "+l.Name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return failed("turn on "+l.Name, err)
	}
	for _, p := range l.Addresses {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once: nobody else has it
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return failed(fmt.Sprintf("give %s the address %v", l.Name, p), err)
		}
	}
	return nil
}

// makeForVMM makes a TAP that stays until a VMM opens it, one for this process,
// and a bridge between them.
func (l Link) makeForVMM(index int) (_ *os.File, err error) {
	// Which features the VMM wants of it is decided when it opens it.
	theirs, err := openTAP(l.Name, unix.IFF_VNET_HDR)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	if err := unix.IoctlSetInt(int(theirs.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		return nil, failed("keep the TAP "+l.Name, err)
	}
	ours := fmt.Sprintf("attest%d", index)
	f, err := openTAP(ours, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	off, all := false, uint16(0xfff8) // all that a bridge may be told to pass on: LLDP, 802.1X, …
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("bridge%d", index)}, MulticastSnooping: &off, GroupFwdMask: &all}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, failed("make a bridge", err)
	}
	for _, name := range []string{l.Name, ours, bridge.Name} {
		link, err := setLink(name, l.MTU)
		if err == nil {
			err = silence(name)
		}
		if err == nil && name != bridge.Name {
			err = join(link, bridge)
		}
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			return nil, failed("set up "+name, err)
		}
	}
	return f, nil
}

// join makes an interface one of the two ends of a bridge: what comes in at one
// goes out at the other, whatever its address.
func join(link netlink.Link, bridge *netlink.Bridge) error {
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return err
	}
	return netlink.LinkSetLearning(link, false)
}

func setLink(name string, mtu int) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, failed("find "+name, err)
	}
	if mtu == 0 {
		mtu = defaultMTU
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return nil, failed(fmt.Sprintf("set the MTU of %s to %d", name, mtu), err)
	}
	return link, nil
}

// silence stops the kernel from adding or dropping frames: a machine's link carries
// what the machine sends, all of it and nothing else.
func silence(name string) error {
	settings := []struct{ file, value string }{
		// No router solicitations of the interface's own.
		{filepath.Join("ipv6/conf", name, "disable_ipv6"), "1"},
		// What crosses a bridge would be shown to the firewall, which drops packets
		// that it finds malformed.
		{"bridge/bridge-nf-call-iptables", "0"},
		{"bridge/bridge-nf-call-ip6tables", "0"},
		{"bridge/bridge-nf-call-arptables", "0"},
	}
	for _, s := range settings {
		err := os.WriteFile(filepath.Join("/proc/sys/net", s.file), []byte(s.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without that needs no telling
			return err
		}
	}
	return nil
}

const tunDevice = "/dev/net/tun"

// openTAP makes a TAP without packet information in front of its frames.
func openTAP(name string, features uint16) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, failed(openStep, err)
	}
	f := os.NewFile(uintptr(fd), name)
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | features)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		f.Close()
		return nil, failed(tapStep+name, err)
	}
	return f, nil
}
