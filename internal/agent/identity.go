package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// applyIdentity gives the guest its identity; files are below root. It can be
// repeated: a machine that was restored from a snapshot gets a new identity by
// the same operation.
func applyIdentity(id wire.Identity, root string) error {
	// Entropy and time first: what follows may make keys and write times.
	return errors.Join(
		addEntropy(id.Entropy),
		setTime(id.Time),
		setHostname(root, id.Hostname),
		setMachineID(root, id.MachineID),
		setHosts(root, id.Hosts),
		setInterfaces(id.Interfaces),
		setNameservers(root, id.Nameservers),
	)
}

// addEntropy mixes b into the kernel's random generator and makes it use it at
// once: clones of one snapshot give the same numbers until then. Writing to
// /dev/urandom alone would take effect at the next reseed, minutes later.
func addEntropy(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("entropy: %w", err)
	}
	defer f.Close()
	// struct rand_pool_info of linux/random.h: bits, bytes, and the bytes.
	info := make([]uint32, 2+(len(b)+3)/4)
	info[0], info[1] = uint32(8*len(b)), uint32(len(b))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&info[2])), 4*len(info[2:])), b)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return fmt.Errorf("entropy: RNDADDENTROPY: %w", errno)
	}
	const rndReseedCRNG = 0x5207 // linux/random.h; missing in x/sys. Linux 4.14.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 && errno != unix.EINVAL && errno != unix.ENODATA {
		return fmt.Errorf("entropy: RNDRESEEDCRNG: %w", errno)
	}
	return nil
}

// maxClockError is how far the clock may be off: the time is as old as the
// message, and a guest under load takes a while to read that.
const maxClockError = 50 * time.Millisecond

func setTime(t time.Time) error {
	if t.IsZero() || time.Since(t).Abs() <= maxClockError {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// stepClock moves the clock and says what time it is now.
func stepClock(step time.Duration) (wire.ClockResult, error) {
	if step != 0 {
		ts := unix.NsecToTimespec(time.Now().Add(step).UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return wire.ClockResult{}, fmt.Errorf("set the clock: %w", err)
		}
	}
	return wire.ClockResult{Time: time.Now()}, nil
}

func setHostname(root, name string) error {
	if name == "" {
		return nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return writeIfChanged(filepath.Join(root, "etc/hostname"), name+"\n", 0o644)
}

func setMachineID(root, id string) error {
	if id == "" {
		return nil
	}
	path := filepath.Join(root, "etc/machine-id")
	old, _ := os.ReadFile(path)
	if err := writeIfChanged(path, id+"\n", 0o444); err != nil {
		return err
	}
	return linkJournals(root, strings.TrimSpace(string(old)), id)
}

// linkJournals keeps the journal of a guest that gets another machine-id: journald
// goes on in the directory of the old one, and journalctl looks into that of the new.
func linkJournals(root, old, id string) error {
	if old == "" || old == id || strings.Contains(old, "/") {
		return nil
	}
	for _, dir := range []string{"run/log/journal", "var/log/journal"} {
		dir = filepath.Join(root, dir)
		if _, err := os.Stat(filepath.Join(dir, old)); err != nil {
			continue
		}
		if err := os.Symlink(old, filepath.Join(dir, id)); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("the journal of the new machine-id: %w", err)
		}
	}
	return nil
}

const (
	hostsBegin = "# attest: machines of this lab"
	hostsEnd   = "# attest: end"
)

func setHosts(root string, hosts []wire.Host) error {
	if len(hosts) == 0 {
		return nil
	}
	path := filepath.Join(root, "etc/hosts")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(old) == 0 {
		old = []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	}
	return writeIfChanged(path, hostsText(string(old), hosts), 0o644)
}

// hostsText is old with the block of attest's lines replaced, or put in front:
// the first address of a name wins.
func hostsText(old string, hosts []wire.Host) string {
	var block strings.Builder
	block.WriteString(hostsBegin + "\n")
	for _, h := range hosts {
		for _, a := range h.Addresses {
			fmt.Fprintf(&block, "%s %s\n", a, h.Name)
		}
	}
	block.WriteString(hostsEnd + "\n")
	before, rest, found := strings.Cut(old, hostsBegin+"\n")
	if found {
		if _, after, ok := strings.Cut(rest, hostsEnd+"\n"); ok {
			return before + block.String() + after
		}
	}
	return block.String() + old
}

// writeIfChanged writes a file in place, so that a file that is bind-mounted or
// a link stays what it is, and leaves it alone if it has this content.
func writeIfChanged(path, content string, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == content {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := overwrite(path, content, mode)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EROFS) {
		// A link into a file system that is not there yet, or a read-only one
		// (NixOS: /etc/hosts is in the store): a file of our own takes its place.
		if err = os.Remove(path); err == nil {
			err = overwrite(path, content, mode)
		}
	}
	return err
}

// overwrite is os.WriteFile, but cuts the file only where it was longer: ext4 writes a file
// that was cut to nothing to the disk as soon as it is closed.
func overwrite(path, content string, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err == nil {
		var st os.FileInfo
		if st, err = f.Stat(); err == nil && st.Size() > int64(len(content)) {
			err = f.Truncate(int64(len(content)))
		}
	}
	return errors.Join(err, f.Close())
}

// dump lists what the kernel has, again when it changed in the middle of that.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		all, err := list()
		if try == 100 || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}

func setInterfaces(want []wire.Interface) error {
	if len(want) == 0 {
		return nil
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list network interfaces: %w", err)
	}
	byMAC := map[string]netlink.Link{}
	for _, l := range links {
		byMAC[l.Attrs().HardwareAddr.String()] = l
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			err = errors.Join(err, netlink.LinkSetUp(l))
		}
	}
	taken := map[string]netlink.Link{}
	for _, l := range links {
		taken[l.Attrs().Name] = l
	}
	for _, w := range want {
		mac, parseErr := net.ParseMAC(w.MAC)
		link := byMAC[mac.String()]
		if other := byMAC[w.Was]; link == nil && parseErr == nil && other != nil && w.Was != "" {
			// Down and up again: addresses that the kernel made of the old one go.
			link = other
			err = errors.Join(err, netlink.LinkSetDown(link), netlink.LinkSetHardwareAddr(link, mac))
		}
		switch {
		case parseErr != nil:
			err = errors.Join(err, parseErr)
		case link == nil:
			err = errors.Join(err, fmt.Errorf("no network interface has the address %s", w.MAC))
		default:
			err = errors.Join(err, setInterface(link, w, taken))
		}
	}
	return err
}

