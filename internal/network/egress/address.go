package egress

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A kind says which rules can open an address. docs/networks.md has the table.
type kind int

const (
	// public addresses are global unicast: the only ones that a name can open.
	public kind = iota
	// private addresses have a meaning in the host's surroundings alone.
	private
	// ofHost are the addresses of the host's own interfaces.
	ofHost
	// restricted addresses are those behind which clouds keep the credentials of
	// their machines, and all that is link-local.
	restricted
	// loopback is the gateway's own address, which stands for the host's loopback.
	loopback
	// never is what no guest has to reach: loopback, multicast and broadcast
	// addresses, and what means none.
	never
)

// why is the reason for which a rule that has an address does not open it.
func (k kind) why() string {
	switch k {
	case private:
		return "a name opens public addresses alone; list the address or its range, too"
	case ofHost:
		return `it is an address of this host, which a rule "host", the address itself or a range opens`
	case restricted:
		return "it is link-local or a cloud's metadata service, which the address itself opens, and nothing else"
	case loopback:
		return `it is the loopback of this host, which a rule "host" opens, and nothing else`
	case never:
		return "no rule opens loopback, multicast, broadcast and unspecified addresses"
	}
	return ""
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func contain(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

var (
	nowhere = prefixes(
		"0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32",
		"::/128", "::1/128", "ff00::/8",
		"::ffff:0:0/96", // IPv4 inside of a system, on no wire (RFC 4291 2.5.5.2)
	)

	// metadata is where clouds serve the credentials of their machines. Many have taken
	// a link-local address for it.
	metadata = prefixes(
		"169.254.0.0/16", "fe80::/10",
		"100.100.100.200/32",  // Alibaba
		"168.63.129.16/32",    // Azure
		"192.0.0.192/32",      // Oracle
		"fd00:c1::/32",        // Oracle
		"fd00:ec2::/32",       // Amazon
		"fd20:ce::/32",        // Google
		"fd00:42::/32",        // Scaleway
		"fd00:a9fe:a9fe::/48", // Akamai
	)

	// metadata4 are also closed behind any prefix, since every network's translator may have
	// one of its own (RFC 6052 2.2).
	metadata4 = []netip.Addr{
		netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("169.254.170.2"), netip.MustParseAddr("169.254.170.23"),
		netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("192.0.0.192"),
	}

	// notPublic are unicast addresses that are not global (RFC 6890 and IANA's registries
	// of special-purpose addresses). Those for documentation are nobody's.
	notPublic = prefixes(
		"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "240.0.0.0/4",
		"2001::/23",
	)
	globalIPv6 = netip.MustParsePrefix("2000::/3")
	sixToFour  = netip.MustParsePrefix("2002::/16")                   // RFC 3056
	nat64      = netip.MustParsePrefix("64:ff9b::/96")                // RFC 6052
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")              // RFC 8215
	teredo     = netip.MustParsePrefix("2001::/32")                   // RFC 4380
	isatap     = [2][4]byte{{0, 0, 0x5e, 0xfe}, {2, 0, 0x5e, 0xfe}}   // RFC 5214 6.1
	lastFour   = prefixes("64:ff9b::/96", "::/96", "::ffff:0:0:0/96") // NAT64, IPv4-compatible (RFC 4291 2.5.5.1), IPv4-translated (RFC 2765)
)

// kindOf says what an address is. That of an IPv6 address through which some
// translator or tunnel reaches an IPv4 address is the stricter of the two.
func kindOf(a netip.Addr) kind {
	k := plainKind(a)
	for _, inner := range embedded(a) {
		k = max(k, plainKind(inner))
	}
	if a.Is6() && slices.Contains(metadata4, last4(a)) {
		k = max(k, restricted)
	}
	return k
}

func plainKind(a netip.Addr) kind {
	switch {
	case a.Zone() != "" || !a.IsValid() || contain(nowhere, a):
		return never
	case contain(metadata, a):
		return restricted
	case a.Is4() && !contain(notPublic, a), nat64.Contains(a), a.Is6() && globalIPv6.Contains(a) && !contain(notPublic, a):
		return public
	}
	return private
}

// embedded are the IPv4 addresses that something on the way may make of an IPv6
// address.
func embedded(a netip.Addr) (inner []netip.Addr) {
	if !a.Is6() {
		return nil
	}
	b := a.As16()
	at := func(i, j, k, l int) {
		if b[i] != 0 { // 0.0.0.0/8 is what is there if no address is
			inner = append(inner, netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]}))
		}
	}
	if contain(lastFour, a) {
		at(12, 13, 14, 15)
	}
	if sixToFour.Contains(a) {
		at(2, 3, 4, 5)
	}
	if nat64Local.Contains(a) { // of any length that its prefix may have
		at(6, 7, 9, 10)
		at(7, 9, 10, 11)
		at(9, 10, 11, 12)
		at(12, 13, 14, 15)
	}
	if teredo.Contains(a) {
		at(4, 5, 6, 7)
		inner = append(inner, netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}))
	}
	if id := [4]byte(b[8:12]); id == isatap[0] || id == isatap[1] {
		at(12, 13, 14, 15)
	}
	return inner
}

func last4(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// isLocal asks the kernel whether packets to an address end in this host, as those to the
// addresses of its interfaces do, or go to everybody on a link.
func isLocal(a netip.Addr) (bool, error) {
	routes, err := netlink.RouteGet(a.AsSlice())
	for _, none := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} { // no route, or one that refuses
		if errors.Is(err, none) {
			return false, nil
		}
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST {
			return true, err
		}
	}
	return false, err
}