// setInterface gives one interface its name and addresses, and turns it on.
// taken is who has which name, and is kept up to date.
func setInterface(link netlink.Link, w wire.Interface, taken map[string]netlink.Link) error {
	name := link.Attrs().Name
	wrap := func(what string, err error) error { return fmt.Errorf("%s (%s): %s: %w", name, w.MAC, what, err) }
	if w.Name != "" && w.Name != name {
		// An interface is renamed while it is down; one that has the name
		// makes room, as its turn may come later.
		if other := taken[w.Name]; other != nil {
			aside := fmt.Sprintf("attest%d", other.Attrs().Index)
			if err := rename(other, aside); err != nil {
				return wrap("make room for "+w.Name, err)
			}
			taken[aside] = other
		}
		if err := rename(link, w.Name); err != nil {
			return wrap("rename to "+w.Name, err)
		}
		delete(taken, name)
		taken[w.Name] = link
	}
	have, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return wrap("list addresses", err)
	}
	wanted := map[string]bool{}
	for _, p := range w.Addresses {
		wanted[p.String()] = true
	}
	for _, a := range have {
		// Addresses of an earlier identity go; link-local ones are the kernel's.
		if len(w.Addresses) > 0 && !wanted[a.IPNet.String()] && !a.IP.IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return wrap("remove "+a.IPNet.String(), err)
			}
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return wrap("turn on", err)
	}
	for _, p := range w.Addresses {
		bits := p.Addr().BitLen()
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), bits)}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once: nobody else has it
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return wrap("add "+p.String(), err)
		}
	}
	for _, a := range w.Gateways {
		anywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if a.Is6() {
			anywhere = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: anywhere, Gw: a.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return wrap("route by "+a.String(), err)
		}
	}
	return nil
}

func setNameservers(root string, servers []netip.Addr) error {
	if len(servers) == 0 {
		return nil
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %v\n", s)
	}
	return writeIfChanged(filepath.Join(root, "etc/resolv.conf"), b.String(), 0o644)
}

func rename(l netlink.Link, name string) error {
	if err := netlink.LinkSetDown(l); err != nil {
		return err
	}
	return netlink.LinkSetName(l, name)
}
